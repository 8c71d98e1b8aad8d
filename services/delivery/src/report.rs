//! Reports to senders (RFC 3461): who wants to hear of what, and the message that says it.
//!
//! | event | told if NOTIFY | record that brings the report |
//! |---|---|---|
//! | failed, several together | is absent or says FAILURE | `Bounce` |
//! | delayed, once per recipient, several together | says DELAY | `Attempted{Delayed}` |
//! | delivered, also to a mailing list | says SUCCESS | `Attempted{Delivered}`, `Routed` |
//! | expanded into several addresses | says SUCCESS | `Routed` |
//!
//! Without NOTIFY nothing but failures is told: a forged sender would be told of mail it never sent. The null reverse-path is
//! never told anything. A report is part of the record of its event, so there is one of each, whatever crashes.

use bytes::Bytes;
use hikyaku_blob::body::{BodyReader, INLINE_MAX, inline_body};
use hikyaku_directory::Decision;
use hikyaku_mail::dsn::{self, Action, HEADER_BYTES_MAX, RETURNED_BYTES_MAX, Report, Returned};
use hikyaku_mail::id::MessageId;
use hikyaku_mail::maillog;
use hikyaku_mail::path::Mailbox;
use hikyaku_mail::reply::Reply;
use hikyaku_proto::v1::recipient::Target;
use hikyaku_proto::v1::{Accept, Envelope, ExpandTarget, LocalTarget, Recipient, RemoteTarget};
use hikyaku_queue::delays::asks;
use hikyaku_queue::work::Work;
use hikyaku_serve::metrics;

use crate::bounce::report_to;
use crate::job::{ANSWER_TIMEOUT, Job, Step};
use crate::lanes::LaneKey;

/// Addresses that one report names, where more are to be told of.
pub const ADDRESSES_MAX: usize = 100;

/// What is to be told.
#[derive(Clone, Debug)]
pub struct Event<'a> {
    /// What happened.
    pub action: Action,
    /// Why.
    pub reply: Option<&'a Reply>,
    /// Of a delay: when it was last tried, if it was.
    pub last_attempt_ms: Option<u64>,
    /// Of a delay: until when it is tried.
    pub retry_until_ms: Option<u64>,
    /// Others to whom it happened with this recipient.
    pub with: Vec<Other>,
}

/// Another recipient to whom the same happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Other {
    /// The address that the sender wrote.
    pub address: String,
    /// ORCPT, or empty.
    pub original_recipient: String,
    /// Why, if there is a reply that says so.
    pub reply: Option<Reply>,
    /// Of a delay: when it was last tried, if it was.
    pub last_attempt_ms: Option<u64>,
}

impl<'a> Event<'a> {
    /// `action`, just now.
    pub fn now(action: Action) -> Event<'a> {
        Event {
            action,
            reply: None,
            last_attempt_ms: None,
            retry_until_ms: None,
            with: Vec::new(),
        }
    }

    /// Given up because of `reply`.
    pub fn failed(reply: &'a Reply) -> Event<'a> {
        Event {
            reply: Some(reply),
            ..Event::now(Action::Failed)
        }
    }
}

/// A report ready to become a message.
#[derive(Clone, Debug)]
pub struct Composed {
    /// Its queue id.
    pub id: MessageId,
    /// Its record.
    pub accept: Accept,
    /// How many of the recipients it tells of, the first ones: a record has no room for more.
    pub told: usize,
    action: Action,
}

impl Composed {
    /// Writes the postmaster's line about the new message, once it is one.
    pub fn queued(&self, about: MessageId) {
        metrics::REPORTS.count_value(self.action.word());
        maillog::queued(maillog::Queued {
            queue_id: self.id,
            session: 0,
            tenant: &self.accept.tenant,
            reverse_path: "",
            recipients: 1,
            size: self.accept.body.as_ref().map_or(0, |body| body.size),
            reports_on: Some(about),
        });
    }
}

/// Whether the sender wants to hear of this (RFC 3461 section 4.1). Of a failure also one that cannot be told: see [`compose`].
pub fn wants(work: &Work, action: Action) -> bool {
    let notify = work.recipient.notify.as_str();
    let word = match action {
        Action::Failed if notify.is_empty() => return true,
        Action::Failed => "FAILURE",
        Action::Delayed => "DELAY",
        Action::Delivered | Action::Expanded => "SUCCESS",
    };
    asks(notify, word)
}

