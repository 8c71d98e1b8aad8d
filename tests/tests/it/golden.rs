//! Golden directories: what earlier versions wrote to the disk, kept in `tests/golden`, is opened by this version, holds the same
//! mails under the same unique ids, and goes on.
//!
//! `docs/TESTING.md` says when to add one, and how.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use hikyaku_tests::harness::binary::{hikyaku, run, tool};
use hikyaku_tests::harness::load::queue_id;
use hikyaku_tests::harness::server::Server;
use hikyaku_tests::harness::site::{PASSWORD, Plan, Site, person};
use hikyaku_tests::harness::talk::{Talk, send_mail};
use hikyaku_tests::harness::wait_for;
use tempfile::TempDir;

/// Longest wait for what happens at once.
const AT_ONCE: Duration = Duration::from_secs(60);
/// Where a new golden directory goes, for [`make_a_golden_directory`].
const NAME: &str = "HIKYAKU_GOLDEN";
/// A data directory, as it was when its process was killed.
const DATA: &str = "data.tar.gz";
/// What POP3 and the operator saw in it before.
const SEEN: &str = "seen.txt";
const SHARDS: [&str; 3] = ["home-0", "mbox-0", "mbox-1"];
const USERS: [&str; 4] = ["alice", "bob", "carol", "tiny"];

const CONFIGURATION: &str = r#"[node]
hostname = "mail.example.jp"
data_dir = "data"

[directory]
ldif = "directory.ldif"
postmaster = "alice@example.jp"

[mbox.mbox1]
shards = [0]

[mbox.mbox2]
shards = [1]

[smtp]
listen = ["127.0.0.1:0"]

[pop3]
listen = ["127.0.0.1:0"]
cleartext_login = true

# what waits in a golden directory waits for years
[queue]
expire_after = "36500d"
expire_bounces_after = "36500d"

[log]
segment_bytes = "2 MiB"
bytes_max = "64 MiB"

[store]
flush_interval = "60s"
"#;
/// So small that no mail fits, so that mail for it stays in the queue.
const TINY_QUOTA: &str = "mailQuotaSize: 100\n";

/// A node in a directory of its own, with the files of a golden directory.
struct Node {
    home: TempDir,
    server: Server,
}

impl Node {
    fn start(home: TempDir) -> Node {
        let server = Node::server(home.path());
        Node { home, server }
    }

    fn server(home: &Path) -> Server {
        Server::configured(&home.join("hikyaku.toml"), &home.join("server.log"), 2)
            .unwrap_or_else(|why| panic!("{why}"))
    }

    /// Kills it, and starts it on what is left.
    fn crash(&mut self) {
        self.server.kill();
        self.server = Node::server(self.home.path());
    }

    fn ask(&self, arguments: &[&str]) -> String {
        let config = self.home.path().join("hikyaku.toml");
        let config = config.to_str().unwrap();
        hikyaku(arguments.iter().copied().chain(["--config", config])).must()
    }

    /// Sends a mail that nobody hears about, whenever it is delivered; its queue id.
    fn send(&self, to: &str, content: &str) -> String {
        let to = format!("{to}@example.jp");
        let reply = send_mail(self.server.address("smtp"), "", &[&to], content);
        queue_id(&reply)
            .unwrap_or_else(|| panic!("{reply}"))
            .to_owned()
    }

    /// A maildrop: the hash of each mail by its unique id.
    fn mails(&self, user: &str) -> BTreeMap<String, String> {
        let mut talk = Talk::connect(self.server.address("pop3")).unwrap();
        let greeting = talk.line().unwrap().unwrap();
        assert!(greeting.starts_with("+OK"), "{greeting}");
        talk.send(format!("USER {user}\r\nPASS {PASSWORD}\r\n").as_bytes())
            .unwrap();
        for _ in 0..2 {
            let reply = talk.line().unwrap().unwrap();
            assert!(reply.starts_with("+OK"), "{user}: {reply}");
        }
        let listed = lines(&mut talk, "UIDL");
        let mails = listed.iter().map(|line| {
            let (number, uid) = line.split_once(' ').unwrap();
            let content = lines(&mut talk, &format!("RETR {number}")).join("\n");
            let hash = blake3::hash(content.as_bytes()).to_hex();
            (uid.to_owned(), hash.to_string())
        });
        mails.collect()
    }

    fn wait_for_mails(&self, user: &str, count: usize) {
        wait_for("mail", AT_ONCE, || self.mails(user).len() == count);
    }

