//! What an operator sees of the queue, in the shape the admin API sends. Stages are Postfix's: incoming, active, deferred, hold.

use hikyaku_mail::id::MessageId;
use hikyaku_proto::v1::{QueueListRequest, QueuedMessage};

use crate::machine::QueueMachine;
use crate::recipient::{Message, Slot, Stage, Stand};

/// Messages listed when the request names no limit.
pub const LIST_DEFAULT: u32 = 1000;
/// Messages listed at most.
pub const LIST_MAX: u32 = 100_000;

/// The stages a message can be listed by.
pub const STAGES: [&str; 4] = ["incoming", "active", "deferred", "hold"];

/// What matched, oldest first, cut at the limit, and how many matched in all.
#[derive(Clone, Debug, Default)]
pub struct Listed {
    /// The messages.
    pub messages: Vec<QueuedMessage>,
    /// How many there are.
    pub total: u64,
}

/// How many recipients are in each stage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Census {
    /// Accepted, not tried yet.
    pub incoming: u64,
    /// Being tried.
    pub active: u64,
    /// To be tried again later.
    pub deferred: u64,
    /// Waiting for an operator.
    pub hold: u64,
}

impl QueueMachine {
    /// Counts recipients by stage; takes as long as there are tenants and recipients being tried, not messages.
    pub fn census(&self) -> Census {
        let mut census = Census::default();
        for tally in self.index.tallies().values() {
            census.incoming += tally.incoming;
            census.deferred += tally.deferred;
            census.hold += tally.hold;
        }
        for (id, number) in self.index.taken() {
            let slot = self
                .index
                .message(*id)
                .and_then(|message| message.slots.get(*number as usize));
            // one that was held or has ended meanwhile is in no stage that it could leave
            let stage = match slot.and_then(|slot| slot.stage) {
                Some(Stage::Incoming) => &mut census.incoming,
                Some(Stage::Deferred) => &mut census.deferred,
                Some(Stage::Hold) | None => continue,
            };
            *stage = stage.saturating_sub(1);
            census.active += 1;
        }
        census
    }

    /// The messages that match `request`. An unknown stage matches nothing.
    pub fn list(&self, request: &QueueListRequest, now_ms: u64) -> Listed {
        let limit = match request.limit {
            0 => LIST_DEFAULT,
            limit => limit.min(LIST_MAX),
        };
        let mut listed = Listed::default();
        // ids begin with the time they were made, so this is by age
        for (id, message) in self.index.messages().iter() {
            if !self.matches(id, message, request, now_ms) {
                continue;
            }
            listed.total += 1;
            if listed.messages.len() < usize::try_from(limit).unwrap_or(usize::MAX) {
                listed.messages.push(queued(id, message));
            }
        }
        listed
    }

    /// The recipients of a message that are not settled: number, address, tenant.
    pub fn live_recipients(&self, id: MessageId) -> Vec<(u32, String, String)> {
        let Some(message) = self.index.message(id) else {
            return Vec::new();
        };
        let live = (0u32..)
            .zip(&message.slots)
            .filter(|(_, slot)| !slot.is_terminal());
        live.filter_map(|(number, slot)| {
            let (tenant, _) = self.route((id, number))?;
            let address = slot.recipient()?.address;
            Some((number, address, tenant.to_owned()))
        })
        .collect()
    }

    /// Whether a record that is still in the log says that the recipient was delivered, bounced or replaced.
    pub fn was_settled(&self, id: MessageId, number: u32) -> bool {
        self.kept.settled(id, number)
    }

    /// One message.
    pub fn show(&self, id: MessageId) -> Option<QueuedMessage> {
        self.index.message(id).map(|message| queued(id, message))
    }

    fn matches(
        &self,
        id: MessageId,
        message: &Message,
        request: &QueueListRequest,
        now_ms: u64,
    ) -> bool {
        if !request.tenant.is_empty() && request.tenant != *message.tenant {
            return false;
        }
        let address = request.address.as_str();
        if !address.is_empty() && !has_address(id, message, address) {
            return false;
        }
        request.state.is_empty()
            || message.slots.iter().enumerate().any(|(number, slot)| {
                let key = (id, u32::try_from(number).unwrap_or(u32::MAX));
                let word = stage_word(message, slot, self.index.is_taken(key), now_ms);
                word == Some(request.state.as_str())
            })
    }
}

