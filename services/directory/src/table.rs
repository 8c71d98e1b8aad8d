//! A whole directory in memory, immutable: one address or login in, one decision out.
//!
//! Addresses match with the domain in lower case and the local part without regard to ASCII case (so no two accounts can differ
//! by case only); `"alice"@x` is `alice@x`. An address that no entry has falls back to the part before the delimiter
//! (`user+detail@` to `user@`), then to the site's postmaster if it is a role address, then to the
//! entry that has `@domain`. Lookups are constant time in the number of entries. Made by `load`,
//! served by `ldif_directory`.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use hikyaku_mail::id::AccountId;
use hikyaku_mail::path::{Mailbox, normal_domain};

use crate::finding::Finding;
use crate::settings::Settings;
use crate::{Account, AccountState, Decision, Resolution, Rule, Unavailable};

/// Role addresses (RFC 2142, RFC 5321 section 4.5.1) that reach the site's postmaster when no entry has them.
pub const ROLES: [&str; 6] = [
    "postmaster",
    "abuse",
    "hostmaster",
    "noc",
    "security",
    "webmaster",
];

/// Addresses at the host's own name that are the postmaster's when no entry has them: reports come
/// from MAILER-DAEMON there, and whoever answers one must reach somebody (RFC 3464 section 2).
const HOST_ROLES: [&str; 2] = ["mailer-daemon", "postmaster"];

/// See the module.
pub struct Table {
    pub(crate) settings: Settings,
    pub(crate) postmaster: Mailbox,
    /// Sorted.
    pub(crate) mboxes: Vec<Arc<str>>,
    pub(crate) tenants: Vec<Tenant>,
    pub(crate) domains: BTreeMap<String, DomainOwner>,
    pub(crate) entries: Vec<Entry>,
    /// Why an entry cannot be used.
    pub(crate) broken: BTreeMap<u32, Box<str>>,
    /// By [`address_key`], or `@domain`.
    pub(crate) addresses: HashMap<Box<str>, Owner>,
    pub(crate) logins: Logins,
    /// The `uid`s of broken entries, which may have lost their addresses.
    pub(crate) lost: BTreeMap<Box<str>, Vec<u32>>,
    /// Entries with a locked password.
    pub(crate) locked: usize,
    /// Entries that have an id, in its order.
    pub(crate) by_id: Vec<u32>,
    /// A broken entry has lost its id: which one, nobody knows.
    pub(crate) ids_in_doubt: bool,
    /// Verified against when there is nothing else to verify against, so that an unknown login costs what a known one does.
    pub(crate) decoy: Option<Box<str>>,
    pub(crate) findings: Vec<Finding>,
}

pub(crate) struct Tenant {
    pub name: Arc<str>,
    /// Index into the mboxes.
    pub default_mbox: Option<u32>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum DomainOwner {
    Tenant(u32),
    /// Its entry is broken, or two tenants claim it.
    InDoubt,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Owner {
    Entry(u32),
    /// Several entries have it, or its domain is not in order.
    InDoubt,
}

/// Who has which `uid`.
#[derive(Default)]
pub(crate) struct Logins {
    /// By the `uid` alone; what several tenants use is not here.
    pub alone: HashMap<Box<str>, Owner>,
    /// What several entries have: by the `uid`, then by tenant.
    pub shared: BTreeMap<Box<str>, BTreeMap<u32, Owner>>,
    /// `uid`s that are another entry's address.
    pub clashes: usize,
}

impl Logins {
    /// How many are in doubt.
    fn in_doubt(&self) -> usize {
        let is_in_doubt = |owner: &&Owner| **owner == Owner::InDoubt;
        let alone = self.alone.values().filter(is_in_doubt).count();
        let nobodys = self
            .shared
            .iter()
            .filter(|(uid, _)| !self.alone.contains_key(*uid));
        let shared = nobodys.flat_map(|(_, owners)| owners.values());
        alone + shared.filter(is_in_doubt).count() + self.clashes
    }
}

/// There may be a million: nothing here that few entries need.
pub(crate) struct Entry {
    pub dn: Box<str>,
    pub id: Option<AccountId>,
    /// `None` only in a broken entry, or one that has catch-alls alone.
    pub address: Option<Mailbox>,
    pub tenant: u32,
    pub state: AccountState,
    pub host: Host,
    pub routing: Option<Box<Mailbox>>,
    pub quota_bytes: Option<u64>,
    pub passwords: Box<[Box<str>]>,
    pub group: Option<Box<Group>>,
}

#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Host {
    None,
    /// Index into the mboxes.
    Ours(u32),
    Foreign(Box<str>),
}

pub(crate) struct Group {
    pub members: Vec<Mailbox>,
    pub errors_to: Option<Mailbox>,
}

/// What a login name stands for: where to find its stored passwords, and whose they are.
#[derive(Clone, Debug)]
pub struct Credentials {
    /// Of the entry; a decoy if the login is unknown.
    pub stored: Vec<Box<str>>,
    /// `None`: whatever the passwords say, the login is wrong.
    pub account: Option<LoginAccount>,
}

/// The account behind a login.
#[derive(Clone, Debug)]
pub enum LoginAccount {
    /// It has a mailbox here.
    Here(Account),
    /// It has none: an alias, or served by another mail server.
    Elsewhere,
}

impl Table {
    /// Entries that cannot be used: mail for each of them waits.
    pub fn broken(&self) -> usize {
        self.broken.len()
    }

