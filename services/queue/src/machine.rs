//! The queue's state machine: what each record does, and when the log may be cut.
//!
//! Three rules let a live message be appended again (`Carry`) and the log be cut before its older records, whoever leads and
//! however late an append arrives:
//!
//! 1. a message pins the log at the highest `as_of` applied, never at the Carry's own position;
//! 2. facts are kept down to the log start, also those about unknown and finished messages;
//! 3. a Carry of a message not known here is void when facts since its `as_of` may be missing here: when that lies below
//!    where replay began or below the log start heard of. Otherwise it makes the message known and the kept facts from
//!    `as_of` on are applied to it.
//!
//! For a known message a Carry moves the pin and the content's position, never the state. A DSN pins the log where the
//! message it reports about does: whether the record that brought it was void depends on that message's state.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use hikyaku_log::{Applied, Bounds, Position, Stamp};
use hikyaku_mail::id::MessageId;
use hikyaku_proto::v1::{
    Accept, Body, Bounce, Carry, Operate, RecipientState, Record, record::Command,
};
use hikyaku_shard::machine::{Machine, Trouble};
use prost::Message as _;

use crate::bodies::Bodies;
use crate::index::Index;
use crate::intake::Gauges;
use crate::kept::{Fact, Kept, KeptFact};
use crate::recipient::{Message, Slot, are_delays, fresh};

/// Quarantined positions remembered for the operator.
const QUARANTINED_MAX: usize = 64;
/// Octets of log per step of the retained count.
const STEP_BYTES: u64 = 64 * 1024;
/// `Cancel` records waiting for their `Accept`.
const CANCELS_MAX: usize = 10_000;

/// Octets of memory for each of [`QueueOptions::queue_messages_max`]; they are for all messages together.
pub const MESSAGE_MEMORY_BYTES: u64 = 512;

/// Limits of one queue shard on one node. None of them changes what `apply` does.
#[derive(Clone, Copy, Debug)]
pub struct QueueOptions {
    /// Live messages at which edges are told to choose another shard; or fewer, when they and what is remembered about others
    /// take as much memory as these may ([`MESSAGE_MEMORY_BYTES`]).
    pub queue_messages_max: u64,
    /// Octets of live messages at which edges are told to choose another shard.
    pub queue_bytes_max: u64,
    /// Bodies of fresh mail kept in memory.
    pub body_cache_bytes_max: usize,
    /// Log time for which records stay although nothing needs them, so that a repeat of an append is recognised. Zero for a
    /// log whose appends never repeat (the local one).
    pub dedupe_window_ms: u64,
    /// Log time for which a `Cancel` waits for an `Accept` that arrives after it.
    pub cancel_window_ms: u64,
}

impl Default for QueueOptions {
    fn default() -> QueueOptions {
        QueueOptions {
            queue_messages_max: 200_000,
            queue_bytes_max: 4 << 30,
            body_cache_bytes_max: 64 << 20,
            dedupe_window_ms: 0,
            cancel_window_ms: 10 * 60 * 1000,
        }
    }
}

/// What a proposer hears.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Applied; so many recipients or messages changed.
    Changed(u32),
    /// It had no effect: a repeat, or about something unknown or terminal.
    Void,
}

/// What happened since this replica began, for metrics and alarms. Not part of the state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Messages accepted.
    pub accepted: u64,
    /// Repeated `Accept` records.
    pub duplicates: u64,
    /// Facts without effect: about terminal or unknown recipients, or repeated.
    pub facts_ignored: u64,
    /// Recipients bounced with a DSN.
    pub bounced: u64,
    /// Reports that became messages, of whatever they tell.
    pub reports: u64,
    /// Recipients failed without a DSN because their message was one, or asked for none.
    pub double_bounces: u64,
    /// Carry records of messages known here.
    pub carried: u64,
    /// Carry records that made a message known.
    pub restored: u64,
    /// Carry records without effect.
    pub carries_void: u64,
    /// Records that do not decode or do not belong here.
    pub quarantined: u64,
}

