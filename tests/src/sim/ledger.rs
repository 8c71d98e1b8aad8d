//! What clients were told, kept apart from the system, and the equation that must hold in the end (CATALOGUE part D):
//! 250 means exactly one of in the mailbox, bounced once, held, deleted by an operator; a definite refusal means nothing at
//! all; no answer after the dot means at most one.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use hikyaku_mail::id::MessageId;
use hikyaku_queue::delays::asks;

use super::site::{ADDRESSES, Address, Leaf, account_id};
use super::truth::{Copy, End, MessageFate, Told, Truth};
use super::world::World;

/// How far an attempt has come, as its client knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Before the final dot: nothing may come of it.
    Talking,
    /// The dot is sent and not answered: at most one.
    DotSent,
    /// 250.
    Acked(MessageId),
    /// 4yz after the dot: at most one.
    Doubtful,
    /// 5yz after the dot: nothing.
    Refused,
}

/// One mail that a client tried to send.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// Without angle brackets; empty is null.
    pub reverse_path: &'static str,
    /// NOTIFY of every recipient; empty for none.
    pub notify: &'static str,
    /// Parameters of MAIL about reports.
    pub returned: &'static str,
    /// Indices into [`ADDRESSES`].
    pub addresses: Vec<usize>,
    /// Those that RCPT took.
    pub accepted: Vec<usize>,
    /// RCPT has said of one of them that its mailbox is full.
    pub full: bool,
    /// What was sent.
    pub content: Bytes,
    /// How far it came.
    pub phase: Phase,
}

impl Attempt {
    /// The MAIL command.
    pub fn mail(&self) -> String {
        format!("MAIL FROM:<{}>{}", self.reverse_path, self.returned)
    }

    /// The RCPT command for one of [`ADDRESSES`].
    pub fn rcpt(&self, address: usize) -> String {
        let address = ADDRESSES[address].full();
        match self.notify {
            "" => format!("RCPT TO:<{address}>"),
            notify => format!("RCPT TO:<{address}> NOTIFY={notify} ORCPT=rfc822;{address}"),
        }
    }
}

/// A place in a mailbox: account, UIDVALIDITY, UID.
pub type Place = (String, u32, u32);

/// Everything clients know.
pub struct Ledger {
    world: World,
    /// By ledger number.
    pub attempts: Vec<Attempt>,
    /// What a reader has asked to be expunged.
    pub expunge_asked: BTreeSet<Place>,
    /// What a reader was told is gone.
    pub expunged: BTreeSet<Place>,
    /// Which mail each place is (M2).
    pub seen: BTreeMap<Place, String>,
    /// Messages that an operator has ordered deleted.
    pub deleted: BTreeSet<MessageId>,
    /// Since the last mail that `full` was taken for, RCPT has refused one.
    refused_as_full: bool,
}

/// The ledger number in a content, or in the header that a report returns.
pub fn number_in(content: &[u8]) -> Option<usize> {
    const FIELD: &[u8] = b"X-Ledger: ";
    let at = content
        .windows(FIELD.len())
        .position(|part| part == FIELD)?;
    let digits = content[at + FIELD.len()..]
        .iter()
        .take_while(|octet| octet.is_ascii_digit());
    let text: Vec<u8> = digits.copied().collect();
    String::from_utf8(text).ok()?.parse().ok()
}

impl Ledger {
    /// Nothing was sent.
    pub fn new(world: World) -> Ledger {
        Ledger {
            world,
            attempts: Vec::new(),
            expunge_asked: BTreeSet::new(),
            expunged: BTreeSet::new(),
            seen: BTreeMap::new(),
            deleted: BTreeSet::new(),
            refused_as_full: false,
        }
    }

    /// The next attempt; answers its number.
    pub fn open(&mut self, attempt: Attempt) -> usize {
        self.attempts.push(attempt);
        self.attempts.len() - 1
    }

