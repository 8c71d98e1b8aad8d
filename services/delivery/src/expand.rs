//! Aliases, forwards and groups: one step, decided by the directory now, recorded as `Routed`. The first one applied wins and
//! numbers the children, so whoever leads and however often, every child is delivered under one number.

use bytes::Bytes;
use hikyaku_directory::explain::{DEPTH_MAX, MEMBERS_MAX, RECIPIENTS_MAX, leads_somewhere};
use hikyaku_directory::{Account, Decision, Resolution};
use hikyaku_mail::dsn::Action;
use hikyaku_mail::path::Mailbox;
use hikyaku_mail::reply::Reply;
use hikyaku_proto::v1::recipient::Target;
use hikyaku_proto::v1::{
    ExpandTarget, LocalTarget, Recipient, RemoteTarget, Routed, record::Command,
};
use hikyaku_queue::delays::asks;
use hikyaku_queue::held;
use hikyaku_queue::machine::Answer;
use hikyaku_queue::room::bytes_of;

use crate::bounce;
use crate::job::{ANSWER_TIMEOUT, Job, Step};
use crate::lanes::LaneKey;
use crate::report::{self, Composed, Event};

/// What `hikyaku check` warns of is what the queue holds.
const _: () = assert!(RECIPIENTS_MAX == hikyaku_queue::recipient::RECIPIENTS_MAX);
/// Octets of children in one record, so that it fits any log with its report.
const CHILDREN_BYTES_MAX: usize = 768 * 1024;

/// The next step for a recipient that is to be resolved. `seen` are the entries followed on the way to it.
pub async fn step(job: &mut Job<'_>, seen: &[String]) -> Result<Step, Step> {
    let Ok(address) = job.work.recipient.address.parse::<Mailbox>() else {
        return job.hold(held::MALFORMED).await;
    };
    let resolution = job.resolve(&address).await?;
    route(job, &address, resolution, seen).await
}

/// Records what a resolution means for the recipient.
pub async fn route(
    job: &mut Job<'_>,
    address: &Mailbox,
    resolution: Resolution,
    seen: &[String],
) -> Result<Step, Step> {
    let rule = resolution.rule.word();
    let entry = match &resolution.entry {
        Some(entry) => entry.clone(),
        None => format!("address:{address}"),
    };
    let followed: Vec<String> = seen.iter().cloned().chain([entry.clone()]).collect();
    let is_met = seen.contains(&entry);
    match resolution.decision {
        Decision::Local {
            account,
            delivered_to,
        } => {
            if !account.state.takes_mail() {
                return disabled(job).await;
            }
            let child = local(job, &delivered_to, &account);
            routed_to(job, child, rule).await
        }
        Decision::Forward { .. } | Decision::Group { .. } if is_met || seen.len() >= DEPTH_MAX => {
            again(job, address, is_met).await
        }
        Decision::Forward { to } => {
            let mut children = children(job, &[to], &followed).await;
            match children.pop() {
                Some(only) => routed_to(job, only, rule).await,
                None => job.hold(held::MALFORMED).await,
            }
        }
        Decision::Group { members, .. } if members.len() > MEMBERS_MAX => {
            job.hold(held::GROUP_TOO_LARGE).await
        }
        Decision::Group { members, .. } if members.is_empty() => {
            let reply = Reply::new(550, (5, 1, 1), "nobody is in this group");
            bounce::fail(job, reply, "group without members").await
        }
        Decision::Group { members, errors_to } => {
            let mut children = children(job, &members, &followed).await;
            if let (None, [only]) = (&errors_to, &children[..]) {
                // like a forward: the wish to hear of success goes on to it (RFC 3461 section 5.2.7.2)
                return routed_to(job, only.clone(), rule).await;
            }
            let report = told_of_members(job, &mut children, errors_to.is_some()).await?;
            routed(job, children, errors_to, rule, report).await
        }
        Decision::Relay { host, address } => {
            // the brackets say: this host itself, not its MX
            let child = remote(job, &address, format!("[{host}]"));
            routed(job, vec![child], None, rule, None).await
        }
        Decision::Foreign => {
            let child = remote(job, address, address.domain().to_owned());
            routed(job, vec![child], None, rule, None).await
        }
        Decision::NoSuchUser => {
            // a report to the sender names the address it wrote, which exists
            let work = &job.work;
            let leads_on =
                work.errors_to.is_none() && work.recipient.address != work.original_address;
            let text = match leads_on {
                true => "an address that this one leads to does not exist",
                false => "no such user here",
            };
            bounce::fail(job, Reply::new(550, (5, 1, 1), text), rule).await
        }
    }
}

