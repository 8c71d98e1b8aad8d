//! Scaling laws: whatever reads what strangers, users or files say takes time and memory in proportion to how much there is of it,
//! also where it was made to hurt (CATALOGUE B-120).
//!
//! For each case inputs of n, 2n and 4n are read. What is allocated on the way is exact, so it is compared as it is. Time is the
//! processor's for this thread alone, the least of several readings, repeated until it is long enough to mean something; a case
//! fails only if it exceeds twice the proportion time after time, where work that grows with the square would be at four times.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use hikyaku_access::pop3::command::Command as Pop3Command;
use hikyaku_access::pop3::multiline::Multiline;
use hikyaku_access::pop3::sasl;
use hikyaku_directory::ldif::{self, Limits};
use hikyaku_directory::load::load;
use hikyaku_directory::settings::Settings;
use hikyaku_fuzz::memory::allocated_by;
use hikyaku_log::{Applied, Bounds, Position, Stamp};
use hikyaku_mail::dsn::header_of;
use hikyaku_mail::id::{Class, MessageId, ShardId};
use hikyaku_mail::path::{Mailbox, cut_path, normal_domain};
use hikyaku_proto::v1::record::Command;
use hikyaku_proto::v1::{self, Record, body, outcome, recipient};
use hikyaku_queue::machine::{QueueMachine, QueueOptions};
use hikyaku_serve::line::LineCutter;
use hikyaku_shard::machine::Machine;
use hikyaku_smtp::command;
use hikyaku_smtp::content::{Event, Scanner};
use hikyaku_smtp::options::Options;
use prost::Message as _;
use rustix::time::{ClockId, clock_gettime};

/// A reading shorter than this is repeated within itself.
const READING: Duration = Duration::from_millis(1);
/// The least of so many readings counts.
const READINGS: usize = 3;
/// So often a case may fail before it has failed.
const TRIES: usize = 6;
/// Four times the input may take so many times as long; linear work takes 4 times, quadratic 16.
const FACTOR: f64 = 8.0;

