//! A full disk, a damaged log, and peers that send garbage.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use hikyaku_tests::harness::binary::{run, tool};
use hikyaku_tests::harness::server::Server;
use hikyaku_tests::harness::site::{PASSWORD, Plan, Site};
use hikyaku_tests::harness::talk::{Talk, send_mail, wait_for_mails};
use hikyaku_tests::harness::wait_for;
use loadtest::random::Random;
use rustix::process::{getgid, getuid};

/// A small file system in memory, gone with the test.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn new(mib: u32) -> SmallDisk {
        SmallDisk::with(mib, "")
    }

    /// The same with more options of tmpfs.
    fn with(mib: u32, more: &str) -> SmallDisk {
        let place = tempfile::tempdir().unwrap();
        // its own user's, if root mounts it for somebody else
        let (uid, gid) = (getuid().as_raw(), getgid().as_raw());
        let options = format!("size={mib}m,uid={uid},gid={gid},mode=0700{more}");
        let mut mount = as_root("mount");
        mount.args(["-t", "tmpfs", "-o", &options, "tmpfs"]);
        let said = run(mount.arg(place.path()));
        assert!(
            said.ok,
            "a full disk needs a small one, and root to mount it: run as root, or as a user whom sudo asks nothing, or leave \
             the test out knowingly with `--skip full_disk` (docs/TESTING.md): {}",
            said.err
        );
        SmallDisk(place)
    }

    fn filler(&self) -> PathBuf {
        self.0.path().join("filler")
    }

    /// Takes what is left.
    fn fill(&self) {
        let mut file = std::fs::File::create(self.filler()).unwrap();
        let mut size = 1 << 20;
        while size > 0 {
            if file.write_all(&vec![0xaa; size]).is_err() {
                size /= 2;
            }
        }
    }

    fn make_room(&self) {
        std::fs::remove_file(self.filler()).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = as_root("umount").arg("--lazy").arg(self.0.path()).status();
    }
}

/// A command that only root may give.
fn as_root(program: &str) -> Command {
    if getuid().is_root() {
        return Command::new(program);
    }
    let mut command = tool("sudo", "sudo");
    command.args(["--non-interactive", program]);
    command
}

#[test]
fn a_full_disk_refuses_mail_takes_deletions_and_recovers_by_itself() {
    let disk = SmallDisk::new(64);
    let plan = Plan::sample().set("log", "segment_bytes", "\"2 MiB\"").set(
        "log",
        "bytes_max",
        "\"16 MiB\"",
    );
    let mut site = Site::new(plan);
    site.keep_data_in(&disk.0.path().join("data"));
    let mut server = Server::start(&site);
    // what cannot be compressed
    let mut dice = Random::new(1);
    let letters: String = (0..600_000)
        .map(|_| char::from(b'!' + 14 + dice.below(76) as u8))
        .collect();
    let lines: Vec<&str> = letters
        .as_bytes()
        .chunks(60)
        .map(|line| std::str::from_utf8(line).unwrap())
        .collect();
    let content = |subject: &str, count: usize| {
        format!("Subject: {subject}\n\n{}\n", lines[..count].join("\n"))
    };
    let send = |subject: &str, lines: usize| {
        send_mail(
            site.smtp,
            "alice@example.jp",
            &["bob@example.jp"],
            &content(subject, lines),
        )
    };
    let mut accepted = Vec::new();
    for number in 0..5 {
        let subject = format!("early {number}.");
        assert!(send(&subject, 100).starts_with("250"));
        accepted.push(subject);
    }
    // couriers work side by side: nobody promised that these arrive in order
    let early = wait_for_mails(site.pop3, "bob", PASSWORD, 5);

    disk.fill();
    let large = send("large", 10_000);
    assert!(
        large.starts_with("452 4.3.1"),
        "a body of its own finds no room: {large}"
    );
    let mut refused = String::new();
    for number in 0..2000 {
        let subject = format!("late {number}.");
        let reply = send(&subject, 1_000);
        if reply.starts_with("250") {
            accepted.push(subject);
        } else {
            refused = reply;
            break;
        }
    }
    assert!(
        refused.starts_with("452 4.3.1"),
        "mail is refused in the end: {refused:?}"
    );
    assert!(
        send("still full", 1_000).starts_with("452"),
        "and stays refused"
    );
    wait_for("the reason in the log", Duration::from_secs(60), || {
        server.log().contains("No space left on device")
    });

    let mut talk = Talk::connect(site.pop3).unwrap();
    talk.send(format!("USER bob\r\nPASS {PASSWORD}\r\nDELE 1\r\nDELE 2\r\nQUIT\r\n").as_bytes())
        .unwrap();
    let mut said = Vec::new();
    while let Some(line) = talk.line().unwrap() {
        said.push(line);
    }
    assert!(
        said.last().unwrap().starts_with("+OK 2 messages deleted"),
        "{said:?}"
    );
    let deleted: Vec<&str> = early.iter().take(2).map(|mail| subject_of(mail)).collect();
    accepted.retain(|subject| !deleted.contains(&subject.as_str()));

    disk.make_room();
    wait_for("mail to be taken again", Duration::from_secs(60), || {
        let reply = send("after.", 1_000);
        if reply.starts_with("250") {
            accepted.push("after.".to_owned());
        }
        reply.starts_with("250")
    });
    assert!(send("large again.", 10_000).starts_with("250"));
    accepted.push("large again.".to_owned());
    assert_holds(&site, &accepted);
    // and what it said durable is
    server.kill();
    let _server = Server::start(&site);
    assert_holds(&site, &accepted);
}

