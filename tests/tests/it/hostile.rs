//! Peers that lie: forged ends of a mail, mails and chunks without end, resets at any moment, corrupt TLS. The connection ends,
//! and nothing else: no mail that nobody sent, no descriptor, no flood of log lines.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use hikyaku_tests::harness::crowd::{self, connect_from, hear};
use hikyaku_tests::harness::server::Server;
use hikyaku_tests::harness::site::{PASSWORD, Plan, Site};
use hikyaku_tests::harness::talk::{Talk, send_mail, wait_for_mails};
use hikyaku_tests::harness::wait_for;
use hikyaku_tests::harness::wire::{self, Wire};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Longest wait for what happens at once.
const AT_ONCE: Duration = Duration::from_secs(60);
/// Descriptors that come and go by themselves: log files, pooled connections.
const DESCRIPTORS_MAX: usize = 5;

/// A connection that has come to where a content is expected.
fn at_content(smtp: SocketAddr, recipient: &str) -> Talk {
    let mut talk = Talk::connect(smtp).unwrap();
    talk.reply();
    talk.smtp("EHLO client.example");
    talk.smtp("MAIL FROM:<stranger@elsewhere.example>");
    assert!(
        talk.smtp(&format!("RCPT TO:<{recipient}>"))
            .starts_with("250")
    );
    assert!(talk.smtp("DATA").starts_with("354"));
    talk
}

#[test]
fn no_false_end_lets_a_second_mail_in() {
    let site = Site::new(Plan::sample());
    let _server = Server::start(&site);
    let false_ends: [&[u8]; 14] = [
        b"\n.\n",
        b"\n.\r\n",
        b"\r\n.\n",
        b"\r.\r",
        b"\r.\n",
        b"\n.\r",
        b"\r.\r\n",
        b"\r\n.\r",
        b"\r\n\0.\r\n",
        b"\r\n.\0\r\n",
        b"\r\n.\r\r\n",
        b"\r\r\n.\r\r\n",
        b"\n\n.\r\n\n",
        b"\r\n.\n\r\n",
    ];
    for end in false_ends {
        let mut talk = at_content(site.smtp, "bob@example.jp");
        let mut content = b"Subject: outer\r\n\r\nouter".to_vec();
        content.extend_from_slice(end);
        content.extend_from_slice(
            b"MAIL FROM:<boss@example.jp>\r\nRCPT TO:<carol@example.jp>\r\nDATA\r\nSubject: inner\r\n\r\n\r\n.\r\n",
        );
        talk.send(&content).unwrap();
        let reply = talk.reply();
        let refused = reply.starts_with("550 5.5.2") || reply.starts_with("550 5.6.0");
        assert!(refused, "{}: {reply}", end.escape_ascii());
        assert_eq!(
            talk.line().unwrap(),
            None,
            "{}: it goes on",
            end.escape_ascii()
        );
    }
    // what comes now was sent later
    let reply = send_mail(
        site.smtp,
        "",
        &["bob@example.jp", "carol@example.jp"],
        "Subject: last\n",
    );
    assert!(reply.starts_with("250"), "{reply}");
    for user in ["bob", "carol"] {
        let mails = wait_for_mails(site.pop3, user, PASSWORD, 1);
        assert!(mails[0].contains("Subject: last"), "{}", mails[0]);
    }
}

#[test]
fn the_end_is_the_same_in_pieces_of_any_kind() {
    let site = Site::new(Plan::sample().certificate());
    let server = Server::start(&site);
    let config = wire::trusting(&site.certificate());
    let end = b"\r\n.\r\n";
    for covered in [false, true] {
        let address = server.address(if covered { "smtps" } else { "smtp" });
        let mut talk = Talk::connect(address).unwrap();
        if covered {
            talk = talk.encrypt(config.clone()).unwrap();
        }
        talk.reply();
        talk.smtp("EHLO client.example");
        // a bit for each place where the end may be cut
        for cuts in 0..1 << (end.len() - 1) {
            talk.smtp("MAIL FROM:<stranger@elsewhere.example>");
            talk.smtp("RCPT TO:<bob@example.jp>");
            assert!(talk.smtp("DATA").starts_with("354"));
            talk.send(b"Subject: cut\r\n\r\nbody").unwrap();
            let mut begin = 0;
            for place in 1..=end.len() {
                if place == end.len() || cuts & 1 << (place - 1) != 0 {
                    talk.send(&end[begin..place]).unwrap();
                    begin = place;
                }
            }
            let reply = talk.reply();
            assert!(reply.starts_with("250 2.0.0"), "{cuts:#b}: {reply}");
        }
    }
    let mails = wait_for_mails(site.pop3, "bob", PASSWORD, 32);
    for mail in mails {
        assert!(mail.ends_with("Subject: cut\n\nbody\n"), "{mail}");
    }
}

