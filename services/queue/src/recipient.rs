//! One message and the transitions of its recipients. Pure; every rule about what may follow what is here.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use hikyaku_log::Position;
use hikyaku_mail::id::MessageId;
use hikyaku_proto::v1::operate::Order;
use hikyaku_proto::v1::outcome::Result as Attempt;
use hikyaku_proto::v1::recipient_state::State;
use hikyaku_proto::v1::terminal::How;
use hikyaku_proto::v1::{
    Accept, AttemptRecord, Body, Held, Operate, Outcome, Pending, Recipient, RecipientState,
    Routed, Status, Terminal,
};
use prost::Message as _;

use crate::hash::{Element, element};
use crate::index::RecipientKey;
use crate::kept::Fact;
use crate::packed::{Origin, PackedOrigin};
use crate::room;
use crate::statuses::Statuses;

/// Recipients a message can come to have by expansion. What the edge accepted is never refused here.
pub const RECIPIENTS_MAX: usize = 4096;
/// Attempts remembered for the operator, per recipient.
pub const HISTORY_MAX: usize = 8;
/// Octets of memory of a message without header and recipients: itself, its places by id and by what it pins.
const MESSAGE_BYTES: usize = size_of::<Message>() + 80;
/// Octets of memory of a recipient without address and history: itself, its place by what is due.
const SLOT_BYTES: usize = size_of::<Slot>() + 48;
/// Characters of a reply's text remembered.
const REPLY_TEXT_MAX: usize = 200;

/// A live message. There may be very many, so what is rarely read is packed.
#[derive(Debug)]
pub struct Message {
    /// As accepted, without id, tenant, content and recipients; as protobuf.
    accept: Box<[u8]>,
    /// Whose it is; shared by all mails of the tenant.
    pub tenant: Arc<String>,
    /// Everybody it is for, by number.
    pub slots: Vec<Slot>,
    /// Not empty: held as a whole, and why.
    pub held: Box<str>,
    /// The lowest log position that makes the message known with all that happened to it.
    pub pin: Position,
    /// The record that holds the content.
    pub body_at: Position,
    /// Octets of that record.
    pub log_bytes: u64,
}

/// A recipient and what the index derived from its state.
#[derive(Debug)]
pub struct Slot {
    origin: PackedOrigin,
    /// The last attempts, oldest first.
    history: Box<[Attempted]>,
    stand: Stand,
    attempts: u32,
    delay_reported: bool,
    /// The stage it is counted in.
    pub stage: Option<Stage>,
    /// Whether it is in the due index.
    pub queued: bool,
    /// Changed since the index derived the above.
    pub dirty: bool,
}

/// How a recipient stands.
#[derive(Clone, Debug, PartialEq)]
pub enum Stand {
    /// Waits until then, Unix milliseconds.
    Pending(u64),
    /// Waits for an operator.
    Held(Box<Held>),
    /// Nothing more will happen to it.
    Terminal(Box<Terminal>),
}

/// A recipient's state of those parts that change.
#[derive(Clone, Debug, PartialEq)]
pub struct Before {
    stand: Stand,
    attempts: u32,
    delay_reported: bool,
}

/// One attempt; equal results are shared.
#[derive(Clone, Debug)]
struct Attempted {
    time_ms: u64,
    status: Option<Arc<Status>>,
}

/// Where a live recipient is counted. Names are Postfix's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Never tried.
    Incoming,
    /// Tried, and to be tried again.
    Deferred,
    /// Waits for an operator.
    Hold,
}

