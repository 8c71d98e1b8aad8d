//! Who is this recipient, which mbox holds them, may this user log in.
//!
//! Every answer has three values: yes, no, and *don't know*. "No" is said only from a fresh and healthy source; whatever is in
//! doubt (a broken or ambiguous entry, a server that does not answer) is [`Unavailable`], which becomes 451 4.4.3 and never a
//! permanent refusal, nor "wrong password". The room decides one step: it never follows a forward or a group itself, because
//! following one is a record in the queue's log. [`explain`] shows the steps that the queue would take.
//!
//! It refuses: cleartext passwords, values that are in other files, change records.
//! From here a recipient goes to `edge` (RCPT) and `delivery` (expansion), a login to `access`.
//!
//! # Layout
//! * [`ldif_directory`]: a directory held in memory from one LDIF file, swapped whole at reload
//! * [`file`]: the file itself, and a copy of the last good one
//! * [`settings`]: what the site adds
//! * [`dn`]: distinguished names, compared
//! * [`entry`]: what one LDIF record says, in the words of the inetLocalMailRecipient profile
//! * [`load`]: the whole file into a [`table::Table`], with its findings
//! * [`finding`]: what is wrong with a file
//! * [`table`]: the decision for one address (truth table), login names, accounts
//! * [`ldif`]: RFC 2849 records
//! * [`password`]: verifying and making stored passwords, in a bounded pool
//! * [`throttle`]: slowing down those who guess
//! * [`explain`]: what happens to an address, step by step
//! * [`contract`]: the tests every directory runs

#![cfg_attr(
    test,
    allow(clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods)
)]

use std::fmt;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use hikyaku_mail::id::AccountId;
use hikyaku_mail::path::Mailbox;
use hikyaku_mail::reply::Reply;

pub mod contract;
pub mod dn;
pub mod entry;
pub mod explain;
pub mod file;
pub mod finding;
pub mod ldif;
pub mod ldif_directory;
pub mod load;
pub mod password;
pub mod settings;
pub mod table;
pub mod throttle;

/// Who recipients are and who may log in.
pub trait Directory: Send + Sync + 'static {
    /// What to do with mail for `address`: one step of the way, see [`Decision`].
    fn resolve<'a>(
        &'a self,
        address: &'a Mailbox,
    ) -> BoxFuture<'a, Result<Resolution, Unavailable>>;

    /// The account that `login` and `password` open. An unknown login costs as much as a wrong password.
    fn authenticate<'a>(
        &'a self,
        login: &'a str,
        password: &'a [u8],
    ) -> BoxFuture<'a, Result<Account, LoginError>>;

    /// The account with this id as the directory knows it now; `None` is a definite "no such account".
    fn account<'a>(
        &'a self,
        id: &'a AccountId,
    ) -> BoxFuture<'a, Result<Option<Account>, Unavailable>>;

    /// What the forward-path `<postmaster>`, the only one without a domain, stands for (RFC 5321 section 4.5.1):
    /// postmaster at the default domain, to be resolved like any other address.
    fn postmaster(&self) -> Mailbox;
}

/// One step: what is done with an address, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolution {
    /// What to do.
    pub decision: Decision,
    /// The rule that decided.
    pub rule: Rule,
    /// The directory entry that decided, by its DN: the key of loop detection. `None` if no entry did.
    pub entry: Option<String>,
    /// The tenant of the address; `None` for [`Decision::Foreign`].
    pub tenant: Option<Arc<str>>,
    /// No entry has the address itself: it is one of all the others of its domain.
    pub is_catch_all: bool,
}

/// What to do with mail for an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Final: deliver to this account. Its state says whether it takes mail.
    Local {
        /// Who.
        account: Account,
        /// For Delivered-To: the address that was asked for, with its detail (`user+detail@`).
        delivered_to: Mailbox,
    },
    /// Rewrite the recipient to `to` and route again, unless [`Resolution::entry`] was followed before.
    Forward {
        /// The new recipient.
        to: Mailbox,
    },
    /// Route each member instead, unless [`Resolution::entry`] was followed before.
    Group {
        /// In the order of the entry, equal addresses once.
        members: Vec<Mailbox>,
        /// Where failures of members are reported instead of to the sender.
        errors_to: Option<Mailbox>,
    },
    /// The entry is ours, its mail server is not: relay to `host` without asking for its MX.
    Relay {
        /// `mailHost`, in lower case.
        host: String,
        /// The recipient there.
        address: Mailbox,
    },
    /// The domain is not ours: nothing is known about the address.
    Foreign,
    /// A domain of ours, and nobody there has this address: fresh and definite.
    NoSuchUser,
}

