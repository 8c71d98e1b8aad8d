//! Groups: their members by address.

use std::collections::{BTreeMap, BTreeSet};

use crate::entry::{GroupDraft, MemberDraft, printable};
use crate::finding::Severity;
use crate::load::Loader;
use crate::table::Group;

impl Loader<'_> {
    /// Groups with their members by address. A member without an entry is left out, one whose address is in doubt breaks the group.
    pub(super) fn groups(&mut self) -> BTreeMap<u32, Group> {
        let mut groups = BTreeMap::new();
        for index in 0..self.recipients.len() {
            let Some(draft) = self
                .recipients
                .get_mut(index)
                .and_then(|recipient| recipient.group.take())
            else {
                continue;
            };
            let group = self.group(index, draft);
            groups.insert(index as u32, group);
        }
        groups
    }

    fn group(&mut self, index: usize, draft: GroupDraft) -> Group {
        let mut members = Vec::with_capacity(draft.members.len());
        let mut seen = BTreeSet::new();
        for member in draft.members {
            let member = match member {
                MemberDraft::Address(address) => address,
                MemberDraft::Dn(line, dn) => {
                    let known = self.dns.get(dn.as_str()).map(|(_, recipient)| *recipient);
                    let recipient = known
                        .flatten()
                        .and_then(|member| self.recipients.get(member as usize));
                    match (
                        recipient.and_then(|recipient| recipient.addresses.first()),
                        recipient,
                    ) {
                        (Some(address), _) => address.clone(),
                        (None, Some(member)) => {
                            let why = match member.catch_alls.is_empty() {
                                true => "its entry is broken",
                                false => "its entry has no address but a catch-all",
                            };
                            let what = format!("member {}: {why}", printable(&dn));
                            self.break_entry(index, line, what);
                            continue;
                        }
                        (None, None) => {
                            let own = self
                                .recipients
                                .get(index)
                                .map(|own| own.dn.clone())
                                .unwrap_or_default();
                            let what =
                                format!("member {}: no such mail entry; left out", printable(&dn));
                            self.find(Severity::Warning, line, Some(&own), what);
                            continue;
                        }
                    }
                }
            };
            if seen.insert(member.clone()) {
                members.push(member);
            }
        }
        if members.is_empty() {
            let line = self
                .recipients
                .get(index)
                .map_or(0, |recipient| recipient.line);
            self.break_entry(index, line, "a group without members".to_owned());
        }
        Group {
            members,
            errors_to: draft.errors_to,
        }
    }
}
