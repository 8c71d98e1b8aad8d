//! Facts remembered down to the log start, also those about messages that are unknown here or finished.
//!
//! A `Carry` may be old when it reaches the log: its leader was deposed, or its append took long. What happened since its
//! state was read is here, so making its message known again cannot bring a finished recipient back.
//!
//! There may be very many: every mail that left since the log start has two. So they are octets in chunks, in the log's order,
//! each with the way back to the one before it about the same message; the front is cut as the log is.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use hikyaku_log::Position;
use hikyaku_mail::id::MessageId;
use hikyaku_proto::v1::outcome::Result as Attempt;
use hikyaku_proto::v1::{
    Accept, Attempted, Bounce, BouncedRecipient, Deferred, Operate, Outcome, Routed, Status,
};
use prost::Message as _;

use crate::packed::{Reader, put_number, put_text};
use crate::sorted::Sorted;

/// Octets of a chunk.
const CHUNK_BYTES: usize = 64 * 1024;
/// Octets that a message takes in the index of the last entry about it.
const INDEXED_BYTES: usize = 28;

/// Something that happened to a message, without what the log alone needs to hold.
#[derive(Clone, Debug)]
pub enum Fact {
    /// Results of attempts.
    Attempted(Vec<Outcome>),
    /// Recipients that failed for good, and the DSN that says so (empty: none).
    Bounced {
        /// Their numbers.
        recipients: Vec<u32>,
        /// The DSN's message id.
        dsn_id: Bytes,
    },
    /// The edge takes the message back.
    Cancelled,
    /// An operator's order.
    Operated(Box<Operate>),
    /// Where a recipient goes.
    Routed(Box<Routed>),
}

/// A fact and where it is in the log.
#[derive(Clone, Debug)]
pub struct KeptFact {
    /// Its record.
    pub position: Position,
    /// Its proposer's clock.
    pub time_ms: u64,
    /// What happened.
    pub fact: Fact,
}

/// What an entry is about.
mod kind {
    pub const ACCEPTED: u8 = 0;
    pub const ATTEMPTED: u8 = 1;
    pub const DEFERRED: u8 = 2;
    pub const BOUNCED: u8 = 3;
    pub const CANCELLED: u8 = 4;
    pub const OPERATED: u8 = 5;
    pub const ROUTED: u8 = 6;
}

/// A fact as octets, without what only an operator reads: the replies' text.
fn pack(kept: KeptFact) -> (u8, Vec<u8>) {
    let time_ms = kept.time_ms;
    let mut bytes = Vec::new();
    put_number(&mut bytes, time_ms);
    let kind = match kept.fact {
        Fact::Attempted(outcomes) => match outcomes.as_slice() {
            // by far the most
            [
                Outcome {
                    recipient,
                    result:
                        Some(Attempt::Deferred(Deferred {
                            status: Some(status),
                            due_ms,
                        })),
                },
            ] => {
                put_number(&mut bytes, u64::from(*recipient));
                put_number(&mut bytes, due_ms.wrapping_sub(time_ms));
                put_number(&mut bytes, u64::from(status.code));
                put_text(&mut bytes, &status.enhanced);
                kind::DEFERRED
            }
            _ => {
                let attempted = Attempted {
                    outcomes: outcomes.into_iter().map(slim).collect(),
                    ..Attempted::default()
                };
                bytes.extend(attempted.encode_to_vec());
                kind::ATTEMPTED
            }
        },
        Fact::Bounced { recipients, dsn_id } => {
            let bounced = |recipient| BouncedRecipient {
                recipient,
                status: None,
            };
            let bounce = Bounce {
                recipients: recipients.into_iter().map(bounced).collect(),
                dsn: Some(Accept {
                    message_id: dsn_id,
                    ..Accept::default()
                }),
                ..Bounce::default()
            };
            bytes.extend(bounce.encode_to_vec());
            kind::BOUNCED
        }
        Fact::Cancelled => kind::CANCELLED,
        Fact::Operated(operate) => {
            bytes.extend(operate.encode_to_vec());
            kind::OPERATED
        }
        Fact::Routed(routed) => {
            bytes.extend(routed.encode_to_vec());
            kind::ROUTED
        }
    };
    (kind, bytes)
}

/// Without the reply's text.
fn slim(mut outcome: Outcome) -> Outcome {
    if let Some(Attempt::Deferred(deferred)) = &mut outcome.result
        && let Some(status) = &mut deferred.status
    {
        status.text = String::new();
    }
    outcome
}