/// The report; `None` when there is nobody to tell: the null reverse-path, or an address that does not exist.
pub async fn compose(job: &mut Job<'_>, event: Event<'_>) -> Result<Option<Composed>, Step> {
    let Some(to) = addressee(&job.work, event.action) else {
        return Ok(None);
    };
    let Some((tenant, target)) = destination(job, &to, event.action).await? else {
        return Ok(None);
    };
    let returned = returned(job, event.action).await;
    let ambient = job.context.shard.ambient();
    let now_ms = ambient.now_ms();
    let id = MessageId::new(job.context.shard.id(), now_ms, ambient.random());
    let report = Report {
        action: event.action,
        reporting_mta: &job.context.options.host_name,
        to: to.as_str(),
        id,
        about: job.work.key.0,
        smtputf8: job.work.envelope.smtputf8,
        // ENVID is the sender's, and no business of a list's owner
        envelope_id: match list_owner(&job.work, event.action) {
            Some(_) => "",
            None => &job.work.envelope.envelope_id,
        },
        received_ms: job.work.envelope.received_ms,
        time_ms: now_ms,
        retry_until_ms: event.retry_until_ms,
        recipients: &told_of(&job.work, &event, now_ms),
        returned: returned.as_dsn(),
    };
    let (content, told) = fitting(report.clone());
    let envelope = Envelope {
        received_ms: now_ms,
        body_8bit: !content.is_ascii(),
        smtputf8: report.is_international(),
        ..Envelope::default()
    };
    let body =
        inline_body(&content).map_err(|error| Step::Failed(LaneKey::Body, error.to_string()))?;
    let accept = Accept {
        message_id: Bytes::copy_from_slice(&id.to_bytes()),
        envelope: Some(envelope),
        recipients: vec![Recipient {
            address: to.to_string(),
            target: Some(target),
            ..Recipient::default()
        }],
        body: Some(body),
        tenant,
        traceparent: job.work.traceparent.clone(),
        reports_on: Bytes::copy_from_slice(&job.work.key.0.to_bytes()),
    };
    Ok(Some(Composed {
        id,
        accept,
        told,
        action: event.action,
    }))
}

/// The report's text, no longer than a record takes, and how many recipients it tells of: what is returned goes first, then
/// recipients. Whoever names one mailbox a thousand times hears of some of them; the mail they were in must not wait for a report
/// that cannot be.
fn fitting(mut report: Report<'_>) -> (Vec<u8>, usize) {
    loop {
        let content = report.to_message();
        let told = report.recipients.len();
        if content.len() <= INLINE_MAX {
            return (content, told);
        }
        if report.returned != Returned::Header(&[]) {
            report.returned = Returned::Header(&[]);
        } else if told > 1 {
            report.recipients = report.recipients.split_at(told / 2).0;
        } else {
            return (content, told);
        }
    }
}

/// The report of success, if the sender wants it.
pub async fn of_success(job: &mut Job<'_>, event: Event<'_>) -> Result<Option<Composed>, Step> {
    if event.with.is_empty() && !wants(&job.work, event.action) {
        return Ok(None);
    }
    compose(job, event).await
}

/// Of a failure: who hears of it instead of the sender.
fn list_owner(work: &Work, action: Action) -> Option<&str> {
    let owner = work.errors_to.as_deref();
    owner.filter(|_| action == Action::Failed)
}

/// What a report calls a recipient: its address, and ORCPT or nothing. The sender knows the address it wrote, not what became of
/// it; a list's owner knows the member.
pub fn named(work: &Work, action: Action) -> (&str, &str) {
    let address = match list_owner(work, action) {
        Some(_) => &work.recipient.address,
        None => &work.original_address,
    };
    (address, &work.recipient.original_recipient)
}

/// Whom to tell, if anybody.
fn addressee(work: &Work, action: Action) -> Option<Mailbox> {
    let address = match action {
        Action::Failed => report_to(work),
        _ => &work.envelope.reverse_path,
    };
    if address.is_empty() {
        return None;
    }
    let parsed = address.parse();
    if parsed.is_err() {
        tracing::warn!(queue_id = %work.key.0, address, "a report cannot be addressed");
    }
    parsed.ok()
}