    /// Gives everybody room, and waits until that is known.
    fn give_room(&self) {
        let file = self.home.path().join("directory.ldif");
        let text = fs::read_to_string(&file).unwrap();
        let roomy = text.replace(TINY_QUOTA, "mailQuotaSize: 1000000\n");
        assert_ne!(roomy, text);
        let beside = file.with_extension("new");
        fs::write(&beside, roomy).unwrap();
        fs::rename(&beside, &file).unwrap();
        wait_for("the new directory", AT_ONCE, || {
            self.server.log().contains("directory read again")
        });
    }

    /// Waits until there is to see what was there before: what is tried again at the start is not deferred meanwhile.
    #[track_caller]
    fn assert_seen(&self, before: &str, name: &str) {
        let began = Instant::now();
        while self.seen() != before && began.elapsed() < AT_ONCE {
            std::thread::sleep(Duration::from_millis(20));
        }
        assert_eq!(self.seen(), before, "{name}");
    }

    /// What there is to see from outside, a line for each mail.
    fn seen(&self) -> String {
        let mut text = String::new();
        for user in USERS {
            for (uid, hash) in self.mails(user) {
                text.push_str(&format!("mail {user} {uid} {hash}\n"));
            }
        }
        for state in ["hold", "deferred"] {
            let out = self.ask(&["queue", "list", "--state", state]);
            let ids = out.lines().filter_map(|line| line.split_once(' '));
            for (id, _) in ids.filter(|(id, _)| id.len() == 32) {
                text.push_str(&format!("{state} {id}\n"));
            }
        }
        text
    }
}

/// The lines of a multi-line reply.
fn lines(talk: &mut Talk, command: &str) -> Vec<String> {
    talk.send(format!("{command}\r\n").as_bytes()).unwrap();
    let status = talk.line().unwrap().unwrap();
    assert!(status.starts_with("+OK"), "{command}: {status}");
    let mut lines = Vec::new();
    loop {
        match talk.line().unwrap().expect("a whole reply") {
            line if line == "." => return lines,
            line => lines.push(line),
        }
    }
}

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden")
}

/// A copy of the golden directory `name`, without its data.
fn copy_of(name: &str) -> TempDir {
    let home = tempfile::Builder::new()
        .prefix("hikyaku-")
        .tempdir()
        .unwrap();
    for entry in fs::read_dir(golden().join(name)).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), home.path().join(entry.file_name())).unwrap();
    }
    home
}

fn unpack(home: &Path, what: &[&str]) {
    let archive = home.join(DATA);
    let mut tar = tool("tar", "tar");
    tar.arg("-xzf").arg(archive).arg("-C").arg(home).args(what);
    run(&mut tar).must();
}

fn names() -> Vec<String> {
    let entries = fs::read_dir(golden()).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert!(!names.is_empty());
    names
}

#[test]
fn data_of_every_earlier_format_is_opened_and_goes_on() {
    for name in names() {
        let home = copy_of(&name);
        let before = fs::read_to_string(home.path().join(SEEN)).unwrap();
        unpack(home.path(), &[]);
        let mut node = Node::start(home);
        node.assert_seen(&before, &name);

        // new mail comes beside the old, and what had to wait finds room
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for user in USERS {
            counts.insert(user, node.mails(user).len());
        }
        assert_eq!(counts["tiny"], 0, "{name}");
        for user in ["alice", "bob", "carol"] {
            node.send(user, &format!("Subject: after {name}\n\nIt goes on.\n"));
            node.wait_for_mails(user, counts[user] + 1);
        }
        node.give_room();
        node.ask(&["queue", "release", "--all"]);
        node.ask(&["queue", "retry", "--all"]);
        node.wait_for_mails("tiny", 2);
        // a mailbox knows of a delivery before the queue does
        wait_for("the end of what was deferred", AT_ONCE, || {
            !node.seen().contains("deferred ")
        });
        let old = before.lines().filter(|line| line.starts_with("mail "));
        let after = node.seen();
        assert!(!after.contains("hold "), "{name}: {after}");
        for line in old {
            assert!(after.contains(line), "{name}: {line} is gone:\n{after}");
        }
        // and what this version has written to it is its own over a crash, and over a stop
        node.crash();
        node.assert_seen(&after, &name);
        assert!(node.server.stop().0.success());
        node.server = Node::server(node.home.path());
        node.assert_seen(&after, &name);
    }
}

