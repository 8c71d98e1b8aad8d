//! Which blobs the mails of a shard name: asked by the sweep before it deletes any.

use std::collections::BTreeSet;

use hikyaku_mail::id::MessageId;
use hikyaku_store::read;
use tonic::Status;

use crate::mailbox::MailboxService;
use crate::status;

/// Mails looked at between two looks around.
const MAILS_AT_ONCE: usize = 1_000;

/// Takes out of `candidates` every blob that a mail of the shard names, as of after this call.
///
/// # Errors
/// A gRPC status when the shard is not here or cannot be read; then nothing is known.
pub async fn keep_named_blobs(
    service: &MailboxService,
    index: u16,
    candidates: &mut BTreeSet<MessageId>,
) -> Result<(), Status> {
    let served = service.served(u32::from(index))?;
    service.barrier(served).await?;
    let snapshot = served.local.engine.snapshot();
    let mut from = Vec::new();
    loop {
        let (named, next) = read::blobs(&*snapshot, &from, MAILS_AT_ONCE)
            .map_err(|error| status::of_store(&error))?;
        for id in named {
            candidates.remove(&id);
        }
        let Some(next) = next else { return Ok(()) };
        from = next;
        // a long read must not keep the node's other tasks from running
        tokio::task::yield_now().await;
    }
}
