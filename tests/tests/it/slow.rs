//! Peers that are slow on purpose: several hundred hold whatever a peer can hold, a bystander's mail does not wait for them, and
//! each is ended at its deadline. One source has no more than its share.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use hikyaku_tests::harness::crowd::{self, Bystander, connect_from, hear};
use hikyaku_tests::harness::server::Server;
use hikyaku_tests::harness::site::{PASSWORD, Plan, Site};
use hikyaku_tests::harness::talk::{Talk, send_mail, wait_for_mails};
use hikyaku_tests::harness::wait_for;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

/// All deadlines of the server.
const DEADLINE: Duration = Duration::from_secs(3);
/// How much later a peer may hear that its time is over: it has to be scheduled, and so has the server. Less than the shortest
/// drip lasts, so that a server that begins to count anew at each octet is too late.
const LATE_MAX: Duration = Duration::from_secs(9);
/// Peers of each kind.
const PEERS: u32 = 40;
/// How long the bystander is watched without them.
const ALONE: Duration = Duration::from_secs(2);
/// Octets of the mail that nobody reads to its end: more than the buffers of a connection hold.
const LARGE_BYTES: usize = 12 << 20;
/// Longest wait for the end of a connection that the server has left.
const END_TIMEOUT: Duration = Duration::from_secs(60);
/// The receive buffer of those who do not read.
const RECEIVE_BYTES: u32 = 4096;

/// How a peer is slow.
#[derive(Clone, Copy, Debug)]
struct Slowness {
    /// To which listener.
    listener: &'static str,
    /// What it says first; before it, and at each `|`, it waits for what the server says.
    opening: &'static str,
    /// What it goes on with, an octet a second.
    drip: &'static [u8],
    /// Whether it reads what the server says.
    reads: bool,
}

const fn slow(listener: &'static str, opening: &'static str, drip: &'static [u8]) -> Slowness {
    Slowness {
        listener,
        opening,
        drip,
        reads: true,
    }
}

const HELLO: &[u8] = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03";

const KINDS: [Slowness; 14] = [
    slow("smtp", "", b""),
    slow("smtp", "", b"EHLO slow.example"),
    slow("smtp", "EHLO x\r\n", b"NOOP NOOP NOOP"),
    slow(
        "smtp",
        "EHLO x\r\n|MAIL FROM:<a@b.example>\r\nRCPT TO:<bob@example.jp>\r\nDATA\r\n",
        b"Subject: slow",
    ),
    slow(
        "smtp",
        "EHLO x\r\n|MAIL FROM:<a@b.example>\r\nRCPT TO:<bob@example.jp>\r\nBDAT 1000 LAST\r\n",
        b"Subject: slow",
    ),
    slow("smtp", "EHLO x\r\n|STARTTLS\r\n", b""),
    slow("smtps", "", HELLO),
    slow("smtps", "", b""),
    slow("pop3", "", b""),
    slow("pop3", "", b"USER slow slow slow"),
    slow(
        "pop3",
        "USER carol\r\nPASS hikyaku\r\n",
        b"STAT STAT STAT STAT",
    ),
    slow("pop3", "STLS\r\n", HELLO),
    slow("pop3s", "", HELLO),
    Slowness {
        listener: "pop3",
        opening: "USER carol\r\nPASS hikyaku\r\nRETR 1\r\n",
        drip: b"",
        reads: false,
    },
];

/// How long a slow peer was borne.
#[derive(Clone, Copy, Debug)]
struct Borne {
    /// From before it connected: the server has not begun to count by then.
    at_most: Duration,
    /// From after its last step forward: the server has begun.
    at_least: Duration,
}

/// Is slow until the server ends it, and says when that was; `None` for one that does not listen.
async fn be_slow(kind: Slowness, number: u32, server: SocketAddr) -> Option<Borne> {
    let receive = (!kind.reads).then_some(RECEIVE_BYTES);
    let source = crowd::source(number);
    let came = Instant::now();
    let mut stream = connect_from(source, server, receive).await.unwrap();
    for part in kind.opening.split('|') {
        if kind.reads && !part.is_empty() {
            hear(&mut stream, LATE_MAX).await;
        }
        stream.write_all(part.as_bytes()).await.unwrap();
    }
    let began = Instant::now();
    if !kind.reads {
        sleep(DEADLINE + LATE_MAX).await;
        let octets = rest(&mut stream).await;
        assert!(octets < LARGE_BYTES, "{kind:?} was waited for");
        return None;
    }
    let mut drip = kind.drip.iter();
    let mut heard = [0; 512];
    while began.elapsed() <= DEADLINE + LATE_MAX {
        match timeout(Duration::from_secs(1), stream.read(&mut heard)).await {
            Ok(Ok(0) | Err(_)) => break,
            Ok(Ok(_)) => {}
            Err(_) => {
                if let Some(octet) = drip.next()
                    && stream.write_all(&[*octet]).await.is_err()
                {
                    break;
                }
            }
        }
    }
    Some(Borne {
        at_most: came.elapsed(),
        at_least: began.elapsed(),
    })
}

/// Reads what is left in a connection; how many octets that is.
async fn rest(stream: &mut TcpStream) -> usize {
    let (mut octets, mut piece) = (0, vec![0; 64 << 10]);
    loop {
        let read = timeout(END_TIMEOUT, stream.read(&mut piece));
        match read.await.expect("more, or the end") {
            Ok(0) | Err(_) => return octets,
            Ok(count) => octets += count,
        }
    }
}