impl Slot {
    /// A recipient in this state, not yet indexed.
    pub fn new(state: RecipientState) -> Slot {
        let stand = match state.state {
            None => Stand::Pending(0),
            Some(State::Pending(Pending { due_ms })) => Stand::Pending(due_ms),
            Some(State::Held(held)) => Stand::Held(Box::new(held)),
            Some(State::Terminal(terminal)) => Stand::terminal(terminal),
        };
        let history = state.history.into_iter().map(|attempt| Attempted {
            time_ms: attempt.time_ms,
            status: attempt.status.map(Arc::new),
        });
        Slot {
            history: history.collect(),
            stand,
            attempts: state.attempts,
            delay_reported: state.delay_reported,
            stage: None,
            queued: false,
            dirty: true,
            origin: PackedOrigin::new(&Origin {
                recipient: state.recipient,
                parent: state.parent,
                errors_to: state.errors_to,
            }),
        }
    }

    /// All of its state.
    pub fn state(&self) -> RecipientState {
        RecipientState {
            history: self.history.iter().map(Attempted::record).collect(),
            ..self.state_as(&self.now())
        }
    }

    /// Its state as it was, without history.
    fn state_as(&self, before: &Before) -> RecipientState {
        let origin = self.origin.unpack();
        let state = match &before.stand {
            Stand::Pending(due_ms) => pending(*due_ms),
            Stand::Held(held) => State::Held(Held::clone(held)),
            Stand::Terminal(terminal) => State::Terminal(Terminal::clone(terminal)),
        };
        RecipientState {
            recipient: origin.recipient,
            state: Some(state),
            attempts: before.attempts,
            history: Vec::new(),
            parent: origin.parent,
            errors_to: origin.errors_to,
            delay_reported: before.delay_reported,
        }
    }

    /// Octets of memory of what never changes about it.
    pub fn packed_bytes(&self) -> usize {
        self.origin.len()
    }

    /// Octets it takes in a record that carries its mail on, without its history.
    pub fn carried_bytes(&self) -> usize {
        self.state_as(&self.now()).encoded_len()
    }

    /// What of it may change, as it is now.
    pub fn now(&self) -> Before {
        Before {
            stand: self.stand.clone(),
            attempts: self.attempts,
            delay_reported: self.delay_reported,
        }
    }

    /// Its hash when it was as `before`. The history is for operators and may be shortened when a message is carried, so it is
    /// left out.
    pub fn element(&self, (id, number): RecipientKey, before: &Before) -> Element {
        let hashed = self.state_as(before).encode_to_vec();
        element(&[b"recipient", &id.to_bytes(), &number.to_be_bytes(), &hashed])
    }

    /// Lets equal results of attempts be one.
    pub fn share(&mut self, statuses: &mut Statuses) {
        for attempt in &mut self.history {
            if let Some(status) = &mut attempt.status
                && Arc::strong_count(status) == 1
            {
                *status = statuses.share(status);
            }
        }
    }

    fn memory_bytes(&self) -> usize {
        SLOT_BYTES + self.origin.len() + size_of_val(&*self.history)
    }

    /// Who it is.
    pub fn recipient(&self) -> Option<Recipient> {
        self.origin.unpack().recipient
    }

    /// What never changes about it.
    pub fn origin(&self) -> Origin {
        self.origin.unpack()
    }

    /// Whether its sender has said when it wants to hear of it (NOTIFY, RFC 3461 section 4.1).
    pub fn has_notify(&self) -> bool {
        self.origin.has_notify()
    }

    /// The account it is resolved to, and that account's tenant.
    pub fn account_and_tenant(&self) -> Option<(String, &str)> {
        self.origin.account()
    }

    /// How it stands.
    pub fn stand(&self) -> &Stand {
        &self.stand
    }

    /// Definite results so far.
    pub fn attempts(&self) -> u32 {
        self.attempts
    }

    /// Whether the sender has been told that it takes long.
    pub fn delay_reported(&self) -> bool {
        self.delay_reported
    }

    /// What its last attempt came to.
    pub fn last_attempt(&self) -> Option<AttemptRecord> {
        self.history.last().map(Attempted::record)
    }

    /// Whether it ended like that.
    pub fn ended(&self, how: How) -> bool {
        matches!(&self.stand, Stand::Terminal(terminal) if terminal.how() == how)
    }

