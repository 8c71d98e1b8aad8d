//! Mailboxes: names and their creation (RFC 9051 section 5.1, RFC 6154).

use hikyaku_proto::v1::CreateMailbox;

use crate::machine::{Answer, At, MailboxMachine};
use crate::{StoreError, key};

/// Mailboxes of one account.
pub const MAILBOXES_MAX: u64 = 5_000;
/// Between a mailbox and its children.
const SEPARATOR: char = '/';
/// RFC 6154 section 2.
const SPECIAL_USES: [&str; 7] = [
    "\\All",
    "\\Archive",
    "\\Drafts",
    "\\Flagged",
    "\\Junk",
    "\\Sent",
    "\\Trash",
];

/// The one spelling of a mailbox name; `None` when it is none. INBOX is case-insensitive, in front of children as well.
pub fn canonical_name(name: &str) -> Option<String> {
    let fits = name.len() <= key::MAILBOX_NAME_BYTES_MAX
        && name.split(SEPARATOR).all(|level| !level.is_empty())
        && !name.chars().any(char::is_control);
    if !fits {
        return None;
    }
    let (first, rest) = match name.split_once(SEPARATOR) {
        Some((first, rest)) => (first, Some(rest)),
        None => (name, None),
    };
    if !first.eq_ignore_ascii_case("INBOX") {
        return Some(name.to_owned());
    }
    Some(match rest {
        Some(rest) => format!("INBOX{SEPARATOR}{rest}"),
        None => "INBOX".to_owned(),
    })
}

/// The attribute's one spelling; empty stays empty.
pub(crate) fn special_use(attribute: &str) -> Option<&'static str> {
    if attribute.is_empty() {
        return Some("");
    }
    SPECIAL_USES
        .into_iter()
        .find(|known| known.eq_ignore_ascii_case(attribute))
}

/// The mailbox id stored under a name.
pub(crate) fn decode_id(number: &[u8]) -> Result<u64, StoreError> {
    let number = number
        .try_into()
        .map_err(|_| StoreError::Corrupt("a mailbox's name"))?;
    Ok(u64::from_be_bytes(number))
}

impl MailboxMachine {
    pub(crate) fn create_mailbox(
        &mut self,
        at: At,
        command: &CreateMailbox,
    ) -> Result<Answer, StoreError> {
        let Some(name) = canonical_name(&command.name) else {
            return Ok(Answer::Refused("not a mailbox name"));
        };
        let Some(special_use) = special_use(&command.special_use) else {
            return Ok(Answer::Refused("not a special-use attribute"));
        };
        let id = &command.account;
        let mut account = match self.opened(id)? {
            Ok(account) => account,
            Err(answer) => return Ok(answer),
        };
        if self.writer.get(&key::name(id, &name))?.is_some() {
            return Ok(Answer::Refused("the mailbox exists"));
        }
        if account.mailboxes >= MAILBOXES_MAX {
            return Ok(Answer::Refused("too many mailboxes"));
        }
        if !special_use.is_empty() && self.has_special_use(id, special_use)? {
            return Ok(Answer::Refused("another mailbox has this special use"));
        }
        let mailbox_id = self.add_mailbox(at, id, &mut account, &name, special_use)?;
        self.put_account(id, account)?;
        Ok(Answer::Created { mailbox_id })
    }

    fn has_special_use(&mut self, id: &str, special_use: &str) -> Result<bool, StoreError> {
        let prefix = key::of_account(b'x', id);
        let pairs = self.writer.scan(&prefix, &prefix, MAILBOXES_MAX as usize)?;
        for (found, _) in pairs {
            let mailbox = self.mailboxes.get(&self.writer, &found)?;
            if mailbox.is_some_and(|mailbox| mailbox.special_use == special_use) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

#[cfg(test)]
mod tests {
    use super::canonical_name;

    #[test]
    fn names_have_one_spelling() {
        let canonical = |name| canonical_name(name).unwrap();
        assert_eq!(canonical("inbox"), "INBOX");
        assert_eq!(canonical("iNbOx/work"), "INBOX/work");
        assert_eq!(canonical("Inboxes"), "Inboxes");
        assert_eq!(canonical("日本語/仕事"), "日本語/仕事");
        for bad in [
            "",
            "/",
            "a//b",
            "a/",
            "/a",
            "a\0b",
            "a\r\n",
            &"x".repeat(256),
        ] {
            assert_eq!(canonical_name(bad), None, "{bad:?}");
        }
    }
}
