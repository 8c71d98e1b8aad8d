//! From an LDIF file to a [`Table`]: what single entries say is compared, and what does not fit becomes a finding.
//!
//! A finding about the file (not LDIF, no entries, no domains, settings that contradict it) refuses the file. A finding about an
//! entry makes that entry alone unavailable (it tempfails), one about an address or a login that several entries claim makes that
//! address or login unavailable. Never does a broken entry become "no such user": while an entry is broken, its
//! `uid@domain` is unavailable too, for its address may be what is broken.

use std::collections::hash_map::Entry as Slot;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use hikyaku_mail::path::normal_domain;

use crate::entry::{
    Domains, Draft, GroupDraft, MemberDraft, Recipient, draft, normal_dn, printable,
};
use crate::finding::{Finding, Findings, Severity};
use crate::ldif;
use crate::password;
use crate::settings::Settings;
use crate::table::{DomainOwner, Entry, Group, Host, Owner, ROLES, Table, Tenant, address_key};
use crate::{Decision, Rule};

/// The directory in `input`, or why the file as a whole cannot be used. What is wrong with single entries is in
/// [`Table::findings`].
pub fn load(input: &[u8], settings: &Settings) -> Result<Table, Vec<Finding>> {
    let mut loader = Loader {
        settings,
        findings: Findings::new(settings.findings_max),
        recipients: Vec::new(),
        domain_entries: Vec::new(),
        broken: BTreeMap::new(),
        addresses_in_doubt: Vec::new(),
        dns: HashMap::new(),
    };
    if loader.read(input).is_none() {
        return Err(loader.findings.finish());
    }
    loader.table()
}

struct Loader<'s> {
    settings: &'s Settings,
    findings: Findings,
    recipients: Vec<Recipient>,
    domain_entries: Vec<Domains>,
    broken: BTreeMap<u32, Box<str>>,
    /// Addresses whose domain is not in order.
    addresses_in_doubt: Vec<Box<str>>,
    /// Normalised DN of every record, its line, and the recipient it is.
    dns: HashMap<Box<str>, (u32, Option<u32>)>,
}

