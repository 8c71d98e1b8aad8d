//! What one session sees of an INBOX: message numbers, sizes, unique ids, deletion marks (RFC 1939 sections 5 and 7).
//!
//! A snapshot, taken when the session opened: numbers never change in it, and nothing is locked. Columns instead of rows keep
//! a message at [`MAIL_BYTES`](crate::memory::MAIL_BYTES).

use std::collections::BTreeMap;

use hikyaku_mail::id::AccountId;
use hikyaku_proto::convert::Malformed;

use crate::memory::Reservation;
use crate::pop3::unique_id::{UniqueId, UniqueIds, UniqueIdsBuilder};

/// The mailbox a maildrop was taken from, as its shard knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MailboxRef {
    /// Index of the mailbox shard.
    pub shard: u32,
    /// Whose.
    pub account: AccountId,
    /// The INBOX.
    pub mailbox_id: u64,
    /// Names the generation of its UIDs.
    pub uid_validity: u32,
}

/// One message of a maildrop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message<'a> {
    /// Its number, from 1.
    pub number: u32,
    /// Its UID in the mailbox.
    pub uid: u32,
    /// Octets.
    pub size: u64,
    /// For UIDL.
    pub unique_id: UniqueId<'a>,
}

/// Why a number names no message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Absent {
    /// There is none with it.
    NoSuch,
    /// It is marked as deleted.
    Deleted,
}

/// The view of one session.
#[derive(Debug, Default)]
pub struct Maildrop {
    mailbox: Option<MailboxRef>,
    uids: Vec<u32>,
    sizes: Sizes,
    unique_ids: UniqueIds,
    deleted: Vec<bool>,
    count: u32,
    octets: u64,
    /// Its memory, as long as it is open.
    _memory: Option<Reservation>,
}

/// Octets of the messages. Few mails have 4 GiB.
#[derive(Debug, Default)]
struct Sizes {
    sizes: Vec<u32>,
    /// Those that do not fit, by index.
    large: BTreeMap<usize, u64>,
}

impl Sizes {
    fn push(&mut self, size: u64) {
        let short = u32::try_from(size).unwrap_or(u32::MAX);
        if u64::from(short) != size {
            self.large.insert(self.sizes.len(), size);
        }
        self.sizes.push(short);
    }

    fn get(&self, index: usize) -> Option<u64> {
        let short = self.sizes.get(index)?;
        let large = self.large.get(&index);
        Some(large.copied().unwrap_or(u64::from(*short)))
    }

    fn total(&self) -> u64 {
        let sizes = (0..self.sizes.len()).filter_map(|index| self.get(index));
        sizes.fold(0, u64::saturating_add)
    }
}

impl Maildrop {
    /// The maildrop of an account that has never had mail.
    pub fn empty() -> Maildrop {
        Maildrop::default()
    }

    /// The mailbox it was taken from; `None` if there is none yet.
    pub fn mailbox(&self) -> Option<&MailboxRef> {
        self.mailbox.as_ref()
    }

    /// How many messages are not marked.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// Octets of the messages that are not marked.
    pub fn octets(&self) -> u64 {
        self.octets
    }

    /// The message `number`.
    ///
    /// # Errors
    /// When there is none, and why.
    pub fn message(&self, number: u32) -> Result<Message<'_>, Absent> {
        let index = number.checked_sub(1).ok_or(Absent::NoSuch)? as usize;
        let message = self.row(index).ok_or(Absent::NoSuch)?;
        if self.deleted.get(index) == Some(&true) {
            return Err(Absent::Deleted);
        }
        Ok(message)
    }

    /// The messages that are not marked, by number.
    pub fn messages(&self) -> impl Iterator<Item = Message<'_>> {
        let marks = self.deleted.iter().enumerate();
        marks
            .filter(|(_, deleted)| !**deleted)
            .filter_map(|(index, _)| self.row(index))
    }

    fn row(&self, index: usize) -> Option<Message<'_>> {
        let uid = *self.uids.get(index)?;
        let uid_validity = self.mailbox.as_ref()?.uid_validity;
        Some(Message {
            number: u32::try_from(index + 1).ok()?,
            uid,
            size: self.sizes.get(index)?,
            unique_id: self.unique_ids.get(index, uid_validity, uid)?,
        })
    }

    /// Marks the message `number` as deleted.
    ///
    /// # Errors
    /// When there is none, and why.
    pub fn mark(&mut self, number: u32) -> Result<(), Absent> {
        let Message { size, .. } = self.message(number)?;
        if let Some(mark) = self.deleted.get_mut(number as usize - 1) {
            *mark = true;
            self.count -= 1;
            self.octets = self.octets.saturating_sub(size);
        }
        Ok(())
    }

    /// Takes all marks away.
    pub fn reset(&mut self) {
        self.deleted.fill(false);
        self.count = u32::try_from(self.uids.len()).unwrap_or(u32::MAX);
        self.octets = self.sizes.total();
    }

    /// UIDs of the marked messages, ascending.
    pub fn marked(&self) -> Vec<u32> {
        let marked = self
            .uids
            .iter()
            .zip(&self.deleted)
            .filter(|(_, deleted)| **deleted);
        marked.map(|(uid, _)| *uid).collect()
    }
}

/// Takes the snapshot, message by message in UID order.
#[derive(Debug)]
pub struct MaildropBuilder {
    maildrop: Maildrop,
    unique_ids: UniqueIdsBuilder,
    messages_max: usize,
}

