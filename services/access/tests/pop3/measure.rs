//! Logins over real sockets. Mostly figures, not tests: `cargo test -p hikyaku-access --release -- --ignored --nocapture measure_logins`, and so on.

use std::sync::Arc;
use std::time::Duration;

use hikyaku_access::mailboxes::{Mailboxes, MailboxesOptions};
use hikyaku_access::pop3::options::{Login, Pop3Options, Tls};
use hikyaku_access::pop3::server::{Pop3Deps, serve_pop3};
use hikyaku_directory::Directory;
use hikyaku_directory::ldif_directory::LdifDirectory;
use hikyaku_directory::password::{PoolLimits, hash_argon2, hash_ssha256};
use hikyaku_directory::settings::Settings;
use hikyaku_directory::throttle::{Throttle, ThrottleLimits};
use hikyaku_proto::transport::in_process;
use hikyaku_proto::v1::home_client::HomeClient;
use hikyaku_proto::v1::home_server::HomeServer;
use hikyaku_proto::v1::mailbox_client::MailboxClient;
use hikyaku_proto::v1::mailbox_server::MailboxServer;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::support::{Counter, Peers, Site};

const LOGINS: usize = 10_000;
const IDLE: usize = 2_000;

/// `alice` with {SSHA256}, `argon` with {ARGON2}; both have the password "pw".
fn directory() -> LdifDirectory {
    let mut text =
        "dn: dc=example\nobjectClass: domainRelatedObject\nassociatedDomain: example.jp\n\n"
            .to_owned();
    for (uid, stored) in [
        ("alice", hash_ssha256(b"pw", b"saltsalt")),
        ("argon", hash_argon2(b"pw", b"saltsaltsaltsalt").unwrap()),
    ] {
        text.push_str(&format!(
            "dn: uid={uid}\nuid: {uid}\nentryUUID: id-{uid}\nmailLocalAddress: {uid}@example.jp\n\
             mailHost: mbox1\nuserPassword: {stored}\n\n"
        ));
    }
    let settings = Settings::new(&["mbox1"], "example.jp");
    // whoever waits gets in, on a slow machine too
    let pool = PoolLimits {
        wait_max: Duration::from_secs(300),
        ..PoolLimits::default()
    };
    LdifDirectory::load(text.as_bytes(), settings, pool).unwrap()
}

/// A listener on loopback that serves alice's two mails.
async fn listen() -> std::net::SocketAddr {
    let site = Site::new();
    let peers = || -> Peers { site.peers.clone() };
    let mailboxes = Mailboxes::new(
        HomeClient::new(in_process(HomeServer::new(peers()))),
        MailboxClient::new(in_process(MailboxServer::new(peers()))),
        Arc::new(Counter::default()),
        MailboxesOptions::default(),
    );
    let deps = Arc::new(Pop3Deps {
        directory: Arc::new(directory()),
        throttle: Arc::new(Throttle::new(ThrottleLimits::default(), [9; 32])),
        mailboxes,
        blobs: site.blobs.clone(),
    });
    let options = Arc::new(Pop3Options {
        login: Login::Cleartext,
        login_timeout: Duration::from_secs(300),
        directory_timeout: Duration::from_secs(300),
        ..Pop3Options::default()
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, peer) = listener.accept().await.unwrap();
            let (deps, options) = (deps.clone(), options.clone());
            tokio::spawn(serve_pop3(
                stream,
                peer,
                deps,
                options,
                Tls::Off,
                CancellationToken::new(),
            ));
        }
    });
    address
}

async fn say(stream: &mut BufReader<TcpStream>, command: &str) {
    stream.write_all(command.as_bytes()).await.unwrap();
    expect_ok(stream).await;
}

async fn expect_ok(stream: &mut BufReader<TcpStream>) {
    let mut line = String::new();
    stream.read_line(&mut line).await.unwrap();
    assert!(line.starts_with("+OK"), "{line}");
}

async fn connect(address: std::net::SocketAddr) -> BufReader<TcpStream> {
    let stream = TcpStream::connect(address).await.unwrap();
    let mut stream = BufReader::with_capacity(64, stream);
    expect_ok(&mut stream).await;
    stream
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

async fn log_in(address: std::net::SocketAddr, login: &str) {
    let mut stream = connect(address).await;
    say(&mut stream, &format!("USER {login}\r\n")).await;
    say(&mut stream, "PASS pw\r\n").await;
    say(&mut stream, "QUIT\r\n").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_flood_of_costly_logins_keeps_no_cheap_one_waiting() {
    let address = listen().await;
    let begun = Instant::now();
    let flood: Vec<_> = (0..20)
        .map(|_| tokio::spawn(log_in(address, "argon")))
        .collect();
    let bystander = tokio::spawn(async move {
        let mut sessions = 0;
        while !flood.iter().all(tokio::task::JoinHandle::is_finished) {
            log_in(address, "alice").await;
            sessions += 1;
        }
        for login in flood {
            login.await.unwrap();
        }
        sessions
    });
    let sessions = bystander.await.unwrap();
    let took = begun.elapsed();
    // did they wait for a thread of the pool, or were the costly ones hashed on this one, there would be one for each at most
    assert!(sessions > 40, "{sessions} sessions in {took:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a figure"]
async fn measure_logins() {
    let directory = directory().with_recent_logins([5; 32]);
    for (login, count) in [("alice", LOGINS * 10), ("argon", 1), ("argon", LOGINS)] {
        let begun = Instant::now();
        for _ in 0..count {
            directory.authenticate(login, b"pw").await.unwrap();
        }
        let took = begun.elapsed();
        println!(
            "directory: {count} logins of {login} in {took:?}, {:?} each",
            took / count as u32
        );
    }
    let address = listen().await;
    let begun = Instant::now();
    let sessions = (0..4).map(|_| {
        tokio::spawn(async move {
            for _ in 0..LOGINS / 4 {
                log_in(address, "alice").await;
            }
        })
    });
    for session in sessions.collect::<Vec<_>>() {
        session.await.unwrap();
    }
    let took = begun.elapsed();
    println!(
        "POP3: {LOGINS} connections with a login each in {took:?}, {:.0}/s, client included",
        LOGINS as f64 / took.as_secs_f64()
    );
}

/// One figure for each process: what one leaves free the next one would take.
async fn idle(login: bool) {
    let address = listen().await;
    drop(connect(address).await);
    let before = resident_kib();
    let mut idle = Vec::with_capacity(IDLE);
    for _ in 0..IDLE {
        let mut stream = connect(address).await;
        if login {
            say(&mut stream, "USER alice\r\n").await;
            say(&mut stream, "PASS pw\r\n").await;
        }
        idle.push(stream);
    }
    let octets = resident_kib().saturating_sub(before) * 1024 / IDLE as u64;
    println!("{IDLE} idle connections, logged in: {login}: {octets} octets each, client included");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a figure"]
async fn measure_strangers() {
    idle(false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a figure"]
async fn measure_sessions() {
    idle(true).await;
}
