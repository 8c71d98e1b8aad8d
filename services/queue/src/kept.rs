//! Facts remembered down to the log start, also those about messages that are unknown here or finished.
//!
//! A `Carry` may be old when it reaches the log: its leader was deposed, or its append took long. What happened since its
//! state was read is here, so making its message known again cannot bring a finished recipient back.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use hikyaku_log::Position;
use hikyaku_mail::id::MessageId;
use hikyaku_proto::v1::outcome::Result as Attempt;
use hikyaku_proto::v1::{Operate, Outcome, Routed};

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

impl KeptFact {
    /// Without the replies' text, which only an operator reads.
    fn slim(mut self) -> KeptFact {
        if let Fact::Attempted(outcomes) = &mut self.fact {
            for outcome in outcomes {
                if let Some(Attempt::Deferred(deferred)) = &mut outcome.result
                    && let Some(status) = &mut deferred.status
                {
                    status.text = String::new();
                }
            }
        }
        self
    }
}

#[derive(Debug, Default)]
struct Trace {
    /// The last record that made the message known.
    accepted: Option<Position>,
    facts: Vec<KeptFact>,
}

/// All facts from the log start on.
#[derive(Debug, Default)]
pub struct Kept {
    traces: BTreeMap<MessageId, Trace>,
    order: BTreeSet<(Position, MessageId)>,
    orders: BTreeMap<Bytes, Position>,
}

impl Kept {
    /// Remembers that a record made `id` known: a repeat of its `Accept` is one.
    pub fn accepted(&mut self, id: MessageId, position: Position) {
        self.traces.entry(id).or_default().accepted = Some(position);
        self.order.insert((position, id));
    }

    /// Whether a record since the log start made `id` known.
    pub fn was_accepted(&self, id: MessageId) -> bool {
        self.traces
            .get(&id)
            .is_some_and(|trace| trace.accepted.is_some())
    }

    /// Remembers a fact.
    pub fn fact(&mut self, id: MessageId, kept: KeptFact) {
        self.order.insert((kept.position, id));
        let facts = &mut self.traces.entry(id).or_default().facts;
        // most messages have one or two, and there are many messages
        if facts.len() < 4 {
            facts.reserve_exact(1);
        }
        facts.push(kept.slim());
    }

    /// The facts about `id` from position `from` on, in log order.
    pub fn facts_from(&self, id: MessageId, from: Position) -> Vec<KeptFact> {
        let facts = self.traces.get(&id).map(|trace| trace.facts.iter());
        facts
            .into_iter()
            .flatten()
            .filter(|kept| kept.position >= from)
            .cloned()
            .collect()
    }

    /// Whether a fact settled recipient `number` of `id`: delivered, bounced, or replaced by others.
    pub fn settled(&self, id: MessageId, number: u32) -> bool {
        let Some(trace) = self.traces.get(&id) else {
            return false;
        };
        trace.facts.iter().any(|kept| match &kept.fact {
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
        while let Some(&(position, id)) = self.order.first() {
            if position >= start {
                break;
            }
            self.order.pop_first();
            if let Some(trace) = self.traces.get_mut(&id) {
                trace.facts.retain(|kept| kept.position >= start);
                trace.accepted = trace.accepted.filter(|accepted| *accepted >= start);
                if trace.facts.is_empty() && trace.accepted.is_none() {
                    self.traces.remove(&id);
                }
            }
        }
        self.orders.retain(|_, position| *position >= start);
    }

    /// How many records are remembered.
    pub fn len(&self) -> usize {
        self.order.len()
    }

    /// Whether nothing is.
    pub fn is_empty(&self) -> bool {
        self.order.is_empty()
    }
}