    /// Whether nothing more will happen to it.
    pub fn is_terminal(&self) -> bool {
        matches!(self.stand, Stand::Terminal(_))
    }

    /// The account it is resolved to.
    pub fn account(&self) -> Option<String> {
        self.origin.account().map(|(account, _)| account)
    }

    /// When it is due, while it waits.
    pub fn pending_due(&self) -> Option<u64> {
        self.stand.due()
    }

    fn end(&mut self, how: How) {
        self.end_as(Terminal {
            how: how.into(),
            ..Terminal::default()
        });
    }

    fn end_as(&mut self, terminal: Terminal) {
        self.set(Stand::terminal(terminal));
    }

    fn set(&mut self, stand: Stand) {
        self.stand = stand;
        self.dirty = true;
    }

    fn tried(&mut self) {
        self.attempts = self.attempts.saturating_add(1);
        self.dirty = true;
    }

    /// Adds a result to the recipient's history, which is for the operator and outside the state hash.
    fn remember(&mut self, time_ms: u64, status: Option<&Status>) {
        let status = status.map(|status| {
            Arc::new(Status {
                text: status.text.chars().take(REPLY_TEXT_MAX).collect(),
                ..status.clone()
            })
        });
        let forgotten = (self.history.len() + 1).saturating_sub(HISTORY_MAX);
        let kept = self.history.iter().skip(forgotten).cloned();
        let attempt = Attempted { time_ms, status };
        self.history = kept.chain([attempt]).collect();
    }
}

impl Attempted {
    fn record(&self) -> AttemptRecord {
        AttemptRecord {
            time_ms: self.time_ms,
            status: self.status.as_deref().cloned(),
        }
    }
}

impl Stand {
    /// Ended. A small value cut from a large record would keep the whole record in memory.
    fn terminal(mut terminal: Terminal) -> Stand {
        terminal.dsn_id = Bytes::copy_from_slice(&terminal.dsn_id);
        Stand::Terminal(Box::new(terminal))
    }

    /// When it is due, while it waits.
    pub fn due(&self) -> Option<u64> {
        match self {
            Stand::Pending(due_ms) => Some(*due_ms),
            _ => None,
        }
    }
}

impl Before {
    /// How it stood.
    pub fn stand(&self) -> &Stand {
        &self.stand
    }
}

/// Pending until `due_ms`.
fn pending(due_ms: u64) -> State {
    State::Pending(Pending { due_ms })
}

/// The recipients of a fresh message by number; of those for the same account all but the first are collapsed.
pub fn fresh(recipients: Vec<Recipient>) -> Vec<Slot> {
    let mut slots = Vec::with_capacity(recipients.len());
    let children = recipients.into_iter().map(|recipient| RecipientState {
        recipient: Some(recipient),
        ..RecipientState::default()
    });
    append(&mut slots, children);
    slots
}

/// Adds recipients after the last one; whoever's account already gets the message is collapsed.
fn append(slots: &mut Vec<Slot>, states: impl ExactSizeIterator<Item = RecipientState>) {
    let mut accounts = served(slots);
    slots.reserve_exact(states.len());
    for state in states {
        let mut slot = Slot::new(state);
        if slot
            .account()
            .is_some_and(|account| !accounts.insert(account))
        {
            slot.end(How::Collapsed);
        }
        slots.push(slot);
    }
}

/// Whether these outcomes are delays and nothing else.
pub fn are_delays(outcomes: &[Outcome]) -> bool {
    let mut results = outcomes.iter().map(|outcome| &outcome.result);
    !outcomes.is_empty() && results.all(|result| matches!(result, Some(Attempt::Delayed(_))))
}

/// The accounts that have the message or may still get it.
fn served(slots: &[Slot]) -> BTreeSet<String> {
    let gets_it = |slot: &&Slot| match &slot.stand {
        Stand::Terminal(terminal) => terminal.how() == How::Delivered,
        _ => true,
    };
    slots
        .iter()
        .filter(gets_it)
        .filter_map(Slot::account)
        .collect()
}

