//! What a leader takes from the index, and what it carries.

use std::collections::BTreeSet;

use bytes::Bytes;
use hikyaku_log::Position;
use hikyaku_mail::id::MessageId;
use hikyaku_proto::v1::terminal::How;
use hikyaku_proto::v1::{AttemptRecord, Body, Carry, Envelope, Recipient};

use crate::delays::asks;
use crate::index::RecipientKey;
use crate::machine::{MESSAGE_MEMORY_BYTES, QueueMachine};
use crate::recipient::{Message, Slot, Stand};

/// Octets of states in one Carry above which histories are left out, so that the record fits any log.
const CARRIED_STATES_BYTES_MAX: usize = 384 * 1024;

/// Octets of remembered facts that are nobody's concern.
const KEPT_BYTES_MIN: usize = 4 << 20;
/// Facts remembered for each live message above which those are carried.
const KEPT_EACH_MAX: usize = 6;
/// The same where they take a quarter of the queue's memory: what is carried leaves one.
const KEPT_EACH_CARRIED_MAX: usize = 2;
/// Octets of remembered facts that any queue may have: its first chunk.
const KEPT_BYTES_FIRST: u64 = 64 * 1024;

/// One recipient to attempt, as the log says at this moment.
#[derive(Clone, Debug)]
pub struct Work {
    /// Which.
    pub key: RecipientKey,
    /// The message's envelope.
    pub envelope: Envelope,
    /// The message's tenant.
    pub tenant: String,
    /// Trace context of the message.
    pub traceparent: String,
    /// Not empty: it is a DSN about this message.
    pub reports_on: Bytes,
    /// The recipient.
    pub recipient: Recipient,
    /// The message has no other one.
    pub alone: bool,
    /// The address the sender wrote: that of the recipient this one was expanded from in the end.
    pub original_address: String,
    /// Where its failure is reported instead of to the sender.
    pub errors_to: Option<String>,
    /// Its last attempt that had an answer, if that is remembered.
    pub last_attempt: Option<AttemptRecord>,
    /// Definite results so far.
    pub attempts: u32,
    /// Octets of content.
    pub size: u64,
    /// The content, if it is in memory.
    pub body: Option<Body>,
    /// The record that holds the content.
    pub body_at: Position,
}

/// A message to append again. The content may have to be read from `body_at`.
#[derive(Clone, Debug)]
pub struct Draft {
    /// Which.
    pub id: MessageId,
    /// The record, perhaps without content.
    pub carry: Carry,
    /// Where the content is.
    pub body_at: Position,
    /// Octets its last record took.
    pub log_bytes: u64,
}

impl QueueMachine {
    /// Hands out due recipients (see [`crate::index::Index::take_due`]).
    pub fn take_due(&mut self, now_ms: u64, latest_ms: u64, max: usize) -> Vec<RecipientKey> {
        self.index.take_due(now_ms, latest_ms, max)
    }

    /// Takes a recipient back from the leader.
    pub fn give_back(&mut self, key: RecipientKey) {
        self.index.give_back(key);
    }

    /// The tenant a recipient counts for (its own where it has one, else the message's), and its account if it is local.
    pub fn route(&self, key: RecipientKey) -> Option<(&str, Option<String>)> {
        let message = self.index.message(key.0)?;
        let slot = message.slots.get(usize::try_from(key.1).ok()?)?;
        Some(match slot.account_and_tenant() {
            Some((account, "")) => (&message.tenant, Some(account)),
            Some((account, tenant)) => (tenant, Some(account)),
            None => (&message.tenant, None),
        })
    }