/// The queue of one shard.
#[derive(Debug)]
pub struct QueueMachine {
    options: QueueOptions,
    /// Live messages.
    pub(crate) index: Index,
    pub(crate) kept: Kept,
    pub(crate) bodies: Bodies,
    /// Where replay began.
    start: Position,
    /// The end of the log when replay began: before it has come so far, a message can be missing whose Carry is still to come.
    replay_end: Position,
    /// The highest log start heard of.
    log_start: Position,
    /// The next record to apply.
    pub(crate) next: Position,
    log_time_ms: u64,
    /// Cancels that came before their message.
    cancels: BTreeMap<Position, EarlyCancel>,
    /// Log time at positions, while within the dedupe window.
    ticks: VecDeque<(Position, u64)>,
    /// Octets of log by first position, in steps.
    retained: VecDeque<(Position, u64)>,
    retained_bytes: u64,
    counters: Counters,
    quarantined: Vec<Position>,
    gauges: Arc<Gauges>,
}

/// A `Cancel` that came before its `Accept`.
#[derive(Clone, Copy, Debug)]
struct EarlyCancel {
    id: MessageId,
    /// Log time when it came.
    came_ms: u64,
    /// The Accept, once it has come. The two leave the log together: a replica that begins between them would take the
    /// message for a good one.
    accept: Option<Position>,
}

impl QueueMachine {
    /// An empty queue.
    pub fn new(options: QueueOptions) -> QueueMachine {
        QueueMachine {
            options,
            index: Index::default(),
            kept: Kept::default(),
            bodies: Bodies::new(options.body_cache_bytes_max),
            start: Position(1),
            replay_end: Position(1),
            log_start: Position(1),
            next: Position(1),
            log_time_ms: 0,
            cancels: BTreeMap::new(),
            ticks: VecDeque::new(),
            retained: VecDeque::new(),
            retained_bytes: 0,
            counters: Counters::default(),
            quarantined: Vec::new(),
            gauges: Arc::default(),
        }
    }

    /// The limits it was made with.
    pub fn options(&self) -> QueueOptions {
        self.options
    }

    /// Live messages.
    pub fn index(&self) -> &Index {
        &self.index
    }

    /// What happened since this replica began.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// The last records that did not decode or did not belong here.
    pub fn quarantined(&self) -> &[Position] {
        &self.quarantined
    }

    /// Log time, Unix milliseconds; 0 before the first tick.
    pub fn log_time_ms(&self) -> u64 {
        self.log_time_ms
    }

    /// Octets of this shard's own records in the log, live or not.
    pub fn retained_bytes(&self) -> u64 {
        self.retained_bytes
    }

    /// Facts remembered down to the log start.
    pub fn kept_len(&self) -> usize {
        self.kept.len()
    }

    /// Octets of memory of what is known about messages, live or not; without bodies.
    pub fn memory_bytes(&self) -> u64 {
        self.index.memory_bytes() + self.kept.bytes() as u64
    }

    /// Counts that edges read without asking the shard.
    pub(crate) fn gauges(&self) -> Arc<Gauges> {
        self.gauges.clone()
    }

    fn accept(&mut self, position: Position, accept: Accept, log_bytes: u64) -> Answer {
        let Some((id, content)) = id_and_body(&accept) else {
            return self.misplaced(position);
        };
        if self.index.message(id).is_some() || self.kept.was_accepted(id) {
            self.counters.duplicates += 1;
            return Answer::Void;
        }
        self.counters.accepted += 1;
        for cancel in self.cancels.values_mut().filter(|cancel| cancel.id == id) {
            cancel.accept = Some(position);
        }
        let slots = fresh(accept.recipients.clone());
        let message = Message::new(&accept, slots, "", position, (position, log_bytes));
        self.know(id, message, Position::ZERO, position, &content);
        Answer::Changed(1)
    }

