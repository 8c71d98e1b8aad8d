//! Failing a recipient for good: one `Bounce` record fails it and makes the DSN a message of the same shard, so exactly one
//! DSN exists. RFC 3461 section 5.2 and RFC 5321 section 6.1: a report never reports about a report.

use bytes::Bytes;
use hikyaku_mail::dsn::Action;
use hikyaku_mail::reply::Reply;
use hikyaku_proto::v1::{Bounce, BouncedRecipient, Status, record::Command};
use hikyaku_queue::machine::Answer;
use hikyaku_queue::work::Work;
use hikyaku_serve::metrics;

use crate::job::{Job, Step};
use crate::report::{self, Event};

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
    let wanted = report::wants(&job.work, Action::Failed);
    let report = match wanted {
        true => report::compose(job, Event::failed(&reply)).await?,
        false => None,
    };
    let (message, recipient) = job.work.key;
    let command = Command::Bounce(Bounce {
        message_id: Bytes::copy_from_slice(&message.to_bytes()),
        recipients: vec![BouncedRecipient {
            recipient,
            status: Some(Status::from(&reply)),
        }],
        dsn: report.as_ref().map(|report| report.accept.clone()),
    });
    if job.context.facts.commit(command).await == Answer::Void {
        // settled otherwise meanwhile; if not, it comes round again
        return Ok(Step::Done);
    }
    match report {
        Some(report) => {
            job.settled("bounced", &report.id.to_string(), Some(&reply), reason);
            report.queued(message);
        }
        None if wanted => {
            metrics::DOUBLE_BOUNCES.add(1);
            job.settled("bounced", "", Some(&reply), "double bounce");
        }
        None => {
            let reason = format!("{reason}; the sender wanted no report");
            job.settled("bounced", "", Some(&reply), &reason);
        }
    }
    Ok(Step::Done)
}
