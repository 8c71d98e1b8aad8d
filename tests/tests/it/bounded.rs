//! Limits: the log stays small whatever is left lying in it, a full queue says 452 and nothing is lost by it, and a leader
//! that returns to a mountain of mail has memory for it.
//!
//! Mail that stays in the queue is made without hooks: every account has a quota of one octet, so its mailbox answers
//! "over quota", and the next attempt is due after minutes. A new LDIF file without the quotas ends that. An operator's
//! hold keeps one message for good.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use hikyaku_tests::harness::load::{Load, acknowledged, assert_balanced, verify};
use hikyaku_tests::harness::server::Server;
use hikyaku_tests::harness::site::{Plan, Site};
use hikyaku_tests::harness::talk::{read_mails, send_mail, wait_for_mails};
use hikyaku_tests::harness::wait_for;

/// A start that takes longer has to be explained.
const START_MAX: Duration = Duration::from_secs(5);
/// Longest wait for something that takes a few seconds.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often directories and memory are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(20);

const MIB: u64 = 1 << 20;
/// The log's limit while a message is held.
const LOG_MIB: u64 = 32;
/// One of its files.
const SEGMENT_MIB: u64 = 2;
/// How often the log's limit is to flow through it; `HIKYAKU_BOUNDED_GIB` asks for so many GiB instead.
const LOG_TURNS: u64 = 12;
/// Memory of a process with the limits of [`small`], whatever flows through it.
const RESIDENT_MAX: u64 = 256 * MIB;

/// Memory of one that delivers a full log again: up to 64 MiB of content under way, read back, sent and logged.
const RESIDENT_BUSY_MAX: u64 = 400 * MIB;

/// Messages that fill the queue; `HIKYAKU_BOUNDED_MESSAGES` asks for another number.
const MESSAGES_MAX: u64 = 6_000;
/// Memory that a queued message may cost the leader.
const RESIDENT_PER_MESSAGE: u64 = 4 << 10;
/// SMTP sessions of the load: so many messages may be under way when the queue becomes full.
const SESSIONS: usize = 16;
/// What a limit of messages may be passed by: whoever was let through at `MAIL`, before those ahead of it were counted.
const OVERSHOOT_MAX: u64 = 4 * SESSIONS as u64;

/// Little memory for everything.
fn small(users: usize) -> Plan {
    Plan::new(users)
        .set("smtp", "memory_bytes_max", "\"16 MiB\"")
        .set("queue", "body_cache_bytes_max", "\"8 MiB\"")
        .set("log", "segment_bytes", &format!("\"{SEGMENT_MIB} MiB\""))
        .set("log", "bytes_max", &format!("\"{LOG_MIB} MiB\""))
        .set("log", "cache_bytes_max", "\"8 MiB\"")
        .set("store", "cache_bytes_max", "\"8 MiB\"")
}

fn asked(variable: &str) -> Option<u64> {
    std::env::var(variable)
        .ok()
        .map(|text| text.parse().expect("a number"))
}

/// What a process and its log came to while something went on.
#[derive(Debug, Default)]
struct Peaks {
    log_bytes: u64,
    resident: u64,
}

impl Peaks {
    /// Looks until `done`.
    fn watch(site: &Site, server: &Server, done: &AtomicBool) -> Peaks {
        let mut peaks = Peaks::default();
        while !done.load(Ordering::Relaxed) {
            peaks.log_bytes = peaks.log_bytes.max(bytes_in(&site.data().join("log")));
            std::thread::sleep(LOOK_EVERY);
        }
        peaks.resident = server.resident_peak();
        peaks
    }

    /// While `work` goes on.
    fn during<T>(site: &Site, server: &Server, work: impl FnOnce() -> T) -> (Peaks, T) {
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let watching = scope.spawn(|| Peaks::watch(site, server, &done));
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
            done.store(true, Ordering::Relaxed);
            let peaks = watching.join().expect("it only looks");
            (
                peaks,
                outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
            )
        })
    }
}