impl MaildropBuilder {
    /// For `mailbox`; at most `messages_max` messages are taken, those with the lowest UIDs.
    pub fn new(mailbox: MailboxRef, messages_max: usize) -> MaildropBuilder {
        MaildropBuilder {
            maildrop: Maildrop {
                mailbox: Some(mailbox),
                uids: Vec::with_capacity(messages_max),
                sizes: Sizes {
                    sizes: Vec::with_capacity(messages_max),
                    large: BTreeMap::new(),
                },
                ..Maildrop::default()
            },
            unique_ids: UniqueIdsBuilder::new(messages_max),
            messages_max,
        }
    }

    /// Keeps the memory reserved as long as the maildrop is open.
    #[must_use]
    pub fn within(mut self, memory: Reservation) -> MaildropBuilder {
        self.maildrop._memory = Some(memory);
        self
    }

    /// Whether no more messages are taken.
    pub fn is_full(&self) -> bool {
        self.maildrop.uids.len() >= self.messages_max
    }

    /// Takes the next message.
    ///
    /// # Errors
    /// When UIDs do not ascend, or when it is full.
    pub fn push(&mut self, uid: u32, size: u64, email_id: &str) -> Result<(), Malformed> {
        let maildrop = &mut self.maildrop;
        if maildrop.uids.last().copied().unwrap_or(0) >= uid {
            return Err(Malformed("maildrop: UIDs do not ascend"));
        }
        if maildrop.uids.len() >= self.messages_max {
            return Err(Malformed("maildrop: too many messages"));
        }
        maildrop.uids.push(uid);
        maildrop.sizes.push(size);
        self.unique_ids.push(email_id, uid);
        Ok(())
    }

    /// The snapshot.
    pub fn finish(self) -> Maildrop {
        let mut maildrop = self.maildrop;
        maildrop.unique_ids = self.unique_ids.finish();
        maildrop.deleted = vec![false; maildrop.uids.len()];
        maildrop.reset();
        maildrop
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::{Absent, MailboxRef, Maildrop, MaildropBuilder};

    pub(crate) fn mailbox() -> MailboxRef {
        MailboxRef {
            shard: 0,
            account: "a-1".parse().unwrap(),
            mailbox_id: 1,
            uid_validity: 77,
        }
    }

    pub(crate) fn maildrop(messages: &[(u32, u64, &str)]) -> Maildrop {
        let mut builder = MaildropBuilder::new(mailbox(), 1000);
        for (uid, size, id) in messages {
            builder.push(*uid, *size, id).unwrap();
        }
        builder.finish()
    }

    fn ids(maildrop: &Maildrop) -> Vec<String> {
        maildrop
            .messages()
            .map(|message| message.unique_id.to_string())
            .collect()
    }

    #[test]
    fn marks() {
        let mut maildrop = maildrop(&[(3, 10, "a"), (7, 20, "b"), (9, 30, "c")]);
        assert_eq!((maildrop.count(), maildrop.octets()), (3, 60));
        assert_eq!(maildrop.mark(2), Ok(()));
        assert_eq!(maildrop.mark(2), Err(Absent::Deleted));
        assert_eq!(maildrop.mark(0), Err(Absent::NoSuch));
        assert_eq!(maildrop.mark(4), Err(Absent::NoSuch));
        assert_eq!(maildrop.message(u32::MAX), Err(Absent::NoSuch));
        assert_eq!(maildrop.message(2), Err(Absent::Deleted));
        assert_eq!(maildrop.message(3).unwrap().uid, 9);
        assert_eq!((maildrop.count(), maildrop.octets()), (2, 40));
        assert_eq!(maildrop.marked(), [7]);
        let numbers: Vec<u32> = maildrop.messages().map(|message| message.number).collect();
        assert_eq!(numbers, [1, 3]);
        maildrop.reset();
        assert_eq!((maildrop.count(), maildrop.octets()), (3, 60));
        assert_eq!(maildrop.marked(), []);
    }

    // B-224
    #[test]
    fn unique_ids_are_unique_and_stable() {
        assert_eq!(ids(&maildrop(&[(1, 1, "Ma"), (2, 1, "Mb")])), ["Ma", "Mb"]);
        // the first of the copies keeps the bare id, whatever comes after it
        assert_eq!(
            ids(&maildrop(&[
                (1, 1, "Ma"),
                (5, 1, "Ma"),
                (6, 1, "Mb"),
                (8, 1, "Ma")
            ])),
            ["Ma", "Ma-5", "Mb", "Ma-8"]
        );
        let (fits, long) = ("x".repeat(70), "x".repeat(71));
        assert_eq!(
            ids(&maildrop(&[
                (1, 1, ""),
                (2, 1, "a b"),
                (3, 1, &long),
                (4, 1, &fits),
                (5, 1, &fits),
                (6, 1, "é")
            ])),
            ["77.1", "77.2", "77.3", &fits, "77.5", "77.6"]
        );
    }

    #[test]
    fn the_oldest_are_shown_up_to_the_limit() {
        let mut builder = MaildropBuilder::new(mailbox(), 2);
        assert!(!builder.is_full());
        builder.push(4, 1, "a").unwrap();
        assert!(builder.push(4, 1, "b").is_err() && builder.push(3, 1, "b").is_err());
        builder.push(5, 1, "b").unwrap();
        assert!(builder.is_full());
        assert!(builder.push(6, 1, "c").is_err());
        assert_eq!(builder.finish().count(), 2);
    }

    #[test]
    fn a_mail_of_more_than_four_gibibytes_keeps_its_size() {
        let huge = u64::from(u32::MAX);
        let mut maildrop = maildrop(&[(1, huge, "a"), (2, huge + 1, "b"), (3, 1, "c")]);
        let sizes: Vec<u64> = maildrop.messages().map(|message| message.size).collect();
        assert_eq!(sizes, [huge, huge + 1, 1]);
        assert_eq!(maildrop.octets(), 2 * huge + 2);
        maildrop.mark(2).unwrap();
        assert_eq!(maildrop.octets(), huge + 1);
    }
}