    /// RCPT was answered.
    pub fn rcpt(&mut self, number: usize, address: usize, code: u16, enhanced: &str) {
        self.world.note(format_args!(
            "#{number} RCPT {} {code} {enhanced}",
            ADDRESSES[address].local_part
        ));
        match code / 100 {
            2 => {
                self.attempts[number].accepted.push(address);
                if self.refused_as_full && ADDRESSES[address].local_part == "full" {
                    self.refused_as_full = false;
                    self.world.count("quota/taken again after a refusal");
                }
            }
            4 => {
                self.world.count(format!("reply/rcpt {code} {enhanced}"));
                if enhanced == "4.2.2" {
                    self.full(number, address);
                }
            }
            _ => {
                self.world.count(format!("reply/rcpt {code} {enhanced}"));
                if !ADDRESSES[address].refusals.contains(&enhanced) {
                    let address = ADDRESSES[address].local_part;
                    self.world.violate(format_args!(
                        "#{number}: a valid address is refused for good: {address} {code} {enhanced}"
                    ));
                }
            }
        }
    }

    /// RCPT has said that a mailbox is full: only where there is a quota, and never to a report.
    fn full(&mut self, number: usize, address: usize) {
        let attempt = &mut self.attempts[number];
        attempt.full = true;
        self.refused_as_full = true;
        let local_part = ADDRESSES[address].local_part;
        if local_part != "full" || attempt.reverse_path.is_empty() {
            self.world.violate(format_args!(
                "#{number}: {local_part} is called full for <{}>",
                attempt.reverse_path
            ));
        }
    }

    /// The whole mail was refused before its content.
    pub fn refused(&mut self, number: usize, code: u16) {
        self.world.note(format_args!("#{number} refused {code}"));
        self.world.count(format!("reply/early {code}"));
        if code / 100 == 5 {
            self.world
                .violate(format_args!("#{number}: refused for good with {code}"));
        }
    }

    /// The dot is on its way.
    pub fn dot(&mut self, number: usize) {
        self.attempts[number].phase = Phase::DotSent;
    }

    /// The dot was answered.
    pub fn answered(&mut self, number: usize, code: u16, text: &str) {
        self.world
            .note(format_args!("#{number} after the dot: {code} {text}"));
        self.world.count(format!("reply/dot {code}"));
        self.attempts[number].phase = match code / 100 {
            2 => {
                let id = text.rsplit(' ').next().and_then(|id| id.parse().ok());
                match id {
                    Some(id) => Phase::Acked(id),
                    None => {
                        self.world
                            .violate(format_args!("#{number}: no queue id in {text}"));
                        Phase::DotSent
                    }
                }
            }
            4 => Phase::Doubtful,
            _ => Phase::Refused,
        };
    }

    /// Q1: everything acknowledged is durable.
    pub fn check_acked(&self, truth: &Truth) {
        for (number, attempt) in self.attempts.iter().enumerate() {
            if let Phase::Acked(id) = attempt.phase
                && !truth.messages.contains_key(&id)
            {
                self.world.violate(format_args!(
                    "Q1: #{number} has its 250 and is not in the log"
                ));
            }
        }
    }

    /// The equation, once everything is settled. `numbers` says which attempt a message is of.
    pub fn settle(&self, truth: &Truth, numbers: &BTreeMap<MessageId, Option<usize>>) {
        let mut found: BTreeMap<usize, MessageId> = BTreeMap::new();
        for (id, number) in numbers {
            let fate = &truth.messages[id];
            if fate.is_report() {
                self.settle_message(truth, *id, fate, "report");
                continue;
            }
            let Some(number) = number.filter(|number| *number < self.attempts.len()) else {
                self.world.violate(format_args!("{id} was sent by nobody"));
                continue;
            };
            if found.insert(number, *id).is_some() {
                self.world
                    .violate(format_args!("#{number} was accepted twice"));
            }
        }
        for (number, attempt) in self.attempts.iter().enumerate() {
            let id = found.get(&number);
            self.world.count(match &attempt.phase {
                Phase::Talking => "attempt/ended before the dot",
                Phase::DotSent => "attempt/no answer after the dot",
                Phase::Acked(_) => "attempt/acknowledged",
                Phase::Doubtful => "attempt/4yz after the dot",
                Phase::Refused => "attempt/5yz after the dot",
            });
            match (&attempt.phase, id) {
                (Phase::Acked(acked), Some(id)) if acked == id => {}
                (Phase::Acked(acked), _) => {
                    self.world.violate(format_args!(
                        "#{number} is lost: acknowledged as {acked}, found {id:?}"
                    ));
                    continue;
                }
                (Phase::Talking | Phase::Refused, Some(id)) => {
                    self.world
                        .violate(format_args!("#{number} was refused and is {id}"));
                    continue;
                }
                (Phase::DotSent | Phase::Doubtful, Some(_)) => {
                    self.world.count("attempt/doubtful and durable");
                }
                (_, None) => continue,
            }
            if let Some(id) = id {
                self.settle_attempt(truth, number, attempt, *id);
            }
        }
    }

