//! Slowing down those who guess passwords: failed logins counted per source, per source and account, and per account.
//!
//! Only definite wrong passwords count; "unavailable" never does. A source is an IPv4 address or an IPv6 /64.
//!
//! | counted by | limit | forgiven | over it |
//! |---|---|---|---|
//! | source and account | 10 | one a minute | refused |
//! | source | 50 | one each 30 seconds | refused, but not an account that has logged in from there within a week |
//! | account | 20 free | one a minute | each login slowed by 250 ms more, at most 5 s; never refused. Not where it has logged in from within a week |
//!
//! So nobody locks a user out from elsewhere, nor a neighbour behind the same NAT out who logs in there usually. Logins that
//! are under way are not counted yet: a source may overshoot by as many as it has connections, which takes it longer to be
//! forgiven. A login is counted under the name it was asked for, in whatever spelling; an account's other names count apart.
//!
//! Memory is fixed: four tables of slots, a slot for a hash and a time, the least important one of four giving way to a new one.
//! With many more sources than slots light offenders are forgotten; heavy ones are not.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use hikyaku_mail::path::Mailbox;
use sha2::{Digest, Sha256};
use tokio::time::Instant;

use crate::table::address_key;

/// Slots that one hash may be in.
const WAYS: usize = 4;
/// A count over its limit grows up to so many times the limit: what is forgiven slowly is forgiven at last.
const OVERSHOOT_MAX: u32 = 4;

/// How many failures are too many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ThrottleLimits {
    /// Of one source at one account.
    pub pair_failures_max: u32,
    /// One of them is forgiven in this time.
    pub pair_forgiven_every: Duration,
    /// Of one source at all accounts.
    pub source_failures_max: u32,
    /// One of them is forgiven in this time.
    pub source_forgiven_every: Duration,
    /// At one account, from anywhere, without consequence.
    pub account_failures_free: u32,
    /// One of them is forgiven in this time.
    pub account_forgiven_every: Duration,
    /// How much each further one slows logins to that account down.
    pub account_delay_step: Duration,
    /// The most they are slowed down.
    pub account_delay_max: Duration,
    /// How long an account that has logged in from a source is known there.
    pub known_for: Duration,
    /// Slots for sources and for accounts, each; twice as many for pairs and for known pairs, each. 16 octets a slot.
    pub slots_max: usize,
}

impl Default for ThrottleLimits {
    fn default() -> ThrottleLimits {
        ThrottleLimits {
            pair_failures_max: 10,
            pair_forgiven_every: Duration::from_secs(60),
            source_failures_max: 50,
            source_forgiven_every: Duration::from_secs(30),
            account_failures_free: 20,
            account_forgiven_every: Duration::from_secs(60),
            account_delay_step: Duration::from_millis(250),
            account_delay_max: Duration::from_secs(5),
            known_for: Duration::from_secs(7 * 24 * 3600),
            slots_max: 16 << 10,
        }
    }
}

/// Whether a login may be tried now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// After this delay, which is the same for right and for wrong passwords.
    After(Duration),
    /// No: it must not be verified, and does not count.
    Throttled,
}

/// See the module.
pub struct Throttle {
    limits: ThrottleLimits,
    key: [u8; 32],
    begun: Instant,
    tables: Mutex<Tables>,
}

struct Tables {
    pairs: Table,
    sources: Table,
    accounts: Table,
    /// Pairs that have logged in; here a slot's time is when that is forgotten.
    known: Table,
}

/// The slots of one login.
struct Hashes {
    pair: u64,
    source: u64,
    account: u64,
}

impl Throttle {
    /// Nobody has failed yet. `key`: random, of this process, so that nobody can choose whose slots to take.
    pub fn new(limits: ThrottleLimits, key: [u8; 32]) -> Throttle {
        let slots = limits.slots_max;
        let tables = Tables {
            pairs: Table::new(
                slots * 2,
                limits.pair_forgiven_every,
                limits.pair_failures_max,
            ),
            sources: Table::new(
                slots,
                limits.source_forgiven_every,
                limits.source_failures_max,
            ),
            accounts: Table::new(
                slots,
                limits.account_forgiven_every,
                limits.account_failures_free,
            ),
            known: Table::new(slots * 2, limits.known_for, 1),
        };
        Throttle {
            limits,
            key,
            begun: Instant::now(),
            tables: Mutex::new(tables),
        }
    }

