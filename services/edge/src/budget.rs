//! What one transaction takes from the memory of the process: reserved before it is used, given back when it ends.
//!
//! Nothing a client sends is kept beyond what is reserved. An envelope reserves little, for it may be held open for as long as
//! its deadline lets it; what SIZE declared counts from the go-ahead for the content on, what is really sent as it comes. One
//! source has three quarters of the memory at most, so that no single host shuts everybody else out. `docs/LIMITS.md` has the sums.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hikyaku_blob::body::INLINE_MAX;
use hikyaku_serve::listen::source_of;

use crate::recipient::Accepted;

/// Reserved for an envelope: the reverse-path, what the client said of itself, and the first recipients.
const ENVELOPE_BYTES: usize = 4 * 1024;
/// Reserved at a time when more is needed than was reserved.
const STEP_BYTES: usize = 4 * 1024;
/// A content's own memory besides what is kept of it: the input buffer for blocks, a piece on its way to the blob store.
const TRANSACTION_BYTES: usize = 64 * 1024;
/// Content expected of a client that does not declare any.
const CONTENT_BYTES_UNDECLARED: usize = 8 * 1024;
/// All of one transaction, whatever is sent: enough for a thousand recipients with reports of their own.
pub const TRANSACTION_BYTES_MAX: usize = 4 << 20;

/// A budget for all transactions of the process. Clones share it.
#[derive(Clone, Debug)]
pub struct Memory(Arc<Budget>);

#[derive(Debug)]
struct Budget {
    bytes_max: usize,
    /// Of one source, see [`source_of`].
    source_bytes_max: usize,
    used: Mutex<Used>,
}

#[derive(Debug, Default)]
struct Used {
    bytes: usize,
    sources: BTreeMap<IpAddr, usize>,
}

/// Why there is no memory for a transaction, for the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NoMemory(pub(crate) &'static str);

const ALL_USED: NoMemory = NoMemory("no memory left for incoming mail");
const SOURCE_USED: NoMemory =
    NoMemory("its mails hold three quarters of the memory for incoming mail");
const TRANSACTION_USED: NoMemory = NoMemory("the mail needs more memory than any may have");

impl Memory {
    /// A budget of `bytes`.
    pub fn new(bytes: usize) -> Memory {
        Memory(Arc::new(Budget {
            bytes_max: bytes,
            source_bytes_max: bytes / 4 * 3,
            used: Mutex::default(),
        }))
    }

    /// Octets that are not reserved.
    pub fn free(&self) -> usize {
        self.0.bytes_max.saturating_sub(self.used().bytes)
    }

    fn used(&self) -> MutexGuard<'_, Used> {
        self.0.used.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, source: IpAddr, bytes: usize) -> Result<(), NoMemory> {
        let mut used = self.used();
        let all = used.bytes.saturating_add(bytes);
        if all > self.0.bytes_max {
            return Err(ALL_USED);
        }
        let of_source = used.sources.get(&source).map_or(bytes, |has| has + bytes);
        if of_source > self.0.source_bytes_max {
            return Err(SOURCE_USED);
        }
        used.bytes = all;
        used.sources.insert(source, of_source);
        Ok(())
    }

    fn give_back(&self, source: IpAddr, bytes: usize) {
        let mut used = self.used();
        used.bytes = used.bytes.saturating_sub(bytes);
        if let Some(has) = used.sources.get_mut(&source) {
            *has = has.saturating_sub(bytes);
            if *has == 0 {
                used.sources.remove(&source);
            }
        }
    }
}

/// What one transaction has reserved and uses.
#[derive(Debug)]
pub(crate) struct Reservation {
    memory: Memory,
    source: IpAddr,
    reserved: usize,
    recipient_bytes: usize,
    /// With what it is received by; 0 until it may come.
    content_bytes: usize,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.memory.give_back(self.source, self.reserved);
    }
}