impl Message {
    /// A message in this state, not yet indexed, that is known from `pin` on and has its content in a record there, of so
    /// many octets. Content and recipients of `accept` do not count.
    pub fn new(
        accept: &Accept,
        slots: Vec<Slot>,
        held: &str,
        pin: Position,
        (body_at, log_bytes): (Position, u64),
    ) -> Message {
        let header = Accept {
            message_id: Bytes::new(),
            envelope: Some(accept.envelope.clone().unwrap_or_default()),
            recipients: Vec::new(),
            body: accept.body.as_ref().map(|body| Body {
                content: None,
                size: body.size,
                blake3: body.blake3.clone(),
            }),
            tenant: String::new(),
            traceparent: accept.traceparent.clone(),
            reports_on: accept.reports_on.clone(),
        };
        Message {
            accept: header.encode_to_vec().into_boxed_slice(),
            tenant: Arc::new(accept.tenant.clone()),
            slots,
            held: held.into(),
            pin,
            body_at,
            log_bytes,
        }
    }

    /// As accepted, without content and recipients.
    pub fn accept(&self, id: MessageId) -> Accept {
        let header = Accept::decode(&*self.accept).unwrap_or_default();
        Accept {
            message_id: Bytes::copy_from_slice(&id.to_bytes()),
            tenant: String::clone(&self.tenant),
            ..header
        }
    }

    /// Octets of memory it takes, its places in the index and what an allocator adds counted in.
    pub fn memory_bytes(&self) -> u64 {
        let slots = self.slots.iter().map(Slot::memory_bytes).sum::<usize>();
        (MESSAGE_BYTES + self.accept.len() + self.held.len() + slots) as u64
    }

    /// The hash of everything but the recipients.
    pub fn element(&self, id: MessageId) -> Element {
        element(&[
            b"message",
            &self.accept(id).encode_to_vec(),
            self.held.as_bytes(),
        ])
    }

    /// Whether every recipient is terminal.
    pub fn is_finished(&self) -> bool {
        self.slots.iter().all(Slot::is_terminal)
    }

    /// Applies a fact. Returns how many recipients (or the message's own hold) it changed; repeats and facts about terminal
    /// recipients change nothing.
    pub fn apply(&mut self, time_ms: u64, fact: &Fact) -> u32 {
        match fact {
            Fact::Attempted(outcomes) if are_delays(outcomes) => self.delayed(time_ms, outcomes),
            Fact::Attempted(outcomes) => outcomes
                .iter()
                .map(|outcome| self.attempted(time_ms, outcome))
                .sum(),
            Fact::Bounced { recipients, dsn_id } => self.bounced(recipients, dsn_id),
            Fact::Cancelled => self.cancelled(),
            Fact::Operated(operate) => self.operated(operate),
            Fact::Routed(routed) => self.routed(routed),
        }
    }

    /// A live recipient.
    fn live(&mut self, number: u32) -> Option<&mut Slot> {
        let slot = self.slots.get_mut(usize::try_from(number).ok()?)?;
        (!slot.is_terminal()).then_some(slot)
    }

    fn attempted(&mut self, time_ms: u64, outcome: &Outcome) -> u32 {
        let Some(slot) = self.live(outcome.recipient) else {
            return 0;
        };
        match &outcome.result {
            Some(Attempt::Delivered(delivered)) => {
                slot.tried();
                slot.end_as(Terminal {
                    how: How::Delivered.into(),
                    delivered: Some(*delivered),
                    ..Terminal::default()
                });
            }
            Some(Attempt::Deferred(deferred)) => {
                // the same result again, from a repeated record
                if slot.attempts > 0 && slot.pending_due() == Some(deferred.due_ms) {
                    return 0;
                }
                slot.tried();
                slot.remember(time_ms, deferred.status.as_ref());
                if slot.pending_due().is_some() {
                    slot.set(Stand::Pending(deferred.due_ms));
                }
            }
            Some(Attempt::Held(held)) => {
                if slot.pending_due().is_none() {
                    return 0;
                }
                slot.set(Stand::Held(Box::new(held.clone())));
            }
            Some(Attempt::Delayed(_)) => {
                if std::mem::replace(&mut slot.delay_reported, true) {
                    return 0;
                }
                slot.dirty = true;
            }
            None => return 0,
        }
        1
    }