/// Octets of the files in a directory; those removed meanwhile count for none.
fn bytes_in(directory: &Path) -> u64 {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.metadata().ok())
        .map(|metadata| metadata.len())
        .sum()
}

/// How many segment files the log has ever had.
fn segments(site: &Site) -> u64 {
    let names = std::fs::read_dir(site.data().join("log")).expect("the log");
    let numbers = names.flatten().filter_map(|entry| {
        entry
            .file_name()
            .to_str()?
            .strip_suffix(".wal")?
            .parse()
            .ok()
    });
    numbers.max().expect("a segment")
}

/// `text` with a quota of one octet for the users that `whom` picks by address.
fn with_quotas(text: &str, whom: impl Fn(&str) -> bool) -> String {
    let mut quoted = String::new();
    for line in text.lines() {
        quoted.push_str(line);
        quoted.push('\n');
        if line.strip_prefix("mailLocalAddress: ").is_some_and(&whom) {
            quoted.push_str("mailQuotaSize: 1\n");
        }
    }
    quoted
}

/// Tries everything again: the new directory counts from some moment on, and the order itself may find the log full.
fn retry(site: &Site) {
    let said = site.ask(&["queue", "retry", "--all"]);
    assert!(said.ok || said.err.contains("log full"), "{}", said.err);
    std::thread::sleep(Duration::from_millis(500));
}

/// Until nothing is queued.
fn deliver_all(site: &Site, patience: Duration) {
    wait_for("the queue to empty", patience, || {
        retry(site);
        site.queued() == 0
    });
}

#[test]
fn a_held_message_and_an_idle_mailbox_hold_no_disk() {
    let mut plan = small(12);
    plan.mboxes.push(("mbox3".to_owned(), vec![2]));
    let mut site = Site::new(plan);
    // mbox3 is out of the load: one of its users gets one mail and then nothing, another one's is held
    let away: Vec<_> = site.users.iter().skip(2).step_by(3).cloned().collect();
    let names: BTreeSet<&str> = away.iter().map(|user| user.address.as_str()).collect();
    let accounts = std::fs::read_to_string(site.accounts()).expect("users file");
    let loaded = accounts
        .lines()
        .filter(|line| !names.contains(line.split(' ').next().unwrap_or_default()));
    std::fs::write(
        site.accounts(),
        loaded.map(|line| format!("{line}\n")).collect::<String>(),
    )
    .expect("users file");
    let [idle, held, ..] = &away[..] else {
        panic!("mbox3 has two users")
    };
    let free = site.ldif().to_owned();
    site.write_ldif(with_quotas(&free, |address| address == held.address));

    let mut server = Server::start(&site);
    let reply = send_mail(
        site.smtp,
        "a@remote.example",
        &[&idle.address],
        "Subject: idle\n\nfor the idle one",
    );
    assert!(reply.starts_with("250"), "{reply}");
    wait_for_mails(site.pop3, &idle.login, &idle.password, 1);
    let reply = send_mail(
        site.smtp,
        "a@remote.example",
        &[&held.address],
        "Subject: held\n\nfor the held one",
    );
    assert!(reply.starts_with("250"), "{reply}");
    let id = reply.rsplit(' ').next().expect("a queue id").to_owned();
    // right after its 250 it may be in the log only, and not known yet
    wait_for("the hold", PATIENCE, || {
        site.ask(&["queue", "hold", &id]).ok
    });

    let log_max = LOG_MIB * MIB;
    let wanted = asked("HIKYAKU_BOUNDED_GIB").map_or(LOG_TURNS * log_max, |gib| gib << 30);
    let limit = Duration::from_secs(60).max(Duration::from_millis(wanted / (2 * MIB) * 10));
    let load = Load {
        sessions: SESSIONS,
        size: "30:1K-10K,60:60K-120K,10:140K-300K".to_owned(),
        ..Load::default()
    };
    let began = Instant::now();
    let (mut log_bytes, mut resident, mut starts) = (0, 0, vec![server.started_in]);
    for share in 1..=3 {
        let (peaks, ()) = Peaks::during(&site, &server, || {
            let loading = load.start(&site);
            wait_for("the traffic", limit, || {
                segments(&site) * SEGMENT_MIB * MIB >= wanted * share / 3
            });
            loading.end();
        });
        (log_bytes, resident) = (peaks.log_bytes.max(log_bytes), peaks.resident.max(resident));
        server.kill();
        server = Server::start(&site);
        starts.push(server.started_in);
    }
    let slowest = starts.iter().max().copied().unwrap_or_default();
    println!(
        "{} MiB of log in {:.0} s; log directory at most {} of {LOG_MIB} MiB, resident at most {} MiB; starts {starts:?}",
        segments(&site) * SEGMENT_MIB,
        began.elapsed().as_secs_f64(),
        log_bytes / MIB,
        resident / MIB,
    );
    assert!(
        log_bytes <= log_max,
        "the log directory took {log_bytes} octets of {log_max}"
    );
    assert!(
        resident <= RESIDENT_MAX,
        "the process took {} MiB",
        resident / MIB
    );
    assert!(slowest < START_MAX, "a start took {slowest:?}");

    assert_balanced(&verify(&site, Duration::from_secs(120)));
    let shown = site.ask(&["queue", "list", "--state", "hold"]).must();
    assert!(shown.contains(&id), "{id} is not held any more: {shown}");
    let mails = read_mails(site.pop3, &idle.login, &idle.password).expect("the idle maildrop");
    assert!(
        mails.len() == 1 && mails[0].contains("for the idle one"),
        "{mails:?}"
    );
    site.write_ldif(free);
    site.ask(&["queue", "release", &id]).must();
    deliver_all(&site, PATIENCE);
    let mails = wait_for_mails(site.pop3, &held.login, &held.password, 1);
    assert!(mails[0].contains("for the held one"), "{mails:?}");
    assert!(server.stop().0.success());
}