impl Reservation {
    /// For the envelope of a mail from `peer`.
    ///
    /// # Errors
    /// When there is no memory left.
    pub(crate) fn begin(memory: &Memory, peer: IpAddr) -> Result<Reservation, NoMemory> {
        let source = source_of(peer);
        memory.take(source, ENVELOPE_BYTES)?;
        Ok(Reservation {
            memory: memory.clone(),
            source,
            reserved: ENVELOPE_BYTES,
            recipient_bytes: 0,
            content_bytes: 0,
        })
    }

    /// Makes room for one more recipient.
    ///
    /// # Errors
    /// When there is none.
    pub(crate) fn add_recipient(&mut self, accepted: &Accepted) -> Result<(), NoMemory> {
        self.recipient_bytes += recipient_cost(accepted);
        self.cover(self.content_bytes)
    }

    /// Makes room for a content that is declared to have `size` octets.
    ///
    /// # Errors
    /// When there is none.
    pub(crate) fn begin_content(&mut self, size: Option<u64>) -> Result<(), NoMemory> {
        self.content_bytes = TRANSACTION_BYTES;
        self.cover(
            TRANSACTION_BYTES + content_cost(size.unwrap_or(CONTENT_BYTES_UNDECLARED as u64)),
        )
    }

    /// Makes room for `content_bytes` of content in all.
    ///
    /// # Errors
    /// When there is none.
    pub(crate) fn hold_content(&mut self, content_bytes: u64) -> Result<(), NoMemory> {
        self.content_bytes = TRANSACTION_BYTES + content_cost(content_bytes);
        self.cover(self.content_bytes)
    }

    /// Nothing of the content is kept any more; what is still to come of it is thrown away.
    pub(crate) fn drop_content(&mut self) {
        self.content_bytes = TRANSACTION_BYTES;
        let used = ENVELOPE_BYTES + self.recipient_bytes + TRANSACTION_BYTES;
        let over = self.reserved.saturating_sub(used);
        self.memory.give_back(self.source, over);
        self.reserved -= over;
    }

    /// Makes room for `content_bytes` beside the envelope.
    fn cover(&mut self, content_bytes: usize) -> Result<(), NoMemory> {
        let used = ENVELOPE_BYTES + self.recipient_bytes + content_bytes;
        if used <= self.reserved {
            return Ok(());
        }
        if used > TRANSACTION_BYTES_MAX {
            return Err(TRANSACTION_USED);
        }
        let missing = (used - self.reserved).max(STEP_BYTES);
        self.memory.take(self.source, missing)?;
        self.reserved += missing;
        Ok(())
    }
}