    /// One report tells of all of them, so it is void as a whole when one of them has ended or was told of.
    fn delayed(&mut self, time_ms: u64, outcomes: &[Outcome]) -> u32 {
        for outcome in outcomes {
            let slot = self.live(outcome.recipient);
            if slot.is_none_or(|slot| slot.delay_reported) {
                return 0;
            }
        }
        outcomes
            .iter()
            .map(|outcome| self.attempted(time_ms, outcome))
            .sum()
    }

    /// Void as a whole when one of them is terminal already: then its sender has heard, or it was delivered.
    fn bounced(&mut self, recipients: &[u32], dsn_id: &Bytes) -> u32 {
        if recipients.is_empty() || recipients.iter().any(|n| self.live(*n).is_none()) {
            return 0;
        }
        let mut changed = 0;
        let mut accounts = Vec::new();
        for number in recipients {
            if let Some(slot) = self.live(*number) {
                accounts.extend(slot.account());
                slot.end_as(Terminal {
                    how: How::Bounced.into(),
                    dsn_id: dsn_id.clone(),
                    ..Terminal::default()
                });
                changed += 1;
            }
        }
        for account in accounts {
            self.revive(&account);
        }
        changed
    }

    /// A recipient of `account` has been sent elsewhere or has bounced. Whoever collapsed into it has not: the first of them
    /// waits again, under a number of its own, since terminal states stand.
    fn revive(&mut self, account: &str) {
        if served(&self.slots).contains(account) {
            return;
        }
        let is_parent = |number| {
            let mut slots = self.slots.iter();
            slots.any(|slot| slot.origin.unpack().parent == Some(number))
        };
        let collapsed = (0u32..).zip(&self.slots).find(|(number, slot)| {
            slot.ended(How::Collapsed)
                && slot.account().as_deref() == Some(account)
                && !is_parent(*number)
        });
        let Some((number, slot)) = collapsed else {
            return;
        };
        let origin = slot.origin.unpack();
        let revived = RecipientState {
            recipient: origin.recipient,
            parent: Some(number),
            errors_to: origin.errors_to,
            delay_reported: slot.delay_reported,
            ..RecipientState::default()
        };
        append(&mut self.slots, std::iter::once(revived));
    }

    /// Takes back whoever was never tried. An attempt under way goes on; its result is then ignored.
    fn cancelled(&mut self) -> u32 {
        let mut changed = 0;
        for slot in &mut self.slots {
            if !slot.is_terminal() && slot.attempts == 0 {
                slot.end(How::Cancelled);
                changed += 1;
            }
        }
        changed
    }

    /// The first one wins. A hold of the recipient passes on to its children.
    fn routed(&mut self, routed: &Routed) -> u32 {
        let fits = self.slots.len() + routed.children.len() <= RECIPIENTS_MAX
            && room::fits(&self.slots, routed);
        // failures are told by Bounce, which makes their DSN; without children nothing is decided
        if routed.children.is_empty() || !fits {
            return 0;
        }
        let Some(slot) = self.live(routed.recipient) else {
            return 0;
        };
        let errors_to = routed
            .errors_to
            .clone()
            .or_else(|| slot.origin.unpack().errors_to);
        let state = match &slot.stand {
            Stand::Held(held) => Some(State::Held(Held::clone(held))),
            _ => None,
        };
        let account = slot.account();
        // told once, whatever it is replaced by
        let delay_reported = slot.delay_reported;
        slot.end(How::Expanded);
        let children = routed.children.iter().map(|child| RecipientState {
            recipient: Some(child.clone()),
            state: state.clone(),
            parent: Some(routed.recipient),
            errors_to: errors_to.clone(),
            delay_reported,
            ..RecipientState::default()
        });
        append(&mut self.slots, children);
        if let Some(account) = account {
            self.revive(&account);
        }
        1
    }