fn site() -> Site {
    let deadline = format!("\"{}s\"", DEADLINE.as_secs());
    let plan = Plan::sample()
        .certificate()
        .set("smtp", "command_timeout", &deadline)
        .set("smtp", "data_timeout", &deadline)
        .set("pop3", "login_timeout", &deadline)
        .set("pop3", "idle_timeout", &deadline);
    Site::new(plan)
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}

#[test]
fn slow_peers_are_ended_in_time_and_slow_nobody_else() {
    let site = site();
    let mut server = Server::start(&site);
    let large = "0123456789".repeat(7) + "\n";
    let large = large.repeat(LARGE_BYTES / large.len());
    let reply = send_mail(site.smtp, "", &["carol@example.jp"], &large);
    assert!(reply.starts_with("250"), "{reply}");
    wait_for_mails(site.pop3, "carol", PASSWORD, 1);

    let alone = || {
        let bystander = Bystander::begin(site.smtp, site.pop3, "alice");
        std::thread::sleep(ALONE);
        bystander.end().p99()
    };
    let alone_before = alone();
    let before = server.descriptors();

    let bystander = Bystander::begin(site.smtp, site.pop3, "alice");
    let took = runtime().block_on(async {
        let peers: Vec<_> = (0..PEERS * KINDS.len() as u32)
            .map(|number| {
                let kind = KINDS[number as usize % KINDS.len()];
                let address = server.address(kind.listener);
                (kind, tokio::spawn(be_slow(kind, number, address)))
            })
            .collect();
        let mut took = Vec::new();
        for (kind, peer) in peers {
            took.push((kind, peer.await.unwrap()));
        }
        took
    });
    let among = bystander.end();
    let borne = took.iter().filter_map(|(_, borne)| *borne);
    let longest = borne.map(|borne| borne.at_least).max().unwrap();
    println!(
        "{} slow peers, bystander p99 {} ms ({} rounds), {} ms without them; the last peer ended after {} ms, its deadline {} ms",
        took.len(),
        among.p99().as_millis(),
        among.count(),
        alone_before.as_millis(),
        longest.as_millis(),
        DEADLINE.as_millis(),
    );
    for (kind, borne) in &took {
        let Some(borne) = *borne else { continue };
        assert!(
            borne.at_most >= DEADLINE && borne.at_least < DEADLINE + LATE_MAX,
            "{borne:?} for {kind:?}"
        );
    }
    wait_for(
        "the descriptors to come back",
        Duration::from_secs(60),
        || server.descriptors() <= before + 5,
    );
    // the machine may have become busy with something else meanwhile; who has to wait for slow peers waits for their deadline
    let (alone_after, among) = (alone(), among.p99());
    let limit = alone_before.max(alone_after) * 10 + DEADLINE / 3;
    assert!(
        among < limit,
        "{among:?}; {alone_before:?} before and {alone_after:?} after them"
    );
    let log = server.log();
    assert!(!log.contains("panicked"), "{log}");
    assert!(log.contains("timed out waiting for you"), "{log}");
    assert!(server.stop().0.success());
}

#[test]
fn one_source_takes_no_more_than_its_share() {
    const SHARE: usize = 20;
    const GREED: usize = 400;
    let share = SHARE.to_string();
    let plan = Plan::sample()
        .set("smtp", "connections_max", "60")
        .set("smtp", "connections_per_source_max", &share)
        .set("pop3", "connections_max", "60")
        .set("pop3", "connections_per_source_max", &share);
    let site = Site::new(plan);
    let server = Server::start(&site);
    let greedy = Ipv4Addr::new(127, 0, 0, 99);
    let began = Instant::now();
    runtime().block_on(async {
        for address in [site.smtp, site.pop3] {
            let mut held = Vec::new();
            for _ in 0..GREED {
                let mut stream = connect_from(greedy, address, None).await.unwrap();
                let mut heard = [0; 100];
                let count = stream.read(&mut heard).await.expect("a word");
                let line = String::from_utf8_lossy(&heard[..count]).into_owned();
                if line.starts_with("220 ") || line.starts_with("+OK") {
                    held.push(stream);
                    continue;
                }
                let temporary = ["421 4.7.0 ", "-ERR [SYS/TEMP] "];
                assert!(
                    temporary.iter().any(|word| line.starts_with(word)),
                    "{line}"
                );
                assert_eq!(rest(&mut stream).await, 0, "it is closed");
            }
            assert_eq!(held.len(), SHARE, "at {address}");
            // and there is room for others
            let mut talk = Talk::connect(address).unwrap();
            let line = talk.line().unwrap().unwrap();
            assert!(line.starts_with("220") || line.starts_with("+OK"), "{line}");
        }
    });
    let reply = send_mail(site.smtp, "", &["bob@example.jp"], "Subject: x\n");
    assert!(reply.starts_with("250"), "{reply}");
    wait_for_mails(site.pop3, "bob", PASSWORD, 1);
    let log = server.log();
    let lines: Vec<&str> = log
        .lines()
        .filter(|line| line.contains("too many connections from this address"))
        .collect();
    assert!(
        lines.iter().any(|line| line.contains("peer=127.0.0.99:")),
        "{log}"
    );
    // ten a second of each listener, however many were closed, and how many is said
    let seconds = began.elapsed().as_secs() as usize + 2;
    assert!(lines.len() <= 20 * seconds, "{} lines", lines.len());
    assert!(lines.iter().all(|line| line.contains("left_out=")), "{log}");
}