/// Whether an address met before on the way to this recipient has been served: it leads somewhere, and the mail has other
/// recipients. What leads to itself alone is an endless forward. So is what served nobody else, for the directory may have
/// changed meanwhile.
async fn is_served(job: &Job<'_>, address: &Mailbox) -> Result<bool, Step> {
    let key = job.work.key;
    let shard = &job.context.shard;
    if !shard.read(|machine| machine.is_another_served(key)) {
        return Ok(false);
    }
    let failed = |reason: String| Step::Failed(LaneKey::Directory, reason);
    let asked = leads_somewhere(&*job.context.directory, address);
    match tokio::time::timeout(ANSWER_TIMEOUT, asked).await {
        Ok(answer) => answer.map_err(|unavailable| failed(unavailable.reason)),
        Err(_) => Err(failed("timeout".into())),
    }
}

/// An address met before on the way to this recipient, or one too many: its members have the mail, or it goes on for ever.
async fn again(job: &mut Job<'_>, address: &Mailbox, is_met: bool) -> Result<Step, Step> {
    if is_met && is_served(job, address).await? {
        return bounce::end_unreported(job, "met before: its members get the mail once").await;
    }
    let reply = Reply::new(554, (5, 4, 6), "routing loop");
    bounce::fail(job, reply, "loop").await
}

/// The directory says the account takes no mail: a trouble of the world's.
async fn disabled(job: &mut Job<'_>) -> Result<Step, Step> {
    if job.has_expired() {
        let reply = Reply::new(550, (5, 2, 1), "mailbox disabled");
        return bounce::fail(job, reply, "expired").await;
    }
    let later = Reply::new(450, (4, 2, 1), "mailbox disabled");
    Ok(job.put_off("directory", &later).await)
}

/// The recipients that `addresses` are now. What is not final, or not known now, is resolved later under its own number.
async fn children(job: &mut Job<'_>, addresses: &[Mailbox], seen: &[String]) -> Vec<Recipient> {
    let mut children = Vec::with_capacity(addresses.len());
    for address in addresses {
        let decision = match job.ask(address).await {
            Ok(Ok(resolution)) => Some(resolution.decision),
            Ok(Err(_)) | Err(_) => None,
        };
        children.push(match decision {
            Some(Decision::Local {
                account,
                delivered_to,
            }) if account.state.takes_mail() => local(job, &delivered_to, &account),
            Some(Decision::Relay { host, address }) => remote(job, &address, format!("[{host}]")),
            Some(Decision::Foreign) => remote(job, address, address.domain().to_owned()),
            _ => child(
                job,
                address,
                Target::Expand(ExpandTarget {
                    seen: seen.to_vec(),
                }),
            ),
        });
    }
    children
}

/// What becomes of the wish to hear of success when a group is replaced by several members, or is a list (RFC 3461 section 5.2.7).
///
/// With an address for errors it is a mailing list: the mail has arrived there, which is reported as a delivery, and members get
/// it without the sender's wishes (5.2.7.1). Without one it is an alias of several addresses: reported as an expansion, after
/// which nobody reports further deliveries (5.2.7.3).
async fn told_of_members(
    job: &mut Job<'_>,
    children: &mut [Recipient],
    is_list: bool,
) -> Result<Option<Composed>, Step> {
    let action = match is_list {
        false => Action::Expanded,
        true => Action::Delivered,
    };
    for child in children.iter_mut() {
        if is_list {
            child.notify.clear();
            child.original_recipient.clear();
        } else {
            child.notify = without_success(&child.notify);
        }
    }
    report::of_success(job, Event::now(action)).await
}

/// A NOTIFY value that asks for the same, but not to hear of success; that nothing is left of it is said as NEVER.
fn without_success(notify: &str) -> String {
    if !asks(notify, "SUCCESS") {
        return notify.to_owned();
    }
    let rest = ["FAILURE", "DELAY"];
    let rest: Vec<&str> = rest.into_iter().filter(|word| asks(notify, word)).collect();
    match rest.is_empty() {
        true => "NEVER".to_owned(),
        false => rest.join(","),
    }
}