#[test]
fn a_content_without_end_is_given_up() {
    // more than the buffers between the two ends may hold
    const SENT_MAX: usize = 64 << 20;
    let site = Site::new(Plan::sample().set("smtp", "message_bytes_max", "\"1 MiB\""));
    let mut server = Server::start(&site);
    let line = [b'x'; 998];
    let mut lines = Vec::new();
    while lines.len() < 64 << 10 {
        lines.extend_from_slice(&line);
        lines.extend_from_slice(b"\r\n");
    }
    for piece in [&lines[..], &[b'x'; 64 << 10]] {
        let mut talk = at_content(site.smtp, "bob@example.jp");
        let mut sent = 0;
        while talk.send(piece).is_ok() {
            sent += piece.len();
            assert!(sent < SENT_MAX, "it takes whatever is sent");
        }
        assert!(
            sent > 1 << 20,
            "it must be told apart from a large one: {sent}"
        );
    }
    wait_for("the reason in the log", AT_ONCE, || {
        server.log().contains("552 5.3.4")
    });
    site.wait_until_tried();
    wait_for_mails(site.pop3, "bob", PASSWORD, 0);
    assert!(server.stop().0.success());
}

#[test]
fn small_chunks_without_end_cost_no_memory() {
    let site = Site::new(Plan::sample());
    let server = Server::start(&site);
    let mut talk = Talk::connect(site.smtp).unwrap();
    talk.reply();
    talk.smtp("EHLO client.example");
    talk.smtp("MAIL FROM:<stranger@elsewhere.example>");
    talk.smtp("RCPT TO:<bob@example.jp>");
    let before = server.resident();
    let (group, size) = (b"BDAT 1\r\nx".repeat(500), 500);
    let mut taken = 0;
    let last = 'chunks: loop {
        assert!(taken < 100_000, "it takes chunks for ever");
        if talk.send(&group).is_err() {
            break String::new();
        }
        for _ in 0..size {
            match talk.line().unwrap() {
                Some(line) if line.starts_with("250 2.0.0") => taken += 1,
                line => break 'chunks line.unwrap_or_default(),
            }
        }
    };
    assert!(
        last.starts_with("421 4.7.0"),
        "after {taken} chunks: {last:?}"
    );
    let grown = server.resident().saturating_sub(before);
    assert!(grown < 16 << 20, "{grown} octets for {taken} chunks");
    site.wait_until_tried();
    wait_for_mails(site.pop3, "bob", PASSWORD, 0);
}

/// What a peer says before it goes; `|` waits for an answer.
const UNFINISHED: [(&str, &str); 14] = [
    ("smtp", ""),
    ("smtp", "EHLO x\r\n"),
    ("smtp", "EHLO x\r\n|MAIL FROM:<a@b.example>\r\n"),
    (
        "smtp",
        "EHLO x\r\n|MAIL FROM:<a@b.example>\r\nRCPT TO:<bob@example.jp>\r\n",
    ),
    (
        "smtp",
        "EHLO x\r\n|MAIL FROM:<a@b.example>\r\nRCPT TO:<bob@example.jp>\r\nDATA\r\n",
    ),
    (
        "smtp",
        "EHLO x\r\n|MAIL FROM:<a@b.example>\r\nRCPT TO:<bob@example.jp>\r\n|DATA\r\n|Subject: half\r\n\r\nhalf",
    ),
    (
        "smtp",
        "EHLO x\r\n|MAIL FROM:<a@b.example>\r\nRCPT TO:<bob@example.jp>\r\nBDAT 100 LAST\r\nSubject: half",
    ),
    (
        "smtp",
        "EHLO x\r\n|MAIL FROM:<a@b.example>\r\nRCPT TO:<bob@example.jp>\r\nBDAT 4\r\nhalf",
    ),
    ("smtp", "EHLO x\r\n|STARTTLS\r\n|\x16\x03\x01\x02\x00\x01"),
    ("smtps", "\x16\x03\x01\x02\x00\x01"),
    ("pop3", "USER carol\r\n"),
    ("pop3", "USER carol\r\nPASS hikyaku\r\n|DELE 1\r\n"),
    (
        "pop3",
        "USER carol\r\nPASS hikyaku\r\nRETR 1\r\nRETR 1\r\nRETR 1\r\n",
    ),
    ("pop3s", "\x16\x03\x01\x02\x00\x01"),
];

