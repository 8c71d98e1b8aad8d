//! What became of every message and recipient, told by the records in the order of the log. Whatever was said once (a
//! recipient's address, that it is settled, and how) must never be said differently later (PROTOCOLS 2.9, Q3 and Q4).

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use hikyaku_log::Position;
use hikyaku_mail::id::{DeliveryId, MessageId};
use hikyaku_proto::v1::operate::Order;
use hikyaku_proto::v1::outcome::Result as Attempt;
use hikyaku_proto::v1::recipient::Target;
use hikyaku_proto::v1::recipient_state::State;
use hikyaku_proto::v1::terminal::How;
use hikyaku_proto::v1::{Accept, Body, Deliver, Recipient, Status, Terminal, record::Command};
use hikyaku_queue::machine::{Answer, QueueMachine};
use hikyaku_store::machine::StoredAt;

use super::ledger::Place;
use super::world::World;

/// How a recipient ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// In a mailbox.
    Delivered {
        /// Mailbox shard.
        shard: u16,
        /// Its place.
        at: StoredAt,
    },
    /// Failed, and which message says so.
    Bounced {
        /// `None`: nobody may be told.
        dsn: Option<MessageId>,
    },
    /// Replaced by others.
    Expanded,
    /// Equal to another one.
    Collapsed,
    /// An operator took it away.
    Deleted,
    /// The edge took it back.
    Cancelled,
}

/// A recipient.
#[derive(Clone, Debug)]
pub struct RecipientFate {
    /// As logged.
    pub recipient: Recipient,
    /// From which it was expanded.
    pub parent: Option<u32>,
    /// Why it waits for an operator, if it does.
    pub held: Option<String>,
    /// How it ended.
    pub end: Option<End>,
    /// What its bounce said.
    pub status: Option<Status>,
}

impl RecipientFate {
    /// Its account, if it has one.
    pub fn account(&self) -> Option<&str> {
        match &self.recipient.target {
            Some(Target::Local(local)) => Some(&local.account),
            _ => None,
        }
    }
}

/// A message.
#[derive(Clone, Debug)]
pub struct MessageFate {
    /// As accepted, without content.
    pub accept: Accept,
    /// Its content.
    pub body: Body,
    /// Everybody it is for, by number.
    pub recipients: Vec<RecipientFate>,
    /// Held as a whole, and why.
    pub held: String,
    /// Where it became known.
    pub position: Position,
}

impl MessageFate {
    /// Who sent it; empty is null.
    pub fn reverse_path(&self) -> &str {
        let envelope = self.accept.envelope.as_ref();
        envelope.map_or("", |envelope| &envelope.reverse_path)
    }

    /// Whether it is a report about another message.
    pub fn is_report(&self) -> bool {
        !self.accept.reports_on.is_empty()
    }

    /// Whether every recipient is settled.
    pub fn is_settled(&self) -> bool {
        self.recipients.iter().all(|fate| fate.end.is_some())
    }
}

/// One mail in a mailbox, ever.
#[derive(Clone, Debug)]
pub struct Copy {
    /// The recipient's number.
    pub recipient: u32,
    /// Whose.
    pub account: String,
    /// Mailbox shard.
    pub shard: u16,
    /// Its place.
    pub at: StoredAt,
}

/// What senders are told besides failures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Told {
    /// It was delivered, or sent on to several.
    Success,
    /// It takes long.
    Delay,
}

/// What became of everything.
pub struct Truth {
    world: World,
    /// By queue id.
    pub messages: BTreeMap<MessageId, MessageFate>,
    /// Mails stored, by the message they are of.
    pub copies: BTreeMap<MessageId, Vec<Copy>>,
    /// Mails that a restore has brought back, and the delivery ids they were stored under.
    pub restored: BTreeMap<Place, Bytes>,
    /// How often each account was restored.
    pub restorations: BTreeMap<String, u32>,
    /// Where each account's mail is stored.
    homes: BTreeMap<String, u16>,
    /// Reports of anything but a failure, by message, recipient and kind.
    pub told: BTreeMap<(MessageId, u32, Told), MessageId>,
    dsns: BTreeSet<MessageId>,
}