    /// Makes a message known and applies what is kept about it from `facts_from` on.
    fn know(
        &mut self,
        id: MessageId,
        message: Message,
        facts_from: Position,
        position: Position,
        content: &Body,
    ) {
        self.kept.accepted(id, position);
        let facts = self.kept.facts_from(id, facts_from);
        self.index.insert(id, message, &facts);
        if self.index.message(id).is_some() {
            self.bodies.insert(id, content);
        }
    }

    fn fact(&mut self, id: &[u8], position: Position, time_ms: u64, fact: Fact) -> Answer {
        let Some(id) = MessageId::from_bytes(id) else {
            return self.misplaced(position);
        };
        let early = matches!(fact, Fact::Cancelled)
            && self.index.message(id).is_none()
            && !self.kept.was_accepted(id);
        if early {
            let cancel = EarlyCancel {
                id,
                came_ms: self.log_time_ms,
                accept: None,
            };
            self.cancels.insert(position, cancel);
            if self.cancels.len() > CANCELS_MAX {
                self.cancels.pop_first();
            }
        }
        let kept = KeptFact {
            position,
            time_ms,
            fact,
        };
        let changed = self.index.apply(id, &kept);
        self.kept.fact(id, kept);
        if self.index.message(id).is_none() {
            self.bodies.remove(id);
        }
        if changed == 0 {
            self.counters.facts_ignored += 1;
            return Answer::Void;
        }
        Answer::Changed(changed)
    }

    fn operate(
        &mut self,
        cmd_id: &Bytes,
        position: Position,
        time_ms: u64,
        mut operate: Operate,
    ) -> Answer {
        // hold, release, and the hold once more from a repeated record: the last one must not count
        if !self.kept.first_time(cmd_id, position) {
            return Answer::Void;
        }
        let id = std::mem::take(&mut operate.message_id);
        self.fact(&id, position, time_ms, Fact::Operated(Box::new(operate)))
    }

    fn bounce(&mut self, position: Position, time_ms: u64, bounce: Bounce) -> Answer {
        let fact = Fact::Bounced {
            recipients: bounce.recipients.iter().map(|r| r.recipient).collect(),
            dsn_id: bounce
                .dsn
                .as_ref()
                .map(|dsn| Bytes::copy_from_slice(&dsn.message_id))
                .unwrap_or_default(),
        };
        let told = bounce.dsn.is_some();
        let answer = self.reported(&bounce.message_id, position, time_ms, fact, bounce.dsn);
        if let Answer::Changed(changed) = answer {
            match told {
                true => self.counters.bounced += u64::from(changed),
                false => self.counters.double_bounces += u64::from(changed),
            }
        }
        answer
    }

    /// A fact and the report that tells the sender of it: the report becomes a message if, and only if, the fact had its
    /// effect, so whoever leads and however often, there is one report of one event.
    fn reported(
        &mut self,
        about: &[u8],
        position: Position,
        time_ms: u64,
        fact: Fact,
        report: Option<Accept>,
    ) -> Answer {
        let Some(accept) = &report else {
            return self.fact(about, position, time_ms, fact);
        };
        let Some((id, content)) = id_and_body(accept) else {
            return self.misplaced(position);
        };
        // the message may be gone once this is applied
        let pin = MessageId::from_bytes(about)
            .and_then(|id| self.index.message(id))
            .map(|message| message.pin);
        let answer = self.fact(about, position, time_ms, fact);
        let (Answer::Changed(_), Some(pin)) = (answer, pin) else {
            return answer;
        };
        self.counters.reports += 1;
        if self.index.message(id).is_none() && !self.kept.was_accepted(id) {
            let slots = fresh(accept.recipients.clone());
            let record = (position, accept.encoded_len() as u64);
            let message = Message::new(accept, slots, "", pin, record);
            self.know(id, message, Position::ZERO, position, &content);
        }
        answer
    }