    fn operated(&mut self, operate: &Operate) -> u32 {
        let mut changed = 0;
        if operate.recipients.is_empty() {
            let held = match operate.order() {
                Order::Hold if operate.reason.is_empty() => "operator",
                Order::Hold => &operate.reason,
                Order::Release => "",
                _ => &self.held,
            };
            if *self.held != *held {
                self.held = held.into();
                changed += 1;
                for slot in &mut self.slots {
                    slot.dirty = true;
                }
            }
        }
        for (number, slot) in self.slots.iter_mut().enumerate() {
            let meant = operate.recipients.is_empty()
                || operate
                    .recipients
                    .iter()
                    .any(|n| usize::try_from(*n) == Ok(number));
            if meant && order(slot, operate) {
                changed += 1;
            }
        }
        changed
    }
}

/// Applies an operator's order to one recipient; whether it changed.
fn order(slot: &mut Slot, operate: &Operate) -> bool {
    let due_ms = slot.pending_due();
    match (operate.order(), due_ms) {
        // all of them: the message is held, and each keeps its own state
        (Order::Hold, Some(_)) if !operate.recipients.is_empty() => {
            let reason = if operate.reason.is_empty() {
                "operator"
            } else {
                &operate.reason
            };
            slot.set(Stand::Held(Box::new(Held {
                reason: reason.to_owned(),
            })));
            true
        }
        (Order::Release, None) if !slot.is_terminal() => {
            slot.set(Stand::Pending(0));
            true
        }
        (Order::Delete, _) if !slot.is_terminal() => {
            slot.end(How::Deleted);
            true
        }
        (Order::Retry, Some(due_ms)) if due_ms > 0 => {
            slot.set(Stand::Pending(0));
            true
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::{Message, Slot, fresh};
    use crate::kept::Fact;
    use crate::testing::{
        deferred, delivered, expand, local, message, operate, remote, routed, state_words,
    };
    use hikyaku_proto::v1::operate::Order;

    fn with(recipients: Vec<hikyaku_proto::v1::Recipient>) -> Message {
        message(fresh(recipients))
    }

    #[test]
    fn equal_accounts_collapse_at_once_and_after_expansion() {
        let mut message = with(vec![local("a"), local("b"), local("a"), expand("team")]);
        assert_eq!(state_words(&message), "pending pending collapsed pending");
        let children = vec![local("b"), local("c"), remote("x"), local("c")];
        let fact = routed(3, children);
        assert_eq!(message.apply(0, &fact), 1);
        assert_eq!(
            state_words(&message),
            "pending pending collapsed expanded collapsed pending pending collapsed"
        );
        // the first one wins
        assert_eq!(message.apply(0, &routed(3, vec![local("z")])), 0);
        assert_eq!(message.slots.len(), 8);
    }

    #[test]
    fn a_bounced_account_does_not_swallow_a_later_one() {
        let mut message = with(vec![local("a"), expand("team")]);
        let bounce = Fact::Bounced {
            recipients: vec![0],
            dsn_id: "d".into(),
        };
        assert_eq!(message.apply(0, &bounce), 1);
        message.apply(0, &routed(1, vec![local("a")]));
        assert_eq!(state_words(&message), "bounced expanded pending");
    }

    #[test]
    fn whoever_collapsed_into_one_that_goes_elsewhere_waits_again() {
        let mut message = with(vec![local("a"), local("a"), local("a")]);
        assert_eq!(state_words(&message), "pending collapsed collapsed");
        // the first address is somebody else's now; the second one is not
        assert_eq!(message.apply(0, &routed(0, vec![local("b")])), 1);
        let words = "expanded collapsed collapsed pending pending";
        assert_eq!(state_words(&message), words);
        assert_eq!(message.slots[4].origin().parent, Some(1));
        // it bounces: the third one is still to be told
        let bounce = Fact::Bounced {
            recipients: vec![4],
            dsn_id: "d".into(),
        };
        assert_eq!(message.apply(0, &bounce), 1);
        let words = "expanded collapsed collapsed pending bounced pending";
        assert_eq!(state_words(&message), words);
        message.apply(0, &delivered(5, 7));
        assert_eq!(message.apply(0, &routed(3, vec![local("a")])), 1);
        let words = "expanded collapsed collapsed expanded bounced delivered collapsed";
        assert_eq!(state_words(&message), words);
        assert!(message.is_finished());
    }

    #[test]
    fn re_routing_to_the_same_account_makes_a_new_number() {
        let mut message = with(vec![local("a")]);
        assert_eq!(message.apply(0, &routed(0, vec![local("a")])), 1);
        assert_eq!(state_words(&message), "expanded pending");
    }

    #[test]
    fn terminal_is_absorbing() {
        let mut message = with(vec![local("a"), local("b")]);
        message.apply(0, &delivered(0, 7));
        for fact in [
            deferred(0, 99),
            Fact::Cancelled,
            operate(Order::Delete, &[0]),
            operate(Order::Hold, &[0]),
            operate(Order::Retry, &[0]),
            routed(0, vec![local("c")]),
            Fact::Bounced {
                recipients: vec![1, 0],
                dsn_id: "d".into(),
            },
        ] {
            message.apply(1, &fact);
            assert_eq!(
                state_words(&message).split(' ').next(),
                Some("delivered"),
                "{fact:?}"
            );
        }
        // the Bounce that named it was void as a whole, Cancel took the untried one
        assert_eq!(state_words(&message), "delivered cancelled");
        assert_eq!(message.apply(1, &delivered(1, 8)), 0);
    }

    #[test]
    fn cancel_spares_whoever_was_tried() {
        let mut message = with(vec![local("a"), local("b")]);
        assert_eq!(message.apply(5, &deferred(0, 50)), 1);
        assert_eq!(message.apply(5, &deferred(0, 50)), 0);
        assert_eq!(message.slots[0].attempts(), 1);
        message.apply(6, &Fact::Cancelled);
        assert_eq!(state_words(&message), "pending cancelled");
    }

    #[test]
    fn holds_pass_to_children_and_end_by_release() {
        let mut message = with(vec![expand("team"), local("a")]);
        assert_eq!(message.apply(0, &operate(Order::Hold, &[0])), 1);
        message.apply(0, &deferred(0, 9));
        message.apply(0, &routed(0, vec![local("b")]));
        assert_eq!(state_words(&message), "expanded pending held");
        assert_eq!(message.apply(0, &operate(Order::Hold, &[])), 1);
        assert_eq!(&*message.held, "test");
        assert_eq!(message.apply(0, &operate(Order::Release, &[])), 2);
        assert_eq!(state_words(&message), "expanded pending pending");
        assert!(message.held.is_empty());
    }

    #[test]
    fn history_and_recipients_are_bounded() {
        let mut message = with(vec![local("a"), expand("team")]);
        for n in 1..20 {
            message.apply(n, &deferred(0, n));
        }
        assert_eq!(message.slots[0].history.len(), 8);
        assert_eq!(message.slots[0].history[7].time_ms, 19);
        let many = (0..5000).map(|n| local(&n.to_string())).collect();
        assert_eq!(message.apply(0, &routed(1, many)), 0);
        assert_eq!(message.apply(0, &routed(1, vec![])), 0);
        assert!(!message.slots.iter().any(Slot::is_terminal));
    }
}