impl Loader<'_> {
    fn find(&mut self, severity: Severity, line: u32, dn: Option<&str>, what: impl Into<String>) {
        self.findings.find(severity, line, dn, what);
    }

    fn refuse(&mut self, line: u32, what: impl Into<String>) {
        self.findings.refuse(line, what);
    }

    /// The entry is unusable, for this reason.
    fn break_entry(&mut self, index: usize, line: u32, what: String) {
        let Some(recipient) = self.recipients.get(index) else {
            return;
        };
        let (dn, number) = (recipient.dn.clone(), index as u32);
        self.broken
            .entry(number)
            .or_insert_with(|| what.as_str().into());
        self.find(Severity::Error, line, Some(&dn), what);
    }

    fn read(&mut self, input: &[u8]) -> Option<()> {
        for record in ldif::records(input, self.settings.limits) {
            let record = match record {
                Ok(record) => record,
                Err(error) => {
                    self.refuse(error.line, error.what.to_string());
                    return None;
                }
            };
            if self.recipients.len() + self.domain_entries.len() >= self.settings.entries_max {
                self.refuse(
                    record.line,
                    format!("more than {} entries", self.settings.entries_max),
                );
                return None;
            }
            let next = self.recipients.len();
            let recipient = match draft(&record) {
                Some(Draft::Recipient(recipient)) => {
                    self.recipients.push(*recipient);
                    Some(next as u32)
                }
                Some(Draft::Domains(domains)) => {
                    self.domain_entries.push(domains);
                    None
                }
                None => None,
            };
            self.note_dn(&record, recipient);
        }
        if self.recipients.is_empty() {
            self.refuse(0, "no mail entries: nobody could receive mail");
            return None;
        }
        Some(())
    }

    fn note_dn(&mut self, record: &ldif::Record<'_>, recipient: Option<u32>) {
        let (first_line, first) = match self.dns.entry(normal_dn(&record.dn).into()) {
            Slot::Vacant(slot) => {
                slot.insert((record.line, recipient));
                return;
            }
            Slot::Occupied(slot) => *slot.get(),
        };
        let both = [
            (first, first_line, record.line),
            (recipient, record.line, first_line),
        ];
        for (index, line, other) in both {
            if let Some(index) = index {
                self.break_entry(
                    index as usize,
                    line,
                    format!("line {other} has the same DN"),
                );
            }
        }
        if first.is_none() && recipient.is_none() {
            let dn = printable(&record.dn);
            self.find(
                Severity::Warning,
                record.line,
                Some(&dn),
                format!("line {first_line} has the same DN"),
            );
        }
    }

    fn table(mut self) -> Result<Table, Vec<Finding>> {
        let mboxes = self.mboxes();
        let default_mbox = self
            .settings
            .default_mbox
            .as_ref()
            .map(|name| mbox_index(&mboxes, name));
        if default_mbox == Some(None) {
            self.refuse(0, "the default mbox is none of our mboxes");
        }
        let (tenants, domains) = self.domains(&mboxes, default_mbox.flatten());
        let Ok(default_domain) = normal_domain(&self.settings.default_domain) else {
            self.refuse(
                0,
                format!(
                    "default domain {}: not a domain",
                    printable(&self.settings.default_domain)
                ),
            );
            return Err(self.findings.finish());
        };
        if !domains.contains_key(&default_domain) {
            self.refuse(
                0,
                format!("no domainRelatedObject entry hosts the default domain {default_domain}"),
            );
        }
        let Ok(postmaster) = format!("postmaster@{default_domain}").parse() else {
            self.refuse(0, "the default domain is too long");
            return Err(self.findings.finish());
        };
        if self.findings.refuses() {
            return Err(self.findings.finish());
        }
        let tenant_of = self.judge_each(&domains);
        self.judge_ids();
        let addresses = self.addresses();
        let logins = self.logins(&addresses);
        let groups = self.groups();
        let mut table = Table {
            settings: self.settings.clone(),
            postmaster,
            mboxes,
            tenants,
            domains,
            entries: Vec::new(),
            broken: BTreeMap::new(),
            addresses,
            logins,
            by_id: Vec::new(),
            ids_in_doubt: false,
            decoy: None,
            findings: Vec::new(),
        };
        self.fill(&mut table, tenant_of, groups);
        Ok(table)
    }

    fn mboxes(&mut self) -> Vec<Arc<str>> {
        let mut names = BTreeSet::new();
        for name in &self.settings.mboxes {
            match normal_domain(name) {
                Ok(name) => drop(names.insert(name)),
                Err(_) => self.refuse(0, format!("mbox {}: not a host name", printable(name))),
            }
        }
        names.into_iter().map(Arc::from).collect()
    }

    /// Which domains are ours, and whose.
    fn domains(
        &mut self,
        mboxes: &[Arc<str>],
        default_mbox: Option<u32>,
    ) -> (Vec<Tenant>, BTreeMap<String, DomainOwner>) {
        let mut tenants: Vec<Tenant> = Vec::new();
        let mut named: BTreeMap<String, (u32, Option<String>)> = BTreeMap::new();
        let mut owners: BTreeMap<String, DomainOwner> = BTreeMap::new();
        for entry in std::mem::take(&mut self.domain_entries) {
            let mut errors = entry.errors;
            let mbox = entry
                .mail_host
                .as_deref()
                .map(|name| mbox_index(mboxes, name));
            if mbox == Some(None) {
                errors.push((
                    entry.line,
                    "mailHost: the tenant's default mbox is none of our mboxes".to_owned(),
                ));
            }
            let (tenant, first_host) = named.entry(entry.tenant.clone()).or_insert_with(|| {
                tenants.push(Tenant {
                    name: entry.tenant.as_str().into(),
                    default_mbox,
                });
                (tenants.len() as u32 - 1, None)
            });
            match (first_host.as_ref(), entry.mail_host) {
                (Some(first), Some(second)) if *first != second => {
                    errors.push((
                        entry.line,
                        format!("tenant {}: a second default mbox", entry.tenant),
                    ));
                }
                (None, Some(host)) => {
                    if let Some(tenant) = tenants.get_mut(*tenant as usize) {
                        tenant.default_mbox = mbox.flatten();
                    }
                    *first_host = Some(host);
                }
                _ => {}
            }
            for domain in entry.domains {
                let owner = if errors.is_empty() {
                    DomainOwner::Tenant(*tenant)
                } else {
                    DomainOwner::InDoubt
                };
                let known = owners.entry(domain.clone()).or_insert(owner);
                if *known != owner {
                    *known = DomainOwner::InDoubt;
                    errors.push((
                        entry.line,
                        format!("{domain} is another tenant's too, or its other entry is broken"),
                    ));
                }
            }
            for (line, what) in errors {
                self.find(Severity::Error, line, Some(&entry.dn), what);
            }
        }
        (tenants, owners)
    }

    /// Each entry by itself: what the profile said, and whose it is. Answers the tenant of each.
    fn judge_each(&mut self, domains: &BTreeMap<String, DomainOwner>) -> Vec<u32> {
        let mut tenant_of = Vec::with_capacity(self.recipients.len());
        for index in 0..self.recipients.len() {
            let Some(recipient) = self.recipients.get_mut(index) else {
                break;
            };
            let (line, dn) = (recipient.line, recipient.dn.clone());
            let errors = std::mem::take(&mut recipient.errors);
            let warnings = std::mem::take(&mut recipient.warnings);
            let mut owner = None;
            let mut doubts = Vec::new();
            recipient.addresses.retain(|address| {
                let doubt = match (domains.get(address.domain()), owner) {
                    (Some(DomainOwner::Tenant(tenant)), None) => {
                        owner = Some(*tenant);
                        return true;
                    }
                    (Some(DomainOwner::Tenant(tenant)), Some(first)) if *tenant == first => {
                        return true;
                    }
                    (Some(DomainOwner::Tenant(_)), Some(_)) => {
                        "its domain is another tenant's than the first address's"
                    }
                    (Some(DomainOwner::InDoubt), _) => "the entry of its domain is broken",
                    (None, _) => "no domainRelatedObject entry hosts its domain",
                };
                doubts.push((
                    address_key(address),
                    format!("mailLocalAddress {address}: {doubt}; it is unavailable"),
                ));
                false
            });
            let is_nowhere = recipient.addresses.is_empty() && !doubts.is_empty();
            tenant_of.push(owner.unwrap_or(u32::MAX));
            for (line, what) in warnings {
                self.find(Severity::Warning, line, Some(&dn), what);
            }
            for (key, what) in doubts {
                self.find(Severity::Error, line, Some(&dn), what);
                self.addresses_in_doubt.push(key.into());
            }
            for (line, what) in errors {
                self.break_entry(index, line, what);
            }
            if is_nowhere {
                self.break_entry(index, line, "none of its addresses can be used".to_owned());
            }
        }
        tenant_of
    }

    /// Two entries with one id would share a mailbox.
    fn judge_ids(&mut self) {
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

    fn addresses(&mut self) -> HashMap<Box<str>, Owner> {
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
    fn logins(&mut self, addresses: &HashMap<Box<str>, Owner>) -> HashMap<Box<str>, Owner> {
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

    /// Groups with their members by address. A member without an entry is left out, one whose address is in doubt breaks the group.
    fn groups(&mut self) -> BTreeMap<u32, Group> {
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
                        (None, Some(_)) => {
                            self.break_entry(
                                index,
                                line,
                                format!("member {}: its entry is broken", printable(&dn)),
                            );
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

    /// The entries themselves, then what can be said only of all of them together.
    fn fill(&mut self, table: &mut Table, tenant_of: Vec<u32>, mut groups: BTreeMap<u32, Group>) {
        let mut lines = Vec::with_capacity(self.recipients.len());
        let mut decoys = Decoys::default();
        for (index, recipient) in std::mem::take(&mut self.recipients).into_iter().enumerate() {
            let number = index as u32;
            lines.push(recipient.line);
            let is_broken = self.broken.contains_key(&number);
            // What is no mailbox (a group, an alias) has lost no id.
            let is_alias = recipient.routing.is_some() && recipient.mail_host.is_none();
            table.ids_in_doubt |=
                is_broken && recipient.id.is_none() && !is_alias && !groups.contains_key(&number);
            let host = match recipient.mail_host {
                Some(name) => mbox_index(&table.mboxes, &name)
                    .map_or_else(|| Host::Foreign(name.into()), Host::Ours),
                None => Host::None,
            };
            decoys.count(&recipient.passwords);
            table.entries.push(Entry {
                dn: recipient.dn,
                id: recipient.id,
                address: recipient.addresses.into_iter().next(),
                tenant: tenant_of.get(index).copied().unwrap_or(u32::MAX),
                state: recipient.state,
                host,
                routing: recipient.routing.map(Box::new),
                quota_bytes: recipient.quota_bytes,
                passwords: recipient.passwords.into(),
                group: groups.remove(&number).map(Box::new),
            });
        }
        table.decoy = decoys.most_common();
        table.broken = std::mem::take(&mut self.broken);
        self.judge_decisions(table, &lines);
        index_ids(table);
        self.judge_roles(table);
        table.findings = self.findings.finish();
    }

    /// A mailbox needs an id, and a target of ours should lead somewhere.
    fn judge_decisions(&mut self, table: &mut Table, lines: &[u32]) {
        for index in table.indices() {
            let Some(entry) = table.entries.get(index as usize) else {
                break;
            };
            let Some(address) = entry
                .address
                .clone()
                .filter(|_| !table.broken.contains_key(&index))
            else {
                continue;
            };
            let (line, dn) = (
                lines.get(index as usize).copied().unwrap_or(0),
                entry.dn.clone(),
            );
            let targets = match table
                .decide(index, &address)
                .map(|resolution| resolution.decision)
            {
                Err(error) => {
                    self.find(Severity::Error, line, Some(&dn), error.reason.as_str());
                    table.ids_in_doubt |= entry.id.is_none();
                    table.broken.insert(index, error.reason.into());
                    continue;
                }
                Ok(Decision::Forward { to }) => vec![to],
                Ok(Decision::Group { members, errors_to }) => {
                    members.into_iter().chain(errors_to).collect()
                }
                Ok(_) => continue,
            };
            for target in targets {
                if table
                    .resolve(&target)
                    .is_ok_and(|resolution| resolution.decision == Decision::NoSuchUser)
                {
                    self.find(
                        Severity::Warning,
                        line,
                        Some(&dn),
                        format!("{target}: no entry has this address"),
                    );
                }
            }
        }
    }

    /// RFC 5321 section 4.5.1: mail for postmaster must reach somebody.
    fn judge_roles(&mut self, table: &Table) {
        if let Some(postmaster) = &self.settings.postmaster {
            let is_nobody = match table.resolve(postmaster) {
                Ok(found) => {
                    found.decision == Decision::NoSuchUser || found.rule == Rule::RoleAddress
                }
                Err(_) => false,
            };
            if is_nobody {
                self.find(
                    Severity::Error,
                    0,
                    None,
                    format!("postmaster {postmaster}: no entry has this address"),
                );
            }
            return;
        }
        for domain in table.domains.keys() {
            let Some(Ok(address)) = ROLES.first().map(|role| format!("{role}@{domain}").parse())
            else {
                continue;
            };
            if table
                .resolve(&address)
                .is_ok_and(|found| found.decision == Decision::NoSuchUser)
            {
                let what = format!("nobody is {address}: add an entry, or set who is postmaster");
                self.find(Severity::Error, 0, None, what);
            }
        }
    }
}

fn mbox_index(mboxes: &[Arc<str>], name: &str) -> Option<u32> {
    let name = normal_domain(name).ok()?;
    let found = mboxes
        .binary_search_by(|mbox| (**mbox).cmp(name.as_str()))
        .ok()?;
    u32::try_from(found).ok()
}

fn index_ids(table: &mut Table) {
    let entries = &table.entries;
    let id_of = |index: u32| {
        entries
            .get(index as usize)
            .and_then(|entry| entry.id.as_ref())
    };
    let mut by_id: Vec<u32> = table
        .indices()
        .filter(|&index| id_of(index).is_some())
        .collect();
    by_id.sort_by(|&one, &other| id_of(one).cmp(&id_of(other)));
    table.by_id = by_id;
    table.entries.shrink_to_fit();
    table.addresses.shrink_to_fit();
    table.logins.shrink_to_fit();
}

/// Classes of stored passwords that are counted; the rest is rare.
const CLASSES_MAX: usize = 64;

/// Finds a stored password of the class that most entries have: an unknown login should take as long as a usual one.
#[derive(Default)]
struct Decoys(BTreeMap<String, (usize, Box<str>)>);

impl Decoys {
    fn count(&mut self, passwords: &[Box<str>]) {
        for stored in passwords {
            let Some(class) = password::class(stored) else {
                continue;
            };
            let is_room = self.0.len() < CLASSES_MAX;
            match self.0.get_mut(&class) {
                Some((count, _)) => *count += 1,
                None if is_room => drop(self.0.insert(class, (1, stored.clone()))),
                None => {}
            }
        }
    }

    fn most_common(self) -> Option<Box<str>> {
        self.0
            .into_values()
            .max_by_key(|(count, _)| *count)
            .map(|(_, stored)| stored)
    }
}
