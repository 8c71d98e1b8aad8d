//! The load tool against a peer that is wrong on purpose: every fault must be seen, and nothing else.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod peer;
mod real;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use loadtest::equation::Class;
use loadtest::ledger::Book;
use loadtest::load;
use loadtest::machine::Storage;
use loadtest::maildrops::VerifyOptions;
use loadtest::readable;
use loadtest::report::{RunReport, Setting};
use loadtest::run::{Recipients, RunOptions, Senders, Watch};
use loadtest::users::{self, User};
use loadtest::verify::{self, Kind, VerifyReport};
use loadtest::watched::Watching;
use peer::{Fault, Manner, Peer};

fn some_users(count: usize) -> Vec<User> {
    let lines: String = (0..count)
        .map(|n| format!("user{n}@example.jp pw{n} login{n}\n"))
        .collect();
    users::parse(&lines).unwrap()
}

fn options(peer: &Peer, users: &[User], ledger: &Path) -> RunOptions {
    RunOptions {
        sessions: 4,
        recipients_per_message: 2,
        reconnect_on_error: true,
        deadline: Some(Duration::from_secs(30)),
        seed: 1,
        senders: Senders::Users,
        timeout: Duration::from_secs(10),
        ..RunOptions::new(
            peer.smtp,
            users.to_vec(),
            "80:1K-10K,20:10K-60K".parse().unwrap(),
            ledger.to_owned(),
        )
    }
}

fn sweep(peer: &Peer, users: &[User], ledger: &Path) -> VerifyOptions {
    VerifyOptions {
        ledger: ledger.to_owned(),
        users: users.to_vec(),
        pop3: peer.pop3.into(),
        wait: Duration::from_millis(200),
        settle: Duration::from_millis(20),
        delete: false,
        sessions: 2,
        timeout: Duration::from_secs(10),
        progress: false,
    }
}

/// 100 messages to two recipients each against a peer with that fault: what was sent, what the sweep says, how often
/// the fault happened.
fn against(manner: Manner) -> (RunReport, VerifyReport, u64) {
    let dir = tempfile::tempdir().unwrap();
    let ledger = dir.path().join("ledger");
    let users = some_users(7);
    let peer = Peer::start(&users, manner);
    let sent = load::run(&options(&peer, &users, &ledger), &Arc::default()).unwrap();
    let found = verify::verify(&sweep(&peer, &users, &ledger)).unwrap();
    (sent, found, peer.faults())
}

fn with(fault: Fault) -> (RunReport, VerifyReport, u64) {
    against(Manner {
        fault,
        ..Manner::default()
    })
}

/// That kind of offence, that often, and no other.
fn only(found: &VerifyReport, kind: Kind, times: u64) {
    assert!(times > 0, "the fault never happened");
    let expected = [(kind, times)].into_iter().collect();
    assert_eq!(found.counts, expected, "{found}");
    assert!(!found.balanced());
}

#[test]
fn a_right_peer_balances_with_and_without_pipelining() {
    for pipelining in [true, false] {
        let (sent, found, _) = against(Manner {
            pipelining,
            ..Manner::default()
        });
        assert!(found.balanced(), "{found}");
        assert_eq!(
            (sent.acknowledged, sent.recipients.ack, found.recipients.ack),
            (100, 200, 200)
        );
        assert_eq!((found.mails, found.appeared), (200, 0));
    }
}

#[test]
fn a_lossy_peer_is_caught() {
    let (_, found, faults) = with(Fault::Lose);
    only(&found, Kind::Lost, faults * 2);
    assert!(
        found
            .offences
            .iter()
            .all(|o| o.id.is_some() && o.who.ends_with("@example.jp"))
    );
}

#[test]
fn a_doubling_peer_is_caught() {
    let (_, found, faults) = with(Fault::Double);
    only(&found, Kind::Doubled, faults * 2);
}

#[test]
fn changed_and_truncated_bytes_are_caught() {
    for fault in [Fault::Corrupt, Fault::Truncate, Fault::WrongReturnPath] {
        let (_, found, faults) = with(fault);
        only(&found, Kind::Corrupted, faults * 2);
    }
}

#[test]
fn a_forged_mail_is_caught() {
    let (_, found, faults) = with(Fault::Forge);
    only(&found, Kind::Unknown, faults * 2);
}