    fn carry(&mut self, position: Position, carry: Carry, log_bytes: u64) -> Answer {
        let as_of = Position(carry.as_of);
        let whole = carry
            .accept
            .and_then(|accept| Some((id_and_body(&accept)?, accept)));
        let Some(((id, content), accept)) = whole.filter(|_| as_of <= position) else {
            return self.misplaced(position);
        };
        if self.index.message(id).is_some() {
            self.index.carried(id, as_of, position, log_bytes);
            self.kept.accepted(id, position);
            self.counters.carried += 1;
            return Answer::Changed(1);
        }
        if as_of < self.start.max(self.log_start) {
            self.counters.carries_void += 1;
            return Answer::Void;
        }
        let slots = carry.states.into_iter().map(Slot::new).collect();
        let record = (position, log_bytes);
        let message = Message::new(&accept, slots, &carry.held, as_of, record);
        self.know(id, message, as_of, position, &content);
        if self.index.message(id).is_none() {
            self.counters.carries_void += 1;
            return Answer::Void;
        }
        self.counters.restored += 1;
        Answer::Changed(1)
    }

    fn tick(&mut self, position: Position, log_time_ms: u64) {
        // by assignment: one tick from a clock that ran ahead must not age the queue for ever
        self.log_time_ms = log_time_ms;
        let cancel_window = self.options.cancel_window_ms;
        self.cancels.retain(|_, cancel| {
            cancel.accept.is_some() || cancel.came_ms.saturating_add(cancel_window) >= log_time_ms
        });
        if self.options.dedupe_window_ms == 0 {
            return;
        }
        self.ticks.push_back((position, log_time_ms));
        let window = self.options.dedupe_window_ms;
        while let Some((_, time_ms)) = self.ticks.get(1)
            && time_ms.saturating_add(window) < log_time_ms
        {
            self.ticks.pop_front();
        }
    }

    fn misplaced(&mut self, position: Position) -> Answer {
        self.counters.quarantined += 1;
        if self.quarantined.len() == QUARANTINED_MAX {
            self.quarantined.remove(0);
        }
        self.quarantined.push(position);
        tracing::error!(%position, "record quarantined");
        Answer::Void
    }

    fn retain(&mut self, position: Position, bytes: u64) {
        self.retained_bytes += bytes;
        match self.retained.back_mut() {
            Some((_, step)) if *step < STEP_BYTES => *step += bytes,
            _ => self.retained.push_back((position, bytes)),
        }
    }
}

/// The id and content of a message that has both.
fn id_and_body(accept: &Accept) -> Option<(MessageId, Body)> {
    let id = MessageId::from_bytes(&accept.message_id)?;
    let body = accept.body.clone()?;
    body.content.is_some().then_some((id, body))
}

impl Machine for QueueMachine {
    type Answer = Answer;

    fn resume(&mut self, _incarnation: u64, bounds: Bounds) -> Result<Position, Trouble> {
        self.index.clear();
        self.kept = Kept::default();
        self.bodies.clear();
        self.cancels.clear();
        self.ticks.clear();
        self.retained.clear();
        self.retained_bytes = 0;
        self.log_time_ms = 0;
        self.start = bounds.start;
        self.replay_end = bounds.end;
        self.log_start = bounds.start;
        self.next = bounds.start;
        Ok(bounds.start)
    }

    fn applied(&self) -> Applied {
        Applied::default()
    }

