//! Ten thousand connections that do nothing: what each costs the server, and that a bystander does not notice them.

use std::net::SocketAddr;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use hikyaku_tests::harness::crowd::{Bystander, allow_descriptors, connect_from, source};
use hikyaku_tests::harness::server::Server;
use hikyaku_tests::harness::site::{Plan, Site};
use hikyaku_tests::harness::wire::{self, Wire};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Connections in the clear, of SMTP and of POP3.
const CLEAR: u32 = 10_000;
/// Connections under TLS, of each.
const COVERED: u32 = 500;
/// Those that come and go before the first look at memory, so that what the server needs once is there.
const WARM_UP: u32 = 300;
/// Opened at once.
const AT_ONCE: usize = 100;
/// Longest wait for one answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// Octets of the server's memory that a connection may cost.
const CLEAR_BYTES_MAX: u64 = 12 << 10;
const COVERED_BYTES_MAX: u64 = 40 << 10;
/// What the bystander's p99 among them may be more than ten times its p99 before them.
const P99_MORE_MAX: Duration = Duration::from_millis(1500);
/// How long the bystander is watched.
const WATCHED: Duration = Duration::from_secs(1);

/// Only one of these tests at a time: their connections together would need twice the descriptors.
static ALONE: Mutex<()> = Mutex::new(());

/// What is said until it is idle, and what answers end with; each a line.
type Opening = &'static [(&'static str, &'static str)];

const SMTP: Opening = &[("", "220 "), ("EHLO client.example\r\n", "250 ")];
const POP3: Opening = &[
    ("", "+OK"),
    ("USER bob\r\n", "+OK"),
    ("PASS hikyaku\r\n", "+OK"),
];

fn site() -> Site {
    let all = (CLEAR + 1000).to_string();
    let plan = Plan::sample()
        .certificate()
        .set("telemetry", "log_filter", "\"warn\"")
        .set("smtp", "connections_max", &all)
        .set("pop3", "connections_max", &all);
    Site::new(plan)
}

/// Opens connections of these numbers and leaves them idle.
async fn open(server: SocketAddr, opening: Opening, numbers: Range<u32>) -> Vec<TcpStream> {
    let mut idle = Vec::new();
    let mut number = numbers.start;
    while number < numbers.end {
        let batch: Vec<_> = (number..numbers.end.min(number + AT_ONCE as u32))
            .map(|number| tokio::spawn(open_one(server, opening, number)))
            .collect();
        number += batch.len() as u32;
        for one in batch {
            idle.push(one.await.unwrap());
        }
    }
    idle
}

async fn open_one(server: SocketAddr, opening: Opening, number: u32) -> TcpStream {
    let mut stream = connect_from(source(number), server, None).await.unwrap();
    for (say, end) in opening {
        stream.write_all(say.as_bytes()).await.unwrap();
        let (mut heard, mut piece) = (Vec::new(), [0; 512]);
        let has_answer = |heard: &[u8]| {
            let text = String::from_utf8_lossy(heard);
            text.ends_with("\r\n") && text.lines().any(|line| line.starts_with(end))
        };
        while !has_answer(&heard) {
            let read = tokio::time::timeout(ANSWER_TIMEOUT, stream.read(&mut piece));
            let count = read.await.expect("an answer in time").unwrap();
            assert!(
                count > 0,
                "connection {number} ended: {}",
                heard.escape_ascii()
            );
            heard.extend_from_slice(&piece[..count]);
        }
    }
    stream
}

/// The same under TLS, one after another.
fn open_covered(
    server: SocketAddr,
    site: &Site,
    opening: Opening,
    numbers: Range<u32>,
) -> Vec<Wire> {
    use std::io::{Read, Write};
    let config = wire::trusting(&site.certificate());
    let runtime = runtime();
    let one = |number| {
        let stream = runtime
            .block_on(connect_from(source(number), server, None))
            .unwrap();
        let stream = stream.into_std().unwrap();
        stream.set_nonblocking(false).unwrap();
        stream.set_read_timeout(Some(ANSWER_TIMEOUT)).unwrap();
        let mut wire = Wire::Clear(stream).encrypt(config.clone()).unwrap();
        for (say, end) in opening {
            wire.write_all(say.as_bytes()).unwrap();
            let (mut heard, mut piece) = (Vec::new(), [0; 512]);
            while !String::from_utf8_lossy(&heard)
                .lines()
                .any(|line| line.starts_with(end))
            {
                let count = wire.read(&mut piece).unwrap();
                assert!(count > 0, "connection {number} ended");
                heard.extend_from_slice(&piece[..count]);
            }
        }
        wire
    };
    numbers.map(one).collect()
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}

/// What one of `count` connections costs, from the memory before and now.
fn octets_each(server: &Server, before: u64, count: u32) -> u64 {
    server.resident().saturating_sub(before) / u64::from(count)
}

#[track_caller]
fn idle_in_the_clear(service: &str, opening: Opening) {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    allow_descriptors(u64::from(CLEAR) + 2000);
    let site = site();
    let mut server = Server::start(&site);
    let address = server.address(service);
    let runtime = runtime();
    let watch = || {
        let bystander = Bystander::begin(site.smtp, site.pop3, "alice");
        std::thread::sleep(WATCHED);
        bystander.end()
    };
    let alone = watch();
    // of sources of their own: the server may notice only later that they are gone, and a source has a limit
    let warm_up = CLEAR..CLEAR + WARM_UP;
    drop(runtime.block_on(open(address, opening, warm_up)));
    let (before, began) = (server.resident(), Instant::now());
    let idle = runtime.block_on(open(address, opening, 0..CLEAR));
    let opened_in = began.elapsed();
    let octets = octets_each(&server, before, CLEAR);
    let among = watch();
    println!(
        "{CLEAR} idle {service} connections, opened in {:.1} s: {octets} octets of the server's memory each; bystander p99 {} ms ({} rounds), {} ms without them",
        opened_in.as_secs_f64(),
        among.p99().as_millis(),
        among.count(),
        alone.p99().as_millis(),
    );
    let open = server.descriptors();
    assert!(open >= CLEAR as usize, "only {open} descriptors are open");
    assert!(octets <= CLEAR_BYTES_MAX, "{octets} octets each");
    let limit = alone.p99() * 10 + P99_MORE_MAX;
    assert!(
        among.p99() < limit,
        "{:?}, {:?} without them",
        among.p99(),
        alone.p99()
    );
    drop(idle);
    assert!(server.stop().0.success());
}

#[track_caller]
fn idle_under_tls(service: &str, opening: Opening) {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let site = site();
    let server = Server::start(&site);
    let address = server.address(service);
    let warm_up = COVERED..COVERED + WARM_UP / 3;
    drop(open_covered(address, &site, opening, warm_up));
    let before = server.resident();
    let idle = open_covered(address, &site, opening, 0..COVERED);
    let octets = octets_each(&server, before, COVERED);
    println!(
        "{} idle {service} connections: {octets} octets of the server's memory each",
        idle.len()
    );
    assert!(octets <= COVERED_BYTES_MAX, "{octets} octets each");
}

#[test]
fn ten_thousand_idle_smtp_connections() {
    idle_in_the_clear("smtp", SMTP);
}

#[test]
fn ten_thousand_idle_pop3_connections() {
    idle_in_the_clear("pop3", POP3);
}

#[test]
fn idle_smtp_connections_under_tls() {
    idle_under_tls("smtps", SMTP);
}

#[test]
fn idle_pop3_connections_under_tls() {
    idle_under_tls("pop3s", POP3);
}