/// One recipient takes the place of another. If its mailbox has the mail already it ends at once, and success is told with that.
async fn routed_to(job: &mut Job<'_>, child: Recipient, rule: &str) -> Result<Step, Step> {
    let Some(Target::Local(local)) = &child.target else {
        return routed(job, vec![child], None, rule, None).await;
    };
    let account = local.account.clone();
    let (message, _) = job.work.key;
    let context = job.context;
    let is_served = || {
        let shard = &context.shard;
        shard.read(|machine| machine.has_delivered(message, &account))
    };
    loop {
        let served = is_served();
        let report = match served {
            true => report::of_success(job, Event::now(Action::Delivered)).await?,
            false => None,
        };
        let _settling = context.settling(message, &account).await;
        // it may have been delivered while this was looked at
        if is_served() == served {
            return routed(job, vec![child], None, rule, report).await;
        }
    }
}

fn child(job: &Job<'_>, address: &Mailbox, target: Target) -> Recipient {
    Recipient {
        address: address.to_string(),
        original_recipient: job.work.recipient.original_recipient.clone(),
        notify: job.work.recipient.notify.clone(),
        target: Some(target),
    }
}

fn local(job: &Job<'_>, address: &Mailbox, account: &Account) -> Recipient {
    let target = LocalTarget {
        account: account.id.to_string(),
        tenant: account.tenant.to_string(),
        mbox: account.mbox.to_string(),
    };
    child(job, address, Target::Local(target))
}

fn remote(job: &Job<'_>, address: &Mailbox, domain: String) -> Recipient {
    child(job, address, Target::Remote(RemoteTarget { domain }))
}

async fn routed(
    job: &mut Job<'_>,
    children: Vec<Recipient>,
    errors_to: Option<Mailbox>,
    rule: &str,
    report: Option<Composed>,
) -> Result<Step, Step> {
    let count = children.len();
    let (message, recipient) = job.work.key;
    let mut routed = Routed {
        message_id: Bytes::copy_from_slice(&message.to_bytes()),
        recipient,
        children,
        failure: None,
        errors_to: errors_to.map(|address| address.to_string()),
        reason: rule.to_owned(),
        report: report.as_ref().map(|report| report.accept.clone()),
    };
    let mut answer = route_to(job, &routed).await;
    if answer == Answer::Void && is_live(job) {
        // what the sender calls it, once for each member: reports go without it rather than the mail
        for child in &mut routed.children {
            child.original_recipient.clear();
        }
        answer = route_to(job, &routed).await;
    }
    match answer {
        Answer::Changed(_) => {
            job.settled("expanded", &format!("{count} recipients"), None, rule);
            if let Some(report) = report {
                report.queued(message);
            }
            Ok(Step::Done)
        }
        Answer::Void if is_live(job) => job.hold(held::GROUP_TOO_LARGE).await,
        // somebody else was first
        Answer::Void => Ok(Step::Done),
    }
}

/// Has the children take the place of their recipient; void when somebody else was first, or when they would be too many or too
/// long for a record.
async fn route_to(job: &Job<'_>, routed: &Routed) -> Answer {
    if bytes_of(&routed.children, routed.errors_to.as_deref()) > CHILDREN_BYTES_MAX {
        return Answer::Void;
    }
    let command = Command::Routed(routed.clone());
    job.context.facts.commit(command).await
}

fn is_live(job: &Job<'_>) -> bool {
    let key = job.work.key;
    let work = job.context.shard.read(|machine| machine.work(key));
    work.is_some()
}

#[cfg(test)]
mod tests {
    use super::without_success;

    #[test]
    fn members_report_what_else_was_asked_for() {
        for (asked, left) in [
            ("", ""),
            ("NEVER", "NEVER"),
            ("SUCCESS", "NEVER"),
            ("SUCCESS,FAILURE", "FAILURE"),
            ("SUCCESS,FAILURE,DELAY", "FAILURE,DELAY"),
            ("DELAY", "DELAY"),
        ] {
            assert_eq!(without_success(asked), left);
        }
    }
}