/// The stage a recipient is in; `None` when it is settled.
fn stage_word(message: &Message, slot: &Slot, taken: bool, now_ms: u64) -> Option<&'static str> {
    match slot.stand() {
        Stand::Terminal(_) => None,
        Stand::Held(_) => Some("hold"),
        Stand::Pending(_) if !message.held.is_empty() => Some("hold"),
        Stand::Pending(_) if taken => Some("active"),
        Stand::Pending(_) if slot.attempts() == 0 => Some("incoming"),
        Stand::Pending(due_ms) if *due_ms <= now_ms => Some("active"),
        Stand::Pending(_) => Some("deferred"),
    }
}

fn has_address(id: MessageId, message: &Message, part: &str) -> bool {
    let part = part.to_lowercase();
    let has = |address: String| address.to_lowercase().contains(&part);
    let envelope = message.accept(id).envelope;
    let mut recipients = message.slots.iter().filter_map(Slot::recipient);
    envelope.is_some_and(|envelope| has(envelope.reverse_path))
        || recipients.any(|recipient| has(recipient.address))
}

fn queued(id: MessageId, message: &Message) -> QueuedMessage {
    let accept = message.accept(id);
    QueuedMessage {
        message_id: accept.message_id,
        envelope: accept.envelope,
        tenant: accept.tenant,
        size: accept.body.map_or(0, |body| body.size),
        recipients: QueueMachine::states(message),
        held: message.held.to_string(),
        reports_on: accept.reports_on,
        position: message.body_at.0,
    }
}

#[cfg(test)]
mod tests {
    use super::Census;
    use crate::held::{GROUP_TOO_LARGE, HeldFor};
    use crate::machine::{QueueMachine, QueueOptions};
    use crate::testing::{accept, deferred_outcome, delivered_outcome, id, local, outcome};
    use hikyaku_log::{Position, Stamp};
    use hikyaku_proto::v1::outcome::Result as Attempt;
    use hikyaku_proto::v1::{Attempted, Held, Outcome, Record, record::Command};
    use hikyaku_shard::machine::Machine;

    struct Queue {
        machine: QueueMachine,
        position: Position,
    }

    impl Queue {
        fn apply(&mut self, command: Command) {
            let record = Record {
                version: 1,
                time_ms: 5000,
                command: Some(command),
                ..Record::default()
            };
            let stamp = Stamp {
                position: self.position,
                crc: 0,
            };
            self.machine.apply(stamp, record).unwrap();
            self.position = self.position.next();
        }

        fn attempted(&mut self, outcome: Outcome) {
            self.apply(Command::Attempted(Attempted {
                message_id: id(1).to_bytes().to_vec().into(),
                outcomes: vec![outcome],
                report: None,
            }));
        }

        fn held(&self) -> Vec<(&'static str, u64)> {
            let counts = self.machine.index().held_for();
            counts.counts().filter(|(_, count)| *count > 0).collect()
        }
    }

    #[test]
    fn each_recipient_is_counted_in_one_stage_also_in_the_leaders_hands() {
        let mut queue = Queue {
            machine: QueueMachine::new(QueueOptions::default()),
            position: Position(1),
        };
        let recipients = ["a", "b", "c", "d"].map(local).to_vec();
        queue.apply(Command::Accept(accept(id(1), recipients)));
        queue.attempted(deferred_outcome(1, 9000));
        let census = |incoming, active, deferred, hold| Census {
            incoming,
            active,
            deferred,
            hold,
        };
        assert_eq!(queue.machine.census(), census(3, 0, 1, 0));
        // the leader tries two of them; one is held meanwhile, the other one ends
        assert_eq!(queue.machine.take_due(0, u64::MAX, 2).len(), 2);
        assert_eq!(queue.machine.census(), census(1, 2, 1, 0));
        let held = |reason: &str| {
            Attempt::Held(Held {
                reason: reason.into(),
            })
        };
        queue.attempted(outcome(0, held(GROUP_TOO_LARGE)));
        assert_eq!(queue.machine.census(), census(1, 1, 1, 1));
        queue.attempted(delivered_outcome(2, 7));
        assert_eq!(queue.machine.census(), census(1, 0, 1, 1));
        assert_eq!(queue.held(), [(GROUP_TOO_LARGE, 1)]);
        // what an operator or a later program says is not ours
        queue.attempted(outcome(3, held("because")));
        assert_eq!(queue.machine.census(), census(0, 0, 1, 2));
        assert_eq!(queue.held(), [(GROUP_TOO_LARGE, 1)]);
        queue.attempted(delivered_outcome(0, 8));
        assert_eq!(queue.machine.index().held_for(), HeldFor::default());
    }
}