#[test]
fn a_copy_in_a_wrong_maildrop_is_caught_and_is_no_substitute() {
    let (_, found, faults) = with(Fault::Misplace);
    assert_eq!(
        (found.count(Kind::Misplaced), found.count(Kind::Lost)),
        (faults * 2, faults * 2),
        "{found}"
    );
}

#[test]
fn no_reply_is_unknown_and_may_be_there_once_or_not() {
    for (fault, appear) in [
        (Fault::SilentStored, true),
        (Fault::HalfReply, true),
        (Fault::SilentDropped, false),
    ] {
        let (sent, found, faults) = with(fault);
        assert!(found.balanced() && faults > 0, "{fault:?} {found}");
        assert_eq!(
            (sent.acknowledged, sent.recipients.unk),
            (100, faults * 2),
            "{fault:?}"
        );
        assert_eq!(
            found.appeared,
            if appear { faults * 2 } else { 0 },
            "{fault:?}"
        );
    }
    let (_, found, faults) = with(Fault::SilentDoubled);
    only(&found, Kind::Doubled, faults * 2);
}

#[test]
fn a_refused_message_must_not_be_there() {
    let (sent, found, faults) = with(Fault::Ghost);
    only(&found, Kind::Ghost, faults * 2);
    // A permanent refusal is an answer: it is not tried again.
    assert_eq!(
        (sent.acknowledged, sent.attempts, sent.succeeded()),
        (100 - faults, 100, false)
    );
    let (_, found, _) = with(Fault::Refuse);
    assert!(found.balanced() && found.recipients.nak > 0, "{found}");
}

#[test]
fn a_deferred_message_is_sent_again_under_a_new_id() {
    let (sent, found, faults) = with(Fault::Defer);
    assert!(found.balanced() && faults > 0, "{found}");
    assert_eq!((sent.acknowledged, sent.attempts), (100, 100 + faults));
    assert_eq!((found.recipients.unk, found.appeared), (faults * 2, 0));
}

#[test]
fn half_a_message_must_not_be_there() {
    let manner = Manner {
        fault: Fault::StoreHalf,
        every: 3,
        ..Manner::default()
    };
    let dir = tempfile::tempdir().unwrap();
    let ledger = dir.path().join("ledger");
    let users = some_users(7);
    let peer = Peer::start(&users, manner);
    // So big that the kernel cannot take all of it while the peer reads only the beginning.
    let options = RunOptions {
        messages: 4,
        sessions: 1,
        mix: "12M".parse().unwrap(),
        ..options(&peer, &users, &ledger)
    };
    let sent = load::run(&options, &Arc::default()).unwrap();
    let found = verify::verify(&sweep(&peer, &users, &ledger)).unwrap();
    assert!(sent.recipients.none > 0, "{sent}");
    let ghosts = sent.recipients.none;
    assert_eq!(
        (found.count(Kind::Ghost), found.count(Kind::Corrupted)),
        (ghosts, ghosts),
        "{found}"
    );
}

#[test]
fn a_dsn_settles_a_recipient_and_both_are_one_too_many() {
    let (_, found, faults) = with(Fault::Bounce);
    assert!(found.balanced(), "{found}");
    assert_eq!(found.dsns, faults * 2);
    let (_, found, faults) = with(Fault::BounceAndKeep);
    only(&found, Kind::Doubled, faults * 2);
}

#[test]
fn unique_ids_must_stay() {
    let (_, found, _) = against(Manner {
        fickle_uids: true,
        ..Manner::default()
    });
    assert!(found.count(Kind::Uidl) >= 7, "{found}");
}

#[test]
fn an_unknown_recipient_is_refused_and_the_others_are_served() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = dir.path().join("ledger");
    let users = some_users(3);
    for pipelining in [true, false] {
        let peer = Peer::start(
            &users[..2],
            Manner {
                pipelining,
                ..Manner::default()
            },
        );
        let _ = std::fs::remove_file(&ledger);
        let options = RunOptions {
            senders: Senders::Null,
            ..options(&peer, &users, &ledger)
        };
        let sent = load::run(&options, &Arc::default()).unwrap();
        let found = verify::verify(&sweep(&peer, &users[..2], &ledger)).unwrap();
        assert!(found.balanced(), "{found}");
        assert_eq!(
            (sent.acknowledged, sent.recipients.ack + sent.recipients.nak),
            (100, 200)
        );
        assert!(sent.recipients.nak > 30, "{sent}");
        // and a message none of whose recipients exists goes nowhere
        let nobody = RunOptions {
            users: users[2..].to_vec(),
            recipients_per_message: 1,
            ..options
        };
        let sent = load::run(&nobody, &Arc::default()).unwrap();
        assert_eq!(
            (sent.acknowledged, sent.recipients.nak, sent.connections),
            (0, 100, 4)
        );
    }
}

