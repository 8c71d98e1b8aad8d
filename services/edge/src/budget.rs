//! What one transaction takes from the memory of the process: reserved before it is used, given back when it ends.
//!
//! Nothing a client sends is kept beyond what is reserved: what it declared counts at MAIL, what it really sends as it comes.
//! `docs/LIMITS.md` has the sums.

use std::sync::Arc;

use hikyaku_blob::body::INLINE_MAX;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::recipient::Accepted;

/// Permits of the memory budget are this many octets each.
const PERMIT_BYTES: usize = 1024;
/// Reserved at a time when more is needed than was reserved.
const STEP_BYTES: usize = 16 * 1024;
/// A transaction's own memory besides content and recipients: the input buffer for blocks, the envelope, a piece on its way
/// to the blob store.
const TRANSACTION_BYTES: usize = 64 * 1024;
/// Content expected of a client that does not declare any.
const CONTENT_BYTES_UNDECLARED: usize = 8 * 1024;
/// All of one transaction, whatever is sent: enough for a thousand recipients with reports of their own.
pub const TRANSACTION_BYTES_MAX: usize = 4 << 20;

/// A budget of `bytes` for all transactions of the process.
pub(crate) fn memory(bytes: usize) -> Arc<Semaphore> {
    Arc::new(Semaphore::new(
        (bytes / PERMIT_BYTES).min(Semaphore::MAX_PERMITS),
    ))
}

/// What one transaction has reserved and uses.
pub(crate) struct Reservation {
    memory: Arc<Semaphore>,
    permit: OwnedSemaphorePermit,
    recipient_bytes: usize,
    content_bytes: usize,
}

impl Reservation {
    /// For a transaction whose content is declared to have `size` octets; `None` when there is no memory left.
    pub(crate) fn begin(memory: &Arc<Semaphore>, size: Option<u64>) -> Option<Reservation> {
        let content_bytes = match size {
            Some(size) => usize::try_from(size).unwrap_or(usize::MAX),
            None => CONTENT_BYTES_UNDECLARED,
        };
        let permits = permits(TRANSACTION_BYTES + content_cost(content_bytes));
        let permit = memory.clone().try_acquire_many_owned(permits).ok()?;
        Some(Reservation {
            memory: memory.clone(),
            permit,
            recipient_bytes: 0,
            content_bytes: 0,
        })
    }

    /// Makes room for one more recipient; false when there is none.
    pub(crate) fn add_recipient(&mut self, accepted: &Accepted) -> bool {
        self.recipient_bytes += recipient_cost(accepted);
        self.cover()
    }

    /// Makes room for `content_bytes` of content in all; false when there is none.
    pub(crate) fn hold_content(&mut self, content_bytes: u64) -> bool {
        self.content_bytes = usize::try_from(content_bytes).unwrap_or(usize::MAX);
        self.cover()
    }

    /// Octets reserved.
    pub(crate) fn reserved(&self) -> usize {
        self.permit.num_permits() * PERMIT_BYTES
    }

    fn cover(&mut self) -> bool {
        let used = TRANSACTION_BYTES + self.recipient_bytes + content_cost(self.content_bytes);
        if used <= self.reserved() {
            return true;
        }
        if used > TRANSACTION_BYTES_MAX {
            return false;
        }
        let missing = (used - self.reserved()).max(STEP_BYTES);
        match self.memory.clone().try_acquire_many_owned(permits(missing)) {
            Ok(more) => {
                self.permit.merge(more);
                true
            }
            Err(_) => false,
        }
    }
}

fn permits(bytes: usize) -> u32 {
    u32::try_from(bytes.div_ceil(PERMIT_BYTES)).unwrap_or(u32::MAX)
}

/// Memory for content: up to [`INLINE_MAX`] of it stays here, in a buffer that grows by doubling; then it is compressed into
/// another one, and that is encoded into the record.
fn content_cost(bytes: usize) -> usize {
    3 * bytes.min(INLINE_MAX)
}

/// Memory for a recipient: its address is with the session, the transaction and the record; the rest with the transaction
/// and the record.
fn recipient_cost(accepted: &Accepted) -> usize {
    use hikyaku_proto::v1::recipient::Target;
    const STRUCTURES: usize = 512;
    let recipient = &accepted.recipient;
    let target = match &recipient.target {
        Some(Target::Local(local)) => local.account.len() + local.tenant.len() + local.mbox.len(),
        _ => 0,
    };
    let reports = recipient.notify.len() + recipient.original_recipient.len();
    STRUCTURES + 3 * recipient.address.len() + 2 * (target + reports + accepted.tenant.len())
}

#[cfg(test)]
mod tests {
    use super::{Reservation, TRANSACTION_BYTES_MAX, memory};
    use crate::recipient::Accepted;

    #[test]
    fn nothing_is_used_that_is_not_reserved() {
        let budget = memory(1 << 20);
        let all = budget.available_permits();
        // declared little, sent much
        let mut one = Reservation::begin(&budget, Some(1)).unwrap();
        let declared = one.reserved();
        for bytes in (0..300_000).step_by(1000) {
            assert!(one.hold_content(bytes));
            assert!(one.reserved() as u64 >= 3 * bytes.min(128 << 10));
        }
        assert!(one.reserved() > declared + 300_000 && one.reserved() < 500_000);
        // the other one finds what is left, and no more
        let mut two = Reservation::begin(&budget, None).unwrap();
        let recipient = Accepted {
            recipient: Default::default(),
            tenant: "x".repeat(744),
            mailbox: None,
        };
        let mut taken = 0;
        while two.add_recipient(&recipient) {
            taken += 1;
        }
        assert!((200..300).contains(&taken), "{taken}");
        assert!(one.reserved() + two.reserved() <= 1 << 20);
        drop((one, two));
        assert_eq!(budget.available_permits(), all);
    }

    #[test]
    fn one_transaction_has_its_limit() {
        let budget = memory(1 << 30);
        let mut one = Reservation::begin(&budget, None).unwrap();
        let recipient = Accepted {
            recipient: Default::default(),
            tenant: "x".repeat(744),
            mailbox: None,
        };
        while one.add_recipient(&recipient) {}
        assert!(one.reserved() <= TRANSACTION_BYTES_MAX + 16 * 1024);
        // a declared size takes no more than what is kept here
        let huge = Reservation::begin(&budget, Some(u64::MAX)).unwrap();
        assert!(huge.reserved() < 500_000);
    }
}
