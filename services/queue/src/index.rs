//! Live messages and everything derived from them: what is due, what the log must keep, counters, the state hash.
//!
//! Whoever changes a message calls [`Index::refresh`] for it; all derived data follow from there.

use std::collections::{BTreeMap, BTreeSet};

use hikyaku_log::Position;
use hikyaku_mail::id::MessageId;
use hikyaku_proto::v1::recipient_state::State;
use hikyaku_proto::v1::{Envelope, Pending, RecipientState};
use prost::Message as _;

use crate::delays::Delays;
use crate::hash::{SetHash, element};
use crate::kept::KeptFact;
use crate::recipient::{Message, Slot, Stage};

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
    // boxed: the map's half-empty nodes stay small
    messages: BTreeMap<MessageId, Box<Message>>,
    hash: SetHash,
    due: BTreeSet<(u64, MessageId, u32)>,
    pins: BTreeSet<(Position, MessageId)>,
    tallies: BTreeMap<String, Tally>,
    bytes: u64,
    taken: BTreeSet<RecipientKey>,
    delays: Delays,
}

impl Index {
    /// Live messages.
    pub fn messages(&self) -> &BTreeMap<MessageId, Box<Message>> {
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

    /// Counters by tenant.
    pub fn tallies(&self) -> &BTreeMap<String, Tally> {
        &self.tallies
    }

    /// Recipients that the leader is trying.
    pub fn taken(&self) -> &BTreeSet<RecipientKey> {
        &self.taken
    }

    /// The hash over all live messages.
    pub fn hash(&self) -> [u8; 32] {
        self.hash.to_bytes()
    }

    /// Recipients whose sender is still to be told that it takes long: those of mail received at `received_ms` or before.
    pub fn delayed_since(&self, received_ms: u64, max: usize) -> Vec<RecipientKey> {
        self.delays.before(received_ms, max)
    }

    /// The lowest pin.
    pub fn lowest_pin(&self) -> Option<Position> {
        self.pins.first().map(|(pin, _)| *pin)
    }

    /// The message with the lowest pin.
    pub fn oldest(&self) -> Option<(Position, MessageId)> {
        self.pins.first().copied()
    }

    /// Makes a message known, with these later facts about it; unless they finished it.
    pub fn insert(&mut self, id: MessageId, mut message: Message, facts: &[KeptFact]) {
        for kept in facts {
            message.apply(kept.time_ms, &kept.fact);
        }
        if message.is_finished() {
            return;
        }
        self.pins.insert((message.pin, id));
        self.bytes += message.log_bytes;
        let tally = self
            .tallies
            .entry(message.accept.tenant.clone())
            .or_default();
        tally.messages += 1;
        tally.bytes += message.log_bytes;
        self.messages.insert(id, Box::new(message));
        self.refresh(id);
    }

    /// Applies a fact to a live message; how much it changed, 0 when there is no such message.
    pub fn apply(&mut self, id: MessageId, kept: &KeptFact) -> u32 {
        let Some(message) = self.messages.get_mut(&id) else {
            return 0;
        };
        let changed = message.apply(kept.time_ms, &kept.fact);
        if changed > 0 {
            self.refresh(id);
        }
        changed
    }

    /// Moves what a live message needs from the log: its pin only up, its content to `body_at`.
    pub fn carried(&mut self, id: MessageId, pin: Position, body_at: Position, log_bytes: u64) {
        let Some(message) = self.messages.get_mut(&id) else {
            return;
        };
        self.pins.remove(&(message.pin, id));
        message.pin = message.pin.max(pin);
        message.body_at = body_at;
        self.pins.insert((message.pin, id));
        self.bytes = self.bytes - message.log_bytes + log_bytes;
        if let Some(tally) = self.tallies.get_mut(&message.accept.tenant) {
            tally.bytes = tally.bytes - message.log_bytes + log_bytes;
        }
        message.log_bytes = log_bytes;
    }

    /// Brings everything derived from a message up to date, and forgets the message when it is finished.
    fn refresh(&mut self, id: MessageId) {
        let Some(message) = self.messages.get_mut(&id) else {
            return;
        };
        let finished = message.is_finished();
        let header = element(&[
            b"message",
            &message.accept.encode_to_vec(),
            message.held.as_bytes(),
        ]);
        if header != message.element {
            // a fresh message has the zero element, which changes nothing
            self.hash.remove(message.element);
            self.hash.add(header);
            message.element = header;
        }
        let held = !message.held.is_empty();
        let tally = self
            .tallies
            .entry(message.accept.tenant.clone())
            .or_default();
        let Message { accept, slots, .. } = &mut **message;
        let none = Envelope::default();
        let envelope = accept.envelope.as_ref().unwrap_or(&none);
        for (number, slot) in slots.iter_mut().enumerate() {
            if !slot.dirty {
                continue;
            }
            slot.dirty = false;
            let key = (id, u32::try_from(number).unwrap_or(u32::MAX));
            let hashed = slot_element(key, &mut slot.state);
            if hashed != slot.element {
                self.hash.remove(slot.element);
                self.hash.add(hashed);
                slot.element = hashed;
            }
            self.delays.refresh(key, slot, envelope, held);
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
            let due_ms = due_of(slot, held).filter(|_| !self.taken.contains(&key));
            if due_ms != slot.due_ms {
                if let Some(old) = slot.due_ms {
                    self.due.remove(&(old, key.0, key.1));
                }
                if let Some(new) = due_ms {
                    self.due.insert((new, key.0, key.1));
                }
                slot.due_ms = due_ms;
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
        self.hash.remove(message.element);
        for slot in &message.slots {
            self.hash.remove(slot.element);
        }
        self.pins.remove(&(message.pin, id));
        self.bytes -= message.log_bytes;
        if let Some(tally) = self.tallies.get_mut(&message.accept.tenant) {
            tally.messages -= 1;
            tally.bytes -= message.log_bytes;
            if *tally == Tally::default() {
                self.tallies.remove(&message.accept.tenant);
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
            let first = self.due.first().filter(|due| due.0 <= now_ms);
            let Some(&due) = first.or_else(|| self.due.last().filter(|due| due.0 > latest_ms))
            else {
                break;
            };
            self.due.remove(&due);
            let key = (due.1, due.2);
            if let Some(slot) = self.slot_mut(key) {
                slot.due_ms = None;
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
            slot.due_ms = Some(due_ms);
            self.due.insert((due_ms, key.0, key.1));
        }
    }

    /// When the next recipient is due.
    pub fn next_due(&self) -> Option<u64> {
        self.due.first().map(|due| due.0)
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

/// A recipient's hash. The history is for operators and may be shortened when a message is carried, so it is left out.
fn slot_element((id, number): RecipientKey, state: &mut RecipientState) -> [u64; 4] {
    let history = std::mem::take(&mut state.history);
    let hashed = state.encode_to_vec();
    state.history = history;
    element(&[b"recipient", &id.to_bytes(), &number.to_be_bytes(), &hashed])
}

fn stage(slot: &Slot, held: bool) -> Option<Stage> {
    match slot.state.state {
        Some(State::Terminal(_)) => None,
        Some(State::Pending(_)) if !held && slot.state.attempts == 0 => Some(Stage::Incoming),
        Some(State::Pending(_)) if !held => Some(Stage::Deferred),
        _ => Some(Stage::Hold),
    }
}

fn due_of(slot: &Slot, held: bool) -> Option<u64> {
    match slot.state.state {
        Some(State::Pending(Pending { due_ms })) if !held => Some(due_ms),
        _ => None,
    }
}