fn message_id(bytes: &[u8]) -> Option<MessageId> {
    MessageId::from_bytes(bytes)
}

/// The messages a command is about.
fn touched(command: &Command) -> Vec<MessageId> {
    let ids: Vec<&[u8]> = match command {
        Command::Accept(accept) => vec![&accept.message_id],
        Command::Cancel(cancel) => vec![&cancel.message_id],
        Command::Routed(routed) => vec![&routed.message_id],
        Command::Attempted(attempted) => vec![&attempted.message_id],
        Command::Operate(operate) => vec![&operate.message_id],
        Command::Bounce(bounce) => vec![&bounce.message_id],
        Command::Carry(carry) => carry
            .accept
            .iter()
            .map(|accept| &accept.message_id[..])
            .collect(),
        _ => Vec::new(),
    };
    let report = report_in(command).map(|report| &report.message_id[..]);
    ids.into_iter()
        .chain(report)
        .filter_map(message_id)
        .collect()
}

/// The report that a command brings.
fn report_in(command: &Command) -> Option<&Accept> {
    match command {
        Command::Bounce(bounce) => bounce.dsn.as_ref(),
        Command::Attempted(attempted) => attempted.report.as_ref(),
        Command::Routed(routed) => routed.report.as_ref(),
        _ => None,
    }
}

impl Truth {
    /// Nothing has happened.
    pub fn new(world: World) -> Truth {
        Truth {
            world,
            messages: BTreeMap::new(),
            copies: BTreeMap::new(),
            restored: BTreeMap::new(),
            restorations: BTreeMap::new(),
            homes: BTreeMap::new(),
            told: BTreeMap::new(),
            dsns: BTreeSet::new(),
        }
    }

    /// A queue record has been applied.
    pub fn queue(
        &mut self,
        machine: &QueueMachine,
        command: Option<Command>,
        answer: Answer,
        at: Position,
    ) {
        let Some(command) = command else { return };
        if let Command::Accept(accept) = &command {
            self.accepted(accept, at);
        }
        // a report exists only if what it tells of counted
        if let Some(report) = report_in(&command)
            && let Some(id) = message_id(&report.message_id)
            && answer != Answer::Void
        {
            if !self.dsns.insert(id) {
                self.world.violate(format_args!("Q4: report {id} twice"));
            }
            self.tell(&command, id);
            self.accepted(report, at);
        }
        for id in touched(&command) {
            self.sync(machine, id, &command);
        }
    }

    /// I7: one report of one event, and never to the null reverse-path.
    fn tell(&mut self, command: &Command, report: MessageId) {
        let (about, recipients, told, word) = match command {
            Command::Attempted(attempted) => {
                let outcome = &attempted.outcomes[0];
                let recipients: Vec<u32> = attempted.outcomes.iter().map(|o| o.recipient).collect();
                let (told, word) = match &outcome.result {
                    Some(Attempt::Delivered(_)) => (Told::Success, "report/delivered"),
                    Some(Attempt::Delayed(_)) => (Told::Delay, "report/delayed"),
                    other => {
                        self.world.violate(format_args!("a report of {other:?}"));
                        return;
                    }
                };
                (&attempted.message_id, recipients, told, word)
            }
            Command::Routed(routed) => (
                &routed.message_id,
                vec![routed.recipient],
                Told::Success,
                "report/expanded",
            ),
            _ => return,
        };
        self.world.count(word);
        let Some(about) = message_id(about) else {
            return;
        };
        let fate = self.messages.get(&about);
        if fate.is_none_or(|fate| fate.reverse_path().is_empty()) {
            self.world
                .violate(format_args!("I7: {report} tells nobody of {about}"));
        }
        for recipient in recipients {
            if let Some(other) = self.told.insert((about, recipient, told), report) {
                self.world.violate(format_args!(
                    "I7: {other} and {report} tell {told:?} of recipient {recipient} of {about}"
                ));
            }
        }
    }

