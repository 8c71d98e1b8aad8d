//! What one session sees of an INBOX: message numbers, sizes, unique ids, deletion marks (RFC 1939 sections 5 and 7).
//!
//! A snapshot, taken when the session opened: numbers never change in it, and nothing is locked. Columns instead of rows keep
//! a message at some 16 octets and its unique id.

use hikyaku_mail::id::AccountId;
use hikyaku_proto::convert::Malformed;

/// RFC 1939 section 7, UIDL.
const UNIQUE_ID_BYTES_MAX: usize = 70;

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
    pub unique_id: &'a str,
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
    sizes: Vec<u64>,
    unique_ids: String,
    /// Where in `unique_ids` each one ends.
    ends: Vec<u32>,
    deleted: Vec<bool>,
    count: u32,
    octets: u64,
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
        let begin = index
            .checked_sub(1)
            .map_or(Some(0), |before| self.ends.get(before).copied())?;
        let end = *self.ends.get(index)?;
        Some(Message {
            number: u32::try_from(index + 1).ok()?,
            uid: *self.uids.get(index)?,
            size: *self.sizes.get(index)?,
            unique_id: self.unique_ids.get(begin as usize..end as usize)?,
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
        self.octets = total(&self.sizes);
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

fn total(sizes: &[u64]) -> u64 {
    sizes.iter().fold(0, |sum, size| sum.saturating_add(*size))
}

/// Takes the snapshot, message by message in UID order.
#[derive(Debug)]
pub struct MaildropBuilder {
    maildrop: Maildrop,
    messages_max: usize,
}

impl MaildropBuilder {
    /// For `mailbox`; at most `messages_max` messages are taken, those with the lowest UIDs.
    pub fn new(mailbox: MailboxRef, messages_max: usize) -> MaildropBuilder {
        MaildropBuilder {
            maildrop: Maildrop {
                mailbox: Some(mailbox),
                ..Maildrop::default()
            },
            messages_max,
        }
    }

    /// Whether no more messages are taken.
    pub fn is_full(&self) -> bool {
        self.maildrop.uids.len() >= self.messages_max
    }

    /// Takes the next message.
    ///
    /// # Errors
    /// When UIDs do not ascend.
    pub fn push(&mut self, uid: u32, size: u64, email_id: &str) -> Result<(), Malformed> {
        let maildrop = &mut self.maildrop;
        if maildrop.uids.last().copied().unwrap_or(0) >= uid {
            return Err(Malformed("maildrop: UIDs do not ascend"));
        }
        maildrop.unique_ids.push_str(email_id);
        let end = u32::try_from(maildrop.unique_ids.len())
            .map_err(|_| Malformed("maildrop: too many ids"))?;
        maildrop.ends.push(end);
        maildrop.uids.push(uid);
        maildrop.sizes.push(size);
        Ok(())
    }

    /// The snapshot.
    pub fn finish(self) -> Maildrop {
        let mut maildrop = self.maildrop;
        maildrop.deleted = vec![false; maildrop.uids.len()];
        maildrop.reset();
        let repeated = repeated(&maildrop);
        let usable = maildrop
            .messages()
            .all(|message| is_unique_id(message.unique_id));
        if !usable || repeated.contains(&true) {
            rewrite_ids(&mut maildrop, &repeated);
        }
        maildrop
    }
}

/// RFC 1939 section 7: 1 to 70 printable characters without space.
fn is_unique_id(text: &str) -> bool {
    (1..=UNIQUE_ID_BYTES_MAX).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_graphic())
}

/// For each message, whether one with a lower UID has the same id: copies of a message share its EMAILID (RFC 8474 section 4).
fn repeated(maildrop: &Maildrop) -> Vec<bool> {
    let mut by_id: Vec<(&str, usize)> = maildrop
        .messages()
        .enumerate()
        .map(|(index, message)| (message.unique_id, index))
        .collect();
    by_id.sort_unstable();
    let mut repeated = vec![false; by_id.len()];
    for pair in by_id.windows(2) {
        if let [(before, _), (id, index)] = pair
            && before == id
            && let Some(flag) = repeated.get_mut(*index)
        {
            *flag = true;
        }
    }
    repeated
}

/// Gives a repeated id its UID as a suffix. What cannot be a unique id is replaced by UIDVALIDITY and UID, with a dot, which
/// no EMAILID has.
fn rewrite_ids(maildrop: &mut Maildrop, repeated: &[bool]) {
    let uid_validity = maildrop
        .mailbox
        .as_ref()
        .map_or(0, |mailbox| mailbox.uid_validity);
    let (mut ids, mut ends) = (String::new(), Vec::with_capacity(maildrop.ends.len()));
    for (message, repeated) in maildrop.messages().zip(repeated) {
        let suffix = if *repeated {
            format!("-{}", message.uid)
        } else {
            String::new()
        };
        let id = format!("{}{suffix}", message.unique_id);
        if is_unique_id(&id) {
            ids.push_str(&id);
        } else {
            ids.push_str(&format!("{uid_validity}.{}", message.uid));
        }
        ends.push(u32::try_from(ids.len()).unwrap_or(u32::MAX));
    }
    maildrop.unique_ids = ids;
    maildrop.ends = ends;
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

    fn ids(maildrop: &Maildrop) -> Vec<&str> {
        maildrop
            .messages()
            .map(|message| message.unique_id)
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
        assert_eq!(builder.finish().count(), 2);
    }
}