#[test]
fn a_full_disk_of_inodes_is_an_alarm_before_it_is_full() {
    for (inodes, is_alarm) in [(900, true), (100_000, false)] {
        let disk = SmallDisk::with(64, &format!(",nr_inodes={inodes}"));
        let mut site = Site::new(Plan::sample());
        site.keep_data_in(&disk.0.path().join("data"));
        let _server = Server::start(&site);
        let status = site.ask(&["status"]).must();
        assert_eq!(status.contains(" inodes left;"), is_alarm, "{status}");
        assert!(!status.contains(" octets left;"), "{status}");
    }
}

/// bob has exactly the mails with these subjects.
#[track_caller]
fn assert_holds(site: &Site, subjects: &[String]) {
    let mails = wait_for_mails(site.pop3, "bob", PASSWORD, subjects.len());
    let mut found: Vec<&str> = mails.iter().map(|mail| subject_of(mail)).collect();
    let mut wanted: Vec<&str> = subjects.iter().map(String::as_str).collect();
    found.sort();
    wanted.sort();
    assert_eq!(found, wanted);
}

fn subject_of(mail: &str) -> &str {
    let after = mail.split_once("Subject: ").unwrap().1;
    after.lines().next().unwrap()
}

#[test]
fn a_damaged_segment_of_the_log_is_refused_with_its_place() {
    let plan = Plan::sample()
        .set("log", "segment_bytes", "\"2 MiB\"")
        .set("log", "bytes_max", "\"32 MiB\"")
        .set("store", "flush_interval", "\"1h\"");
    let site = Site::new(plan);
    let mut server = Server::start(&site);
    let content = format!(
        "Subject: x\n\n{}",
        "0123456789abcdefghijklmnopqrstuvwxyz\n".repeat(2500)
    );
    let segments = || {
        let entries = std::fs::read_dir(site.data().join("log"))
            .unwrap()
            .map(|entry| entry.unwrap().path());
        let mut files: Vec<PathBuf> = entries
            .filter(|path| path.extension().is_some_and(|end| end == "wal"))
            .collect();
        files.sort();
        files
    };
    let mut sent = 0;
    while segments().len() < 2 {
        assert!(send_mail(site.smtp, "", &["bob@example.jp"], &content).starts_with("250"));
        sent += 1;
    }
    server.kill();
    let sealed = segments()[0].clone();
    let whole = std::fs::read(&sealed).unwrap();
    let mut damaged = whole.clone();
    let at = whole.len() / 2;
    damaged[at] ^= 1;
    std::fs::write(&sealed, &damaged).unwrap();
    let why = Server::try_start(&site).expect_err("it must not start");
    let name = sealed.file_name().unwrap().to_str().unwrap();
    let (_, place) = why
        .split_once(&format!("{name} at offset "))
        .unwrap_or_else(|| panic!("{why}"));
    let offset: usize = place.split(':').next().unwrap().parse().unwrap();
    assert!(
        offset <= at && at - offset < 200_000,
        "the record is at {offset}, the damage at {at}"
    );
    assert_eq!(
        std::fs::read(&sealed).unwrap(),
        damaged,
        "it is left as it is"
    );
    std::fs::write(&sealed, &whole).unwrap();
    let _server = Server::start(&site);
    wait_for_mails(site.pop3, "bob", PASSWORD, sent);
}