/// The fact that was packed; `None` for an entry that only says that a message became known.
fn unpack(kind: u8, position: Position, bytes: &[u8]) -> Option<KeptFact> {
    let mut reader = Reader(bytes);
    let time_ms = reader.number();
    let fact = match kind {
        kind::ATTEMPTED => Fact::Attempted(Attempted::decode(reader.0).ok()?.outcomes),
        kind::DEFERRED => {
            let recipient = u32::try_from(reader.number()).ok()?;
            let due_ms = reader.number().wrapping_add(time_ms);
            let status = Status {
                code: u32::try_from(reader.number()).ok()?,
                enhanced: reader.text().to_owned(),
                text: String::new(),
            };
            let deferred = Deferred {
                status: Some(status),
                due_ms,
            };
            Fact::Attempted(vec![Outcome {
                recipient,
                result: Some(Attempt::Deferred(deferred)),
            }])
        }
        kind::BOUNCED => {
            let bounce = Bounce::decode(reader.0).ok()?;
            let recipients = bounce.recipients.iter();
            Fact::Bounced {
                recipients: recipients.map(|bounced| bounced.recipient).collect(),
                dsn_id: bounce.dsn.unwrap_or_default().message_id,
            }
        }
        kind::CANCELLED => Fact::Cancelled,
        kind::OPERATED => Fact::Operated(Box::new(Operate::decode(reader.0).ok()?)),
        kind::ROUTED => Fact::Routed(Box::new(Routed::decode(reader.0).ok()?)),
        _ => return None,
    };
    Some(KeptFact {
        position,
        time_ms,
        fact,
    })
}

/// One entry, as it stands in its chunk.
struct Entry<'a> {
    kind: u8,
    position: Position,
    /// How far before this entry the one before it about the same message begins; 0: there is none.
    back: u64,
    bytes: &'a [u8],
    /// Octets of the whole entry.
    length: usize,
}

#[derive(Debug)]
struct Chunk {
    /// How many octets there were before it.
    begins: u64,
    bytes: Vec<u8>,
}

/// All facts from the log start on.
#[derive(Debug, Default)]
pub struct Kept {
    chunks: VecDeque<Chunk>,
    /// Where the first entry begins that is not forgotten, in octets since the beginning.
    head: u64,
    /// Where the next one will begin.
    tail: u64,
    entries: usize,
    /// Where the last entry about each message begins; before `head` it is forgotten.
    last: Sorted<MessageId, u64>,
    orders: BTreeMap<Bytes, Position>,
}

impl Kept {
    /// Remembers that a record made `id` known: a repeat of its `Accept` is one.
    pub fn accepted(&mut self, id: MessageId, position: Position) {
        self.push(kind::ACCEPTED, position, id, &[]);
    }

    /// Whether a record since the log start made `id` known.
    pub fn was_accepted(&self, id: MessageId) -> bool {
        self.about(id).any(|entry| entry.kind == kind::ACCEPTED)
    }

    /// Remembers a fact.
    pub fn fact(&mut self, id: MessageId, kept: KeptFact) {
        let position = kept.position;
        let (kind, bytes) = pack(kept);
        self.push(kind, position, id, &bytes);
    }

    /// The facts about `id` from position `from` on, in log order.
    pub fn facts_from(&self, id: MessageId, from: Position) -> Vec<KeptFact> {
        let mut facts: Vec<KeptFact> = self
            .about(id)
            .take_while(|entry| entry.position >= from)
            .filter_map(|entry| unpack(entry.kind, entry.position, entry.bytes))
            .collect();
        facts.reverse();
        facts
    }

    /// Whether a fact settled recipient `number` of `id`: delivered, bounced, or replaced by others.
    pub fn settled(&self, id: MessageId, number: u32) -> bool {
        let facts = self.facts_from(id, Position::ZERO);
        facts.iter().any(|kept| match &kept.fact {
            Fact::Attempted(outcomes) => outcomes.iter().any(|outcome| {
                outcome.recipient == number && matches!(outcome.result, Some(Attempt::Delivered(_)))
            }),
            Fact::Bounced { recipients, .. } => recipients.contains(&number),
            Fact::Routed(routed) => routed.recipient == number,
            Fact::Cancelled | Fact::Operated(_) => false,
        })
    }

    /// Remembers an operator's order by its command id; false for a repeat.
    pub fn first_time(&mut self, cmd_id: &Bytes, position: Position) -> bool {
        if self.orders.contains_key(cmd_id) {
            return false;
        }
        self.orders.insert(Bytes::copy_from_slice(cmd_id), position);
        true
    }

    /// Forgets what the log below `start` said.
    pub fn prune(&mut self, start: Position) {
        while let Some(entry) = self.entry(self.head) {
            if entry.position >= start {
                break;
            }
            self.head += entry.length as u64;
            self.entries -= 1;
            if let Some(first) = self.chunks.front()
                && first.begins + first.bytes.len() as u64 <= self.head
            {
                self.chunks.pop_front();
            }
        }
        self.orders.retain(|_, position| *position >= start);
        // ids of messages that have no entry any more pile up
        if self.last.len() > 64 + self.entries + self.entries / 4 {
            let head = self.head;
            self.last.retain(|_, begins| *begins >= head);
        }
    }

    /// How many records are remembered.
    pub fn len(&self) -> usize {
        self.entries
    }

    /// Whether nothing is.
    pub fn is_empty(&self) -> bool {
        self.entries == 0
    }

    /// Octets of memory it takes.
    pub fn bytes(&self) -> usize {
        self.chunks.len() * CHUNK_BYTES + self.last.len() * INDEXED_BYTES
    }