/// Whom the ledger does not know, for mails that only find out whether mail is taken.
const PROBE: &str = "dn: uid=probe,o=example.jp\nobjectClass: inetOrgPerson\nobjectClass: inetLocalMailRecipient\nuid: probe\n\
    cn: probe\nsn: probe\nentryUUID: 7a1f6c1e-52a4-4c6b-9d4e-0c4ad61c7a01\nmailLocalAddress: probe@example.jp\n\
    mailHost: mbox1\n";

/// Whether a mail is refused for want of room, wherever that is noticed.
fn is_full(site: &Site) -> bool {
    let reply = send_mail(
        site.smtp,
        "",
        &["probe@example.jp"],
        "Subject: probe\n\nroom?",
    );
    assert!(
        reply.starts_with("250 ") || reply.starts_with("452 4.3.1"),
        "{reply}"
    );
    reply.starts_with("452")
}

/// Waits until nothing fits in any more.
fn wait_until_full(site: &Site, patience: Duration) {
    wait_for("452", patience, || {
        std::thread::sleep(Duration::from_millis(200));
        (0..3).all(|_| is_full(site))
    });
}

/// What filling a queue came to.
struct Filled {
    messages: u64,
    /// Of the process that came back to it.
    resident: u64,
}

/// Sends until the site says 452 for good, with nothing delivered; kills it; lets it come back and say 452 still; lifts
/// the quotas under load: it takes mail again by itself, and all there ever was is delivered once.
fn fill_and_recover(plan: Plan, size: &str, patience: Duration) -> Filled {
    let mut site = Site::new(plan.ldif(PROBE));
    let free = site.ldif().to_owned();
    site.write_ldif(with_quotas(&free, |_| true));
    let mut server = Server::start(&site);
    let load = Load {
        sessions: SESSIONS,
        size: size.to_owned(),
        // from anybody else, mail for a full mailbox is not taken
        senders: "null",
        ..Load::default()
    };
    let began = Instant::now();
    let loading = load.start(&site);
    wait_until_full(&site, patience);
    let filled_in = began.elapsed();
    let known = acknowledged(&site.ledger()).len() as u64;
    let messages = site.queued();
    assert!(
        messages >= known,
        "{known} acknowledged, {messages} in the queue"
    );
    server.kill();

    let mut server = Server::start(&site);
    let started_in = server.started_in;
    wait_for("the queue to be replayed", START_MAX, || {
        site.queued() >= messages
    });
    let resident = server.resident_peak();
    wait_until_full(&site, PATIENCE);
    // whoever is tried before it is read again costs the log one more delivery in vain
    let reloads = |server: &Server| server.log().matches("directory read again").count();
    let before = reloads(&server);
    site.write_ldif(free);
    wait_for("the new directory", PATIENCE, || reloads(&server) > before);
    let (peaks, ()) = Peaks::during(&site, &server, || {
        wait_for("mail to be taken again", patience, || {
            retry(&site);
            acknowledged(&site.ledger()).len() as u64 > messages + OVERSHOOT_MAX
        });
        loading.end();
        deliver_all(&site, patience);
    });
    println!(
        "{messages} messages queued in {:.0} s; came back in {} ms with {} MiB resident, at most {} MiB while delivering, log directory {} MiB",
        filled_in.as_secs_f64(),
        started_in.as_millis(),
        resident / MIB,
        peaks.resident / MIB,
        peaks.log_bytes / MIB,
    );
    assert!(
        started_in < START_MAX,
        "it took {started_in:?} to come back"
    );
    assert!(
        peaks.log_bytes <= site.mib("log", "bytes_max"),
        "the log directory took {}",
        peaks.log_bytes
    );
    assert_balanced(&verify(&site, patience));
    assert!(server.stop().0.success());
    Filled {
        messages,
        resident: peaks.resident,
    }
}

