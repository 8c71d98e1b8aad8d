//! From an LDIF file to a [`Table`]: what single entries say is compared, and what does not fit becomes a finding.
//!
//! A finding about the file (not LDIF, no entries, no domains, settings that contradict it) refuses the file. A finding about an
//! entry makes that entry alone unavailable (it tempfails), one about an address or a login that several entries claim makes that
//! address or login unavailable. Never does a broken entry become "no such user": while an entry is broken, its
//! `uid@domain` is unavailable too, for its address may be what is broken. A trouble of a domain is said once, not for each entry
//! in it.
//!
//! # Layout, in the order of a load
//! * `domains`: which mboxes and domains are ours
//! * `claims`: ids, addresses and logins belong to one entry each
//! * `groups`: members by address
//! * `decoy`: what an unknown login is compared with
//! * `judge`: what can be said only of all entries together
//! * `routes`: groups, aliases and forwards that lead in a circle, or to more recipients than a mail may have

mod claims;
mod decoy;
mod domains;
mod groups;
mod judge;
mod routes;

use std::collections::hash_map::Entry as Slot;
use std::collections::{BTreeMap, HashMap};

use hikyaku_mail::path::{Mailbox, normal_domain};

use crate::dn::normal_dn;
use crate::entry::{Domains, Draft, Recipient, draft, is_read, printable};
use crate::finding::{Finding, Findings, Severity};
use crate::ldif;
use crate::load::decoy::Decoys;
use crate::load::domains::mbox_index;
use crate::settings::Settings;
use crate::table::{DomainOwner, Entry, Group, Host, Table, address_key};

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
        probes: BTreeMap::new(),
        locked: 0,
    };
    match ldif::as_utf8(input) {
        Ok(text) if loader.read(&text).is_some() => loader.table(),
        Ok(_) => Err(loader.findings.finish()),
        Err(error) => {
            loader.refuse(error.line, error.what.to_string());
            Err(loader.findings.finish())
        }
    }
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
    /// An address of each entry that has catch-alls alone.
    probes: BTreeMap<u32, Mailbox>,
    /// Entries with a locked password.
    locked: usize,
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
        for record in ldif::records(input, self.settings.limits).wanting(is_read) {
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
            if !record.faults.iter().any(|fault| fault.name == "dn") {
                self.note_dn(&record, recipient);
            }
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
                format!(
                    "no domainRelatedObject entry hosts the default domain {default_domain} (directory.default_domain, else node.hostname)"
                ),
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
        let logins = self.logins(&tenant_of, &addresses);
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
            lost: BTreeMap::new(),
            locked: self.locked,
            by_id: Vec::new(),
            ids_in_doubt: false,
            decoy: None,
            findings: Vec::new(),
        };
        self.fill(&mut table, tenant_of, groups);
        Ok(table)
    }

    /// Each entry by itself: what the profile said, and whose it is. Answers the tenant of each.
    fn judge_each(&mut self, domains: &BTreeMap<String, DomainOwner>) -> Vec<u32> {
        let mut tenant_of = Vec::with_capacity(self.recipients.len());
        let mut in_broken_domains = 0;
        for index in 0..self.recipients.len() {
            let Some(recipient) = self.recipients.get_mut(index) else {
                break;
            };
            let (line, dn) = (recipient.line, recipient.dn.clone());
            let errors = std::mem::take(&mut recipient.errors);
            let warnings = std::mem::take(&mut recipient.warnings);
            let mut claim = Claim {
                domains,
                owner: None,
                doubts: Vec::new(),
                in_broken_domains: 0,
            };
            let address_count = recipient.addresses.len() + recipient.catch_alls.len();
            recipient.addresses.retain(|address| {
                claim.admits(address.domain(), || {
                    (address_key(address), address.to_string())
                })
            });
            recipient.catch_alls.retain(|domain| {
                let key = format!("@{domain}");
                claim.admits(domain, || (key.clone(), key.clone()))
            });
            let left = recipient.addresses.len() + recipient.catch_alls.len();
            if let (true, Some(domain)) =
                (recipient.addresses.is_empty(), recipient.catch_alls.first())
                && let Ok(probe) = format!("postmaster@{domain}").parse()
            {
                self.probes.insert(index as u32, probe);
            }
            self.locked += usize::from(recipient.is_locked);
            let Claim {
                owner,
                doubts,
                in_broken_domains: broken,
                ..
            } = claim;
            in_broken_domains += broken;
            tenant_of.push(owner.unwrap_or(u32::MAX));
            for (line, what) in warnings {
                self.find(Severity::Warning, line, Some(&dn), what);
            }
            for (key, what) in doubts {
                if let Some(what) = what {
                    self.find(Severity::Error, line, Some(&dn), what);
                }
                self.addresses_in_doubt.push(key.into());
            }
            for (line, what) in errors {
                self.break_entry(index, line, what);
            }
            if left == 0 && address_count > 0 {
                // why, has been said
                let why = "none of its addresses can be used";
                self.broken
                    .entry(index as u32)
                    .or_insert_with(|| why.into());
            }
        }
        if in_broken_domains > 0 {
            let what = format!(
                "{in_broken_domains} addresses are unavailable, for the entries of their domains are broken"
            );
            self.find(Severity::Error, 0, None, what);
        }
        tenant_of
    }

    /// The entries themselves, then what can be said only of all of them together.
    fn fill(&mut self, table: &mut Table, tenant_of: Vec<u32>, mut groups: BTreeMap<u32, Group>) {
        let mut lines = Vec::with_capacity(self.recipients.len());
        let mut decoys = Decoys::default();
        let mut logins = Vec::with_capacity(self.recipients.len());
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
            if let Host::Foreign(name) = &host
                && !name.contains('.')
            {
                let what =
                    format!("mailHost {name}: none of our mboxes, so it is another site's server");
                self.find(Severity::Warning, recipient.line, Some(&recipient.dn), what);
            }
            decoys.count(&recipient.passwords);
            logins.push(recipient.logins);
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
        let routes = self.judge_decisions(table, &lines);
        for &index in table.broken.keys() {
            for login in logins.get(index as usize).into_iter().flatten() {
                let entries = table.lost.entry(login.as_str().into()).or_default();
                entries.push(index);
            }
        }
        self.judge_routes(table, &routes, &lines);
        index_ids(table);
        self.judge_roles(table);
        table.findings = self.findings.finish();
    }
}