/// Says `opening` and is gone: with a reset, or as a client that ends.
async fn vanish(number: u32, server: SocketAddr, opening: &str, reset: bool) {
    let mut stream = connect_from(crowd::source(number), server, Some(4096))
        .await
        .unwrap();
    for part in opening.split('|') {
        if part.is_ascii() && !part.starts_with('\x16') && !part.is_empty() {
            hear(&mut stream, AT_ONCE).await;
        }
        if stream.write_all(part.as_bytes()).await.is_err() {
            return;
        }
    }
    let mut heard = [0; 2048];
    if reset {
        stream.set_zero_linger().unwrap();
    } else {
        let _ = stream.shutdown().await;
        // half closed: what it is still told it hears
        let hear =
            async { while matches!(stream.read(&mut heard).await, Ok(count) if count > 0) {} };
        let _ = tokio::time::timeout(AT_ONCE, hear).await;
    }
}

#[test]
fn connections_that_vanish_leave_nothing_behind() {
    let site = Site::new(Plan::sample().certificate());
    let mut server = Server::start(&site);
    let large = "0123456789abcdefghijklmnopqrstuvwxyz\n".repeat(60_000);
    assert!(send_mail(site.smtp, "", &["carol@example.jp"], &large).starts_with("250"));
    wait_for_mails(site.pop3, "carol", PASSWORD, 1);
    let (before, lines) = (server.descriptors(), server.log().lines().count());
    const ROUNDS: u32 = 12;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let mut number = 0;
        let mut peers = Vec::new();
        for round in 0..ROUNDS {
            for (listener, opening) in UNFINISHED {
                let address = server.address(listener);
                peers.push(tokio::spawn(vanish(
                    number,
                    address,
                    opening,
                    round % 2 == 0,
                )));
                number += 1;
            }
        }
        for peer in peers {
            peer.await.unwrap();
        }
    });
    wait_for("the descriptors to come back", AT_ONCE, || {
        server.descriptors() <= before + DESCRIPTORS_MAX
    });
    let peers = ROUNDS as usize * UNFINISHED.len();
    let log = server.log();
    let grown = log.lines().count() - lines;
    println!("{peers} connections vanished, {grown} lines of log");
    assert!(
        grown <= 3 * peers,
        "{grown} lines of log for {peers} connections:\n{log}"
    );
    assert!(!log.contains("panicked"), "{log}");
    assert!(
        !log.contains(|letter: char| letter.is_control() && letter != '\n'),
        "{log}"
    );
    // nothing deleted, nothing half received, and mail goes on
    wait_for_mails(site.pop3, "carol", PASSWORD, 1);
    assert!(send_mail(site.smtp, "", &["bob@example.jp"], "Subject: whole\n").starts_with("250"));
    let mails = wait_for_mails(site.pop3, "bob", PASSWORD, 1);
    assert!(mails[0].contains("Subject: whole"), "{}", mails[0]);
    assert!(server.stop().0.success());
}

/// What comes after a handshake and is no TLS, or comes instead of one.
const NO_TLS: [&[u8]; 7] = [
    // a record whose authentication fails
    b"\x17\x03\x03\x00\x20 thirty-two octets of no meaning ",
    // longer than any record
    b"\x17\x03\x03\xff\xff and so on",
    b"QUIT\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    // SSL 2
    b"\x80\x2e\x01\x00\x02\x00\x15\x00\x00\x00\x10\x01\x00\x80\x02\x00\x80\x03\x00\x80\x04\x00\x80",
    // an alert: close_notify in the clear
    b"\x15\x03\x03\x00\x02\x01\x00",
    b"\0\0\0\0\0\0\0\0",
];