    /// What a leader needs to attempt a recipient; `None` when it waits no longer: terminal or held.
    pub fn work(&self, key: RecipientKey) -> Option<Work> {
        let message = self.index.message(key.0)?;
        let slot = message.slots.get(usize::try_from(key.1).ok()?)?;
        if slot.pending_due().is_none() || !message.held.is_empty() {
            return None;
        }
        let origin = slot.origin();
        let recipient = origin.recipient?;
        let accept = message.accept(key.0);
        Some(Work {
            key,
            envelope: accept.envelope.unwrap_or_default(),
            tenant: accept.tenant,
            traceparent: accept.traceparent,
            reports_on: accept.reports_on,
            original_address: original_address(message, slot),
            recipient,
            alone: message.slots.len() == 1,
            errors_to: origin.errors_to,
            last_attempt: slot.last_attempt(),
            attempts: slot.attempts(),
            size: accept.body.map_or(0, |body| body.size),
            body: self.bodies.find(key.0),
            body_at: message.body_at,
        })
    }

    /// Recipients that ended because recipient `key`, or one that was delivered, has the same mailbox, and whose senders want to
    /// hear of success: they get the mail with it. Each with the address that the sender wrote.
    pub fn served_with(&self, key: RecipientKey) -> Vec<(String, Recipient)> {
        let Some(message) = self.index.message(key.0) else {
            return Vec::new();
        };
        let own = usize::try_from(key.1)
            .ok()
            .and_then(|number| message.slots.get(number)?.account());
        let Some(account) = own else {
            return Vec::new();
        };
        let collapsed: Vec<(u32, &Slot)> = (0u32..)
            .zip(&message.slots)
            .filter(|(_, slot)| slot.ended(How::Collapsed))
            .filter(|(_, slot)| slot.account().as_ref() == Some(&account))
            .collect();
        if collapsed.is_empty() {
            // which is usual, and then nothing else is looked at
            return Vec::new();
        }
        // one that waited again has a number of its own since, which is told of itself
        let parents = message.slots.iter().map(|slot| slot.origin().parent);
        let again: BTreeSet<u32> = parents.flatten().collect();
        collapsed
            .into_iter()
            .filter(|(number, _)| !again.contains(number))
            .filter_map(|(_, slot)| {
                let recipient = slot.recipient()?;
                asks(&recipient.notify, "SUCCESS")
                    .then(|| (original_address(message, slot), recipient))
            })
            .collect()
    }

    /// Whether the sender of a live message has said for some recipient when it wants to hear of it.
    pub fn has_notify(&self, id: MessageId) -> bool {
        let message = self.index.message(id);
        message.is_some_and(|message| message.slots.iter().any(Slot::has_notify))
    }

    /// Whether a recipient of the message with this account has been delivered: another one with it ends at once.
    pub fn has_delivered(&self, id: MessageId, account: &str) -> bool {
        self.index.message(id).is_some_and(|message| {
            message.slots.iter().any(|slot| {
                slot.ended(How::Delivered) && slot.account().as_deref() == Some(account)
            })
        })
    }

    /// Whether a recipient of the message, other than those in `except`, is being tried or due at `now_ms`.
    pub fn is_another_due(&self, id: MessageId, now_ms: u64, except: &BTreeSet<u32>) -> bool {
        let Some(message) = self.index.message(id) else {
            return false;
        };
        let is_due = |number: u32, slot: &Slot| {
            let due = slot.pending_due();
            due.is_some_and(|due_ms| due_ms <= now_ms || self.index.is_taken((id, number)))
        };
        message.held.is_empty()
            && (0..)
                .zip(&message.slots)
                .any(|(number, slot)| is_due(number, slot) && !except.contains(&number))
    }

    /// Whether another recipient that comes from the same address of the sender's has the mail, may still get it, or has failed
    /// with a report. Those that stand for others do not count, nor those that ended without anybody hearing of it.
    pub fn is_another_served(&self, key: RecipientKey) -> bool {
        let Some(message) = self.index.message(key.0) else {
            return false;
        };
        let counts = |slot: &Slot| match slot.stand() {
            Stand::Terminal(terminal) => match terminal.how() {
                How::Expanded => false,
                How::Bounced => !terminal.dsn_id.is_empty(),
                _ => true,
            },
            Stand::Pending(_) | Stand::Held(_) => true,
        };
        let root = root(message, key.1);
        (0..).zip(&message.slots).any(|(number, slot)| {
            number != key.1 && counts(slot) && self::root(message, number) == root
        })
    }