    fn settle_attempt(&self, truth: &Truth, number: usize, attempt: &Attempt, id: MessageId) {
        let fate = &truth.messages[&id];
        let is_acked = matches!(attempt.phase, Phase::Acked(_));
        let addresses: Vec<&Address> = attempt
            .accepted
            .iter()
            .map(|address| &ADDRESSES[*address])
            .collect();
        let name = format!("#{number}");
        self.settle_message(truth, id, fate, &name);
        let copies = truth.copies.get(&id).map_or(&[][..], Vec::as_slice);
        let has = |user: &str| {
            let account = account_id(user).to_string();
            copies.iter().filter(|copy| copy.account == account).count()
        };
        let allowed: BTreeSet<&str> = addresses
            .iter()
            .flat_map(|address| address.users())
            .collect();
        for copy in copies {
            if !allowed
                .iter()
                .any(|user| account_id(user).as_str() == copy.account)
            {
                let account = &copy.account;
                self.world.violate(format_args!(
                    "{name} is with {account}, whom it was not for"
                ));
            }
        }
        let cancelled = fate
            .recipients
            .iter()
            .any(|recipient| recipient.end == Some(End::Cancelled));
        if is_acked && cancelled {
            self.world
                .violate(format_args!("{name} has its 250 and was cancelled"));
        }
        let is_deleted = self.deleted.contains(&id);
        for user in addresses.iter().flat_map(|address| address.sure_users()) {
            let account = account_id(user).to_string();
            let failed = fate.recipients.iter().any(|recipient| {
                let bounced = matches!(recipient.end, Some(End::Bounced { .. }));
                let named = recipient.recipient.address == format!("{user}@example.jp");
                bounced && (recipient.account() == Some(&account) || named)
            });
            // another recipient with the same mailbox may have found room in it
            let may_be_none = failed || is_deleted || cancelled;
            let count = has(user);
            if count > 1 || (count == 0 && !may_be_none) {
                self.world.violate(format_args!(
                    "{name} ({id}): {user} has {count} copies, not one"
                ));
            }
        }
        self.settle_choices(&name, &addresses, fate, is_deleted || cancelled, has);
    }

    /// An address that is one of several users': one of them has the mail, and no more of them than such addresses.
    fn settle_choices(
        &self,
        name: &str,
        addresses: &[&Address],
        fate: &MessageFate,
        may_be_none: bool,
        has: impl Fn(&str) -> usize,
    ) {
        for choices in [&["u1", "u2"], &["u6", "u7"]] {
            let is_choice = |leaf: &&Leaf| matches!(leaf, Leaf::Users(users) if *users == choices);
            let is_certain =
                |leaf: &Leaf| matches!(leaf, Leaf::Users([user]) if choices.contains(user));
            let leaves = || addresses.iter().flat_map(|address| address.leaves);
            let wanted = leaves().filter(is_choice).count();
            if wanted == 0 {
                continue;
            }
            let certain = leaves().any(is_certain);
            let count = has(choices[0]) + has(choices[1]);
            let bounced = fate.recipients.iter().any(|recipient| {
                matches!(recipient.end, Some(End::Bounced { .. }))
                    && recipient
                        .status
                        .as_ref()
                        .is_some_and(|status| status.enhanced.starts_with("5.2."))
            });
            if (count == 0 && !bounced && !may_be_none) || (count > wanted && !certain) {
                self.world.violate(format_args!(
                    "{name}: {choices:?} have {count} copies for {wanted} recipients"
                ));
            }
        }
    }