/// Which rule decided. [`fmt::Display`] is a sentence for the log and `hikyaku route explain`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rule {
    /// `mailHost` ours, no `mailRoutingAddress`.
    MailHost,
    /// `mailHost` ours, `mailRoutingAddress` elsewhere.
    Rewrite,
    /// `mailRoutingAddress` leads back to the same entry or names one of our mboxes.
    Final,
    /// `mailHost` foreign, `mailRoutingAddress` set.
    RelayRoutingAddress,
    /// `mailHost` foreign, no `mailRoutingAddress`.
    RelayOriginal,
    /// No `mailHost`, `mailRoutingAddress` set.
    RoutingAddress,
    /// Neither: the tenant's default mbox.
    DefaultMbox,
    /// Neither, and there is no default mbox.
    NoDefaultMbox,
    /// A group.
    Group,
    /// A role address (RFC 2142) without an entry.
    RoleAddress,
    /// No entry in a domain of ours.
    NoEntry,
    /// The domain is not in the directory.
    ForeignDomain,
}

impl Rule {
    /// The rule in one word, for log fields.
    pub fn word(self) -> &'static str {
        match self {
            Rule::MailHost => "mail-host",
            Rule::Rewrite => "rewrite",
            Rule::Final => "final",
            Rule::RelayRoutingAddress => "relay-routing-address",
            Rule::RelayOriginal => "relay-original",
            Rule::RoutingAddress => "routing-address",
            Rule::DefaultMbox => "default-mbox",
            Rule::NoDefaultMbox => "no-default-mbox",
            Rule::Group => "group",
            Rule::RoleAddress => "role-address",
            Rule::NoEntry => "no-entry",
            Rule::ForeignDomain => "foreign-domain",
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Rule::MailHost => "mailHost is ours: deliver to that mbox",
            Rule::Rewrite => {
                "mailHost is ours and mailRoutingAddress is set: rewrite and route again"
            }
            Rule::Final => "mailRoutingAddress is the same entry or at one of our mboxes: deliver",
            Rule::RelayRoutingAddress => {
                "mailHost is foreign and mailRoutingAddress is set: relay that to the host"
            }
            Rule::RelayOriginal => "mailHost is foreign: relay the address as it is to the host",
            Rule::RoutingAddress => "only mailRoutingAddress is set: route that",
            Rule::DefaultMbox => "no mailHost: deliver to the tenant's default mbox",
            Rule::NoDefaultMbox => "no mailHost and no default mbox: unknown",
            Rule::Group => "a group: route its members",
            Rule::RoleAddress => "a role address without an entry: postmaster",
            Rule::NoEntry => "no entry has this address",
            Rule::ForeignDomain => "the domain is not in the directory",
        })
    }
}

/// A mailbox account, as the directory describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// Immutable.
    pub id: AccountId,
    /// Whose customer.
    pub tenant: Arc<str>,
    /// The mbox that should hold it: `mailHost`, or the tenant's default.
    pub mbox: Arc<str>,
    /// Its first address, as written in the directory.
    pub address: Mailbox,
    /// The entry's quota in octets, else the site's; 0 is unlimited, `None` if neither says.
    pub quota_bytes: Option<u64>,
    /// What it may do.
    pub state: AccountState,
}

/// What an account may do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum AccountState {
    /// Everything.
    #[default]
    Active,
    /// Takes mail, no logins.
    Suspended,
    /// Neither.
    Disabled,
    /// Neither, and to be purged.
    Deleted,
}

impl AccountState {
    /// Whether mail may be delivered.
    pub fn takes_mail(self) -> bool {
        matches!(self, AccountState::Active | AccountState::Suspended)
    }

    /// Whether its user may log in.
    pub fn may_log_in(self) -> bool {
        self == AccountState::Active
    }
}

/// The directory does not know, now: 451 4.4.3, `[UNAVAILABLE]`, `[SYS/TEMP]`; never "no".
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("directory: {reason}")]
pub struct Unavailable {
    /// For the log, never for the peer.
    pub reason: String,
    in_doubt: bool,
}

impl Unavailable {
    /// Nobody answers, because of `reason`.
    pub fn new(reason: impl Into<String>) -> Unavailable {
        Unavailable {
            reason: reason.into(),
            in_doubt: false,
        }
    }

    /// The directory answers, but what was asked about is in doubt there, because of `reason`.
    pub fn doubt(reason: impl Into<String>) -> Unavailable {
        Unavailable {
            reason: reason.into(),
            in_doubt: true,
        }
    }

    /// Whether this concerns only what was asked about: an entry that is broken, an address that several claim. Whoever waits for
    /// the directory waits for no such answer, since only somebody who mends the entry changes it.
    pub fn is_doubt(&self) -> bool {
        self.in_doubt
    }

    /// What the peer reads at RCPT.
    pub fn reply(&self) -> Reply {
        Reply::new(451, (4, 4, 3), "directory is unavailable, try again later")
    }
}

/// Why a login is not granted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LoginError {
    /// No such login, or not its password: the peer must not learn which.
    #[error("wrong login or password")]
    Wrong,
    /// The password is right; the account may not log in, or has no mailbox here.
    #[error("account is disabled")]
    Disabled,
    /// Not known now: never reported as wrong, never counted as a failed attempt.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}
