//! Live messages and everything derived from them: what is due, what the log must keep, counters, the state hash.
//!
//! Whoever changes a message calls [`Index::refresh`] for it; all derived data follow from there.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use hikyaku_log::Position;
use hikyaku_mail::id::MessageId;

use crate::delays::{Aged, Delays};
use crate::hash::SetHash;
use crate::held::HeldFor;
use crate::kept::KeptFact;
use crate::recipient::{Before, Message, Slot, Stage, Stand};
use crate::sorted::Sorted;
use crate::statuses::Statuses;

/// A recipient in the index.
pub type RecipientKey = (MessageId, u32);

/// What is counted per tenant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Live messages.
    pub messages: u64,
    /// Octets of their records.
    pub bytes: u64,
    /// Recipients never tried.
    pub incoming: u64,
    /// Recipients to be tried again.
    pub deferred: u64,
    /// Recipients that wait for an operator.
    pub hold: u64,
}

impl Tally {
    fn stage(&mut self, stage: Stage) -> &mut u64 {
        match stage {
            Stage::Incoming => &mut self.incoming,
            Stage::Deferred => &mut self.deferred,
            Stage::Hold => &mut self.hold,
        }
    }
}

/// All live messages.
#[derive(Debug, Default)]
pub struct Index {
    // boxed: blocks are not always full
    messages: Sorted<MessageId, Box<Message>>,
    statuses: Statuses,
    hash: SetHash,
    due: Sorted<Due>,
    pins: Sorted<Pin>,
    tallies: BTreeMap<Arc<String>, Tally>,
    bytes: u64,
    memory: u64,
    taken: BTreeSet<RecipientKey>,
    delays: Delays,
    held_for: HeldFor,
}

/// A recipient by when it is due; written so that octets compare as what they say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Due {
    due_ms: [u8; 8],
    id: [u8; 16],
    number: [u8; 4],
}

impl Due {
    fn new(due_ms: u64, key: RecipientKey) -> Due {
        Due {
            due_ms: due_ms.to_be_bytes(),
            id: key.0.to_bytes(),
            number: key.1.to_be_bytes(),
        }
    }

    fn due_ms(&self) -> u64 {
        u64::from_be_bytes(self.due_ms)
    }

    fn key(&self) -> Option<RecipientKey> {
        let id = MessageId::from_bytes(&self.id)?;
        Some((id, u32::from_be_bytes(self.number)))
    }
}

/// A message by what it pins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Pin {
    position: Position,
    id: [u64; 2],
}

impl Pin {
    fn new(position: Position, id: MessageId) -> Pin {
        let id = u128::from_be_bytes(id.to_bytes());
        Pin {
            position,
            id: [(id >> 64) as u64, id as u64],
        }
    }

    fn id(&self) -> Option<MessageId> {
        let id = u128::from(self.id[0]) << 64 | u128::from(self.id[1]);
        MessageId::from_bytes(&id.to_be_bytes())
    }
}

impl Index {
    /// Live messages.
    pub fn messages(&self) -> &Sorted<MessageId, Box<Message>> {
        &self.messages
    }

    /// A live message.
    pub fn message(&self, id: MessageId) -> Option<&Message> {
        self.messages.get(&id).map(|message| &**message)
    }

    /// Octets of the live messages' records.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Octets of memory that the live messages take, without their bodies.
    pub fn memory_bytes(&self) -> u64 {
        self.memory
    }

    /// Counters by tenant.
    pub fn tallies(&self) -> &BTreeMap<Arc<String>, Tally> {
        &self.tallies
    }

    /// Recipients that the leader holds, by reason.
    pub fn held_for(&self) -> HeldFor {
        self.held_for
    }

    /// Recipients that the leader is trying.
    pub fn taken(&self) -> &BTreeSet<RecipientKey> {
        &self.taken
    }

    /// The hash over all live messages.
    pub fn hash(&self) -> [u8; 32] {
        self.hash.to_bytes()
    }

    /// The first mail after `after`, received at `received_ms` or before, whose sender is still to be told that it takes long, and
    /// the recipients that it is to be told of.
    pub fn next_delayed(&self, received_ms: u64, after: Option<Aged>) -> Option<(Aged, Vec<u32>)> {
        self.delays.next(received_ms, after)
    }

