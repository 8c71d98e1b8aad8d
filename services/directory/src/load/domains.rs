//! Which mboxes are ours, which domains are ours, and whose they are.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use hikyaku_mail::path::normal_domain;

use crate::entry::{Local, printable};
use crate::finding::Severity;
use crate::load::Loader;
use crate::table::{DomainOwner, Tenant, address_key};

impl Loader<'_> {
    /// The names of our mboxes, in order.
    pub(super) fn mboxes(&mut self) -> Vec<Arc<str>> {
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
    pub(super) fn domains(
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
                let name = entry.mail_host.as_deref().unwrap_or_default();
                let what =
                    format!("mailHost {name}: the tenant's default mbox is none of our mboxes");
                errors.push((entry.line, what));
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
            for (line, address) in entry.addresses {
                // somebody's, perhaps: never "no such user"
                let (key, address) = match &address {
                    Local::Address(address) => (address_key(address), address.to_string()),
                    Local::CatchAll(domain) => (format!("@{domain}"), format!("@{domain}")),
                };
                let what = format!(
                    "mailLocalAddress {address}: the entry of a domain is no mailbox; it is unavailable"
                );
                self.find(Severity::Error, line, Some(&entry.dn), what);
                self.addresses_in_doubt.push(key.into());
            }
            for (line, what) in errors {
                self.find(Severity::Error, line, Some(&entry.dn), what);
            }
        }
        (tenants, owners)
    }
}

/// Where the mbox `name` is in the list.
pub(super) fn mbox_index(mboxes: &[Arc<str>], name: &str) -> Option<u32> {
    let name = normal_domain(name).ok()?;
    let found = mboxes
        .binary_search_by(|mbox| (**mbox).cmp(name.as_str()))
        .ok()?;
    u32::try_from(found).ok()
}