    fn apply(&mut self, stamp: Stamp, record: Record) -> Result<Answer, Trouble> {
        let position = stamp.position;
        let time_ms = record.time_ms;
        let bytes = record.encoded_len() as u64;
        self.next = position.next();
        self.retain(position, bytes);
        let Some(command) = record.command else {
            return Ok(self.misplaced(position));
        };
        let answer = match command {
            Command::Accept(accept) => self.accept(position, accept, bytes),
            Command::Cancel(cancel) => {
                self.fact(&cancel.message_id, position, time_ms, Fact::Cancelled)
            }
            Command::Routed(mut routed) => {
                let id = std::mem::take(&mut routed.message_id);
                // only the fact is kept
                let report = routed.report.take();
                let fact = Fact::Routed(Box::new(routed));
                self.reported(&id, position, time_ms, fact, report)
            }
            Command::Attempted(attempted)
                if attempted.report.is_some()
                    && attempted.outcomes.len() != 1
                    && !are_delays(&attempted.outcomes) =>
            {
                // whether it had its effect would not be one answer
                self.misplaced(position)
            }
            Command::Attempted(attempted) => self.reported(
                &attempted.message_id,
                position,
                time_ms,
                Fact::Attempted(attempted.outcomes),
                attempted.report,
            ),
            Command::Bounce(bounce) => self.bounce(position, time_ms, bounce),
            Command::Carry(carry) => self.carry(position, carry, bytes),
            Command::Operate(operate) => self.operate(&record.cmd_id, position, time_ms, operate),
            Command::Tick(tick) => {
                self.tick(position, tick.log_time_ms);
                Answer::Changed(0)
            }
            Command::LeaderBegin(_)
            | Command::Barrier(_)
            | Command::HashMark(_)
            | Command::HashReport(_) => Answer::Changed(0),
            _ => self.misplaced(position),
        };
        Ok(answer)
    }

    fn quarantine(&mut self, stamp: Stamp) -> Result<(), Trouble> {
        self.next = stamp.position.next();
        self.misplaced(stamp.position);
        Ok(())
    }

    fn batch_end(&mut self, applied: Applied) -> Result<(), Trouble> {
        self.gauges.store(
            self.index.messages().len() as u64,
            self.index.bytes(),
            self.memory_bytes(),
            applied.stamp.position,
        );
        Ok(())
    }

    fn keep_from(&self) -> Position {
        if !self.is_whole() {
            return self.log_start;
        }
        let waiting = self
            .cancels
            .iter()
            .find(|(_, cancel)| cancel.accept.is_none());
        let pins = [
            self.index.lowest_pin(),
            waiting.map(|(position, _)| *position),
            self.dedupe_from(),
        ];
        let mut keep_from = pins.into_iter().flatten().fold(self.next, Position::min);
        for (position, cancel) in self.cancels.iter().rev() {
            let between = *position < keep_from && cancel.accept >= Some(keep_from);
            if between {
                keep_from = *position;
            }
        }
        keep_from
    }

    fn log_start(&mut self, start: Position) {
        self.log_start = self.log_start.max(start);
        self.kept.prune(start);
        self.cancels = self.cancels.split_off(&start);
        // a step counts until the next one begins at or below the start
        while let Some((next, _)) = self.retained.get(1)
            && *next <= start
        {
            if let Some((_, bytes)) = self.retained.pop_front() {
                self.retained_bytes -= bytes;
            }
        }
        if start >= self.next {
            self.retained.clear();
            self.retained_bytes = 0;
        }
    }

    fn pressed(&mut self) {
        // the leader, who carries, asks the log itself; other replicas have nothing of their own to let go of
    }

    fn state_hash(&self) -> [u8; 32] {
        self.index.hash()
    }

    fn is_whole(&self) -> bool {
        self.next >= self.replay_end
    }
}

impl QueueMachine {
    /// Where the dedupe window begins.
    fn dedupe_from(&self) -> Option<Position> {
        if self.options.dedupe_window_ms == 0 {
            return None;
        }
        // before the window is full everything is within it
        let (position, time_ms) = self.ticks.front()?;
        let full = time_ms.saturating_add(self.options.dedupe_window_ms) < self.log_time_ms;
        Some(if full { *position } else { self.start })
    }

    /// Recipients of a live message with what the index derived, for the leader and the operator.
    pub(crate) fn states(message: &Message) -> Vec<RecipientState> {
        message.slots.iter().map(Slot::state).collect()
    }
}