#[test]
fn the_peer_dies_under_load_and_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = dir.path().join("ledger");
    let users = some_users(20);
    let mut peer = Peer::start(&users, Manner::default());
    let watch = Arc::new(Watch::default());
    let options = RunOptions {
        messages: 3000,
        ..options(&peer, &users, &ledger)
    };
    let runner = std::thread::spawn({
        let watch = watch.clone();
        move || load::run(&options, &watch).unwrap()
    });
    for kill in 1..=5 {
        while watch.acknowledged.load(Ordering::Relaxed) < kill * 200 {
            std::thread::yield_now();
        }
        peer.down();
        peer.up();
    }
    let sent = runner.join().unwrap();
    assert_eq!(sent.acknowledged, 3000);
    assert!(sent.connections > 4, "no session was opened again: {sent}");
    let found = verify::verify(&sweep(&peer, &users, &ledger)).unwrap();
    assert!(found.balanced(), "{found}");
    assert_eq!(found.recipients.ack, 6000);
}

#[test]
fn deleted_mail_is_remembered_and_must_not_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = dir.path().join("ledger");
    let users = some_users(7);
    let peer = Peer::start(
        &users,
        Manner {
            fault: Fault::Bounce,
            ..Manner::default()
        },
    );
    load::run(&options(&peer, &users, &ledger), &Arc::default()).unwrap();
    let deleting = VerifyOptions {
        delete: true,
        ..sweep(&peer, &users, &ledger)
    };
    let first = verify::verify(&deleting).unwrap();
    assert!(first.balanced() && first.deleted == 200, "{first}");
    // The maildrops are empty now; the ledger knows why.
    let second = verify::verify(&deleting).unwrap();
    assert!(second.balanced() && second.mails == 0, "{second}");
    assert_eq!(second.recipients.ack, 200);
    // More mail under the same ledger.
    load::run(&options(&peer, &users, &ledger), &Arc::default()).unwrap();
    let third = verify::verify(&deleting).unwrap();
    assert!(
        third.balanced() && third.recipients.ack == 400 && third.mails == 200,
        "{third}"
    );

    let _ = std::fs::remove_file(&ledger);
    let peer = Peer::start(
        &users,
        Manner {
            keeps_deleted: true,
            ..Manner::default()
        },
    );
    load::run(&options(&peer, &users, &ledger), &Arc::default()).unwrap();
    let found = verify::verify(&VerifyOptions {
        delete: true,
        ..sweep(&peer, &users, &ledger)
    })
    .unwrap();
    assert!(
        found.count(Kind::Uidl) == 7 && found.to_string().contains("came back"),
        "{found}"
    );
}

#[test]
fn a_maildrop_that_cannot_be_read_is_no_proof() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = dir.path().join("ledger");
    let users = some_users(3);
    let mut peer = Peer::start(&users, Manner::default());
    load::run(&options(&peer, &users, &ledger), &Arc::default()).unwrap();
    let options = sweep(&peer, &users, &ledger);
    peer.down();
    let found = verify::verify(&options).unwrap();
    assert_eq!(found.count(Kind::Unread), 3, "{found}");
}

