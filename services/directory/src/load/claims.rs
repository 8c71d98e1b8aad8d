//! What an entry has for itself alone: its id, its addresses, its login names. What several claim is unavailable, for nobody knows
//! whose it is.

use std::collections::HashMap;
use std::collections::hash_map::Entry as Slot;

use crate::entry::{Recipient, printable};
use crate::finding::Severity;
use crate::load::Loader;
use crate::table::{Owner, address_key};

impl Loader<'_> {
    /// Two entries with one id would share a mailbox.
    pub(super) fn judge_ids(&mut self) {
        let mut first: HashMap<&str, u32> = HashMap::new();
        let mut pairs = Vec::new();
        for (index, recipient) in self.recipients.iter().enumerate() {
            let Some(id) = &recipient.id else { continue };
            match first.entry(id.as_str()) {
                Slot::Vacant(slot) => drop(slot.insert(index as u32)),
                Slot::Occupied(slot) => pairs.push((*slot.get() as usize, index)),
            }
        }
        for (one, other) in pairs {
            self.break_pair(one, other, "entryUUID");
        }
    }

    fn break_pair(&mut self, one: usize, other: usize, attribute: &str) {
        let line = |index: usize| {
            self.recipients
                .get(index)
                .map_or(0, |recipient| recipient.line)
        };
        let (one_line, other_line) = (line(one), line(other));
        self.break_entry(
            one,
            one_line,
            format!("line {other_line} has the same {attribute}"),
        );
        self.break_entry(
            other,
            other_line,
            format!("line {one_line} has the same {attribute}"),
        );
    }

    /// Whose each address is.
    pub(super) fn addresses(&mut self) -> HashMap<Box<str>, Owner> {
        let recipients = std::mem::take(&mut self.recipients);
        let mut owners = HashMap::with_capacity(recipients.len());
        for (index, recipient) in recipients.iter().enumerate() {
            for address in &recipient.addresses {
                self.claim(
                    &mut owners,
                    &recipients,
                    index,
                    address_key(address),
                    "mailLocalAddress",
                );
            }
        }
        owners.extend(
            self.addresses_in_doubt
                .drain(..)
                .map(|key| (key, Owner::InDoubt)),
        );
        self.recipients = recipients;
        owners
    }

    /// Gives `key` to the entry, or to nobody if another one has it.
    fn claim(
        &mut self,
        owners: &mut HashMap<Box<str>, Owner>,
        all: &[Recipient],
        index: usize,
        key: String,
        attribute: &str,
    ) {
        let mine = Owner::Entry(index as u32);
        let Some(known) = owners.get_mut(key.as_str()) else {
            owners.insert(key.into(), mine);
            return;
        };
        if *known == mine {
            return;
        }
        let first = match known {
            Owner::Entry(first) => all
                .get(*first as usize)
                .map(|first| format!("line {}", first.line)),
            Owner::InDoubt => None,
        };
        *known = Owner::InDoubt;
        let Some(recipient) = all.get(index) else {
            return;
        };
        let first = first.unwrap_or_else(|| "others".to_owned());
        let what = format!(
            "{attribute} {}: {first} has it too; it is unavailable",
            printable(&key)
        );
        self.find(Severity::Error, recipient.line, Some(&recipient.dn), what);
    }

    /// Login names. A uid that reads as another entry's address is settled (as unavailable) when it is asked for.
    pub(super) fn logins(
        &mut self,
        addresses: &HashMap<Box<str>, Owner>,
    ) -> HashMap<Box<str>, Owner> {
        let recipients = std::mem::take(&mut self.recipients);
        let mut owners = HashMap::with_capacity(recipients.len());
        for (index, recipient) in recipients.iter().enumerate() {
            for login in &recipient.logins {
                self.claim(&mut owners, &recipients, index, login.clone(), "uid");
                let other = addresses.get(login.as_str());
                if other.is_some_and(|other| *other != Owner::Entry(index as u32)) {
                    let what = format!(
                        "uid {}: another entry has it as an address; it is unavailable",
                        printable(login)
                    );
                    self.find(Severity::Error, recipient.line, Some(&recipient.dn), what);
                }
            }
        }
        self.recipients = recipients;
        owners
    }
}