    /// The lowest pin.
    pub fn lowest_pin(&self) -> Option<Position> {
        self.pins.first().map(|pin| pin.position)
    }

    /// The message with the lowest pin.
    pub fn oldest(&self) -> Option<(Position, MessageId)> {
        let pin = self.pins.first()?;
        Some((pin.position, pin.id()?))
    }

    /// Makes a message known, with these later facts about it; unless they finished it.
    pub fn insert(&mut self, id: MessageId, mut message: Message, facts: &[KeptFact]) {
        for kept in facts {
            message.apply(kept.time_ms, &kept.fact);
        }
        if message.is_finished() {
            return;
        }
        self.pins.insert(Pin::new(message.pin, id), ());
        self.bytes += message.log_bytes;
        if let Some((tenant, _)) = self.tallies.get_key_value(&message.tenant) {
            message.tenant = tenant.clone();
        }
        let tally = self.tallies.entry(message.tenant.clone()).or_default();
        tally.messages += 1;
        tally.bytes += message.log_bytes;
        self.hash.add(message.element(id));
        self.memory += message.memory_bytes();
        self.messages.insert(id, Box::new(message));
        self.refresh(id, &[]);
    }

    /// Applies a fact to a live message; how much it changed, 0 when there is no such message.
    pub fn apply(&mut self, id: MessageId, kept: &KeptFact) -> u32 {
        let Some(message) = self.messages.get_mut(&id) else {
            return 0;
        };
        // what is terminal stays as it is
        let before: Vec<Option<Before>> = message
            .slots
            .iter()
            .map(|slot| (!slot.is_terminal()).then(|| slot.now()))
            .collect();
        let held = message.held.clone();
        let memory = message.memory_bytes();
        let changed = message.apply(kept.time_ms, &kept.fact);
        self.memory = self.memory + message.memory_bytes() - memory;
        if held != message.held {
            let new = message.element(id);
            let reason = std::mem::replace(&mut message.held, held);
            self.hash.remove(message.element(id));
            self.hash.add(new);
            message.held = reason;
        }
        if changed > 0 {
            self.refresh(id, &before);
        }
        changed
    }

    /// Moves what a live message needs from the log: its pin only up, its content to `body_at`.
    pub fn carried(&mut self, id: MessageId, pin: Position, body_at: Position, log_bytes: u64) {
        let Some(message) = self.messages.get_mut(&id) else {
            return;
        };
        self.pins.remove(&Pin::new(message.pin, id));
        message.pin = message.pin.max(pin);
        message.body_at = body_at;
        self.pins.insert(Pin::new(message.pin, id), ());
        self.bytes = self.bytes - message.log_bytes + log_bytes;
        if let Some(tally) = self.tallies.get_mut(&message.tenant) {
            tally.bytes = tally.bytes - message.log_bytes + log_bytes;
        }
        message.log_bytes = log_bytes;
    }

    /// Brings everything derived from a message up to date, and forgets the message when it is finished. `before` is how those
    /// recipients stood that were not terminal; what has no place in it is new.
    fn refresh(&mut self, id: MessageId, before: &[Option<Before>]) {
        let Some(message) = self.messages.get_mut(&id) else {
            return;
        };
        let message = &mut **message;
        let finished = message.is_finished();
        let held = !message.held.is_empty();
        let envelope = message
            .slots
            .iter()
            .any(Slot::has_notify)
            .then(|| message.accept(id).envelope.unwrap_or_default());
        let tally = self.tallies.entry(message.tenant.clone()).or_default();
        for (number, slot) in message.slots.iter_mut().enumerate() {
            let key = (id, u32::try_from(number).unwrap_or(u32::MAX));
            if !slot.dirty {
                continue;
            }
            slot.dirty = false;
            slot.share(&mut self.statuses);
            let now = slot.now();
            let was = before.get(number);
            let old = was.and_then(Option::as_ref);
            if let Some(old) = old
                && *old != now
            {
                self.hash.remove(slot.element(key, old));
                self.hash.add(slot.element(key, &now));
            } else if was.is_none() {
                self.hash.add(slot.element(key, &now));
            }
            if let Some(envelope) = &envelope {
                self.delays.refresh(key, slot, envelope, held);
            }
            self.held_for.moved(old.map(Before::stand), slot.stand());
            let stage = stage(slot, held);
            if stage != slot.stage {
                if let Some(old) = slot.stage {
                    *tally.stage(old) -= 1;
                }
                if let Some(new) = stage {
                    *tally.stage(new) += 1;
                }
                slot.stage = stage;
            }
            if slot.queued
                && let Some(old) = old.and_then(|old| old.stand().due())
            {
                self.due.remove(&Due::new(old, key));
                slot.queued = false;
            }
            if let Some(due_ms) = due_of(slot, held).filter(|_| !self.taken.contains(&key)) {
                self.due.insert(Due::new(due_ms, key), ());
                slot.queued = true;
            }
        }
        if finished {
            self.forget(id);
        }
    }