/// TLS 1.0, as old clients begin it.
fn old_hello() -> Vec<u8> {
    let mut hello = b"\x03\x01".to_vec();
    hello.extend_from_slice(&[7; 32]);
    hello.extend_from_slice(b"\x00\x00\x04\x00\x2f\x00\x35\x01\x00");
    let length = hello.len() as u16;
    let mut record = b"\x16\x03\x01".to_vec();
    record.extend_from_slice(&(length + 4).to_be_bytes());
    record.extend_from_slice(b"\x01\x00");
    record.extend_from_slice(&length.to_be_bytes());
    record.extend_from_slice(&hello);
    record
}

/// Reads what comes until the end; the server has to end it.
fn hear_the_end(socket: &mut TcpStream) -> Vec<u8> {
    socket.set_read_timeout(Some(AT_ONCE)).unwrap();
    let (mut heard, mut piece) = (Vec::new(), [0; 4096]);
    loop {
        match socket.read(&mut piece) {
            Ok(0) => return heard,
            Ok(count) => heard.extend_from_slice(&piece[..count]),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                panic!("the server does not end it")
            }
            Err(_) => return heard,
        }
    }
}

#[test]
fn corrupt_tls_ends_its_connection_and_stores_nothing() {
    // some of it is only the beginning of what may come
    let plan = Plan::sample()
        .certificate()
        .set("smtp", "command_timeout", "\"2s\"")
        .set("smtp", "data_timeout", "\"2s\"")
        .set("pop3", "login_timeout", "\"2s\"");
    let site = Site::new(plan);
    let mut server = Server::start(&site);
    let config = wire::trusting(&site.certificate());
    let before = server.descriptors();
    let old = old_hello();
    for listener in ["smtps", "pop3s"] {
        let address = server.address(listener);
        for bytes in NO_TLS.iter().copied().chain([&old[..]]) {
            let mut socket = TcpStream::connect(address).unwrap();
            socket.write_all(bytes).unwrap();
            let heard = hear_the_end(&mut socket);
            // an alert at most
            assert!(
                heard.is_empty() || heard[0] == 0x15,
                "{listener}: {}",
                heard.escape_ascii()
            );
        }
    }
    for bytes in NO_TLS {
        for opening in ["DATA\r\n", "BDAT 1000 LAST\r\n"] {
            let socket = TcpStream::connect(server.address("smtps")).unwrap();
            let mut wire = Wire::Clear(socket).encrypt(config.clone()).unwrap();
            let all = format!("MAIL FROM:<a@b.example>\r\nRCPT TO:<bob@example.jp>\r\n{opening}");
            wire.write_all(b"EHLO x\r\n").unwrap();
            hear_line(&mut wire, "250 ");
            wire.write_all(all.as_bytes()).unwrap();
            hear_line(&mut wire, "250 2.1.5");
            let mut raw = wire.socket().try_clone().unwrap();
            raw.write_all(bytes).unwrap();
            raw.write_all(b"Subject: in the clear\r\n\r\n.\r\n")
                .unwrap();
            hear_the_end(&mut raw);
        }
    }
    wait_for("the descriptors to come back", AT_ONCE, || {
        server.descriptors() <= before + DESCRIPTORS_MAX
    });
    site.wait_until_tried();
    wait_for_mails(site.pop3, "bob", PASSWORD, 0);
    assert!(!server.log().contains("panicked"), "{}", server.log());
    assert!(server.stop().0.success());
}

/// Reads until a line begins with `expected`.
fn hear_line(wire: &mut Wire, expected: &str) {
    let mut heard = Vec::new();
    let mut piece = [0; 1024];
    while !String::from_utf8_lossy(&heard)
        .lines()
        .any(|line| line.starts_with(expected))
    {
        let count = wire.read(&mut piece).unwrap();
        assert!(count > 0, "it ended: {}", heard.escape_ascii());
        heard.extend_from_slice(&piece[..count]);
    }
}