    fn push(&mut self, kind: u8, position: Position, id: MessageId, bytes: &[u8]) {
        let back = match self.last.insert(id, self.tail) {
            Some(before) if before >= self.head => self.tail - before,
            _ => 0,
        };
        let mut entry = vec![kind];
        put_number(&mut entry, position.0);
        put_number(&mut entry, back);
        put_number(&mut entry, bytes.len() as u64);
        entry.extend_from_slice(bytes);
        let has_room = |chunk: &&mut Chunk| chunk.bytes.len() + entry.len() <= CHUNK_BYTES;
        match self.chunks.back_mut().filter(has_room) {
            Some(chunk) => chunk.bytes.extend_from_slice(&entry),
            None => {
                let mut bytes = Vec::with_capacity(CHUNK_BYTES.max(entry.len()));
                bytes.extend_from_slice(&entry);
                self.chunks.push_back(Chunk {
                    begins: self.tail,
                    bytes,
                });
            }
        }
        self.tail += entry.len() as u64;
        self.entries += 1;
    }

    /// The entries about a message, the last one first.
    fn about(&self, id: MessageId) -> impl Iterator<Item = Entry<'_>> {
        let mut at = self.last.get(&id).copied();
        std::iter::from_fn(move || {
            let begins = at.filter(|begins| *begins >= self.head)?;
            let entry = self.entry(begins)?;
            at = (entry.back > 0).then(|| begins.saturating_sub(entry.back));
            Some(entry)
        })
    }

    fn entry(&self, begins: u64) -> Option<Entry<'_>> {
        let after = self.chunks.partition_point(|chunk| chunk.begins <= begins);
        let chunk = self.chunks.get(after.checked_sub(1)?)?;
        let bytes = chunk
            .bytes
            .get(usize::try_from(begins - chunk.begins).ok()?..)?;
        if bytes.is_empty() {
            return None;
        }
        let mut reader = Reader(bytes);
        let kind = reader.octet();
        let position = Position(reader.number());
        let back = reader.number();
        let count = usize::try_from(reader.number()).ok()?;
        let fact = reader.octets(count);
        Some(Entry {
            kind,
            position,
            back,
            bytes: fact,
            length: bytes.len() - reader.0.len(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{CHUNK_BYTES, Fact, Kept, KeptFact};
    use crate::testing::{deferred, delivered, id, local, operate, routed};
    use hikyaku_log::Position;
    use hikyaku_proto::v1::operate::Order;
    use std::collections::BTreeMap;

    fn fact(n: u64) -> Fact {
        match n % 7 {
            0 => deferred(3, n * 1000),
            1 => delivered(1, 7),
            2 => Fact::Bounced {
                recipients: vec![0, 4],
                dsn_id: id(n).to_bytes().to_vec().into(),
            },
            3 => Fact::Cancelled,
            4 => operate(Order::Hold, &[2]),
            5 => routed(2, vec![local("a"), local("b")]),
            // due before it was tried: under a clock that ran ahead
            _ => deferred(0, 1),
        }
    }

    #[test]
    fn what_is_kept_comes_back_in_order_until_it_is_cut_away() {
        let mut kept = Kept::default();
        let mut about: BTreeMap<_, Vec<(u64, Option<String>)>> = BTreeMap::new();
        for n in 1..20_000u64 {
            let id = id(n * n % 3001);
            if n % 3 == 0 {
                kept.accepted(id, Position(n));
                about.entry(id).or_default().push((n, None));
                continue;
            }
            let what = KeptFact {
                position: Position(n),
                time_ms: 500 + n,
                fact: fact(n),
            };
            // texts are not kept
            let text = format!("{what:?}").replace("mailbox full", "");
            about.entry(id).or_default().push((n, Some(text)));
            kept.fact(id, what);
        }
        assert!(kept.chunks.len() > 5);
        for start in [1, 2, 700, 9000, 19_998, 19_999, 30_000] {
            kept.prune(Position(start));
            let mut left = 0;
            for (id, all) in &mut about {
                all.retain(|(position, _)| *position >= start);
                left += all.len();
                for from in [0, start + 1000] {
                    let facts = kept.facts_from(*id, Position(from));
                    let facts: Vec<String> = facts.iter().map(|f| format!("{f:?}")).collect();
                    let want = all.iter().filter(|(position, _)| *position >= from);
                    let want: Vec<String> = want.filter_map(|(_, text)| text.clone()).collect();
                    assert_eq!(facts, want);
                }
                let accepted = all.iter().any(|(_, text)| text.is_none());
                assert_eq!(kept.was_accepted(*id), accepted);
            }
            about.retain(|_, all| !all.is_empty());
            assert_eq!(kept.len(), left);
            assert!(kept.last.len() <= 64 + left + left / 4);
        }
        assert!(kept.is_empty() && kept.chunks.is_empty());
        kept.accepted(id(1), Position(30_000));
        assert!(kept.was_accepted(id(1)) && kept.bytes() <= CHUNK_BYTES + 65 * 28);
    }
}