    /// What cannot be used, and what that means at run time: a sentence for each kind, for `hikyaku
    /// check`.
    pub fn troubles(&self) -> Vec<String> {
        let in_doubt = |owner: &&Owner| **owner == Owner::InDoubt;
        let addresses = self.addresses.values().filter(in_doubt).count();
        let owners = self.domains.values();
        let domains = owners
            .filter(|owner| **owner == DomainOwner::InDoubt)
            .count();
        let mail = "mail for it is answered 451";
        let login = "a login is answered \"try again later\"";
        [
            (self.broken(), "broken entries", format!("{mail}, {login}")),
            (domains, "domains in doubt", mail.to_owned()),
            (addresses, "addresses in doubt", mail.to_owned()),
            (
                self.logins.in_doubt(),
                "login names in doubt",
                login.to_owned(),
            ),
        ]
        .into_iter()
        .filter(|(count, _, _)| *count > 0)
        .map(|(count, what, answer)| format!("{what}: {count} ({answer})"))
        .collect()
    }

    /// What an operator may want to know, and what is no trouble: a sentence each, for `hikyaku
    /// check`.
    pub fn remarks(&self) -> Vec<String> {
        let shared = self.logins.shared.values().filter(|of| of.len() > 1);
        [
            (
                shared.count(),
                "uids of several tenants (they log in as uid@domain)",
            ),
            (
                self.locked,
                "entries with a locked password (nothing matches it)",
            ),
        ]
        .into_iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, what)| format!("{count} {what}"))
        .collect()
    }

    /// What `load` found, for `hikyaku check`: whole-file errors never get this far.
    pub fn findings(&self) -> &[Finding] {
        &self.findings
    }

    /// Mailboxes, aliases, forwards and groups that can be used.
    pub fn len(&self) -> usize {
        self.entries.len() - self.broken.len()
    }

    /// True if no entry can be used.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many usable entries of this table have no usable successor in `next` under their canonical address. One with another
    /// id is none: its user would find an empty mailbox.
    pub fn lost_in(&self, next: &Table) -> usize {
        let is_lost_at = |index: u32, key: &str| {
            let id = self.entry(index).and_then(|entry| entry.id.as_ref());
            match next.addresses.get(key) {
                Some(&Owner::Entry(successor)) => {
                    let next_id = next.entry(successor).and_then(|next| next.id.as_ref());
                    next.broken.contains_key(&successor) || (id.is_some() && id != next_id)
                }
                Some(Owner::InDoubt) | None => true,
            }
        };
        let is_usable = |index: &u32| !self.broken.contains_key(index);
        let lost = self.indices().filter(is_usable).filter(|&index| {
            let address = self.entry(index).and_then(|entry| entry.address.as_ref());
            address.is_some_and(|address| is_lost_at(index, &address_key(address)))
        });
        let catch_alls = self.addresses.iter().filter(|(key, owner)| match owner {
            Owner::Entry(index) if key.starts_with('@') => {
                let is_all_it_has = self.entry(*index).is_some_and(|it| it.address.is_none());
                is_all_it_has && is_usable(index) && is_lost_at(*index, key)
            }
            _ => false,
        });
        lost.count() + catch_alls.count()
    }

    /// What to do with mail for `address`.
    pub fn resolve(&self, address: &Mailbox) -> Result<Resolution, Unavailable> {
        let owner = self.named(&address_key(address));
        let catch_all = match owner {
            Some(_) => None,
            None => self.catch_all(address),
        };
        let tenant = match (owner, self.domains.get(address.domain())) {
            (Some(Owner::InDoubt), _) => {
                return Err(Unavailable::doubt(
                    "this address is in doubt, see hikyaku check",
                ));
            }
            (Some(Owner::Entry(index)), _) => return self.decide(index, address),
            (None, None) if catch_all == Some(Owner::InDoubt) => {
                return Err(Unavailable::doubt(
                    "an entry has all addresses of this domain, and the domain is not hosted",
                ));
            }
            (None, None) => {
                if let Some(resolution) = self.host_role(address) {
                    return Ok(resolution);
                }
                return Ok(Resolution {
                    decision: Decision::Foreign,
                    rule: Rule::ForeignDomain,
                    entry: None,
                    tenant: None,
                    is_catch_all: false,
                });
            }
            (None, Some(DomainOwner::InDoubt)) => {
                return Err(Unavailable::doubt("the entry of this domain is broken"));
            }
            (None, Some(&DomainOwner::Tenant(tenant))) => tenant,
        };
        let local = self.plain_local_part(address);
        // A broken entry may have lost its address: its uid at our domains is no certain "no such user".
        if let Some(index) = self.lost_entry(&local, tenant) {
            self.usable(index)?;
        }
        if let Some(resolution) = self.host_role(address) {
            return Ok(resolution);
        }
        self.unnamed(address, &local, tenant, catch_all)
    }

    /// What to do with mail for an address that no entry has.
    fn unnamed(
        &self,
        address: &Mailbox,
        local: &str,
        tenant: u32,
        catch_all: Option<Owner>,
    ) -> Result<Resolution, Unavailable> {
        let role = ROLES.into_iter().find(|role| *role == local);
        let (decision, rule, entry) = match (role, &self.settings.postmaster, catch_all) {
            // The DN of no entry, but a key for loop detection all the same.
            (Some(role), Some(to), _) => {
                let entry = Some(format!("role={role}@{}", address.domain()));
                (
                    Decision::Forward { to: to.clone() },
                    Rule::RoleAddress,
                    entry,
                )
            }
            (_, _, Some(Owner::Entry(index))) => {
                let decided = self.decide(index, address)?;
                return Ok(Resolution {
                    is_catch_all: true,
                    ..decided
                });
            }
            (_, _, Some(Owner::InDoubt)) => {
                return Err(Unavailable::doubt(
                    "who has all addresses of this domain is in doubt, see hikyaku check",
                ));
            }
            (_, _, None) => (Decision::NoSuchUser, Rule::NoEntry, None),
        };
        Ok(Resolution {
            decision,
            rule,
            entry,
            tenant: Some(self.tenant_name(tenant)?),
            is_catch_all: false,
        })
    }

    /// What to do with mail for one of [`HOST_ROLES`], which no entry has; `None` if it is none, or
    /// nobody is postmaster.
    fn host_role(&self, address: &Mailbox) -> Option<Resolution> {
        let host_name = self.settings.host_name.as_deref()?;
        let local = self.plain_local_part(address);
        let role = HOST_ROLES.into_iter().find(|role| *role == local)?;
        let to = match &self.settings.postmaster {
            Some(postmaster) => postmaster,
            None => self.owner(&self.postmaster).map(|_| &self.postmaster)?,
        };
        if address.domain() != host_name || address_key(to) == address_key(address) {
            return None;
        }
        let hosted = [address.domain(), self.postmaster.domain()];
        let tenant = hosted
            .iter()
            .find_map(|domain| match self.domains.get(*domain) {
                Some(DomainOwner::Tenant(tenant)) => self.tenant_name(*tenant).ok(),
                _ => None,
            });
        Some(Resolution {
            decision: Decision::Forward { to: to.clone() },
            rule: Rule::RoleAddress,
            entry: Some(format!("role={role}@{host_name}")),
            tenant,
            is_catch_all: false,
        })
    }

    /// A broken entry that may have had `uid` at a domain of `tenant`.
    fn lost_entry(&self, uid: &str, tenant: u32) -> Option<u32> {
        let may_be = |index: &&u32| {
            let of = self.entry(**index).map(|entry| entry.tenant);
            of == Some(tenant) || of == Some(u32::MAX)
        };
        self.lost.get(uid)?.iter().find(may_be).copied()
    }

    /// The account with this id; `None` if no entry has it or it has no mailbox here.
    pub fn account(&self, id: &AccountId) -> Result<Option<Account>, Unavailable> {
        let id_of = |index: &u32| self.entry(*index).and_then(|entry| entry.id.as_ref());
        match self
            .by_id
            .binary_search_by(|index| id_of(index).cmp(&Some(id)))
        {
            Ok(found) => self.account_of(self.by_id.get(found).copied().unwrap_or(u32::MAX)),
            Err(_) if self.ids_in_doubt => Err(Unavailable::doubt(
                "an entry has lost its id, perhaps this one",
            )),
            Err(_) => Ok(None),
        }
    }

    /// What `login`, a `uid` or an address, is verified against.
    pub fn credentials(&self, login: &str) -> Result<Credentials, Unavailable> {
        let login = login.to_ascii_lowercase();
        let by_uid = self.logins.alone.get(login.as_str()).copied();
        let by_address = login
            .parse::<Mailbox>()
            .ok()
            .and_then(|address| self.exact(&address));
        let owner = match (by_uid, by_address) {
            (Some(one), Some(other)) if one != other => Some(Owner::InDoubt),
            (Some(one), _) | (None, Some(one)) => Some(one),
            (None, None) => self.uid_at_domain(&login)?,
        };
        let index = match owner {
            Some(Owner::Entry(index)) => index,
            Some(Owner::InDoubt) => {
                return Err(Unavailable::doubt(
                    "this login is in doubt, see hikyaku check",
                ));
            }
            None => return Ok(self.decoy()),
        };
        let account = match self.account_of(index)? {
            Some(account) => LoginAccount::Here(account),
            None => LoginAccount::Elsewhere,
        };
        match self.entry(index) {
            Some(entry) if !entry.passwords.is_empty() => Ok(Credentials {
                stored: entry.passwords.to_vec(),
                account: Some(account),
            }),
            _ => Ok(self.decoy()),
        }
    }

    /// Who has `login`, a `uid` and any domain of the same tenant.
    fn uid_at_domain(&self, login: &str) -> Result<Option<Owner>, Unavailable> {
        let Some((uid, domain)) = login.rsplit_once('@') else {
            return Ok(None);
        };
        let domain = normal_domain(domain).ok();
        let alone = self.logins.alone.get(uid).copied();
        let shared = self.logins.shared.get(uid);
        let tenant = match domain.and_then(|domain| self.domains.get(&domain)) {
            Some(DomainOwner::Tenant(tenant)) => *tenant,
            Some(DomainOwner::InDoubt) if alone.is_some() || shared.is_some() => {
                return Ok(Some(Owner::InDoubt));
            }
            Some(DomainOwner::InDoubt) | None => return Ok(None),
        };
        if let Some(index) = self.lost_entry(uid, tenant) {
            self.usable(index)?;
        }
        let in_tenant = shared.and_then(|shared| shared.get(&tenant)).copied();
        Ok(in_tenant.or_else(|| {
            alone.filter(|owner| match owner {
                Owner::Entry(index) => self.entry(*index).is_some_and(|it| it.tenant == tenant),
                Owner::InDoubt => false,
            })
        }))
    }

    fn decoy(&self) -> Credentials {
        Credentials {
            stored: self.decoy.iter().cloned().collect(),
            account: None,
        }
    }

    pub(crate) fn indices(&self) -> std::ops::Range<u32> {
        0..u32::try_from(self.entries.len()).unwrap_or(u32::MAX)
    }

    fn entry(&self, index: u32) -> Option<&Entry> {
        self.entries.get(index as usize)
    }

    fn usable(&self, index: u32) -> Result<&Entry, Unavailable> {
        if let Some(why) = self.broken.get(&index) {
            let dn = self.entry(index).map_or("", |entry| &entry.dn);
            return Err(Unavailable::doubt(format!("broken entry {dn}: {why}")));
        }
        self.entry(index)
            .ok_or_else(|| Unavailable::doubt("no such entry"))
    }

    fn tenant_name(&self, tenant: u32) -> Result<Arc<str>, Unavailable> {
        let found = self
            .tenants
            .get(tenant as usize)
            .ok_or_else(|| Unavailable::doubt("no such tenant"))?;
        Ok(Arc::clone(&found.name))
    }

    fn exact(&self, address: &Mailbox) -> Option<Owner> {
        self.addresses.get(address_key(address).as_str()).copied()
    }

    /// Who has `address`, its part before the delimiter, or whatever nobody else has in its domain.
    pub(crate) fn owner(&self, address: &Mailbox) -> Option<Owner> {
        self.named(&address_key(address))
            .or_else(|| self.catch_all(address))
    }

    /// The entry that mail for `address` is routed on by, if it does not end there: of a group, an
    /// alias or a forward.
    pub(crate) fn leads_on(&self, address: &Mailbox) -> Option<u32> {
        let Owner::Entry(index) = self.owner(address).or_else(|| self.role(address))? else {
            return None;
        };
        let is_group = self.usable(index).ok()?.group.is_some();
        let forwards = || {
            let decided = self.decide(index, address);
            decided.is_ok_and(|decided| matches!(decided.decision, Decision::Forward { .. }))
        };
        (is_group || forwards()).then_some(index)
    }

    /// Who has the address with this key, or its part before the delimiter.
    fn named(&self, key: &str) -> Option<Owner> {
        let found = self.addresses.get(key).copied();
        found.or_else(|| {
            self.addresses
                .get(self.without_detail(key)?.as_str())
                .copied()
        })
    }

    /// Who is postmaster, for a role address of a domain of ours that no entry has.
    fn role(&self, address: &Mailbox) -> Option<Owner> {
        let postmaster = self.settings.postmaster.as_ref()?;
        let is_ours = self.domains.contains_key(address.domain());
        let is_role = is_ours && ROLES.contains(&self.plain_local_part(address).as_str());
        is_role.then(|| self.owner(postmaster))?
    }

    /// Who has what nobody else has in the domain of `address`; a role address is the postmaster's.
    fn catch_all(&self, address: &Mailbox) -> Option<Owner> {
        let key = format!("@{}", address.domain());
        let found = self.addresses.get(key.as_str()).copied()?;
        let is_role = || ROLES.contains(&self.plain_local_part(address).as_str());
        let is_postmasters = self.settings.postmaster.is_some() && is_role();
        Some(found).filter(|_| !is_postmasters)
    }

    /// `user@domain` for the key `user+detail@domain`. A quoted local part has none: what is cut off it is no key.
    fn without_detail(&self, key: &str) -> Option<String> {
        let (local, domain) = key.rsplit_once('@')?;
        let (user, _) = local.split_once(self.settings.recipient_delimiter?)?;
        Some(format!("{user}@{domain}"))
    }

    /// The local part as compared, without detail.
    fn plain_local_part(&self, address: &Mailbox) -> String {
        let key = address_key(address);
        let mut plain = self.without_detail(&key).unwrap_or(key);
        plain.truncate(plain.rfind('@').unwrap_or(plain.len()));
        plain
    }

    /// The truth table.
    ///
    /// | mailHost | mailRoutingAddress | decision |
    /// |---|---|---|
    /// | ours | set | rewrite, route again; final if that is the same entry or at one of our mboxes |
    /// | ours | - | deliver to that mbox |
    /// | foreign | set / - | relay mailRoutingAddress / the original to that host |
    /// | - | set | route mailRoutingAddress; final if at one of our mboxes; as if unset if that is the same entry |
    /// | - | - | default mbox, or unknown |
    pub(crate) fn decide(&self, index: u32, address: &Mailbox) -> Result<Resolution, Unavailable> {
        let entry = self.usable(index)?;
        let local = |mbox: u32| self.local(entry, mbox, address);
        let forward = |to: &Mailbox| Decision::Forward { to: to.clone() };
        let routing = entry.routing.as_deref();
        let routing_mbox = routing.and_then(|to| self.mbox_named(to.domain()));
        let is_same = routing.is_some_and(|to| self.owner(to) == Some(Owner::Entry(index)));
        let (decision, rule) = match (&entry.group, &entry.host, routing) {
            (Some(group), _, _) => (
                Decision::Group {
                    members: group.members.clone(),
                    errors_to: group.errors_to.clone(),
                },
                Rule::Group,
            ),
            (None, Host::Ours(mbox), Some(_)) if is_same || routing_mbox.is_some() => {
                (local(*mbox)?, Rule::Final)
            }
            (None, Host::Ours(_), Some(to)) => (forward(to), Rule::Rewrite),
            (None, Host::Ours(mbox), None) => (local(*mbox)?, Rule::MailHost),
            (None, Host::Foreign(host), routing) => {
                let rule = if routing.is_some() {
                    Rule::RelayRoutingAddress
                } else {
                    Rule::RelayOriginal
                };
                (
                    Decision::Relay {
                        host: host.to_string(),
                        address: routing.unwrap_or(address).clone(),
                    },
                    rule,
                )
            }
            (None, Host::None, Some(to)) if !is_same => match routing_mbox {
                Some(mbox) => (local(mbox)?, Rule::Final),
                None => (forward(to), Rule::RoutingAddress),
            },
            (None, Host::None, _) => match self.default_mbox(entry) {
                Some(mbox) => (local(mbox)?, Rule::DefaultMbox),
                None => (Decision::NoSuchUser, Rule::NoDefaultMbox),
            },
        };
        let tenant = Some(self.tenant_name(entry.tenant)?);
        Ok(Resolution {
            decision,
            rule,
            entry: Some(entry.dn.to_string()),
            tenant,
            is_catch_all: false,
        })
    }

    fn local(&self, entry: &Entry, mbox: u32, address: &Mailbox) -> Result<Decision, Unavailable> {
        let account = self.build_account(entry, mbox)?.ok_or_else(|| {
            Unavailable::doubt(match entry.id {
                None => "a mailbox without entryUUID",
                Some(_) => "a mailbox without an address of its own beside its catch-all",
            })
        })?;
        Ok(Decision::Local {
            account,
            delivered_to: address.clone(),
        })
    }

    fn build_account(&self, entry: &Entry, mbox: u32) -> Result<Option<Account>, Unavailable> {
        let (Some(id), Some(address)) = (&entry.id, &entry.address) else {
            return Ok(None);
        };
        let mbox = self
            .mboxes
            .get(mbox as usize)
            .ok_or_else(|| Unavailable::doubt("no such mbox"))?;
        let site_quota = Some(self.settings.quota_bytes_default).filter(|&octets| octets > 0);
        Ok(Some(Account {
            id: id.clone(),
            tenant: self.tenant_name(entry.tenant)?,
            mbox: Arc::clone(mbox),
            address: address.clone(),
            quota_bytes: entry.quota_bytes.or(site_quota),
            state: entry.state,
        }))
    }

    /// The mailbox that an entry has here, also while its mail is forwarded elsewhere.
    fn account_of(&self, index: u32) -> Result<Option<Account>, Unavailable> {
        let entry = self.usable(index)?;
        let routing_mbox = || {
            entry
                .routing
                .as_deref()
                .and_then(|to| self.mbox_named(to.domain()))
        };
        let mbox = match &entry.host {
            _ if entry.group.is_some() => None,
            Host::Ours(mbox) => Some(*mbox),
            Host::Foreign(_) => None,
            Host::None => routing_mbox().or_else(|| self.default_mbox(entry)),
        };
        match mbox {
            Some(mbox) => self.build_account(entry, mbox),
            None => Ok(None),
        }
    }

    fn default_mbox(&self, entry: &Entry) -> Option<u32> {
        self.tenants.get(entry.tenant as usize)?.default_mbox
    }

    /// The mbox of ours with this name, in lower case.
    pub(crate) fn mbox_named(&self, name: &str) -> Option<u32> {
        let found = self
            .mboxes
            .binary_search_by(|mbox| (**mbox).cmp(name))
            .ok()?;
        u32::try_from(found).ok()
    }
}

/// What addresses are compared by.
pub(crate) fn address_key(address: &Mailbox) -> String {
    let local = address.local_part();
    let Some(quoted) = local
        .strip_prefix('"')
        .and_then(|rest| rest.strip_suffix('"'))
    else {
        return address.as_str().to_ascii_lowercase();
    };
    let mut content = String::with_capacity(quoted.len());
    let mut escaped = false;
    for c in quoted.chars() {
        escaped = c == '\\' && !escaped;
        if !escaped {
            content.push(c);
        }
    }
    content.make_ascii_lowercase();
    let domain = address.domain();
    // RFC 5321 section 4.1.2: a quoted string that need not be quoted means the same as the plain one.
    let plain = format!("{content}@{domain}");
    match plain.parse::<Mailbox>() {
        Ok(mailbox) if !content.starts_with('"') && mailbox.local_part() == content => plain,
        _ => format!(
            "\"{}\"@{domain}",
            content.replace('\\', "\\\\").replace('"', "\\\"")
        ),
    }
}