/// Sends bytes, closes its side or not, and reads what comes until the server closes or two seconds are over.
fn poke(server: SocketAddr, bytes: &[u8], half_close: bool) -> Vec<u8> {
    let mut stream = TcpStream::connect(server).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(2)))
        .unwrap();
    let _ = stream.write_all(bytes);
    if half_close {
        let _ = stream.shutdown(Shutdown::Write);
    }
    let mut said = Vec::new();
    let _ = stream.take(1 << 20).read_to_end(&mut said);
    said
}

#[test]
fn garbage_ends_its_own_connection_only() {
    let site = Site::new(Plan::sample().certificate());
    let server = Server::start(&site);
    let listeners = [site.smtp, site.pop3, server.address("pop3s")];
    // two bystanders in the middle of what they do
    let mut sender = Talk::connect(site.smtp).unwrap();
    sender.reply();
    sender.smtp("EHLO client.example");
    sender.smtp("MAIL FROM:<alice@example.jp>");
    sender.smtp("RCPT TO:<bob@example.jp>");
    assert!(sender.smtp("DATA").starts_with("354"));
    let mut reader = Talk::connect(site.pop3).unwrap();
    reader
        .send(format!("USER carol\r\nPASS {PASSWORD}\r\n").as_bytes())
        .unwrap();
    for _ in 0..3 {
        assert!(reader.line().unwrap().unwrap().starts_with("+OK"));
    }

    let noise: Vec<u8> = (0..100_000u32)
        .map(|number| (number.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    let long = [b'A'; 200_000];
    let hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 and then nonsense \x00\x00\x00\xff\xff\xff\xff";
    let starttls =
        b"EHLO x\r\nSTARTTLS\r\n\x16\x03\x01\x00\x05hello, this is no handshake at all\r\n";
    let stls = b"STLS\r\n\x16\x03\x01\x00\x05hello, this is no handshake at all\r\n";
    let injected =
        b"EHLO x\r\nSTARTTLS\r\nMAIL FROM:<a@example.jp>\r\nRCPT TO:<bob@example.jp>\r\n";
    let inputs: [&[u8]; 9] = [
        &noise,
        &long,
        hello,
        starttls,
        stls,
        injected,
        b"\0\0\0\0",
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"",
    ];
    std::thread::scope(|scope| {
        for server in listeners {
            for bytes in inputs {
                scope.spawn(move || {
                    for half_close in [true, false] {
                        let said = poke(server, bytes, half_close);
                        let text = String::from_utf8_lossy(&said);
                        assert!(
                            !text.contains("250 2.1.5"),
                            "nothing sent before TLS counts: {text}"
                        );
                    }
                });
            }
        }
    });

    assert!(
        sender
            .smtp("Subject: bystander\r\n\r\nfine\r\n.")
            .starts_with("250")
    );
    reader.send(b"STAT\r\nQUIT\r\n").unwrap();
    assert_eq!(reader.line().unwrap().unwrap(), "+OK 0 0");
    wait_for_mails(site.pop3, "bob", PASSWORD, 1);
    assert!(!server.log().contains("panicked"), "{}", server.log());
}