    /// Whether more of this shard's log is garbage than live, by more than `slack_bytes`; or what must be remembered of facts
    /// since the log start takes much memory beside the live messages, or a quarter of all that the queue may take: it must not
    /// keep new mail out.
    pub fn should_carry(&self, slack_bytes: u64) -> bool {
        let messages = self.index.messages().len();
        let (bytes, facts) = (self.kept.bytes(), self.kept.len());
        if bytes > KEPT_BYTES_MIN && facts > messages * KEPT_EACH_MAX {
            return true;
        }
        let quarter = self
            .options()
            .queue_messages_max
            .saturating_mul(MESSAGE_MEMORY_BYTES)
            / 4;
        let may_take = quarter.saturating_add(KEPT_BYTES_FIRST);
        if bytes as u64 > may_take && facts > messages * KEPT_EACH_CARRIED_MAX {
            return true;
        }
        let twice_live = self.index.bytes().saturating_mul(2);
        self.retained_bytes() > twice_live.saturating_add(slack_bytes)
    }

    /// The message that holds the oldest part of the log, if its pin lies below `below`, to be appended again.
    pub fn draft(&self, below: Position) -> Option<Draft> {
        let (pin, id) = self.index.oldest()?;
        if pin >= below {
            return None;
        }
        self.draft_of(id)
    }

    /// A message to be appended again.
    pub fn draft_of(&self, id: MessageId) -> Option<Draft> {
        let message = self.index.message(id)?;
        let mut states = QueueMachine::states(message);
        let bytes: usize = states.iter().map(prost::Message::encoded_len).sum();
        if bytes > CARRIED_STATES_BYTES_MAX {
            for state in &mut states {
                state.history.clear();
            }
        }
        let mut accept = message.accept(id);
        if let Some(body) = self.bodies.find(id) {
            accept.body = Some(body);
        }
        let carry = Carry {
            as_of: self.next.0,
            accept: Some(accept),
            states,
            held: message.held.to_string(),
        };
        Some(Draft {
            id,
            carry,
            body_at: message.body_at,
            log_bytes: message.log_bytes,
        })
    }
}

/// The address the sender wrote for a recipient: that of the one it was expanded from in the end.
fn original_address(message: &Message, slot: &Slot) -> String {
    let root = match slot.origin().parent {
        Some(parent) => slot_of(message, root(message, parent)),
        None => Some(slot),
    };
    root.and_then(Slot::recipient)
        .map(|recipient| recipient.address)
        .unwrap_or_default()
}

/// The number of the recipient that recipient `number` was expanded from in the end.
fn root(message: &Message, mut number: u32) -> u32 {
    // a parent's number is lower than its children's, so this ends
    while let Some(slot) = slot_of(message, number)
        && let Some(parent) = slot.origin().parent
        && parent < number
    {
        number = parent;
    }
    number
}

fn slot_of(message: &Message, number: u32) -> Option<&Slot> {
    message.slots.get(usize::try_from(number).ok()?)
}

#[cfg(test)]
mod tests {
    use crate::machine::{MESSAGE_MEMORY_BYTES, QueueMachine, QueueOptions};
    use crate::testing::{accept, delivered_outcome, expand, id, local};
    use bytes::Bytes;
    use hikyaku_log::{Bounds, Position, Stamp};
    use hikyaku_proto::v1::{
        Attempted, Bounce, BouncedRecipient, Recipient, Record, Routed, record::Command,
    };
    use hikyaku_shard::machine::Machine;

    fn apply(machine: &mut QueueMachine, position: &mut Position, command: Command) {
        let record = Record {
            version: 1,
            cmd_id: position.0.to_be_bytes().repeat(2).into(),
            time_ms: 5000,
            command: Some(command),
        };
        let stamp = Stamp {
            position: *position,
            crc: 0,
        };
        machine.apply(stamp, record).unwrap();
        *position = position.next();
    }