#[test]
fn a_queue_full_of_messages_says_452_and_recovers() {
    let messages = asked("HIKYAKU_BOUNDED_MESSAGES").unwrap_or(MESSAGES_MAX);
    let log_mib = 64 + messages / 100;
    let plan = small(8)
        .set("queue", "messages_max", &messages.to_string())
        .set("log", "bytes_max", &format!("\"{log_mib} MiB\""));
    let filled = fill_and_recover(
        plan,
        "100:1K-2K",
        PATIENCE.max(Duration::from_millis(20 * messages)),
    );
    assert!(
        filled.messages >= messages,
        "only {} messages",
        filled.messages
    );
    assert!(
        filled.messages <= messages + OVERSHOOT_MAX,
        "{} messages",
        filled.messages
    );
    let limit = RESIDENT_MAX + messages * RESIDENT_PER_MESSAGE;
    assert!(
        filled.resident <= limit,
        "{} MiB for {messages} messages",
        filled.resident / MIB
    );
}

#[test]
fn a_queue_full_of_octets_says_452_and_recovers() {
    let plan =
        small(8)
            .set("queue", "bytes_max", "\"12 MiB\"")
            .set("log", "bytes_max", "\"64 MiB\"");
    let filled = fill_and_recover(plan, "100:60K-120K", PATIENCE * 2);
    assert!(
        filled.resident <= RESIDENT_MAX,
        "{} MiB",
        filled.resident / MIB
    );
}

#[test]
fn a_log_full_of_queued_mail_says_452_and_recovers() {
    // the queue may hold more than the log has room for; the last fifth of the log is for what
    // empties it, and must have room for all deliveries under way at once
    let plan =
        small(8)
            .set("queue", "bytes_max", "\"4096 MiB\"")
            .set("log", "bytes_max", "\"64 MiB\"");
    let filled = fill_and_recover(plan, "100:60K-120K", PATIENCE * 2);
    assert!(
        filled.resident <= RESIDENT_BUSY_MAX,
        "{} MiB",
        filled.resident / MIB
    );
}