#[test]
fn the_attempt_is_in_the_ledger_before_the_dot_and_the_outcome_right_after_the_reply() {
    use std::io::{BufRead, Write};
    let dir = tempfile::tempdir().unwrap();
    let ledger = dir.path().join("ledger");
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let users = some_users(1);
    let options = RunOptions {
        smtp: listener.local_addr().unwrap().into(),
        users: users.clone(),
        messages: 1,
        sessions: 1,
        recipients_per_message: 1,
        ledger: ledger.clone(),
        // the address is a stand-in: it is replaced above
        ..options(&Peer::start(&users, Manner::default()), &users, &ledger)
    };
    let runner = std::thread::spawn(move || load::run(&options, &Arc::default()).unwrap());
    let (mut out, _) = listener.accept().unwrap();
    let mut lines = std::io::BufReader::new(out.try_clone().unwrap()).lines();
    let mut until = |end: &str| while lines.next().unwrap().unwrap() != end {};
    let class = || {
        Book::read(&ledger)
            .unwrap()
            .attempts
            .values()
            .map(|a| a.rcpts[0].class)
            .collect::<Vec<_>>()
    };
    out.write_all(b"220 hello\r\n").unwrap();
    until("EHLO [127.0.0.1]");
    out.write_all(b"250-hello\r\n250 PIPELINING\r\n").unwrap();
    until("DATA");
    assert_eq!(class(), []);
    out.write_all(b"250 ok\r\n250 ok\r\n354 go\r\n").unwrap();
    until(".");
    assert_eq!(class(), [Class::Unk]);
    out.write_all(b"250 queued\r\n").unwrap();
    until("QUIT");
    assert_eq!(class(), [Class::Ack]);
    out.write_all(b"221 bye\r\n").unwrap();
    assert_eq!(runner.join().unwrap().acknowledged, 1);
}

/// One message stalls, and with it the whole server. A generator that waits with it would see one slow message; this
/// one counts every message that was due meanwhile.
#[test]
fn a_stall_is_in_the_percentiles_of_an_open_loop() {
    const STALL: Duration = Duration::from_millis(600);
    let dir = tempfile::tempdir().unwrap();
    let ledger = dir.path().join("ledger");
    let users = some_users(7);
    let peer = Peer::start(
        &users,
        Manner {
            stall: Some((100, STALL)),
            ..Manner::default()
        },
    );
    let options = RunOptions {
        messages: 500,
        recipients_per_message: 1,
        mix: "1K".parse().unwrap(),
        rate: Some(500.0),
        ..options(&peer, &users, &ledger)
    };
    let sent = load::run(&options, &Arc::default()).unwrap();
    let open = sent.open.as_ref().unwrap();
    assert_eq!((sent.acknowledged, open.due_to_reply.count), (500, 500));
    // About 300 of 500 are due in those 600 ms: half of them wait for more than 300 ms, a sixth for more than 500.
    assert!(open.due_to_reply.p95_ms > 400.0, "{sent}");
    assert!(open.due_to_reply.p99_ms > 500.0, "{sent}");
    assert!(open.wait.count > 100, "{sent}");
    // Only the four messages that were under way are slow by the other clock.
    assert!(
        sent.data_to_reply.p95_ms < open.due_to_reply.p95_ms,
        "{sent}"
    );

    // What is never answered is not forgotten either: the run is cut off in the middle of the stall.
    let peer = Peer::start(
        &users,
        Manner {
            stall: Some((100, STALL * 2)),
            ..Manner::default()
        },
    );
    let cut = RunOptions {
        smtp: peer.smtp.into(),
        deadline: Some(Duration::from_millis(800)),
        ledger: dir.path().join("another"),
        ..options
    };
    let sent = load::run(&cut, &Arc::default()).unwrap();
    let open = sent.open.as_ref().unwrap();
    assert!(sent.acknowledged < 200 && open.unserved > 100, "{sent}");
    assert!(open.due_to_reply.p95_ms > 500.0, "{sent}");
    assert!(!sent.succeeded());
}

/// A server that says 451 at once is not quick: what it did not take counts with the time until the end.
#[test]
fn what_is_deferred_or_refused_is_in_the_percentiles_of_an_open_loop() {
    let dir = tempfile::tempdir().unwrap();
    let users = some_users(7);
    for (fault, refused) in [(Fault::Defer, 0), (Fault::Refuse, 50)] {
        let peer = Peer::start(
            &users,
            Manner {
                fault,
                ..Manner::default()
            },
        );
        let load = RunOptions {
            messages: 500,
            recipients_per_message: 1,
            mix: "1K".parse().unwrap(),
            rate: Some(1000.0),
            reconnect_on_error: false,
            ..options(&peer, &users, &dir.path().join(format!("{fault:?}")))
        };
        let sent = load::run(&load, &Arc::default()).unwrap();
        let open = sent.open.as_ref().unwrap();
        assert_eq!((sent.acknowledged, sent.recipients.nak), (450, refused));
        assert_eq!((open.unserved, open.due_to_reply.count), (50, 500));
        // of a tenth, spread evenly over the run, half have waited for more than half of it
        assert!(
            open.due_to_reply.p95_ms > 0.3 * sent.seconds * 1000.0,
            "{sent}"
        );
    }
}