    fn accepted(&mut self, accept: &Accept, position: Position) {
        let Some(id) = message_id(&accept.message_id) else {
            return;
        };
        if self.messages.contains_key(&id) {
            return;
        }
        let recipients = accept.recipients.iter().map(|recipient| RecipientFate {
            recipient: recipient.clone(),
            parent: None,
            held: None,
            end: None,
            status: None,
        });
        let fate = MessageFate {
            recipients: recipients.collect(),
            body: accept.body.clone().unwrap_or_default(),
            accept: Accept {
                body: None,
                ..accept.clone()
            },
            held: String::new(),
            position,
        };
        self.messages.insert(id, fate);
    }

    /// Takes over what the queue says about a message now.
    fn sync(&mut self, machine: &QueueMachine, id: MessageId, command: &Command) {
        let world = self.world.clone();
        let live = machine.index().message(id);
        let Some(fate) = self.messages.get_mut(&id) else {
            if live.is_some() {
                world.violate(format_args!("message {id} comes from nowhere"));
            }
            return;
        };
        let Some(message) = live else {
            for number in 0..fate.recipients.len() {
                if fate.recipients[number].end.is_none() {
                    ended_last(&world, id, fate, number, command);
                    collapsed_last(fate, number, command);
                }
            }
            return;
        };
        fate.held = message.held.to_string();
        for (number, slot) in message.slots.iter().enumerate() {
            let state = slot.state();
            let recipient = state.recipient.clone().unwrap_or_default();
            if number == fate.recipients.len() {
                fate.recipients.push(RecipientFate {
                    recipient: recipient.clone(),
                    parent: state.parent,
                    held: None,
                    end: None,
                    status: None,
                });
            }
            let known = &mut fate.recipients[number];
            if known.recipient != recipient {
                world.violate(format_args!(
                    "recipient {number} of {id} was {:?}, now it is {recipient:?}",
                    known.recipient
                ));
            }
            known.held = match &state.state {
                Some(State::Held(held)) => Some(held.reason.clone()),
                _ => None,
            };
            let end = match &state.state {
                Some(State::Terminal(terminal)) => Some(end_of(terminal)),
                _ => None,
            };
            if known.end.is_some() && known.end != end {
                world.violate(format_args!(
                    "Q3: recipient {number} of {id} was {:?}, now it is {end:?}",
                    known.end
                ));
            }
            if known.end.is_none() && end.is_some() {
                known.status = status_in(command, number);
            }
            known.end = end;
        }
        if message.slots.len() < fate.recipients.len() {
            world.violate(format_args!("recipients of {id} have vanished"));
        }
    }

    /// A mail has been stored.
    pub fn stored(&mut self, shard: u16, deliver: &Deliver, at: StoredAt) {
        let Some(id) = DeliveryId::from_bytes(&deliver.delivery_id) else {
            return;
        };
        let copies = self.copies.entry(id.message).or_default();
        if copies.iter().any(|copy| copy.account == deliver.account) {
            let message = id.message;
            let account = &deliver.account;
            self.world
                .violate(format_args!("{account} has {message} twice"));
        }
        let home = *self.homes.entry(deliver.account.clone()).or_insert(shard);
        if home != shard {
            let account = &deliver.account;
            self.world.violate(format_args!(
                "{account} has mail in mailbox shards {home} and {shard}"
            ));
        }
        copies.push(Copy {
            recipient: id.recipient,
            account: deliver.account.clone(),
            shard,
            at,
        });
    }

    /// A restore has ended, and has brought these mails.
    pub fn restored(&mut self, account: &str, mails: impl IntoIterator<Item = (Place, Bytes)>) {
        *self.restorations.entry(account.to_owned()).or_default() += 1;
        self.restored.extend(mails);
    }

    /// The hash of the content that was delivered to this place, if any was.
    pub fn blake3_at(&self, account: &str, at: StoredAt) -> Option<Bytes> {
        let mut copies = self.copies.iter();
        let (id, _) = copies.find(|(_, copies)| {
            let mut copies = copies.iter();
            copies.any(|copy| copy.account == account && copy.at == at)
        })?;
        Some(self.messages.get(id)?.body.blake3.clone())
    }

