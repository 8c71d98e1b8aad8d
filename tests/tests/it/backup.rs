//! Backup and restore; large bodies that no mail names any more.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use hikyaku_tests::harness::backup::{Places, places};
use hikyaku_tests::harness::server::Server;
use hikyaku_tests::harness::site::{PASSWORD, Plan, Site, person};
use hikyaku_tests::harness::talk::{Talk, read_mails, send_mail, wait_for_mails};
use hikyaku_tests::harness::wait_for;

/// Longest wait for what happens at once.
const AT_ONCE: Duration = Duration::from_secs(60);

#[test]
fn a_backup_brings_all_mail_back_under_higher_uid_validities() {
    let site = Site::new(Plan::sample());
    let mut server = Server::start(&site);
    let large = format!(
        "Subject: large\n\n{}",
        "0123456789abcdefghijklmnopqrstuvwxyz\n".repeat(8000)
    );
    assert!(send_mail(site.smtp, "", &["bob@example.jp"], &large).starts_with("250"));
    let reply = send_mail(
        site.smtp,
        "",
        &["team@example.jp"],
        "Subject: before the backup\n",
    );
    assert!(reply.starts_with("250"), "{reply}");
    let users = ["alice", "bob", "carol"];
    let mut before = BTreeMap::new();
    for user in users {
        let count = if user == "bob" { 2 } else { 1 };
        before.insert(
            user,
            sorted(wait_for_mails(site.pop3, user, PASSWORD, count)),
        );
    }
    let file = |shard: &str| {
        site.home()
            .join(format!("{shard}.snapshot"))
            .to_str()
            .unwrap()
            .to_owned()
    };
    let shards = ["home-0", "mbox-0", "mbox-1"];
    for shard in shards {
        site.ask(&["shard", "snapshot", shard, &file(shard)]).must();
    }
    let again = site
        .ask(&["shard", "snapshot", "mbox-0", &file("mbox-0")])
        .refusal();
    assert!(again.contains("never overwritten"), "{again}");
    let old = places(&site, &[0, 1]);
    assert_eq!(old.len(), 4);
    // the machine is lost; what was backed up besides is the directory of large bodies
    assert!(server.stop().0.success());
    let twin = site.twin(&std::env::temp_dir());
    copy(&site.data().join("blobs"), &twin.data().join("blobs"));
    let _server = Server::start(&twin);

    let bytes = std::fs::read(file("mbox-1")).unwrap();
    let damaged = twin.home().join("damaged").to_str().unwrap().to_owned();
    for at in [
        0,
        16,
        bytes.len() / 3,
        bytes.len() / 2,
        bytes.len() - 20,
        bytes.len() - 1,
    ] {
        let mut other = bytes.clone();
        other[at] ^= 0x10;
        std::fs::write(&damaged, &other).unwrap();
        let why = twin.ask(&["shard", "restore", &damaged]).refusal();
        assert!(why.contains(&damaged), "octet {at}: {why}");
        std::fs::write(&damaged, &bytes[..at]).unwrap();
        twin.ask(&["shard", "restore", &damaged]).refusal();
    }
    assert!(
        places(&twin, &[0, 1]).is_empty(),
        "a damaged backup changes nothing"
    );

    for shard in shards {
        let said = twin.ask(&["shard", "restore", &file(shard)]).must();
        assert!(said.contains(" 0 accounts skipped"), "{said}");
    }
    for user in users {
        let mails = sorted(read_mails(twin.pop3, user, PASSWORD).unwrap());
        assert_eq!(mails, before[user], "{user}");
    }
    let new = places(&twin, &[0, 1]);
    assert_raised(&old, &new);
    // a second restore finds everything there, and no script may take that for success
    let again = twin.ask(&["shard", "restore", &file("mbox-1")]);
    assert!(
        again
            .out
            .starts_with("0 accounts and 0 messages restored, 1 accounts skipped"),
        "{}",
        again.out
    );
    let why = again.refusal();
    assert!(why.contains("1 accounts of "), "{why}");
    let reply = send_mail(
        twin.smtp,
        "",
        &["bob@example.jp"],
        "Subject: after the restore\n",
    );
    assert!(reply.starts_with("250"), "{reply}");
    wait_for_mails(twin.pop3, "bob", PASSWORD, 3);
}

fn sorted(mut mails: Vec<String>) -> Vec<String> {
    mails.sort();
    mails
}

