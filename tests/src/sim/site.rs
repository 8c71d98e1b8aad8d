//! The site that is simulated: its users, what may become of mail to each address, and its directory, which changes, lags
//! behind on one machine, and is away at times.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use hikyaku_delivery::placement::Placement;
use hikyaku_directory::ldif_directory::{LdifDirectory, Loss, Reload};
use hikyaku_directory::password::PoolLimits;
use hikyaku_directory::settings::Settings;
use hikyaku_directory::{Account, Directory, LoginError, Resolution, Unavailable};
use hikyaku_mail::id::AccountId;
use hikyaku_mail::path::Mailbox;
use tokio::time::Instant;

use super::random::Random;
use super::world::lock;

/// Mailbox shards that mail goes to.
pub const SHARDS: u16 = 3;
/// A mailbox shard that only restores go to.
pub const SPARE_SHARD: u16 = 3;
/// Octets that account `full` may hold.
pub const QUOTA_BYTES: u64 = 12_000;
/// The mailbox shard that account `full` is claimed for.
pub const FULL_SHARD: u16 = 2;
/// Every account of the site.
pub const ACCOUNTS: [&str; 16] = [
    "u0", "u1", "u2", "u3", "u4", "u5", "u6", "u7", "u8", "full", "gone", "sender", "owner", "n0",
    "n1", "n2",
];
/// Accounts that nobody sends mail to before [`super::scenario::newcomers`].
pub const NEWCOMERS: [&str; 3] = ["n0", "n1", "n2"];

/// The account id of a user.
pub fn account_id(user: &str) -> AccountId {
    format!("id-{user}").parse().unwrap()
}

/// Where accounts are claimed for the first time.
pub fn placement() -> Placement {
    Placement::new()
        .with_mbox("mbox1", [0, 1])
        .with_mbox("mbox2", [2])
        .with_default("Example", "mbox1")
}

/// One recipient that an address comes to in the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leaf {
    /// One of these users, whichever the directory says at the time.
    Users(&'static [&'static str]),
    /// Nobody: a bounce.
    Nobody,
    /// Somebody elsewhere: held.
    Elsewhere,
    /// A routing loop: a bounce.
    Loop,
}

/// What mail to an address may come to, over all versions of the directory.
#[derive(Clone, Copy, Debug)]
pub struct Address {
    /// Before the `@example.jp`.
    pub local_part: &'static str,
    /// Everybody it comes to.
    pub leaves: &'static [Leaf],
    /// Enhanced status codes RCPT may refuse it with for good.
    pub refusals: &'static [&'static str],
}

macro_rules! user {
    ($($name:literal)|+) => { Leaf::Users(&[$($name),+]) };
}

const fn to(local_part: &'static str, leaves: &'static [Leaf]) -> Address {
    Address {
        local_part,
        leaves,
        refusals: &[],
    }
}

const TEAM: [Leaf; 4] = [user!("u0"), user!("u1"), user!("u2"), user!("u3")];

/// Addresses that mail is sent to at any time; those of [`NEWCOMERS`] follow.
pub const USUAL_ADDRESSES: usize = 20;
/// Addresses that mail is sent to.
pub const ADDRESSES: [Address; 23] = [
    to("u0", &[user!("u0")]),
    to("u1", &[user!("u1")]),
    to("u2", &[user!("u2")]),
    to("u3", &[user!("u3")]),
    to("u4", &[user!("u4")]),
    Address {
        local_part: "u5",
        leaves: &[user!("u5")],
        refusals: &["5.2.1"],
    },
    to("u6", &[user!("u6")]),
    to("u7", &[user!("u7")]),
    to("u8", &[user!("u8")]),
    to("full", &[user!("full")]),
    to("desk", &[user!("u6" | "u7")]),
    to("alias", &[user!("u1" | "u2")]),
    to("fwd", &[user!("u1" | "u2")]),
    to("team", &TEAM),
    to(
        "list",
        &[
            user!("u3"),
            user!("u1" | "u2"),
            Leaf::Nobody,
            Leaf::Elsewhere,
            user!("u0"),
            user!("u1"),
            user!("u2"),
            user!("full"),
        ],
    ),
    to("loopa", &[user!("u0"), user!("u1"), Leaf::Loop]),
    to("out", &[]),
    Address {
        local_part: "gone",
        leaves: &[],
        refusals: &["5.2.1"],
    },
    Address {
        local_part: "nobody",
        leaves: &[],
        refusals: &["5.1.1"],
    },
    Address {
        local_part: "x@elsewhere.example",
        leaves: &[],
        refusals: &["5.7.1"],
    },
    to("n0", &[user!("n0")]),
    to("n1", &[user!("n1")]),
    to("n2", &[user!("n2")]),
];