    /// Whether a restore has brought the mail of `recipient` of `id` to this place.
    pub fn is_restored(&self, id: MessageId, recipient: u32, account: &str, at: StoredAt) -> bool {
        let place = (account.to_owned(), at.uid_validity, at.uid);
        let delivery = DeliveryId {
            message: id,
            recipient,
        };
        let found = self.restored.get(&place);
        found.is_some_and(|delivery_id| delivery_id[..] == delivery.to_bytes())
    }

    /// Which commit points a crash now lies between.
    pub fn crossings(&self) -> Vec<&'static str> {
        let mut crossings = BTreeSet::new();
        for (id, fate) in &self.messages {
            let copies = self.copies.get(id);
            for (number, recipient) in (0u32..).zip(&fate.recipients) {
                let has_copy =
                    copies.is_some_and(|copies| copies.iter().any(|copy| copy.recipient == number));
                let crossing = match (&recipient.end, has_copy) {
                    (None, false) if recipient.account().is_some() => "crossed/A to B",
                    (None, true) => "crossed/B to C",
                    (Some(End::Delivered { .. }), _) if !fate.is_settled() => "crossed/after C",
                    (None, false) => "crossed/before expansion",
                    _ => continue,
                };
                crossings.insert(crossing);
            }
        }
        crossings.into_iter().collect()
    }
}

fn end_of(terminal: &Terminal) -> End {
    match terminal.how() {
        How::Delivered => {
            let delivered = terminal.delivered.unwrap_or_default();
            End::Delivered {
                shard: delivered.shard as u16,
                at: StoredAt {
                    uid_validity: delivered.uid_validity,
                    uid: delivered.uid,
                },
            }
        }
        How::Bounced => End::Bounced {
            dsn: message_id(&terminal.dsn_id),
        },
        How::Expanded => End::Expanded,
        How::Collapsed => End::Collapsed,
        How::Deleted => End::Deleted,
        How::Cancelled | How::Unspecified => End::Cancelled,
    }
}

/// The last one waiting came to nobody who does not get the mail anyway.
fn collapsed_last(fate: &mut MessageFate, number: usize, command: &Command) {
    let Command::Routed(routed) = command else {
        return;
    };
    for child in &routed.children {
        fate.recipients.push(RecipientFate {
            recipient: child.clone(),
            parent: Some(number as u32),
            held: None,
            end: Some(End::Collapsed),
            status: None,
        });
    }
}

fn status_in(command: &Command, number: usize) -> Option<Status> {
    let Command::Bounce(bounce) = command else {
        return None;
    };
    let bounced = bounce.recipients.iter();
    bounced
        .filter(|bounced| bounced.recipient as usize == number)
        .find_map(|bounced| bounced.status.clone())
}

/// The message is finished and forgotten by the queue: `command` must say how this recipient ended.
fn ended_last(
    world: &World,
    id: MessageId,
    fate: &mut MessageFate,
    number: usize,
    command: &Command,
) {
    let end = match command {
        Command::Attempted(attempted) => attempted
            .outcomes
            .iter()
            .filter(|outcome| outcome.recipient as usize == number)
            .find_map(|outcome| match &outcome.result {
                Some(Attempt::Delivered(delivered)) => Some(End::Delivered {
                    shard: delivered.shard as u16,
                    at: StoredAt {
                        uid_validity: delivered.uid_validity,
                        uid: delivered.uid,
                    },
                }),
                _ => None,
            }),
        Command::Bounce(bounce) => bounce
            .recipients
            .iter()
            .any(|bounced| bounced.recipient as usize == number)
            .then(|| End::Bounced {
                dsn: bounce
                    .dsn
                    .as_ref()
                    .and_then(|dsn| message_id(&dsn.message_id)),
            }),
        Command::Routed(routed) => (routed.recipient as usize == number).then_some(End::Expanded),
        Command::Operate(operate) => (operate.order() == Order::Delete).then_some(End::Deleted),
        Command::Cancel(_) | Command::Accept(_) => Some(End::Cancelled),
        _ => None,
    };
    if end.is_none() {
        world.violate(format_args!(
            "recipient {number} of {id} was dropped by {command:?}"
        ));
    }
    fate.recipients[number].status = status_in(command, number);
    fate.recipients[number].end = end;
}
