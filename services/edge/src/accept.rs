//! One transaction: recipients, content into a body, and commit point A.
//!
//! | what happens | answer |
//! |---|---|
//! | the `Accept` record is durable | 250 2.0.0 queued as ID |
//! | no space for it | 452 4.3.1 |
//! | it is known not to be logged | 451 4.3.0 |
//! | nobody knows within a minute | 451 4.3.0, and a `Cancel` record follows |

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hikyaku_blob::BlobError;
use hikyaku_blob::body::BodyWriter;
use hikyaku_log::AppendError;
use hikyaku_mail::id::MessageId;
use hikyaku_mail::path::ForwardPath;
use hikyaku_mail::reply::{Rejection, Reply};
use hikyaku_proto::v1::record::Command;
use hikyaku_proto::v1::{Accept, Body, Cancel, Envelope};
use hikyaku_queue::machine::QueueMachine;
use hikyaku_shard::runtime::Shard;
use hikyaku_smtp::command::MailParameters;
use hikyaku_smtp::parameters::BodyType;
use tokio::time::{Instant, sleep, timeout};
use tracing::Instrument as _;

use crate::backend::Edge;
use crate::observed::Observed;

/// RFC 5321 gives a client ten minutes for the final dot; real ones give less.
const DURABLE_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a `Cancel` is tried for; the message is delivered once if it never gets through.
const CANCEL_TRIES: u32 = 60;
const CANCEL_RETRY: Duration = Duration::from_secs(5);

/// What is known of a mail before its content is complete.
pub(crate) struct Draft {
    pub(crate) id: MessageId,
    pub(crate) envelope: Envelope,
    pub(crate) tenant: String,
    pub(crate) recipients: Vec<crate::recipient::Accepted>,
    pub(crate) observed: Observed,
}

/// Ends a transaction: body, then the record.
pub(crate) async fn accept(
    edge: &Arc<Edge>,
    shard: &Shard<QueueMachine>,
    draft: Draft,
    body: BodyWriter,
) -> Result<Reply, Rejection> {
    let begun = Instant::now();
    let body = body.finish().await.map_err(|error| blob_refusal(&error))?;
    let id = draft.id;
    let accept = Accept {
        message_id: bytes::Bytes::copy_from_slice(&id.to_bytes()),
        envelope: Some(draft.envelope),
        recipients: draft
            .recipients
            .into_iter()
            .map(|accepted| accepted.recipient)
            .collect(),
        body: Some(body.clone()),
        tenant: draft.tenant,
        traceparent: draft.observed.traceparent(),
        ..Accept::default()
    };
    // Commit point A: once this append is durable the mail is ours, whatever happens to this process.
    let append = shard
        .append(Command::Accept(accept))
        .instrument(draft.observed.append());
    match timeout(DURABLE_TIMEOUT, append).await {
        Ok(Ok(_)) => {
            draft.observed.accepted(body.size, begun.elapsed());
            Ok(Reply::new(250, (2, 0, 0), format!("queued as {id}")))
        }
        Ok(Err(AppendError::Unknown)) | Err(_) => {
            cancel(edge, shard.clone(), id);
            Err(Rejection::new(
                temporary(),
                "nobody knows whether it is durable; cancelled",
            ))
        }
        Ok(Err(error)) => {
            drop_blob(edge, &body, id);
            let reply = if error == AppendError::Full {
                no_space()
            } else {
                temporary()
            };
            Err(Rejection::new(reply, format!("it was not logged: {error}")))
        }
    }
}

/// 451 has been said: whatever was logged must not be delivered, unless it is under way already.
fn cancel(edge: &Arc<Edge>, shard: Shard<QueueMachine>, id: MessageId) {
    edge.tasks.spawn("cancel", async move {
        for _ in 0..CANCEL_TRIES {
            let cancel = Cancel { message_id: bytes::Bytes::copy_from_slice(&id.to_bytes()) };
            if shard.append(Command::Cancel(cancel)).await.is_ok() {
                return;
            }
            sleep(CANCEL_RETRY).await;
        }
        tracing::warn!(queue_id = %id, "cancelling an uncertain mail did not succeed; it may be delivered once");
    });
}

/// The record that would have named the blob does not exist and never will.
fn drop_blob(edge: &Arc<Edge>, body: &Body, id: MessageId) {
    if matches!(
        body.content,
        Some(hikyaku_proto::v1::body::Content::Blob(_))
    ) {
        let blobs = edge.blobs.clone();
        edge.tasks.spawn("drop blob", async move {
            if let Err(error) = blobs.delete(id).await {
                tracing::warn!(queue_id = %id, %error, "a blob nobody names is left for the sweep");
            }
        });
    }
}

/// What the peer hears and the log says when a body cannot be kept.
pub(crate) fn blob_refusal(error: &BlobError) -> Rejection {
    let reply = if *error == BlobError::Full {
        no_space()
    } else {
        temporary()
    };
    Rejection::new(reply, error.to_string())
}

/// No space or no budget.
pub(crate) fn no_space() -> Reply {
    Reply::new(452, (4, 3, 1), "no space now, try again later")
}

/// Something of ours does not work.
pub(crate) fn temporary() -> Reply {
    Reply::new(451, (4, 3, 0), "cannot accept mail now, try again later")
}

/// The envelope as it was when the transaction began.
pub(crate) fn envelope(peer: SocketAddr, helo: &str, mail: &MailParameters) -> Envelope {
    Envelope {
        reverse_path: mail.reverse_path.as_str().to_owned(),
        client: peer.ip().to_canonical().to_string(),
        helo: helo.to_owned(),
        envelope_id: mail.envelope_id.clone().unwrap_or_default(),
        ret: mail
            .ret
            .map(|ret| ret.as_str().to_owned())
            .unwrap_or_default(),
        smtputf8: mail.smtputf8,
        body_8bit: mail.body == Some(BodyType::EightBitMime),
        ..Envelope::default()
    }
}

/// The only recipient, which alone may stand in Received; not one outside ASCII, which would make any reader of the header
/// speak SMTPUTF8.
pub(crate) fn sole(paths: &[ForwardPath]) -> Option<&ForwardPath> {
    match paths {
        [ForwardPath::Path(mailbox)] if !mailbox.as_str().is_ascii() => None,
        [path] => Some(path),
        _ => None,
    }
}