#[test]
fn snapshots_of_every_earlier_format_are_restored() {
    for name in names() {
        let home = copy_of(&name);
        unpack(home.path(), &["data/blobs"]);
        let node = Node::start(home);
        for shard in SHARDS {
            let file = node.home.path().join(format!("{shard}.snapshot"));
            node.ask(&["shard", "restore", file.to_str().unwrap()]);
        }
        let before = fs::read_to_string(node.home.path().join(SEEN)).unwrap();
        let mut hashes: Vec<String> = Vec::new();
        for user in USERS {
            let restored = node.mails(user);
            hashes.extend(restored.values().map(|hash| format!("{user} {hash}")));
        }
        // made before the last mails came, and restored mailboxes begin new UIDs
        assert!(hashes.len() >= 5, "{name}: {hashes:?}");
        for mail in hashes {
            let (user, hash) = mail.split_once(' ').unwrap();
            let is_it = |line: &str| {
                line.starts_with(&format!("mail {user} ")) && line.ends_with(&format!(" {hash}"))
            };
            assert!(before.lines().any(is_it), "{name}: {mail} was never there");
        }
    }
}

/// Writes `tests/golden/$HIKYAKU_GOLDEN` with the binary as it is: run it by hand, see docs/TESTING.md.
#[test]
#[ignore = "writes to the source tree"]
fn make_a_golden_directory() {
    let name = std::env::var(NAME).expect("HIKYAKU_GOLDEN says what it shall be called");
    let target = golden().join(name);
    fs::create_dir(&target).expect("a golden directory is never changed");
    let home = tempfile::Builder::new()
        .prefix("hikyaku-")
        .tempdir()
        .unwrap();
    let config = home.path().join("hikyaku.toml");
    fs::write(&config, CONFIGURATION.replace("60s", "1s")).unwrap();
    let tiny = format!("{}{TINY_QUOTA}", person("tiny", "mbox1"));
    let sample = Site::new(Plan::sample().ldif(&tiny));
    fs::write(home.path().join("directory.ldif"), sample.ldif()).unwrap();
    let mut node = Node::start(home);

    // stores with tables, deletions and large bodies
    for number in 0..3 {
        let content = format!(
            "Subject: {number}\n\n{}",
            "of the first days\n".repeat(number * 40)
        );
        node.send("alice", &content);
        node.send("team", &content);
    }
    node.send(
        "bob",
        &format!(
            "Subject: large\n\n{}",
            "a line of a large body\n".repeat(7000)
        ),
    );
    node.send("bob", &format!("Subject: separated\n\n{}", noise(600)));
    node.wait_for_mails("alice", 6);
    node.wait_for_mails("bob", 5);
    delete_the_first(&node, "alice");
    wait_for("flushed stores", AT_ONCE, || {
        let table = node.home.path().join("data/store/mbox-1/tables/0");
        table.exists()
    });
    for shard in SHARDS {
        let file = target.join(format!("{shard}.snapshot"));
        node.ask(&["shard", "snapshot", shard, file.to_str().unwrap()]);
    }
    // a crash; from here on no store flushes, so that all of it has to be replayed
    fs::write(&config, CONFIGURATION).unwrap();
    node.crash();
    let content = format!("Subject: too much\n\n{}", "x\n".repeat(200));
    let [deferred, held] = [node.send("tiny", &content), node.send("tiny", &content)];
    for id in [&deferred, &held] {
        wait_for("a first attempt", AT_ONCE, || {
            node.ask(&["queue", "show", id]).contains("deferred until")
        });
    }
    node.ask(&["queue", "hold", &held, "--reason", "for a golden directory"]);
    for number in 0..5 {
        node.send(
            "carol",
            &format!("Subject: late {number}\n\nJust before the end.\n"),
        );
    }
    node.wait_for_mails("carol", 8);
    fs::write(target.join(SEEN), node.seen()).unwrap();
    node.server.kill();
    for file in ["hikyaku.toml", "directory.ldif"] {
        fs::copy(node.home.path().join(file), target.join(file)).unwrap();
    }
    let mut tar = tool("tar", "tar");
    tar.args([
        "--sparse",
        "--owner=0",
        "--group=0",
        "--exclude=admin.sock",
        "-czf",
    ])
    .arg(target.join(DATA))
    .arg("-C")
    .arg(node.home.path())
    .arg("data");
    run(&mut tar).must();
}

/// Lines that no compressor makes small enough to stand in a table: the store keeps them in a file of their own.
fn noise(lines: u32) -> String {
    let line = |number: u32| blake3::hash(&number.to_be_bytes()).to_hex().to_string();
    (0..lines).map(|number| line(number) + "\n").collect()
}

fn delete_the_first(node: &Node, user: &str) {
    let mut talk = Talk::connect(node.server.address("pop3")).unwrap();
    talk.send(format!("USER {user}\r\nPASS {PASSWORD}\r\nDELE 1\r\nQUIT\r\n").as_bytes())
        .unwrap();
    while talk.line().unwrap().is_some() {}
}