#[test]
fn in_turn_everybody_gets_equally_many() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = dir.path().join("ledger");
    let users = some_users(20);
    let peer = Peer::start(&users, Manner::default());
    let load = RunOptions {
        recipients: Recipients::InTurn,
        recipients_per_message: 1,
        ..options(&peer, &users, &ledger)
    };
    load::run(&load, &Arc::default()).unwrap();
    let mut each = std::collections::BTreeMap::new();
    for attempt in Book::read(&ledger).unwrap().attempts.values() {
        *each.entry(attempt.rcpts[0].address.clone()).or_insert(0) += 1;
    }
    assert!(
        each.len() == 20 && each.values().all(|n| *n == 5),
        "{each:?}"
    );
}

#[test]
fn a_connection_carries_as_many_messages_as_it_is_to() {
    let dir = tempfile::tempdir().unwrap();
    let users = some_users(7);
    let peer = Peer::start(&users, Manner::default());
    for (each, sessions, rate, connections) in [
        (Some(1), 4, None, 100),
        (Some(3), 1, None, 34),
        (Some(1), 4, Some(2000.0), 100),
        (None, 4, None, 4),
    ] {
        let load = RunOptions {
            messages_per_connection: each,
            sessions,
            rate,
            reconnect_on_error: false,
            ..options(&peer, &users, &dir.path().join("ledger"))
        };
        let sent = load::run(&load, &Arc::default()).unwrap();
        assert_eq!((sent.acknowledged, sent.connections), (100, connections));
        let said = each.map_or("connections=kept".to_owned(), |n| {
            format!("connections=for {n} messages each")
        });
        assert!(sent.to_string().contains(&said), "{sent}");
    }
    let nothing = RunOptions {
        messages_per_connection: Some(0),
        ..options(&peer, &users, &dir.path().join("ledger"))
    };
    assert!(load::run(&nothing, &Arc::default()).is_err());
}

/// Mails of earlier runs whose outcome is unknown make a maildrop look complete too early.
#[test]
fn no_end_to_end_rate_beside_mails_of_unknown_outcome() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = dir.path().join("ledger");
    let users = some_users(7);
    let silent = Manner {
        fault: Fault::SilentStored,
        ..Manner::default()
    };
    let peer = Peer::start(&users, silent);
    let setting = Setting {
        durability: Some("none".to_owned()),
        storage: Some(Storage::default()),
    };
    let load = RunOptions {
        setting,
        ..options(&peer, &users, &ledger)
    };
    let both = || {
        let (watch, watching) = (Arc::default(), Watching::default());
        readable::run_and_verify(&load, &watch, &watching, &sweep(&peer, &users, &ledger)).unwrap()
    };
    let first = both();
    assert!(
        first.recipients.unk > 0 && first.readable.is_none(),
        "{first}"
    );
    peer.mend();
    let second = both();
    assert!(second.accept_rate.is_some(), "{second}");
    assert_eq!((second.recipients.unk, &second.readable), (0, &None));
    assert!(second.to_string().contains("mails there of unknown ones"));
}

#[test]
fn the_same_seed_sends_the_same_load_whoever_sends_it() {
    let dir = tempfile::tempdir().unwrap();
    let users = some_users(7);
    let peer = Peer::start(&users, Manner::default());
    let sent = |name: &str, sessions: usize| {
        let ledger = dir.path().join(name);
        let options = RunOptions {
            sessions,
            ..options(&peer, &users, &ledger)
        };
        let report = load::run(&options, &Arc::default()).unwrap();
        let book = Book::read(&ledger).unwrap();
        let mut pairs: Vec<String> = book
            .attempts
            .values()
            .map(|a| {
                format!(
                    "{} {} {}",
                    a.reverse_path, a.rcpts[0].address, a.rcpts[1].address
                )
            })
            .collect();
        pairs.sort();
        (report.acknowledged_bytes, pairs)
    };
    assert_eq!(sent("one", 1), sent("four", 4));
}

