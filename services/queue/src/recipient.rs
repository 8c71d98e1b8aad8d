//! One message and the transitions of its recipients. Pure; every rule about what may follow what is here.

use std::collections::BTreeSet;

use bytes::Bytes;
use hikyaku_log::Position;
use hikyaku_proto::v1::operate::Order;
use hikyaku_proto::v1::outcome::Result as Attempt;
use hikyaku_proto::v1::recipient::Target;
use hikyaku_proto::v1::recipient_state::State;
use hikyaku_proto::v1::terminal::How;
use hikyaku_proto::v1::{
    Accept, AttemptRecord, Held, Operate, Outcome, Pending, Recipient, RecipientState, Routed,
    Status, Terminal,
};

use crate::hash::Element;
use crate::kept::Fact;

/// Recipients a message can come to have by expansion. What the edge accepted is never refused here.
pub const RECIPIENTS_MAX: usize = 4096;
/// Attempts remembered for the operator, per recipient.
pub const HISTORY_MAX: usize = 8;
/// Characters of a reply's text remembered.
const REPLY_TEXT_MAX: usize = 200;

/// A live message.
#[derive(Debug)]
pub struct Message {
    /// As accepted, without content and recipients.
    pub accept: Accept,
    /// Everybody it is for, by number.
    pub slots: Vec<Slot>,
    /// Not empty: held as a whole, and why.
    pub held: String,
    /// The lowest log position that makes the message known with all that happened to it.
    pub pin: Position,
    /// The record that holds the content.
    pub body_at: Position,
    /// Octets of that record.
    pub log_bytes: u64,
    /// The hash of everything but the recipients.
    pub element: Element,
}

/// A recipient and what the index derived from its state.
#[derive(Debug)]
pub struct Slot {
    /// What the log says.
    pub state: RecipientState,
    /// Its hash.
    pub element: Element,
    /// The time it is in the due index under.
    pub due_ms: Option<u64>,
    /// The stage it is counted in.
    pub stage: Option<Stage>,
    /// Changed since the index derived the above.
    pub dirty: bool,
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
    pub fn new(mut state: RecipientState) -> Slot {
        if state.state.is_none() {
            state.state = Some(pending(0));
        }
        // a small value cut from a large record would keep the whole record in memory
        if let Some(State::Terminal(terminal)) = &mut state.state {
            terminal.dsn_id = Bytes::copy_from_slice(&terminal.dsn_id);
        }
        Slot {
            state,
            element: Element::default(),
            due_ms: None,
            stage: None,
            dirty: true,
        }
    }

    /// Whether nothing more will happen to it.
    pub fn is_terminal(&self) -> bool {
        matches!(self.state.state, Some(State::Terminal(_)))
    }

    /// The account it is resolved to.
    pub fn account(&self) -> Option<&str> {
        account(self.state.recipient.as_ref()?)
    }

    fn is_collapsed(&self) -> bool {
        matches!(&self.state.state, Some(State::Terminal(terminal)) if terminal.how() == How::Collapsed)
    }

    fn pending_due(&self) -> Option<u64> {
        match self.state.state {
            Some(State::Pending(Pending { due_ms })) => Some(due_ms),
            _ => None,
        }
    }

    fn end(&mut self, how: How) {
        self.end_as(Terminal {
            how: how.into(),
            ..Terminal::default()
        });
    }

    fn end_as(&mut self, terminal: Terminal) {
        self.set(State::Terminal(terminal));
    }

    fn set(&mut self, state: State) {
        self.state.state = Some(state);
        self.dirty = true;
    }
}

