//! What an entry has for itself alone: its id, its addresses, its login names in its tenant. What
//! several claim is unavailable, for nobody knows whose it is.

use std::collections::hash_map::Entry as Slot;
use std::collections::{BTreeMap, HashMap};

use crate::entry::{Recipient, printable};
use crate::finding::Severity;
use crate::load::Loader;
use crate::table::{Logins, Owner, address_key};

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
            let addresses = recipient.addresses.iter().map(address_key);
            let catch_alls = recipient.catch_alls.iter();
            for key in addresses.chain(catch_alls.map(|domain| format!("@{domain}"))) {
                self.claim(&mut owners, &recipients, index, key);
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
            Owner::Entry(first) => Some(*first),
            Owner::InDoubt => None,
        };
        *known = Owner::InDoubt;
        self.say_claimed(all, index, "mailLocalAddress", &key, first);
    }

    /// The entry has what the entry `first`, or several others, have too.
    fn say_claimed(
        &mut self,
        all: &[Recipient],
        index: usize,
        attribute: &str,
        key: &str,
        first: Option<u32>,
    ) {
        let line = |index: u32| all.get(index as usize).map(|first| first.line);
        let first = first
            .and_then(line)
            .map_or_else(|| "others".to_owned(), |line| format!("line {line}"));
        let Some(recipient) = all.get(index) else {
            return;
        };
        let what = format!(
            "{attribute} {}: {first} has it too; it is unavailable",
            printable(key)
        );
        self.find(Severity::Error, recipient.line, Some(&recipient.dn), what);
    }

    /// Login names, by the tenant of each entry. A uid that reads as another entry's address is
    /// settled (as unavailable) when it is asked for.
    pub(super) fn logins(
        &mut self,
        tenant_of: &[u32],
        addresses: &HashMap<Box<str>, Owner>,
    ) -> Logins {
        let recipients = std::mem::take(&mut self.recipients);
        let mut logins = Logins::default();
        let mut several: BTreeMap<&str, Vec<u32>> = BTreeMap::new();
        for (index, recipient) in recipients.iter().enumerate() {
            let mine = Owner::Entry(index as u32);
            for login in &recipient.logins {
                match logins.alone.get(login.as_str()) {
                    None => drop(logins.alone.insert(login.as_str().into(), mine)),
                    Some(Owner::Entry(first)) if *first != index as u32 => {
                        let entries = several.entry(login).or_insert_with(|| vec![*first]);
                        entries.push(index as u32);
                    }
                    Some(_) => {}
                }
                if addresses.get(login.as_str()).is_some_and(|it| *it != mine) {
                    logins.clashes += 1;
                    let what = format!(
                        "uid {}: another entry has it as an address; it is unavailable",
                        printable(login)
                    );
                    self.find(Severity::Error, recipient.line, Some(&recipient.dn), what);
                }
            }
        }
        for (login, entries) in several {
            self.share(&mut logins, &recipients, tenant_of, login, &entries);
        }
        self.recipients = recipients;
        logins
    }

    /// Says whose `login` is that several `entries` have. Each tenant may have it; then it is
    /// nobody's by itself.
    fn share(
        &mut self,
        logins: &mut Logins,
        all: &[Recipient],
        tenant_of: &[u32],
        login: &str,
        entries: &[u32],
    ) {
        let mut owners: BTreeMap<u32, Owner> = BTreeMap::new();
        let mut firsts: BTreeMap<u32, u32> = BTreeMap::new();
        for &index in entries {
            let tenant = tenant_of.get(index as usize).copied().unwrap_or(u32::MAX);
            let first = *firsts.entry(tenant).or_insert(index);
            owners
                .entry(tenant)
                .and_modify(|owner| *owner = Owner::InDoubt)
                .or_insert(Owner::Entry(index));
            if first != index {
                self.say_claimed(all, index as usize, "uid", login, Some(first));
            }
        }
        // of an entry without a tenant, which is broken: it may be anybody's
        let has_stray = owners.remove(&u32::MAX).is_some();
        let is_in_doubt = has_stray || owners.values().any(|owner| *owner == Owner::InDoubt);
        match owners.len() {
            0 | 1 if is_in_doubt => drop(logins.alone.insert(login.into(), Owner::InDoubt)),
            _ => drop(logins.alone.remove(login)),
        }
        logins.shared.insert(login.into(), owners);
    }
}