/// Which addresses of an entry can be its own: those in the domains of one tenant.
struct Claim<'d> {
    domains: &'d BTreeMap<String, DomainOwner>,
    /// The tenant of the first one.
    owner: Option<u32>,
    /// The others: the key of each, and what is wrong unless it is the domain's entry, which has
    /// findings of its own.
    doubts: Vec<(String, Option<String>)>,
    in_broken_domains: usize,
}

impl Claim<'_> {
    /// Whether an address in `domain` is the entry's; `name` is its key and how it is written.
    fn admits(&mut self, domain: &str, name: impl Fn() -> (String, String)) -> bool {
        let doubt = match (self.domains.get(domain), self.owner) {
            (Some(DomainOwner::Tenant(tenant)), None) => {
                self.owner = Some(*tenant);
                return true;
            }
            (Some(DomainOwner::Tenant(tenant)), Some(first)) if *tenant == first => return true,
            (Some(DomainOwner::Tenant(_)), Some(_)) => {
                Some("its domain is another tenant's than the first address's")
            }
            (Some(DomainOwner::InDoubt), _) => {
                self.in_broken_domains += 1;
                None
            }
            (None, _) => Some("no domainRelatedObject entry hosts its domain"),
        };
        let (key, address) = name();
        let what =
            doubt.map(|doubt| format!("mailLocalAddress {address}: {doubt}; it is unavailable"));
        self.doubts.push((key, what));
        false
    }
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
    table.logins.alone.shrink_to_fit();
}