    #[test]
    fn what_is_remembered_of_mail_that_left_does_not_fill_a_small_queue() {
        let options = QueueOptions {
            queue_messages_max: 1000,
            ..QueueOptions::default()
        };
        let memory_bytes_max = options.queue_messages_max * MESSAGE_MEMORY_BYTES;
        let mut machine = QueueMachine::new(options);
        let mut position = Position(1);
        let bounds = Bounds {
            start: position,
            end: position,
        };
        machine.resume(1, bounds).unwrap();
        // one mail waits for days and holds the log; the others come and go
        let waiting = accept(id(1), vec![local("full")]);
        apply(&mut machine, &mut position, Command::Accept(waiting));
        let (mut carried, mut most) = (0, 0);
        for n in 2..10_000 {
            let mail = accept(id(n), vec![local("a")]);
            apply(&mut machine, &mut position, Command::Accept(mail));
            let attempted = Attempted {
                message_id: id(n).to_bytes().to_vec().into(),
                outcomes: vec![delivered_outcome(0, 7)],
                report: None,
            };
            apply(&mut machine, &mut position, Command::Attempted(attempted));
            most = most.max(machine.memory_bytes());
            if machine.should_carry(32 << 20) {
                let draft = machine.draft(position).unwrap();
                apply(&mut machine, &mut position, Command::Carry(draft.carry));
                machine.log_start(machine.keep_from());
                carried += 1;
            }
        }
        assert!(most < memory_bytes_max, "{most} octets remembered");
        assert!((1..30).contains(&carried), "carried {carried} times");
    }

    #[test]
    fn who_else_is_served_by_the_same_address_is_known() {
        for (told, served) in [(None, true), (Some(false), false), (Some(true), true)] {
            let mut machine = QueueMachine::new(QueueOptions::default());
            let mut position = Position(1);
            let mail = accept(id(1), vec![expand("one"), local("x")]);
            apply(&mut machine, &mut position, Command::Accept(mail));
            let message_id = Bytes::copy_from_slice(&id(1).to_bytes());
            let routed = |recipient, children| {
                Command::Routed(Routed {
                    message_id: message_id.clone(),
                    recipient,
                    children,
                    ..Routed::default()
                })
            };
            // what the sender wrote besides does not count, nor what stands for others
            apply(&mut machine, &mut position, routed(0, vec![expand("two")]));
            apply(&mut machine, &mut position, routed(2, vec![expand("one")]));
            assert!(!machine.is_another_served((id(1), 3)));
            let both = vec![local("a"), expand("two")];
            apply(&mut machine, &mut position, routed(3, both));
            assert!(machine.is_another_served((id(1), 5)));
            // nor what has failed in silence
            if let Some(told) = told {
                let bounce = Bounce {
                    message_id: message_id.clone(),
                    recipients: vec![BouncedRecipient {
                        recipient: 4,
                        status: None,
                    }],
                    dsn: told.then(|| accept(id(2), vec![local("sender")])),
                };
                apply(&mut machine, &mut position, Command::Bounce(bounce));
            }
            assert_eq!(machine.is_another_served((id(1), 5)), served, "{told:?}");
        }
    }

    #[test]
    fn whoever_waited_again_is_told_of_once() {
        let mut machine = QueueMachine::new(QueueOptions::default());
        let mut position = Position(1);
        let asking = |name: &str| Recipient {
            notify: "SUCCESS".into(),
            ..local(name)
        };
        let mail = accept(id(1), vec![asking("a"), asking("a"), asking("a")]);
        apply(&mut machine, &mut position, Command::Accept(mail));
        assert_eq!(machine.served_with((id(1), 0)).len(), 2);
        // the first one goes elsewhere (3), the second one waits again (4), the third one gets the mail with it
        let routed = Routed {
            message_id: id(1).to_bytes().to_vec().into(),
            recipient: 0,
            children: vec![local("b")],
            ..Routed::default()
        };
        apply(&mut machine, &mut position, Command::Routed(routed));
        assert_eq!(machine.served_with((id(1), 4)).len(), 1);
    }
}