impl Address {
    /// The whole address.
    pub fn full(&self) -> String {
        match self.local_part.contains('@') {
            true => self.local_part.to_owned(),
            false => format!("{}@example.jp", self.local_part),
        }
    }

    /// Users that may get it.
    pub fn users(&self) -> BTreeSet<&'static str> {
        let users = self.leaves.iter().filter_map(|leaf| match leaf {
            Leaf::Users(users) => Some(*users),
            _ => None,
        });
        users.flatten().copied().collect()
    }

    /// Users that must get it, whatever the directory said at the time.
    pub fn sure_users(&self) -> BTreeSet<&'static str> {
        let users = self.leaves.iter().filter_map(|leaf| match leaf {
            Leaf::Users([user]) => Some(*user),
            _ => None,
        });
        users.collect()
    }
}

/// One version of the directory.
#[derive(Clone, Debug)]
pub struct Version {
    /// Where `alias` leads.
    pub alias: &'static str,
    /// Whose address `desk` is.
    pub desk: &'static str,
    /// The mbox that should hold `u4`; an edited one changes nothing once the account is claimed.
    pub mbox_of_u4: &'static str,
    /// The mbox that should hold the newcomers.
    pub mbox_of_newcomers: &'static str,
    /// Whether `u5` takes no mail.
    pub u5_disabled: bool,
    /// Octets that `full` may hold; 0 is unlimited.
    pub full_quota: u64,
}

impl Version {
    /// The directory at the beginning.
    pub fn first() -> Version {
        Version {
            alias: "u1",
            desk: "u6",
            mbox_of_u4: "mbox1",
            mbox_of_newcomers: "mbox1",
            u5_disabled: false,
            full_quota: QUOTA_BYTES,
        }
    }

    fn ldif(&self) -> String {
        let mut text = String::from(
            "dn: dc=example\nobjectClass: domainRelatedObject\no: Example\nassociatedDomain: example.jp\n\n",
        );
        for (number, user) in ACCOUNTS.iter().enumerate() {
            let mbox = match (*user, number % 2) {
                ("u4", _) => self.mbox_of_u4,
                ("n0" | "n1" | "n2", _) => self.mbox_of_newcomers,
                (_, 0) => "mbox1",
                _ => "mbox2",
            };
            text.push_str(&format!(
                "dn: uid={user}\nuid: {user}\nentryUUID: id-{user}\nmailLocalAddress: {user}@example.jp\nmailHost: {mbox}\n"
            ));
            if *user == self.desk {
                text.push_str("mailLocalAddress: desk@example.jp\n");
            }
            if *user == "full" && self.full_quota != 0 {
                text.push_str(&format!("mailQuotaSize: {}\n", self.full_quota));
            }
            if *user == "gone" || (*user == "u5" && self.u5_disabled) {
                text.push_str("accountStatus: disabled\n");
            }
            text.push('\n');
        }
        for (name, to) in [
            ("alias", format!("{}@example.jp", self.alias)),
            ("fwd", "alias@example.jp".to_owned()),
            ("out", "friend@elsewhere.example".to_owned()),
            ("endless", "endlessly@example.jp".to_owned()),
            ("endlessly", "endless@example.jp".to_owned()),
        ] {
            text.push_str(&format!(
                "dn: cn={name}\nobjectClass: inetLocalMailRecipient\nmailLocalAddress: {name}@example.jp\nmailRoutingAddress: {to}\n\n"
            ));
        }
        let groups: [(&str, &[&str], Option<&str>); 4] = [
            (
                "team",
                &[
                    "u0@example.jp",
                    "u1@example.jp",
                    "u2@example.jp",
                    "u3@example.jp",
                ],
                Some("owner@example.jp"),
            ),
            (
                "list",
                &[
                    "u3@example.jp",
                    "alias@example.jp",
                    "nobody@example.jp",
                    "friend@elsewhere.example",
                    "team@example.jp",
                    "full@example.jp",
                ],
                None,
            ),
            // each is met again, and has been served by then; the forward goes on for ever
            (
                "loopa",
                &["loopb@example.jp", "u0@example.jp", "endless@example.jp"],
                None,
            ),
            ("loopb", &["loopa@example.jp", "u1@example.jp"], None),
        ];
        for (name, members, errors_to) in groups {
            text.push_str(&format!(
                "dn: cn={name}\nobjectClass: inetMailGroup\nmailLocalAddress: {name}@example.jp\n"
            ));
            for member in members {
                text.push_str(&format!("mgrpRFC822MailMember: {member}\n"));
            }
            if let Some(errors_to) = errors_to {
                text.push_str(&format!("mgrpErrorsTo: {errors_to}\n"));
            }
            text.push('\n');
        }
        text
    }
}

