//! Failing a recipient for good, together with others of its mail that fail now ([`crate::failures`]). RFC 3461 section 5.2 and
//! RFC 5321 section 6.1: a report never reports about a report.

use bytes::Bytes;
use hikyaku_mail::dsn::Action;
use hikyaku_mail::id::MessageId;
use hikyaku_mail::reply::Reply;
use hikyaku_proto::v1::{Bounce, BouncedRecipient, Status, record::Command};
use hikyaku_queue::machine::Answer;
use hikyaku_queue::work::Work;
use hikyaku_serve::metrics;
use tokio::sync::oneshot;

use crate::failures::{Failed, Fate};
use crate::job::{Job, Step};
use crate::report;

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
    let context = job.context;
    let (fate, heard) = oneshot::channel();
    let failed = Failed {
        work: job.work.clone(),
        reply: reply.clone(),
        fate,
    };
    let together = context.failures.join(failed);
    // it needs no service any more, and others of its mail may need its place
    context.leave_lane(job.work.key);
    if let Some(together) = together {
        together.record(context, &mut job.answered).await;
    }
    match heard.await {
        Ok(Fate::Bounced(report)) => {
            bounced(job, report, &reply, reason);
            Ok(Step::Done)
        }
        Ok(Fate::Void) => Ok(Step::Done),
        Ok(Fate::Later(step)) => Err(step),
        // the one that was to record it panicked
        Err(_) => Err(Step::Next(job.lane())),
    }
}

/// Writes the postmaster's line about a recipient that has failed.
fn bounced(job: &Job<'_>, report: Option<MessageId>, reply: &Reply, reason: &str) {
    if let Some(report) = report {
        job.settled("bounced", &report.to_string(), Some(reply), reason);
    } else if report::wants(&job.work, Action::Failed) {
        metrics::DOUBLE_BOUNCES.add(1);
        job.settled("bounced", "", Some(reply), "double bounce");
    } else {
        let reason = format!("{reason}; the sender wanted no report");
        job.settled("bounced", "", Some(reply), &reason);
    }
}

/// Ends a recipient whose mail others get already: nobody is told. In the log that is a `Bounce` without a report.
pub async fn end_unreported(job: &mut Job<'_>, reason: &str) -> Result<Step, Step> {
    let (message, recipient) = job.work.key;
    let reply = Reply::new(250, (2, 1, 5), reason);
    let command = Command::Bounce(Bounce {
        message_id: Bytes::copy_from_slice(&message.to_bytes()),
        recipients: vec![BouncedRecipient {
            recipient,
            status: Some(Status::from(&reply)),
        }],
        dsn: None,
    });
    if job.context.facts.commit(command).await != Answer::Void {
        job.settled("collapsed", "", None, reason);
    }
    Ok(Step::Done)
}
