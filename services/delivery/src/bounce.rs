//! Failing a recipient for good: one `Bounce` record fails it and makes the DSN a message of the same shard, so exactly one
//! DSN exists. RFC 3461 section 5.2 and RFC 5321 section 6.1: a report never reports about a report.

use bytes::Bytes;
use hikyaku_blob::body::{BodyReader, inline_body};
use hikyaku_directory::Decision;
use hikyaku_mail::dsn::{Failure, HEADER_BYTES_MAX, Report, header_of};
use hikyaku_mail::id::MessageId;
use hikyaku_mail::maillog;
use hikyaku_mail::path::Mailbox;
use hikyaku_mail::reply::Reply;
use hikyaku_proto::v1::recipient::Target;
use hikyaku_proto::v1::{
    Accept, Bounce, BouncedRecipient, Envelope, ExpandTarget, LocalTarget, Recipient, RemoteTarget,
    Status, record::Command,
};
use hikyaku_queue::machine::Answer;
use hikyaku_queue::work::Work;
use hikyaku_serve::metrics;

use crate::job::{ANSWER_TIMEOUT, Job, Step};
use crate::lanes::LaneKey;

/// Where failures of this recipient are reported: the null reverse-path stays one even through a list.
pub fn report_to(work: &Work) -> &str {
    let reverse_path = work.envelope.reverse_path.as_str();
    match &work.errors_to {
        Some(errors_to) if !reverse_path.is_empty() => errors_to,
        _ => reverse_path,
    }
}

/// Fails the recipient with `reply` and reports that, unless nobody may be told.
pub async fn fail(job: &mut Job<'_>, reply: Reply, reason: &str) -> Result<Step, Step> {
    let dsn = match report_address(job) {
        Some(to) => compose(job, &to, &reply).await?,
        None => None,
    };
    let (message, recipient) = job.work.key;
    let queued = dsn.as_ref().map(|(id, accept)| (*id, accept.clone()));
    let command = Command::Bounce(Bounce {
        message_id: Bytes::copy_from_slice(&message.to_bytes()),
        recipients: vec![BouncedRecipient {
            recipient,
            status: Some(Status::from(&reply)),
        }],
        dsn: dsn.map(|(_, accept)| accept),
    });
    if job.context.facts.commit(command).await == Answer::Void {
        // settled otherwise meanwhile; if not, it comes round again
        return Ok(Step::Done);
    }
    let Some((id, accept)) = queued else {
        metrics::DOUBLE_BOUNCES.add(1);
        job.settled("bounced", "", Some(&reply), "double bounce");
        return Ok(Step::Done);
    };
    job.settled("bounced", &id.to_string(), Some(&reply), reason);
    maillog::queued(maillog::Queued {
        queue_id: id,
        session: 0,
        tenant: &accept.tenant,
        reverse_path: "",
        recipients: 1,
        size: accept.body.as_ref().map_or(0, |body| body.size),
        reports_on: Some(message),
    });
    Ok(Step::Done)
}

/// Whom to tell, if anybody.
fn report_address(job: &Job<'_>) -> Option<Mailbox> {
    // RFC 3461 section 4.1: without NOTIFY failures are reported; with it only if it says FAILURE, and NEVER does not
    let notify = &job.work.recipient.notify;
    let unwanted = !notify.is_empty()
        && !notify
            .split(',')
            .any(|word| word.trim().eq_ignore_ascii_case("FAILURE"));
    let address = report_to(&job.work);
    if unwanted || address.is_empty() {
        return None;
    }
    let parsed = address.parse();
    if parsed.is_err() {
        tracing::warn!(queue_id = %job.work.key.0, address, "a report cannot be addressed");
    }
    parsed.ok()
}

/// The DSN and its queue id; `None` when the address it would go to does not exist.
async fn compose(
    job: &mut Job<'_>,
    to: &Mailbox,
    reply: &Reply,
) -> Result<Option<(MessageId, Accept)>, Step> {
    let resolution = job.resolve(to).await?;
    let tenant = match &resolution.tenant {
        Some(tenant) => tenant.to_string(),
        None => job.work.tenant.clone(),
    };
    let Some(target) = target(to, resolution.decision) else {
        return Ok(None);
    };
    let header = original_header(job).await;
    let ambient = job.context.shard.ambient();
    let now_ms = ambient.now_ms();
    let id = MessageId::new(job.context.shard.id(), now_ms, ambient.random());
    // the sender knows the address it wrote, not what became of it; a list's owner knows the member
    let address = match job.work.errors_to {
        Some(_) => &job.work.recipient.address,
        None => &job.work.original_address,
    };
    let failures = [Failure {
        address,
        original_recipient: &job.work.recipient.original_recipient,
        reply,
        last_attempt_ms: now_ms,
    }];
    let report = Report {
        reporting_mta: &job.context.options.host_name,
        to: to.as_str(),
        id,
        about: job.work.key.0,
        envelope_id: &job.work.envelope.envelope_id,
        received_ms: job.work.envelope.received_ms,
        time_ms: now_ms,
        failures: &failures,
        original_header: &header,
    };
    let body = inline_body(&report.to_message())
        .map_err(|error| Step::Failed(LaneKey::Body, error.to_string()))?;
    let accept = Accept {
        message_id: Bytes::copy_from_slice(&id.to_bytes()),
        envelope: Some(Envelope {
            received_ms: now_ms,
            body_8bit: !header.is_ascii(),
            ..Envelope::default()
        }),
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
    Ok(Some((id, accept)))
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

/// The header of the mail reported about, as much as fits; empty when the content cannot be had now, which delays no report.
async fn original_header(job: &mut Job<'_>) -> Vec<u8> {
    let Ok(body) = job.body().await else {
        return Vec::new();
    };
    let blobs = job.context.blobs.clone();
    let reading = async move {
        let mut reader = BodyReader::open(&*blobs, &body).await.ok()?;
        let mut content = Vec::new();
        while content.len() <= HEADER_BYTES_MAX
            && !content.windows(4).any(|four| four == b"\r\n\r\n")
        {
            match reader.read().await.ok()? {
                Some(chunk) => content.extend_from_slice(&chunk),
                None => break,
            }
        }
        Some(header_of(&content).to_vec())
    };
    match tokio::time::timeout(ANSWER_TIMEOUT, reading).await {
        Ok(Some(header)) => header,
        _ => Vec::new(),
    }
}