/// This recipient, unless only the others asked, and those.
fn told_of<'a>(work: &'a Work, event: &'a Event<'_>, now_ms: u64) -> Vec<dsn::Recipient<'a>> {
    let tried = |last_attempt_ms| match event.action {
        Action::Delayed => last_attempt_ms,
        _ => Some(now_ms),
    };
    let own = wants(work, event.action).then(|| {
        let (address, original_recipient) = named(work, event.action);
        dsn::Recipient {
            address,
            original_recipient,
            reply: event.reply,
            last_attempt_ms: tried(event.last_attempt_ms),
        }
    });
    let others = event.with.iter().map(|other| dsn::Recipient {
        address: &other.address,
        original_recipient: &other.original_recipient,
        reply: other.reply.as_ref(),
        last_attempt_ms: tried(other.last_attempt_ms),
    });
    own.into_iter().chain(others).collect()
}

/// Whose a report to this address is, and where it goes; `None` when it goes nowhere.
async fn destination(
    job: &mut Job<'_>,
    to: &Mailbox,
    action: Action,
) -> Result<Option<(String, Target)>, Step> {
    let is_failure = action == Action::Failed;
    let tenant = job.work.tenant.clone();
    let resolution = match job.ask(to).await? {
        Ok(resolution) => resolution,
        Err(doubt) => {
            // what it tells of does not wait until somebody mends the entry; the report does
            let queue_id = job.work.key.0;
            tracing::warn!(%queue_id, reason = doubt.reason, "the address to report to is in doubt");
            let later = Target::Expand(ExpandTarget::default());
            return Ok(is_failure.then_some((tenant, later)));
        }
    };
    let tenant = match &resolution.tenant {
        Some(tenant) => tenant.to_string(),
        None => tenant,
    };
    let target = target(to, resolution.decision);
    // nothing sends mail out yet: strangers who ask to hear that all is well must not fill the queue with what an operator holds
    let wanted = target.filter(|target| is_failure || !matches!(target, Target::Remote(_)));
    Ok(wanted.map(|target| (tenant, target)))
}

fn target(to: &Mailbox, decision: Decision) -> Option<Target> {
    Some(match decision {
        Decision::Local { account, .. } => Target::Local(LocalTarget {
            account: account.id.to_string(),
            tenant: account.tenant.to_string(),
            mbox: account.mbox.to_string(),
        }),
        Decision::Forward { .. } | Decision::Group { .. } => {
            Target::Expand(ExpandTarget::default())
        }
        Decision::Relay { host, .. } => Target::Remote(RemoteTarget {
            domain: format!("[{host}]"),
        }),
        Decision::Foreign => Target::Remote(RemoteTarget {
            domain: to.domain().to_owned(),
        }),
        Decision::NoSuchUser => return None,
    })
}

/// What is returned of the mail.
enum Content {
    Header(Vec<u8>),
    Whole(Vec<u8>),
}

impl Content {
    fn as_dsn(&self) -> Returned<'_> {
        match self {
            Content::Header(header) => Returned::Header(header),
            Content::Whole(message) => Returned::Message(message),
        }
    }
}

/// All of the mail if the sender asked for it (RFC 3461 section 4.3: only with a failure, and not for a list's owner) and it is
/// not too large, else its header, as much as fits; an empty one when the content cannot be had now, which delays no report.
async fn returned(job: &mut Job<'_>, action: Action) -> Content {
    let whole = action == Action::Failed
        && job.work.errors_to.is_none()
        && job.work.envelope.ret.eq_ignore_ascii_case("FULL")
        && job.work.size <= RETURNED_BYTES_MAX as u64;
    let Ok(body) = job.body().await else {
        return Content::Header(Vec::new());
    };
    let blobs = job.context.blobs.clone();
    let reading = async move {
        let mut reader = BodyReader::open(&*blobs, &body).await.ok()?;
        let mut content = Vec::new();
        while whole || !has_header(&content) {
            match reader.read().await.ok()? {
                Some(chunk) => content.extend_from_slice(&chunk),
                None => break,
            }
        }
        Some(content)
    };
    match tokio::time::timeout(ANSWER_TIMEOUT, reading).await {
        Ok(Some(content)) if whole => Content::Whole(content),
        Ok(Some(content)) => Content::Header(dsn::header_of(&content).to_vec()),
        _ => Content::Header(Vec::new()),
    }
}

fn has_header(content: &[u8]) -> bool {
    content.len() > HEADER_BYTES_MAX || content.windows(4).any(|four| four == b"\r\n\r\n")
}