/// Reads an input of the size it is given, once: makes it, then answers with what reads it.
type Case = (&'static str, usize, fn(usize) -> Box<dyn Fn()>);

fn processor_time() -> Duration {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    let second = u64::try_from(now.tv_sec).unwrap_or_default();
    Duration::new(second, u32::try_from(now.tv_nsec).unwrap_or_default())
}

/// Seconds that `work` takes, at the least.
fn least(work: &dyn Fn(), rounds: u32) -> f64 {
    let mut least = f64::INFINITY;
    for _ in 0..READINGS {
        let began = processor_time();
        for _ in 0..rounds {
            work();
        }
        least = least.min((processor_time() - began).as_secs_f64() / f64::from(rounds));
    }
    least
}

/// How many times `work` must be done for a reading.
fn rounds(work: &dyn Fn()) -> u32 {
    let mut rounds = 1;
    loop {
        let began = processor_time();
        for _ in 0..rounds {
            work();
        }
        if processor_time() - began >= READING || rounds > 1 << 20 {
            return rounds;
        }
        rounds *= 2;
    }
}

fn check(&(name, n, make): &Case) -> Result<(), String> {
    let [once, twice, four] = [n, 2 * n, 4 * n].map(make);
    let allocated = [&once, &twice, &four].map(allocated_by);
    for (index, factor) in [(1, 2), (2, 4)] {
        // a vector that grows by doubling may be just past a step
        let most = allocated[0] * factor * 3 / 2 + (16 << 10);
        if allocated[index] > most {
            return Err(format!(
                "{name}: allocates {allocated:?} octets for {n}, 2 and 4 times {n}"
            ));
        }
    }
    let rounds = rounds(&once);
    let mut seen = Vec::new();
    for _ in 0..TRIES {
        let (one, four) = (least(&once, rounds), least(&four, rounds));
        if four <= FACTOR * one {
            println!(
                "{name}: {:.1} us for {n}, {:.1} times as much for 4 times",
                one * 1e6,
                four / one
            );
            return Ok(());
        }
        seen.push(format!("{:.1}", four / one));
    }
    Err(format!(
        "{name}: four times {n} took {} times as long",
        seen.join(", ")
    ))
}

// one test: allocations are counted for the whole program
#[test]
fn readers_take_time_and_memory_in_proportion() {
    for case in CASES {
        if let Err(why) = check(case) {
            panic!("{why}");
        }
    }
    // and it is seen when something does not; a neighbour may spoil one reading for it, too
    let seen = || check(&QUADRATIC_TIME).is_err_and(|why| why.contains("times as long"));
    assert!((0..TRIES).any(|_| seen()));
    assert!(check(&QUADRATIC_MEMORY).is_err_and(|why| why.contains("allocates")));
}

const QUADRATIC_TIME: Case = ("quadratic time", 2000, |n| {
    let text = vec![b'x'; n];
    Box::new(move || {
        let found = (0..n).filter(|&at| text[at..].contains(&b'y')).count();
        assert_eq!(found, 0);
    })
});

const QUADRATIC_MEMORY: Case = ("quadratic memory", 500, |n| {
    Box::new(move || {
        for length in 0..n {
            assert_eq!(
                std::hint::black_box(Vec::<u8>::with_capacity(length)).len(),
                0
            );
        }
    })
});

const CASES: &[Case] = &[
    // SMTP: lines
    ("lines, empty", 20_000, |n| {
        lines(b"\r\n".repeat(n), usize::MAX)
    }),
    ("lines, octet by octet", 10_000, |n| lines(vec![b'x'; n], 1)),
    ("lines, long, CR at each cut", 4_000, |n| {
        lines([vec![b'x'; n], b"\r\n".to_vec()].concat(), 3)
    }),
    // SMTP: content
    ("content, dots", 50_000, |n| {
        content(vec![b'.'; n], usize::MAX)
    }),
    ("content, lines of one dot more", 20_000, |n| {
        content(b"..\r\n".repeat(n), usize::MAX)
    }),
    ("content, empty lines", 20_000, |n| {
        content(b"\r\n".repeat(n), usize::MAX)
    }),
    ("content, lines of one octet", 20_000, |n| {
        content(b"x\r\n".repeat(n), usize::MAX)
    }),
    ("content, bare CRs", 50_000, |n| {
        content(vec![b'\r'; n], usize::MAX)
    }),
    ("content, bare LFs", 50_000, |n| {
        content(vec![b'\n'; n], usize::MAX)
    }),
    ("content, NULs", 50_000, |n| content(vec![0; n], usize::MAX)),
    ("content, nearly ended", 20_000, |n| {
        content(b"\r\n.\r".repeat(n), usize::MAX)
    }),
    ("content, one line", 200_000, |n| {
        content(vec![b'x'; n], usize::MAX)
    }),
    ("content, octet by octet", 20_000, |n| {
        content(b"a\r\n..b\r\n".repeat(n / 8), 1)
    }),
    ("content, header fields", 10_000, |n| {
        content(b"To: a\r\n".repeat(n), usize::MAX)
    }),
    ("content, one folded field", 10_000, |n| {
        content(
            [&b"To: a\r\n"[..], &b" b\r\n".repeat(n)].concat(),
            usize::MAX,
        )
    }),
    ("content, Received fields", 10_000, |n| {
        content(b"Received: a\r\n".repeat(n), usize::MAX)
    }),
    ("content, a field's name octet by octet", 50_000, |n| {
        content(vec![b'n'; n], 1)
    }),
    ("header of a returned mail", 20_000, |n| {
        let text = b"\r\n\r".repeat(n);
        Box::new(move || drop(header_of(&text).to_vec()))
    }),
    // SMTP: commands; they are short, and what is too long is not looked at
    ("command, parameters", 120, |n| {
        smtp_command(format!("MAIL FROM:<a@b>{}", " X".repeat(n / 4)))
    }),
    ("command, spaces", 120, |n| {
        smtp_command(format!("MAIL FROM:{}<a@b>", " ".repeat(n)))
    }),
    ("command, quoted pairs", 120, |n| {
        smtp_command(format!("RCPT TO:<\"{}\"@b>", "\\\"".repeat(n / 8)))
    }),
    ("command, a route", 120, |n| {
        smtp_command(format!("RCPT TO:<{}:a@b>", vec!["@a"; n / 8].join(",")))
    }),
    ("command, xtext", 120, |n| {
        smtp_command(format!("RCPT TO:<a@b> ORCPT=x;{}", "+2B".repeat(n / 3)))
    }),
    ("command, utf-8-addr-unitext", 120, |n| {
        smtp_command(format!(
            "RCPT TO:<a@b> ORCPT=utf-8;{}",
            "\u{e9}".repeat(n / 2)
        ))
    }),
    ("command, far too long", 100_000, |n| {
        smtp_command(format!("MAIL FROM:<{}@b>", "a".repeat(n)))
    }),
    // addresses, of any length: from the directory's file, from records
    ("path, quotes", 50_000, |n| {
        text(format!("<{}", "\"".repeat(n)), |text| {
            cut_path(text).is_ok()
        })
    }),
    ("path, backslashes", 50_000, |n| {
        text(format!("<\"{}", "\\".repeat(n)), |text| {
            cut_path(text).is_ok()
        })
    }),
    ("path, a route", 20_000, |n| {
        text(format!("<{}:a@b>", vec!["@a"; n].join(",")), |text| {
            cut_path(text).is_ok()
        })
    }),
    ("mailbox, at signs", 50_000, |n| {
        text("@".repeat(n), |text| text.parse::<Mailbox>().is_ok())
    }),
    ("domain, labels", 50_000, |n| {
        text("a.".repeat(n), |text| normal_domain(text).is_ok())
    }),
    ("domain, U-labels", 20_000, |n| {
        text("\u{e9}.".repeat(n), |text| normal_domain(text).is_ok())
    }),
    ("domain, an A-label", 50_000, |n| {
        text(format!("xn--{}", "a".repeat(n)), |text| {
            normal_domain(text).is_ok()
        })
    }),
    ("mailbox, combining marks", 20_000, |n| {
        text(format!("a{}@b", "\u{308}".repeat(n)), |text| {
            text.parse::<Mailbox>().is_ok()
        })
    }),
    // POP3
    ("pop3, digits", 50_000, |n| {
        pop3_command(format!("RETR {}", "9".repeat(n)))
    }),
    ("pop3, spaces", 50_000, |n| {
        pop3_command(format!("TOP 1{}", " ".repeat(n)))
    }),
    ("pop3, a name", 50_000, |n| {
        pop3_command(format!("USER {}", "\u{e9}".repeat(n)))
    }),
    ("pop3, a login of NULs", 20_000, |n| {
        let response = "AAAA".repeat(n);
        Box::new(move || assert!(sasl::plain(response.as_bytes()).is_err()))
    }),
    ("pop3 reply, dots", 20_000, |n| {
        multiline(b".\r\n".repeat(n), usize::MAX)
    }),
    ("pop3 reply, LFs octet by octet", 20_000, |n| {
        multiline(vec![b'\n'; n], 1)
    }),
    // LDIF
    ("ldif, a folded line", 20_000, |n| {
        ldif_file(format!("dn: a\nx: y\n{}", " z\n".repeat(n)))
    }),
    ("ldif, folded base64", 10_000, |n| {
        ldif_file(format!("dn: a\nx:: \n{}", " QUFB\n".repeat(n)))
    }),
    ("ldif, base64 in one line", 20_000, |n| {
        ldif_file(format!("dn: a\nx:: {}\n", "QUFB".repeat(n)))
    }),
    ("ldif, attributes", 10_000, |n| {
        ldif_file(format!("dn: a\n{}", "x: y\n".repeat(n)))
    }),
    ("ldif, comments", 20_000, |n| {
        ldif_file("# x\n y\n".repeat(n))
    }),
    ("ldif, records", 5_000, |n| {
        ldif_file("dn: a\nx: y\n\n".repeat(n))
    }),
    ("ldif, colons", 50_000, |n| {
        ldif_file(format!("dn: a\nx: {}\n", ":".repeat(n)))
    }),
    // the directory made of it
    ("directory, users", 1_000, |n| {
        directory(users(n, |i| (format!("u{i}"), format!("u{i}@x.jp"))))
    }),
    ("directory, all of one address", 1_000, |n| {
        directory(users(n, |i| (format!("u{i}"), "u@x.jp".to_owned())))
    }),
    ("directory, all of one name", 1_000, |n| {
        directory(users(n, |i| ("u".to_owned(), format!("u{i}@x.jp"))))
    }),
    ("directory, all of one id", 1_000, |n| {
        directory(users(n, |i| {
            (format!("u{i}"), format!("u{i}@x.jp\nentryUUID: u"))
        }))
    }),
    ("directory, all of one DN", 1_000, |n| {
        directory("dn: uid=u\nuid: u\nmailLocalAddress: u@x.jp\n\n".repeat(n))
    }),
    ("directory, addresses of one user", 2_000, |n| {
        let addresses = (0..n).map(|i| format!("mailLocalAddress: u{i}@x.jp\n"));
        directory(format!(
            "dn: uid=u\nuid: u\n{}",
            addresses.collect::<String>()
        ))
    }),
    ("directory, a group of unknown members", 2_000, |n| {
        group(n, |i| format!("member: uid=nobody{i}\n"))
    }),
    ("directory, a group of strangers", 2_000, |n| {
        group(n, |i| format!("mgrpRFC822MailMember: u{i}@elsewhere.jp\n"))
    }),
    ("directory, a group of one member many times", 2_000, |n| {
        group(n, |_| "mgrpRFC822MailMember: u@elsewhere.jp\n".to_owned())
    }),
    ("directory, a chain of groups", 1_000, |n| {
        let groups = (0..n).map(|i| format!("dn: cn=g{i}\nobjectClass: groupOfNames\nmailLocalAddress: g{i}@x.jp\nmember: cn=g{}\n\n", (i + 1) % n));
        directory(groups.collect())
    }),
    // records
    ("a record, recipients", 1_000, |n| {
        let record = accept(n).encode_to_vec();
        Box::new(move || drop(Record::decode(&*record)))
    }),
    ("queue, a mail to many", 300, |n| queue(vec![accept(n)])),
    ("queue, a mail expanded to many", 300, |n| {
        queue(vec![accept(1), routed(n, |i| format!("u{i}"))])
    }),
    ("queue, a mail expanded to one many times", 300, |n| {
        queue(vec![accept(1), routed(n, |_| "u".to_owned())])
    }),
    ("queue, many outcomes", 300, |n| {
        queue(vec![accept(n), attempted(n)])
    }),
    ("queue, outcomes of one recipient", 300, |n| {
        queue(
            std::iter::once(accept(1))
                .chain((0..n).map(|_| attempted(1)))
                .collect(),
        )
    }),
];

fn text(text: String, read: fn(&str) -> bool) -> Box<dyn Fn()> {
    Box::new(move || {
        std::hint::black_box(read(&text));
    })
}

fn lines(stream: Vec<u8>, piece: usize) -> Box<dyn Fn()> {
    Box::new(move || {
        let (mut cutter, mut buffer) = (LineCutter::default(), BytesMut::new());
        for piece in stream.chunks(piece) {
            buffer.extend_from_slice(piece);
            while cutter.cut(&mut buffer, 512).is_some() {}
        }
    })
}

fn content(stream: Vec<u8>, piece: usize) -> Box<dyn Fn()> {
    let options = Options::new("mx.example.jp");
    Box::new(move || {
        let mut scanner = Scanner::new(&options);
        for piece in stream.chunks(piece) {
            let mut rest = piece;
            while !matches!(
                scanner.next(&mut rest),
                Event::More | Event::End | Event::Endless
            ) {}
        }
    })
}

fn smtp_command(line: String) -> Box<dyn Fn()> {
    Box::new(move || {
        let _ = std::hint::black_box(command::parse(line.as_bytes()));
    })
}

fn pop3_command(line: String) -> Box<dyn Fn()> {
    Box::new(move || {
        let _ = std::hint::black_box(Pop3Command::parse(line.as_bytes()));
    })
}

fn multiline(content: Vec<u8>, piece: usize) -> Box<dyn Fn()> {
    Box::new(move || {
        let (mut encoder, mut out) = (Multiline::top(u32::MAX), Vec::new());
        for piece in content.chunks(piece) {
            encoder.push(piece, &mut out);
        }
        encoder.finish(&mut out);
    })
}

fn ldif_file(file: String) -> Box<dyn Fn()> {
    let limits = Limits::default();
    Box::new(move || {
        let read = ldif::records(file.as_bytes(), limits)
            .filter(Result::is_ok)
            .count();
        std::hint::black_box(read);
    })
}

fn users(n: usize, of: impl Fn(usize) -> (String, String)) -> String {
    let user = |i| {
        let (uid, address) = of(i);
        format!("dn: uid=u{i},dc=x\nuid: {uid}\nmailHost: m\nmailLocalAddress: {address}\n\n")
    };
    (0..n).map(user).collect()
}

fn group(n: usize, member: impl Fn(usize) -> String) -> Box<dyn Fn()> {
    let members: String = (0..n).map(member).collect();
    directory(format!(
        "dn: cn=g\nobjectClass: groupOfNames\nmailLocalAddress: g@x.jp\n{members}"
    ))
}

/// Loads the file of a site, and asks for one address.
fn directory(file: String) -> Box<dyn Fn()> {
    const SITE: &str = "dn: dc=x\nobjectClass: domainRelatedObject\nassociatedDomain: x.jp\n\n";
    let (file, settings) = (format!("{SITE}{file}"), Settings::new(&["m"], "x.jp"));
    let Ok(address) = "g@x.jp".parse::<Mailbox>() else {
        panic!("it is an address");
    };
    Box::new(move || match load(file.as_bytes(), &settings) {
        Ok(table) => drop(std::hint::black_box(table.resolve(&address))),
        Err(findings) => panic!("{findings:?}"),
    })
}

fn message_id() -> Bytes {
    let id = MessageId::new(ShardId::new(Class::Incoming, 0), 1, 1);
    Bytes::copy_from_slice(&id.to_bytes())
}

fn recipients(n: usize, name: impl Fn(usize) -> String) -> Vec<v1::Recipient> {
    let recipient = |i| v1::Recipient {
        address: format!("{}@x.jp", name(i)),
        target: Some(recipient::Target::Local(v1::LocalTarget {
            account: name(i),
            tenant: "t".into(),
            mbox: "m".into(),
        })),
        ..v1::Recipient::default()
    };
    (0..n).map(recipient).collect()
}

fn record(command: Command) -> Record {
    Record {
        version: 1,
        cmd_id: Bytes::new(),
        time_ms: 1,
        command: Some(command),
    }
}

fn accept(n: usize) -> Record {
    record(Command::Accept(v1::Accept {
        message_id: message_id(),
        envelope: Some(v1::Envelope::default()),
        recipients: recipients(n, |i| format!("r{i}")),
        body: Some(v1::Body {
            content: Some(body::Content::Zstd(Bytes::from_static(b"x"))),
            size: 1,
            blake3: vec![0; 32].into(),
        }),
        ..v1::Accept::default()
    }))
}

fn routed(n: usize, name: impl Fn(usize) -> String) -> Record {
    record(Command::Routed(v1::Routed {
        message_id: message_id(),
        recipient: 0,
        children: recipients(n, name),
        ..v1::Routed::default()
    }))
}

fn attempted(n: usize) -> Record {
    let deferred = |recipient| v1::Outcome {
        recipient,
        result: Some(outcome::Result::Deferred(v1::Deferred {
            status: Some(v1::Status::default()),
            due_ms: 9,
        })),
    };
    record(Command::Attempted(v1::Attempted {
        message_id: message_id(),
        outcomes: (0..n as u32).map(deferred).collect(),
        ..v1::Attempted::default()
    }))
}

fn queue(records: Vec<Record>) -> Box<dyn Fn()> {
    Box::new(move || {
        let mut machine = QueueMachine::new(QueueOptions::default());
        let bounds = Bounds {
            start: Position(1),
            end: Position(1),
        };
        assert!(machine.resume(1, bounds).is_ok());
        for (record, position) in records.iter().zip(1..) {
            let stamp = Stamp {
                position: Position(position),
                crc: 0,
            };
            assert!(machine.apply(stamp, record.clone()).is_ok());
            assert!(
                machine
                    .batch_end(Applied {
                        incarnation: 1,
                        stamp
                    })
                    .is_ok()
            );
        }
    })
}