/// The account a recipient is resolved to.
fn account(recipient: &Recipient) -> Option<&str> {
    match &recipient.target {
        Some(Target::Local(local)) => Some(&local.account),
        _ => None,
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
fn append(slots: &mut Vec<Slot>, states: impl Iterator<Item = RecipientState>) {
    let mut accounts = served(slots);
    for state in states {
        let account = state
            .recipient
            .as_ref()
            .and_then(account)
            .map(str::to_owned);
        let mut slot = Slot::new(state);
        if account.is_some_and(|account| !accounts.insert(account)) {
            slot.end(How::Collapsed);
        }
        slots.push(slot);
    }
}

/// The accounts that have the message or may still get it.
fn served(slots: &[Slot]) -> BTreeSet<String> {
    let gets_it = |slot: &&Slot| match &slot.state.state {
        Some(State::Terminal(terminal)) => terminal.how() == How::Delivered,
        _ => true,
    };
    let accounts = slots.iter().filter(gets_it).filter_map(Slot::account);
    accounts.map(str::to_owned).collect()
}

impl Message {
    /// Whether every recipient is terminal.
    pub fn is_finished(&self) -> bool {
        self.slots.iter().all(Slot::is_terminal)
    }

    /// Applies a fact. Returns how many recipients (or the message's own hold) it changed; repeats and facts about terminal
    /// recipients change nothing.
    pub fn apply(&mut self, time_ms: u64, fact: &Fact) -> u32 {
        match fact {
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
                slot.state.attempts = slot.state.attempts.saturating_add(1);
                slot.end_as(Terminal {
                    how: How::Delivered.into(),
                    delivered: Some(*delivered),
                    ..Terminal::default()
                });
            }
            Some(Attempt::Deferred(deferred)) => {
                // the same result again, from a repeated record
                if slot.state.attempts > 0 && slot.pending_due() == Some(deferred.due_ms) {
                    return 0;
                }
                slot.state.attempts = slot.state.attempts.saturating_add(1);
                slot.dirty = true;
                remember(&mut slot.state, time_ms, deferred.status.as_ref());
                if slot.pending_due().is_some() {
                    slot.set(pending(deferred.due_ms));
                }
            }
            Some(Attempt::Held(held)) => {
                if slot.pending_due().is_none() {
                    return 0;
                }
                slot.set(State::Held(held.clone()));
            }
            Some(Attempt::Delayed(_)) => {
                if std::mem::replace(&mut slot.state.delay_reported, true) {
                    return 0;
                }
                slot.dirty = true;
            }
            None => return 0,
        }
        1
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
                accounts.extend(slot.account().map(str::to_owned));
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
            slots.any(|slot| slot.state.parent == Some(number))
        };
        let collapsed = (0u32..).zip(&self.slots).find(|(number, slot)| {
            slot.account() == Some(account) && slot.is_collapsed() && !is_parent(*number)
        });
        let Some((number, slot)) = collapsed else {
            return;
        };
        let revived = RecipientState {
            recipient: slot.state.recipient.clone(),
            parent: Some(number),
            errors_to: slot.state.errors_to.clone(),
            delay_reported: slot.state.delay_reported,
            ..RecipientState::default()
        };
        append(&mut self.slots, std::iter::once(revived));
    }

    /// Takes back whoever was never tried. An attempt under way goes on; its result is then ignored.
    fn cancelled(&mut self) -> u32 {
        let mut changed = 0;
        for slot in &mut self.slots {
            if !slot.is_terminal() && slot.state.attempts == 0 {
                slot.end(How::Cancelled);
                changed += 1;
            }
        }
        changed
    }

    /// The first one wins. A hold of the recipient passes on to its children.
    fn routed(&mut self, routed: &Routed) -> u32 {
        let fits = self.slots.len() + routed.children.len() <= RECIPIENTS_MAX;
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
            .or_else(|| slot.state.errors_to.clone());
        let state = match &slot.state.state {
            Some(State::Held(held)) => Some(State::Held(held.clone())),
            _ => None,
        };
        let account = slot.account().map(str::to_owned);
        // told once, whatever it is replaced by
        let delay_reported = slot.state.delay_reported;
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
            if self.held != held {
                self.held = held.to_owned();
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
            slot.set(State::Held(Held {
                reason: reason.to_owned(),
            }));
            true
        }
        (Order::Release, None) if !slot.is_terminal() => {
            slot.set(pending(0));
            true
        }
        (Order::Delete, _) if !slot.is_terminal() => {
            slot.end(How::Deleted);
            true
        }
        (Order::Retry, Some(due_ms)) if due_ms > 0 => {
            slot.set(pending(0));
            true
        }
        _ => false,
    }
}

/// Adds a result to the recipient's history, which is for the operator and outside the state hash.
fn remember(state: &mut RecipientState, time_ms: u64, status: Option<&Status>) {
    let status = status.map(|status| Status {
        text: status.text.chars().take(REPLY_TEXT_MAX).collect(),
        ..status.clone()
    });
    if state.history.len() == HISTORY_MAX {
        state.history.remove(0);
    }
    state.history.reserve_exact(1);
    state.history.push(AttemptRecord { time_ms, status });
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
        assert_eq!(message.slots[4].state.parent, Some(1));
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
        assert_eq!(message.slots[0].state.attempts, 1);
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
        assert_eq!(message.held, "test");
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
        assert_eq!(message.slots[0].state.history.len(), 8);
        assert_eq!(message.slots[0].state.history[7].time_ms, 19);
        let many = (0..5000).map(|n| local(&n.to_string())).collect();
        assert_eq!(message.apply(0, &routed(1, many)), 0);
        assert_eq!(message.apply(0, &routed(1, vec![])), 0);
        assert!(!message.slots.iter().any(Slot::is_terminal));
    }
}