    /// Whether `login` may be tried from `source` now.
    pub fn admit(&self, source: IpAddr, login: &str) -> Admission {
        let (hashes, now_ms) = (self.hashes(source, login), self.now_ms());
        let tables = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        if tables.pairs.count(hashes.pair, now_ms) >= self.limits.pair_failures_max {
            return Admission::Throttled;
        }
        if tables.sources.count(hashes.source, now_ms) >= self.limits.source_failures_max
            && tables.known.count(hashes.pair, now_ms) == 0
        {
            return Admission::Throttled;
        }
        let over = tables
            .accounts
            .count(hashes.account, now_ms)
            .saturating_sub(self.limits.account_failures_free);
        if tables.known.count(hashes.pair, now_ms) > 0 {
            return Admission::After(Duration::ZERO);
        }
        let delay = self.limits.account_delay_step.saturating_mul(over);
        Admission::After(delay.min(self.limits.account_delay_max))
    }

    /// The password was definitely wrong.
    pub fn wrong(&self, source: IpAddr, login: &str) {
        let (hashes, now_ms) = (self.hashes(source, login), self.now_ms());
        let mut tables = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        tables.pairs.add(hashes.pair, now_ms);
        tables.sources.add(hashes.source, now_ms);
        tables.accounts.add(hashes.account, now_ms);
    }

    /// The password was right: whoever this is may mistype again. The source's other failures stay.
    pub fn right(&self, source: IpAddr, login: &str) {
        let (hashes, now_ms) = (self.hashes(source, login), self.now_ms());
        let mut tables = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        tables.pairs.forget(hashes.pair);
        tables.known.forget(hashes.pair);
        tables.known.add(hashes.pair, now_ms);
    }

