//! What a site says about its directory beside the file itself.

use hikyaku_mail::path::Mailbox;

use crate::ldif;

/// What the site adds to the file.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The names of our mboxes: a `mailHost` that is none of them is foreign.
    pub mboxes: Vec<String>,
    /// The mbox of users without `mailHost` whose tenant names none; without it they are unknown.
    pub default_mbox: Option<String>,
    /// The domain of `<postmaster>`; must be in the directory.
    pub default_domain: String,
    /// Who reads mail for role addresses that have no entry.
    pub postmaster: Option<Mailbox>,
    /// The host's own name, in lower case and A-labels: the domain of the addresses that reports
    /// come from.
    pub host_name: Option<String>,
    /// Cuts `user+detail`; `None` switches subaddressing off.
    pub recipient_delimiter: Option<char>,
    /// Octets of a mailbox whose entry has no `mailQuotaSize`; 0 is unlimited.
    pub quota_bytes_default: u64,
    /// Bounds on the file.
    pub limits: ldif::Limits,
    /// Mailboxes, aliases, forwards, groups and domain entries.
    pub entries_max: usize,
    /// Findings that are listed; the rest is counted.
    pub findings_max: usize,
}

impl Settings {
    /// Everything else at its default.
    pub fn new(mboxes: &[&str], default_domain: &str) -> Settings {
        Settings {
            mboxes: mboxes.iter().map(|&mbox| mbox.to_owned()).collect(),
            default_mbox: None,
            default_domain: default_domain.to_owned(),
            postmaster: None,
            host_name: None,
            recipient_delimiter: Some('+'),
            quota_bytes_default: 0,
            limits: ldif::Limits::default(),
            entries_max: 20_000_000,
            findings_max: 1000,
        }
    }
}