/// The directory as one machine sees it.
pub struct SimDirectory {
    inner: LdifDirectory,
    away_until: Mutex<Option<Instant>>,
    random: Mutex<Random>,
}

impl SimDirectory {
    /// The directory at the beginning.
    pub fn new(random: Random) -> Arc<SimDirectory> {
        let settings = Settings {
            postmaster: Some("owner@example.jp".parse().unwrap()),
            ..Settings::new(&["mbox1", "mbox2"], "example.jp")
        };
        let ldif = Version::first().ldif();
        let inner = LdifDirectory::load(ldif.as_bytes(), settings, PoolLimits::default()).unwrap();
        // what is wrong with it is meant to be: a member that nobody is, and two circles
        let table = inner.table();
        let (circles, others): (Vec<_>, Vec<_>) = table
            .findings()
            .iter()
            .partition(|finding| finding.what.starts_with("leads back to itself"));
        assert_eq!(
            (circles.len(), others.len()),
            (2, 1),
            "{circles:?} {others:?}"
        );
        Arc::new(SimDirectory {
            inner,
            away_until: Mutex::default(),
            random: Mutex::new(random),
        })
    }

    /// Answers from `version` from now on.
    pub fn change(&self, version: &Version) {
        let reload = self.inner.reload(version.ldif().as_bytes(), Loss::Accepted);
        assert!(matches!(reload, Reload::Replaced { .. }), "{reload:?}");
    }

    /// Knows nothing for so long.
    pub fn away_for(&self, duration: Duration) {
        *lock(&self.away_until) = Some(Instant::now() + duration);
    }

    /// Is there again.
    pub fn heal(&self) {
        *lock(&self.away_until) = None;
    }

    async fn ask(&self) -> Result<(), Unavailable> {
        let pause = lock(&self.random).millis(0, 3);
        tokio::time::sleep(pause).await;
        match *lock(&self.away_until) {
            Some(until) if Instant::now() < until => Err(Unavailable::new("simulated")),
            _ => Ok(()),
        }
    }
}

impl Directory for SimDirectory {
    fn resolve<'a>(
        &'a self,
        address: &'a Mailbox,
    ) -> BoxFuture<'a, Result<Resolution, Unavailable>> {
        async move {
            self.ask().await?;
            self.inner.resolve(address).await
        }
        .boxed()
    }

    fn authenticate<'a>(
        &'a self,
        login: &'a str,
        password: &'a [u8],
    ) -> BoxFuture<'a, Result<Account, LoginError>> {
        self.inner.authenticate(login, password)
    }

    fn account<'a>(
        &'a self,
        id: &'a AccountId,
    ) -> BoxFuture<'a, Result<Option<Account>, Unavailable>> {
        async move {
            self.ask().await?;
            self.inner.account(id).await
        }
        .boxed()
    }

    fn postmaster(&self) -> Mailbox {
        self.inner.postmaster()
    }
}