    fn hashes(&self, source: IpAddr, login: &str) -> Hashes {
        let source = match source.to_canonical() {
            IpAddr::V4(address) => address.to_ipv6_mapped(),
            // whoever has one address of a /64 has all
            IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)),
        }
        .octets();
        let login = spelling(login.trim());
        Hashes {
            pair: self.hash(&[b"p", &source, login.as_bytes()]),
            source: self.hash(&[b"s", &source]),
            account: self.hash(&[b"a", login.as_bytes()]),
        }
    }

    /// Never 0: that is a free slot.
    fn hash(&self, parts: &[&[u8]]) -> u64 {
        let mut digest = Sha256::new_with_prefix(self.key);
        for part in parts {
            digest.update(part);
        }
        let whole: [u8; 32] = digest.finalize().into();
        u64::from_le_bytes(whole.first_chunk().copied().unwrap_or_default()).max(1)
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

/// One for all ways to write a login: the directory takes `"al\ice"@example.jp` for `alice@example.jp`, and whoever guesses could
/// have a count of its own for each.
fn spelling(login: &str) -> String {
    match login.parse::<Mailbox>() {
        Ok(address) => address_key(&address),
        Err(_) => login.to_ascii_lowercase(),
    }
}

/// A count that one is taken off at a time is kept as the time when it will be 0.
#[derive(Clone, Copy, Default)]
struct Slot {
    hash: u64,
    zero_at_ms: u64,
}

struct Table {
    sets: Vec<[Slot; WAYS]>,
    forgiven_every_ms: u64,
    /// No count is ever longer in the future.
    ahead_max_ms: u64,
}

impl Table {
    fn new(slots: usize, forgiven_every: Duration, limit: u32) -> Table {
        let forgiven_every_ms = u64::try_from(forgiven_every.as_millis())
            .unwrap_or(u64::MAX)
            .max(1);
        let ahead_max_ms =
            forgiven_every_ms.saturating_mul(u64::from(limit.max(1) * OVERSHOOT_MAX));
        Table {
            sets: vec![Default::default(); slots.div_ceil(WAYS).max(1)],
            forgiven_every_ms,
            ahead_max_ms,
        }
    }

    fn set(&self, hash: u64) -> usize {
        usize::try_from(hash % self.sets.len() as u64).unwrap_or_default()
    }

    fn count(&self, hash: u64, now_ms: u64) -> u32 {
        let Some(set) = self.sets.get(self.set(hash)) else {
            return 0;
        };
        let slot = set.iter().find(|slot| slot.hash == hash);
        let ahead_ms = slot.map_or(0, |slot| slot.zero_at_ms.saturating_sub(now_ms));
        u32::try_from(ahead_ms.div_ceil(self.forgiven_every_ms)).unwrap_or(u32::MAX)
    }

    fn add(&mut self, hash: u64, now_ms: u64) {
        let (index, ahead_max_ms, step_ms) =
            (self.set(hash), self.ahead_max_ms, self.forgiven_every_ms);
        let Some(set) = self.sets.get_mut(index) else {
            return;
        };
        let known = set.iter().position(|slot| slot.hash == hash);
        // the one that is forgiven first gives way
        let first = || {
            set.iter()
                .enumerate()
                .min_by_key(|(_, slot)| slot.zero_at_ms)
                .map(|(at, _)| at)
        };
        let Some(slot) = known.or_else(first).and_then(|at| set.get_mut(at)) else {
            return;
        };
        let before_ms = if slot.hash == hash {
            slot.zero_at_ms.max(now_ms)
        } else {
            now_ms
        };
        let zero_at_ms = before_ms
            .saturating_add(step_ms)
            .min(now_ms.saturating_add(ahead_max_ms));
        *slot = Slot { hash, zero_at_ms };
    }

    fn forget(&mut self, hash: u64) {
        let index = self.set(hash);
        let slot = self
            .sets
            .get_mut(index)
            .and_then(|set| set.iter_mut().find(|slot| slot.hash == hash));
        if let Some(slot) = slot {
            *slot = Slot::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;
    use std::time::Duration;

    use tokio::time::{Instant, advance};

    use super::{Admission, Slot, Throttle, ThrottleLimits, WAYS};

    const FREE: Admission = Admission::After(Duration::ZERO);

    fn throttle() -> Throttle {
        Throttle::new(ThrottleLimits::default(), [3; 32])
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn numbered(number: u32) -> IpAddr {
        IpAddr::from((0x0a00_0000 + number).to_be_bytes())
    }

    fn fail(throttle: &Throttle, source: IpAddr, login: &str, times: u32) {
        for _ in 0..times {
            throttle.wrong(source, login);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_source_is_locked_out_of_an_account_and_others_are_not() {
        let (throttle, here, there) = (throttle(), ip("192.0.2.1"), ip("192.0.2.2"));
        fail(&throttle, here, "alice", 9);
        assert_eq!(throttle.admit(here, "alice"), FREE);
        throttle.wrong(here, "ALICE ");
        assert_eq!(throttle.admit(here, "alice"), Admission::Throttled);
        assert_eq!(throttle.admit(here, "Alice"), Admission::Throttled);
        assert_eq!(throttle.admit(there, "alice"), FREE, "the user elsewhere");
        assert_eq!(throttle.admit(here, "bob"), FREE, "another user here");
        advance(Duration::from_secs(59)).await;
        assert_eq!(throttle.admit(here, "alice"), Admission::Throttled);
        advance(Duration::from_secs(1)).await;
        assert_eq!(throttle.admit(here, "alice"), FREE, "one is forgiven");
        throttle.wrong(here, "alice");
        assert_eq!(throttle.admit(here, "alice"), Admission::Throttled);
        advance(Duration::from_secs(600)).await;
        fail(&throttle, here, "alice", 9);
        assert_eq!(throttle.admit(here, "alice"), FREE, "all are forgiven");
    }

    #[tokio::test(start_paused = true)]
    async fn a_source_that_tries_many_accounts_is_locked_out_but_not_who_is_known_there() {
        let (throttle, nat) = (throttle(), ip("192.0.2.1"));
        throttle.right(nat, "regular");
        for number in 0..50 {
            assert_eq!(throttle.admit(nat, &format!("user{number}")), FREE);
            throttle.wrong(nat, &format!("user{number}"));
        }
        assert_eq!(throttle.admit(nat, "stranger"), Admission::Throttled);
        assert_eq!(throttle.admit(nat, "regular"), FREE);
        fail(&throttle, nat, "regular", 10);
        assert_eq!(
            throttle.admit(nat, "regular"),
            Admission::Throttled,
            "known or not, at this account"
        );
        // half of 200 at most is forgiven in that time, and it is known no longer
        advance(Duration::from_secs(7 * 24 * 3600)).await;
        fail(&throttle, nat, "user", 50);
        assert_eq!(throttle.admit(nat, "regular"), Admission::Throttled);
    }

    #[tokio::test(start_paused = true)]
    async fn a_right_password_clears_this_account_here_only() {
        let (throttle, here) = (throttle(), ip("192.0.2.1"));
        fail(&throttle, here, "alice", 9);
        fail(&throttle, here, "bob", 9);
        throttle.right(here, "alice");
        fail(&throttle, here, "alice", 9);
        assert_eq!(throttle.admit(here, "alice"), FREE);
        throttle.wrong(here, "bob");
        assert_eq!(throttle.admit(here, "bob"), Admission::Throttled);
        // own successes do not wash a source clean: 28 so far
        fail(&throttle, here, "x", 9);
        fail(&throttle, here, "y", 13);
        throttle.right(here, "alice");
        assert_eq!(throttle.admit(here, "z"), Admission::Throttled);
    }

    #[tokio::test(start_paused = true)]
    async fn an_account_under_attack_from_everywhere_is_slow_and_never_closed() {
        let throttle = throttle();
        for number in 0..20 {
            throttle.wrong(numbered(number), "alice");
        }
        let user = ip("2001:db8::1");
        assert_eq!(throttle.admit(user, "alice"), FREE);
        throttle.wrong(numbered(20), "alice");
        assert_eq!(
            throttle.admit(user, "alice"),
            Admission::After(Duration::from_millis(250))
        );
        for number in 0..10_000 {
            throttle.wrong(numbered(number), "alice");
        }
        assert_eq!(
            throttle.admit(user, "alice"),
            Admission::After(Duration::from_secs(5))
        );
        assert_eq!(throttle.admit(user, "bob"), FREE);
        // 80 at most are remembered, 60 of them over what is free
        advance(Duration::from_secs(60 * 60)).await;
        assert_eq!(throttle.admit(user, "alice"), FREE);
    }

    #[tokio::test(start_paused = true)]
    async fn an_account_under_attack_is_as_fast_as_ever_where_its_user_is_known() {
        let (throttle, home) = (throttle(), ip("192.0.2.1"));
        throttle.right(home, "alice");
        for number in 0..1000 {
            throttle.wrong(numbered(number), "alice");
        }
        assert_eq!(throttle.admit(home, "alice"), FREE);
        let delayed = Admission::After(Duration::from_secs(5));
        assert_eq!(throttle.admit(ip("192.0.2.2"), "alice"), delayed);
        // who guesses there is limited there
        fail(&throttle, home, "alice", 10);
        assert_eq!(throttle.admit(home, "alice"), Admission::Throttled);
    }

    #[tokio::test(start_paused = true)]
    async fn another_spelling_of_a_login_is_no_other_login() {
        let (throttle, here) = (throttle(), ip("192.0.2.1"));
        let spellings = [
            "alice@example.jp",
            "ALICE@Example.JP",
            "\"alice\"@example.jp",
            "\"al\\ice\"@example.jp",
            " alice@example.jp",
        ];
        for spelling in spellings {
            fail(&throttle, here, spelling, 2);
        }
        for spelling in spellings {
            assert_eq!(throttle.admit(here, spelling), Admission::Throttled);
        }
        assert_eq!(throttle.admit(here, "alice@example.com"), FREE);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_one_source() {
        let throttle = throttle();
        fail(&throttle, ip("2001:db8:0:1::5"), "alice", 10);
        assert_eq!(
            throttle.admit(ip("2001:db8:0:1:ffff::"), "alice"),
            Admission::Throttled,
            "the same /64"
        );
        assert_eq!(throttle.admit(ip("2001:db8:0:2::5"), "alice"), FREE);
        fail(&throttle, ip("::ffff:192.0.2.1"), "alice", 10);
        assert_eq!(
            throttle.admit(ip("192.0.2.1"), "alice"),
            Admission::Throttled,
            "IPv4 in IPv6's clothes"
        );
        assert_eq!(throttle.admit(ip("192.0.2.2"), "alice"), FREE);
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_of_sources_stays_bounded_and_heavy_offenders_are_not_forgotten() {
        let throttle = throttle();
        let heavy = ip("198.51.100.7");
        fail(&throttle, heavy, "alice", 10);
        let slots = |throttle: &Throttle| {
            let tables = throttle.tables.lock().unwrap();
            [
                &tables.pairs,
                &tables.sources,
                &tables.accounts,
                &tables.known,
            ]
            .map(|table| table.sets.len() * WAYS)
        };
        let before = slots(&throttle);
        for number in 0..200_000 {
            throttle.wrong(numbered(number), &format!("user{}", number % 50_000));
        }
        assert_eq!(slots(&throttle), before);
        assert!(
            before.iter().sum::<usize>() * size_of::<Slot>() <= 2 << 20,
            "{before:?}"
        );
        assert_eq!(throttle.admit(heavy, "alice"), Admission::Throttled);
        assert_eq!(
            throttle.admit(ip("203.0.113.1"), "bob"),
            FREE,
            "a bystander"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn guesses_from_one_source_are_one_a_minute_in_the_long_run() {
        let (throttle, source) = (throttle(), ip("192.0.2.1"));
        let (begun, mut tried) = (Instant::now(), 0);
        // it asks each second for a day
        while begun.elapsed() < Duration::from_secs(24 * 3600) {
            if let Admission::After(_) = throttle.admit(source, "alice") {
                tried += 1;
                throttle.wrong(source, "alice");
            }
            advance(Duration::from_secs(1)).await;
        }
        assert!((1440..=1460).contains(&tried), "{tried}");
    }
}