    /// What holds for every message: each recipient is settled in a way that is allowed.
    fn settle_message(&self, truth: &Truth, id: MessageId, fate: &MessageFate, name: &str) {
        let copies = truth.copies.get(&id).map_or(&[][..], Vec::as_slice);
        for (number, recipient) in (0u32..).zip(&fate.recipients) {
            let address = &recipient.recipient.address;
            let copy = copies.iter().find(|copy| copy.recipient == number);
            let account = recipient.account().unwrap_or_default();
            let restored = |at| truth.is_restored(id, number, account, at);
            let wrong = match &recipient.end {
                None => match recipient.held.as_deref() {
                    Some("no-outbound") if !address.ends_with("@example.jp") => {
                        self.world.count("end/held: no-outbound");
                        copy.is_some()
                    }
                    _ => true,
                },
                Some(End::Delivered { shard, at }) => {
                    self.world.count("end/delivered");
                    self.check_success(truth, id, fate, number);
                    // or where a restore has brought it, of which a late answer may tell
                    let is_there = |copy: &&Copy| copy.at == *at || restored(*at);
                    !copy.is_some_and(|copy| copy.shard == *shard && is_there(&copy))
                }
                Some(End::Bounced { dsn }) => {
                    self.world.count(match dsn {
                        Some(_) => "end/bounced with a report",
                        None => "end/bounced without a report",
                    });
                    copy.is_some() || !self.may_bounce(fate, recipient, *dsn, truth, id)
                }
                // somebody else of the message has it
                Some(End::Expanded) => {
                    self.world.count("end/expanded");
                    let children = fate.recipients.iter();
                    let children = children
                        .filter(|child| child.parent == Some(number))
                        .count();
                    if children > 1 {
                        self.check_success(truth, id, fate, number);
                    }
                    copy.is_some() || children == 0
                }
                Some(End::Collapsed) => {
                    self.world.count("end/collapsed");
                    copy.is_some()
                }
                // an attempt under way may have stored it, and its result came too late
                Some(End::Deleted) => {
                    self.world.count("end/deleted");
                    !self.deleted.contains(&id)
                }
                Some(End::Cancelled) => {
                    self.world.count("end/cancelled");
                    fate.is_report()
                }
            };
            if wrong {
                self.world.violate(format_args!(
                    "{name} ({id}): recipient {number} <{address}> ended as {:?} {:?} held {:?}, copy {copy:?}",
                    recipient.end, recipient.status, recipient.held
                ));
            }
        }
    }

    /// Whoever asked has been told that it was delivered, or replaced by several; nobody else has.
    fn check_success(&self, truth: &Truth, id: MessageId, fate: &MessageFate, number: u32) {
        let told = truth.told.contains_key(&(id, number, Told::Success));
        let recipient = &fate.recipients[number as usize].recipient;
        // a recipient of the same mailbox may be told of with this one
        let may = fate
            .recipients
            .iter()
            .any(|other| asks(&other.recipient.notify, "SUCCESS"));
        let must = asks(&recipient.notify, "SUCCESS");
        // nothing is sent out yet, and strangers are told of failures alone
        let somebody = fate.reverse_path().ends_with("@example.jp");
        if (must && somebody && !told) || (told && !(may && somebody)) {
            self.world.violate(format_args!(
                "{id}: success of recipient {number} ({}) told: {told}",
                recipient.notify
            ));
        }
    }

    /// Only the world's trouble bounces, it is reported once, and to whom it belongs.
    fn may_bounce(
        &self,
        fate: &MessageFate,
        recipient: &super::truth::RecipientFate,
        dsn: Option<MessageId>,
        truth: &Truth,
        id: MessageId,
    ) -> bool {
        let enhanced = recipient
            .status
            .as_ref()
            .map_or("", |status| status.enhanced.as_str());
        self.world.count(format!("end/bounced {enhanced}"));
        let address = recipient.recipient.address.as_str();
        let account = recipient.account().unwrap_or_default();
        let of = |users: &[&str]| {
            users.iter().any(|user| {
                account == account_id(user).as_str() || address == format!("{user}@example.jp")
            })
        };
        let worlds = match enhanced {
            "5.1.1" => address == "nobody@example.jp",
            "5.4.6" => address.starts_with("endless"),
            // others get the mail, so nobody is told
            "2.1.5" => return address.starts_with("loop") && dsn.is_none(),
            "5.2.2" => of(&["full", "u8"]),
            "5.2.1" => of(&["u5", "u6", "u7", "desk"]),
            _ => false,
        };
        let notify = &recipient.recipient.notify;
        let nobody_to_tell =
            fate.reverse_path().is_empty() || !(notify.is_empty() || asks(notify, "FAILURE"));
        let reported = match dsn {
            None => nobody_to_tell,
            Some(dsn) => {
                !nobody_to_tell
                    && truth
                        .messages
                        .get(&dsn)
                        .is_some_and(|report| report.accept.reports_on[..] == id.to_bytes())
            }
        };
        worlds && reported
    }
}