    fn forget(&mut self, id: MessageId) {
        let Some(message) = self.messages.remove(&id) else {
            return;
        };
        self.hash.remove(message.element(id));
        for (number, slot) in (0..).zip(&message.slots) {
            self.hash.remove(slot.element((id, number), &slot.now()));
        }
        self.pins.remove(&Pin::new(message.pin, id));
        self.memory -= message.memory_bytes();
        self.bytes -= message.log_bytes;
        if let Some(tally) = self.tallies.get_mut(&message.tenant) {
            tally.messages -= 1;
            tally.bytes -= message.log_bytes;
            if *tally == Tally::default() {
                self.tallies.remove(&message.tenant);
            }
        }
    }

    /// Drops the state; what a leader holds in its hands stays there.
    pub fn clear(&mut self) {
        let taken = std::mem::take(&mut self.taken);
        *self = Index {
            taken,
            ..Index::default()
        };
    }

    /// Hands out recipients that are due at `now_ms`, each until it is given back. A due time beyond `latest_ms` was written
    /// under a clock that ran ahead: it counts as due.
    pub fn take_due(&mut self, now_ms: u64, latest_ms: u64, max: usize) -> Vec<RecipientKey> {
        let mut keys = Vec::new();
        while keys.len() < max {
            let first = self.due.first().filter(|due| due.due_ms() <= now_ms);
            let ahead = || self.due.last().filter(|due| due.due_ms() > latest_ms);
            let Some(due) = first.or_else(ahead) else {
                break;
            };
            self.due.remove(&due);
            let Some(key) = due.key() else {
                continue;
            };
            if let Some(slot) = self.slot_mut(key) {
                slot.queued = false;
            }
            self.taken.insert(key);
            keys.push(key);
        }
        keys
    }

    /// Takes a recipient back from the leader; if it still waits it is due when its state says so.
    pub fn give_back(&mut self, key: RecipientKey) {
        if !self.taken.remove(&key) {
            return;
        }
        let Some(message) = self.messages.get_mut(&key.0) else {
            return;
        };
        let held = !message.held.is_empty();
        let number = usize::try_from(key.1).unwrap_or(usize::MAX);
        if let Some(slot) = message.slots.get_mut(number)
            && let Some(due_ms) = due_of(slot, held)
        {
            slot.queued = true;
            self.due.insert(Due::new(due_ms, key), ());
        }
    }

    /// When the next recipient is due.
    pub fn next_due(&self) -> Option<u64> {
        self.due.first().map(|due| due.due_ms())
    }

    /// Whether the leader has this recipient in its hands.
    pub fn is_taken(&self, key: RecipientKey) -> bool {
        self.taken.contains(&key)
    }

    fn slot_mut(&mut self, (id, number): RecipientKey) -> Option<&mut Slot> {
        let number = usize::try_from(number).ok()?;
        self.messages.get_mut(&id)?.slots.get_mut(number)
    }
}

fn stage(slot: &Slot, held: bool) -> Option<Stage> {
    match slot.stand() {
        Stand::Terminal(_) => None,
        Stand::Pending(_) if !held && slot.attempts() == 0 => Some(Stage::Incoming),
        Stand::Pending(_) if !held => Some(Stage::Deferred),
        _ => Some(Stage::Hold),
    }
}

fn due_of(slot: &Slot, held: bool) -> Option<u64> {
    slot.pending_due().filter(|_| !held)
}