/// The same mails, in mailboxes whose UIDVALIDITY is higher than any of theirs was.
fn assert_raised(old: &Places, new: &Places) {
    let contents = |places: &Places| {
        let mut contents: Vec<_> = places.values().cloned().collect();
        contents.sort();
        contents
    };
    assert_eq!(contents(old), contents(new));
    for place in new.keys() {
        let of_account = old
            .keys()
            .filter(|earlier| earlier.account == place.account);
        let highest = of_account
            .map(|earlier| earlier.uid_validity)
            .max()
            .unwrap();
        assert!(
            place.uid_validity > highest,
            "{place:?}, but it had been {highest}"
        );
    }
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// A sweep each second, of bodies that no mail has named for longer than a mail's way from its body to its record takes, on a busy
/// machine either.
fn sweeping() -> Plan {
    Plan::sample()
        .set("blobs", "sweep_interval", "\"1s\"")
        .set("blobs", "keep_unnamed", "\"5s\"")
}

/// A mail of 240 KB.
fn large(letter: &str) -> String {
    format!(
        "Subject: {letter}\n\n{}",
        format!("{}\n", letter.repeat(60)).repeat(4000)
    )
}

#[track_caller]
fn send_large(site: &Site, user: &str, letter: &str) {
    let to = format!("{user}@example.jp");
    let reply = send_mail(site.smtp, "", &[&to], &large(letter));
    assert!(reply.starts_with("250"), "{reply}");
}

/// `user` deletes his only mail.
fn delete_mail(site: &Site, user: &str) {
    let mut talk = Talk::connect(site.pop3).unwrap();
    talk.send(format!("USER {user}\r\nPASS {PASSWORD}\r\nDELE 1\r\nQUIT\r\n").as_bytes())
        .unwrap();
    while talk.line().unwrap().is_some() {}
    wait_for_mails(site.pop3, user, PASSWORD, 0);
}

#[test]
fn large_bodies_that_no_mail_names_are_deleted_and_others_are_not() {
    let tiny = format!("{}mailQuotaSize: 100\n", person("tiny", "mbox1"));
    let mut site = Site::new(sweeping().ldif(&tiny));
    let server = Server::start(&site);
    // one that waits in the queue, one that has arrived, one that is deleted
    send_large(&site, "tiny", "t");
    wait_for("a first attempt", AT_ONCE, || {
        let waiting = site.ask(&["queue", "list", "--state", "deferred"]).out;
        waiting.contains("<tiny@example.jp> deferred")
    });
    for (user, letter) in [("alice", "a"), ("bob", "b")] {
        send_large(&site, user, letter);
        wait_for_mails(site.pop3, user, PASSWORD, 1);
    }
    assert_eq!(files(&site.data().join("blobs")), 3);
    delete_mail(&site, "bob");
    wait_for("the sweep", AT_ONCE, || {
        files(&site.data().join("blobs")) == 2
    });
    // and a few sweeps later, when what was unnamed at the same time would be gone too
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(files(&site.data().join("blobs")), 2);
    let mails = wait_for_mails(site.pop3, "alice", PASSWORD, 1);
    assert_eq!(mails[0].matches(&"a".repeat(60)).count(), 4000);
    // what waits arrives as it was sent
    site.write_ldif(site.ldif().replace("mailQuotaSize: 100\n", ""));
    wait_for("the new directory", AT_ONCE, || {
        server.log().contains("directory read again")
    });
    site.ask(&["queue", "retry", "--all"]).must();
    let mails = wait_for_mails(site.pop3, "tiny", PASSWORD, 1);
    assert_eq!(mails[0].matches(&"t".repeat(60)).count(), 4000);
}

#[test]
fn large_bodies_are_deleted_by_a_node_that_restarts_often() {
    let site = Site::new(sweeping());
    let mut server = Server::start(&site);
    send_large(&site, "bob", "b");
    wait_for_mails(site.pop3, "bob", PASSWORD, 1);
    delete_mail(&site, "bob");
    let ages = site.data().join("unnamed-blobs");
    let blobs = || files(&site.data().join("blobs"));
    let mut processes = 0;
    // each lives for a look or two, and sees no body unnamed for five seconds
    while blobs() > 0 {
        server.kill();
        let before = std::fs::read(&ages).ok();
        processes += 1;
        assert!(processes < 60, "{:?}", before.map(String::from_utf8));
        server = Server::start(&site);
        wait_for("a look", AT_ONCE, || std::fs::read(&ages).ok() != before);
    }
}

fn files(directory: &Path) -> usize {
    let entries = std::fs::read_dir(directory).unwrap().map(Result::unwrap);
    entries
        .map(|entry| {
            if entry.file_type().unwrap().is_dir() {
                files(&entry.path())
            } else {
                1
            }
        })
        .sum()
}