/// The binary, as people run it.
fn loadtest(arguments: &[&str]) -> (i32, String, String) {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_loadtest"))
        .args(arguments)
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (
        output.status.code().unwrap(),
        text(output.stdout),
        text(output.stderr),
    )
}

#[test]
fn the_command_line_tells_by_its_exit_code() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (list, ldif, json, ledger) = (path("users"), path("ldif"), path("json"), path("ledger"));
    let made = [
        "users",
        "--count",
        "9",
        "--domain",
        "example.jp",
        "--mbox",
        "mbox1,mbox2",
        "--ldif",
        &ldif,
    ];
    let (code, _, error) = loadtest(&[&made[..], &["--users", &list]].concat());
    assert_eq!(code, 0, "{error}");
    let users = users::read(Path::new(&list)).unwrap();

    for (fault, expected, line) in [
        (
            Fault::Nothing,
            0,
            "lost=0 doubled=0 unknown=0 corrupted=0 ack=60 unk=0 (appeared 0)",
        ),
        (
            Fault::Lose,
            1,
            "lost=6 doubled=0 unknown=0 corrupted=0 ack=60",
        ),
        (
            Fault::Double,
            1,
            "lost=0 doubled=6 unknown=0 corrupted=0 ack=60",
        ),
    ] {
        let _ = std::fs::remove_file(&ledger);
        let peer = Peer::start(
            &users,
            Manner {
                fault,
                ..Manner::default()
            },
        );
        let (smtp, pop3) = (peer.smtp.to_string(), peer.pop3.to_string());
        let run = [
            "run",
            "--smtp",
            &smtp,
            "--users",
            &list,
            "--messages",
            "60",
            "--size",
            "2K",
            "--sessions",
            "3",
        ];
        let more = [
            "--pop3", &pop3, "--ledger", &ledger, "--json", &json, "--wait", "0.2", "--settle", "0",
        ];
        let told = ["--quiet", "--durability", "none", "--data-dir", "/proc"];
        let (code, text, error) = loadtest(&[&run[..], &more[..], &told[..]].concat());
        assert_eq!(code, expected, "{text}{error}");
        assert!(
            text.contains(line) && text.contains("size=2K sessions=3 users=9"),
            "{text}"
        );
        assert_eq!(
            text.contains("end to end: "),
            fault == Fault::Nothing,
            "{text}"
        );
        assert!(text.contains("DATA-to-250 ms: p50="), "{text}");
        let report: RunReport = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
        assert_eq!(
            (report.acknowledged, report.conditions.tls.as_str()),
            (60, "none")
        );

        let again = [
            "verify", "--ledger", &ledger, "--users", &list, "--pop3", &pop3, "--wait", "0",
            "--quiet",
        ];
        let (code, text, _) = loadtest(&again);
        assert_eq!(code, expected);
        assert!(text.starts_with(line), "{text}");
        assert_eq!(
            text.lines().filter(|l| l.contains(": attempt=")).count(),
            if expected == 0 { 0 } else { 6 }
        );
    }
}

#[test]
fn the_command_line_refuses_other_hosts_and_bad_options() {
    let dir = tempfile::tempdir().unwrap();
    let list = dir.path().join("users");
    std::fs::write(&list, "a@example.jp pw\n").unwrap();
    let list = list.to_str().unwrap();
    let (code, _, error) = loadtest(&[
        "run",
        "--smtp",
        "192.0.2.1:25",
        "--users",
        list,
        "--messages",
        "1",
    ]);
    assert!(code == 1 && error.contains("not loopback"), "{error}");
    let (code, _, error) = loadtest(&[
        "run",
        "--smtp",
        "127.0.0.1:1",
        "--users",
        list,
        "--messages",
        "1",
        "--size",
        "x",
    ]);
    assert!(
        code == 2 && error.contains("not a number of bytes"),
        "{error}"
    );
    // nobody listens: no message, no rate, failure
    let (code, text, _) = loadtest(&[
        "run",
        "--smtp",
        "127.0.0.1:1",
        "--users",
        list,
        "--messages",
        "1",
        "--quiet",
    ]);
    assert!(
        code == 1 && text.contains("no rate without durability") && !text.contains("messages/s"),
        "{text}"
    );
}