/// Memory for content: up to [`INLINE_MAX`] of it stays here, in a buffer that grows by doubling; then it is compressed into
/// another one, and that is encoded into the record.
fn content_cost(bytes: u64) -> usize {
    3 * usize::try_from(bytes).map_or(INLINE_MAX, |bytes| bytes.min(INLINE_MAX))
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
    use std::net::IpAddr;

    use super::{ALL_USED, Memory, Reservation, SOURCE_USED, TRANSACTION_BYTES_MAX};
    use crate::recipient::Accepted;

    fn recipient() -> Accepted {
        Accepted {
            recipient: Default::default(),
            tenant: "x".repeat(744),
            mailbox: None,
        }
    }

    fn peer(number: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, number])
    }

    #[test]
    fn nothing_is_used_that_is_not_reserved() {
        let memory = Memory::new(1 << 20);
        // declared little, sent much
        let mut one = Reservation::begin(&memory, peer(1)).unwrap();
        one.begin_content(Some(1)).unwrap();
        let declared = one.reserved;
        for bytes in (0..300_000).step_by(1000) {
            one.hold_content(bytes).unwrap();
            assert!(one.reserved as u64 >= 3 * bytes.min(128 << 10));
        }
        assert!(one.reserved > declared + 300_000 && one.reserved < 500_000);
        let mut two = Reservation::begin(&memory, peer(2)).unwrap();
        let mut taken = 0;
        while two.add_recipient(&recipient()).is_ok() {
            taken += 1;
        }
        assert!((200..300).contains(&taken), "{taken}");
        assert_eq!(one.reserved + two.reserved + memory.free(), 1 << 20);
        one.drop_content();
        assert!(one.reserved < 70_000, "{}", one.reserved);
        assert_eq!(one.reserved + two.reserved + memory.free(), 1 << 20);
        drop((one, two));
        assert_eq!(memory.free(), 1 << 20);
        assert!(memory.used().sources.is_empty());
    }

    #[test]
    fn one_source_leaves_a_quarter_to_the_others() {
        let memory = Memory::new(1 << 20);
        let fill = |peer| {
            let mut all = Vec::new();
            loop {
                match Reservation::begin(&memory, peer) {
                    Ok(one) => all.push(one),
                    Err(why) => return (all, why),
                }
            }
        };
        let (first, why) = fill(peer(1));
        assert_eq!((first.len(), why), (192, SOURCE_USED));
        // the same source by another name
        let mapped = "::ffff:192.0.2.1".parse().unwrap();
        assert!(Reservation::begin(&memory, mapped).is_err());
        let (second, why) = fill(peer(2));
        assert_eq!((second.len(), why), (64, ALL_USED));
        drop((first, second));
        let (first, why) = fill("2001:db8::1".parse().unwrap());
        assert_eq!((first.len(), why), (192, SOURCE_USED));
        assert!(Reservation::begin(&memory, "2001:db8::2".parse().unwrap()).is_err());
    }

    /// Whatever is refused on the way, a source has its whole share again once its mails are over.
    #[test]
    fn what_was_refused_counts_against_nobody() {
        let memory = Memory::new(1 << 20);
        let whole_share = |number| {
            let mut all = Vec::new();
            while let Ok(one) = Reservation::begin(&memory, peer(number)) {
                all.push(one);
            }
            all.len()
        };
        let mut open: Vec<(u8, Reservation)> = Vec::new();
        let (mut state, mut refused) = (0x9e37_79b9_7f4a_7c15_u64, [0; 4]);
        let mut below = |bound: u64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 11) % bound
        };
        for _ in 0..20_000 {
            let number = u8::try_from(below(3)).unwrap();
            let which = usize::try_from(below(1 + open.len() as u64)).unwrap();
            let step = usize::try_from(below(6)).unwrap();
            let done = match (step, open.get_mut(which)) {
                (0 | 1, _) | (_, None) => {
                    Reservation::begin(&memory, peer(number)).map(|one| open.push((number, one)))
                }
                (2, Some((_, one))) => one.begin_content(Some(below(200_000))),
                (3, Some((_, one))) => one.hold_content(below(200_000)),
                (4, Some((_, one))) => (0..20).try_for_each(|_| one.add_recipient(&recipient())),
                (_, Some((_, one))) if below(3) == 0 => {
                    one.drop_content();
                    Ok(())
                }
                (_, Some(_)) => {
                    open.swap_remove(which);
                    Ok(())
                }
            };
            refused[step.min(3)] += usize::from(done.is_err());
            let used = memory.used();
            for number in 0..3 {
                let of_source = open.iter().filter(|(of, _)| *of == number);
                let reserved: usize = of_source.map(|(_, one)| one.reserved).sum();
                let counted = used.sources.get(&peer(number)).copied();
                assert_eq!(counted.unwrap_or(0), reserved);
            }
            let all: usize = open.iter().map(|(_, one)| one.reserved).sum();
            assert_eq!(used.bytes, all);
        }
        assert!(refused.iter().all(|count| *count > 100), "{refused:?}");
        open.clear();
        assert!(memory.used().sources.is_empty());
        for number in 0..3 {
            assert_eq!(whole_share(number), 192);
        }
    }

    #[test]
    fn one_transaction_has_its_limit() {
        let memory = Memory::new(1 << 30);
        let mut one = Reservation::begin(&memory, peer(1)).unwrap();
        while one.add_recipient(&recipient()).is_ok() {}
        assert!(one.reserved <= TRANSACTION_BYTES_MAX);
        // a declared size takes no more than what is kept here
        let mut huge = Reservation::begin(&memory, peer(2)).unwrap();
        huge.begin_content(Some(u64::MAX)).unwrap();
        assert!(huge.reserved < 500_000);
    }
}
