//! The README's command: `hikyaku demo` in an empty directory, the lines it prints pasted into a shell, stopped, started
//! again.

use std::net::TcpListener;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use hikyaku_tests::harness::binary::{hikyaku, program, run};
use hikyaku_tests::harness::server::Server;
use hikyaku_tests::harness::site::{PASSWORD, own_place};
use hikyaku_tests::harness::talk::{Talk, wait_for_mails};

/// Longest wait for a line that is printed at once.
const LINE_TIMEOUT: Duration = Duration::from_secs(60);
/// An idle process waits for nobody when it is told to stop: far less than `drain_timeout` allows it, 30 s.
const IDLE_STOP_MAX: Duration = Duration::from_secs(15);
/// Bases whose ports are above those of sites and below the ephemeral range.
const BASES: std::ops::Range<u16> = 30_900..31_700;

/// A port base all of whose ports are free, and nobody's else in this process.
fn free_base() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let span = BASES.end - BASES.start;
    let first = own_place(span);
    let is_free = |port: u16| TcpListener::bind(("127.0.0.1", port)).is_ok();
    for _ in 0..span {
        let base = BASES.start + (first + NEXT.fetch_add(1, Ordering::Relaxed) % span) % span;
        if [110, 525, 995].iter().all(|offset| is_free(base + offset)) {
            return base;
        }
    }
    panic!("no free port base in {BASES:?}");
}

fn start(directory: &Path, base: Option<u16>) -> Server {
    Server::demo(directory, base, &directory.with_extension("log"))
        .unwrap_or_else(|why| panic!("{why}"))
}

/// What it prints behind its listeners, up to the line on how to stop.
fn instructions(server: &Server) -> Vec<String> {
    let mut lines = Vec::new();
    loop {
        let line = server
            .next_line(LINE_TIMEOUT)
            .expect("the instructions end with how to stop");
        let last = line.contains("Ctrl-C");
        lines.push(line);
        if last {
            return lines;
        }
    }
}

/// Pastes a line into a shell whose `hikyaku` is the one under test.
fn paste(line: &str) -> String {
    let binary = program("hikyaku");
    let mut paths = vec![binary.parent().unwrap().to_owned()];
    paths.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap()));
    run(Command::new("sh")
        .args(["-c", line])
        .env("PATH", std::env::join_paths(paths).unwrap()))
    .must()
}

fn ids(server: &Server) -> Vec<String> {
    let mut talk = Talk::connect(server.address("pop3")).unwrap();
    let mut lines = Vec::new();
    talk.send(format!("USER bob\r\nPASS {PASSWORD}\r\nUIDL\r\nQUIT\r\n").as_bytes())
        .unwrap();
    while let Some(line) = talk.line().unwrap() {
        if line.starts_with(|letter: char| letter.is_ascii_digit()) {
            lines.push(line);
        }
    }
    lines
}

#[test]
fn a_stranger_starts_it_pastes_its_lines_stops_it_and_starts_it_again() {
    let home = tempfile::tempdir().unwrap();
    let directory = home.path().join("demo");
    let base = free_base();
    let mut server = start(&directory, Some(base));
    let expected: Vec<String> = [("smtp", 525), ("pop3", 110), ("pop3s", 995)]
        .map(|(name, offset)| format!("{name} 127.0.0.1:{}", base + offset))
        .into();
    assert_eq!(server.listeners, expected);

    let said = instructions(&server);
    let lines: Vec<&String> = said
        .iter()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .collect();
    assert_eq!(lines.len(), 3, "three lines to paste: {said:?}");
    assert_eq!(paste(lines[0]), "");
    wait_for_mails(server.address("pop3"), "bob", PASSWORD, 1);
    for line in &lines[1..] {
        let mail = paste(line);
        assert!(
            mail.contains("Subject: hello") && mail.trim_end().ends_with("It works."),
            "{mail}"
        );
    }
    let operator = said
        .iter()
        .find_map(|line| line.split_once("operator's side: "))
        .expect("the operator's side")
        .1;
    let explained = paste(operator);
    for member in ["alice@example.jp", "bob@example.jp", "carol@example.jp"] {
        assert!(explained.contains(member), "{explained}");
    }

    let before = ids(&server);
    assert_eq!(before.len(), 1);
    let (status, took) = server.interrupt();
    assert!(
        status.success() && took < IDLE_STOP_MAX,
        "{status} after {took:?}"
    );
    let mut server = start(&directory, None);
    assert_eq!(
        server.listeners, expected,
        "the ports are those of the first start"
    );
    assert_eq!(ids(&server), before);
    assert!(server.interrupt().0.success());
}

#[test]
fn its_secrets_are_its_own() {
    let home = tempfile::tempdir().unwrap();
    let directory = home.path().join("demo");
    let _server = start(&directory, Some(free_base()));
    let mode = |name: &str| {
        directory
            .join(name)
            .metadata()
            .unwrap()
            .permissions()
            .mode()
            & 0o777
    };
    assert_eq!(mode("key.pem"), 0o600);
    assert_eq!(mode("data"), 0o700);
    assert_eq!(mode("data/admin.sock"), 0o600);
    assert!(
        directory
            .join("data/admin.sock")
            .metadata()
            .unwrap()
            .file_type()
            .is_socket()
    );
    assert_eq!(
        mode("directory.ldif") & 0o007,
        0,
        "it holds password hashes"
    );
    let ldif = std::fs::read_to_string(directory.join("directory.ldif")).unwrap();
    assert!(
        !ldif.contains(&format!("userPassword: {PASSWORD}"))
            && ldif.contains("userPassword: {SSHA512}")
    );
}

#[test]
fn a_second_process_on_its_directory_is_refused() {
    let home = tempfile::tempdir().unwrap();
    let directory = home.path().join("demo");
    let server = start(&directory, Some(free_base()));
    let config = directory.join("hikyaku.toml");
    let demo = ["demo", "--dir", directory.to_str().unwrap()];
    let all = ["all", "--config", config.to_str().unwrap()];
    for arguments in [&demo[..], &all[..]] {
        let why = hikyaku(arguments).refusal();
        assert!(
            why.contains("data: another hikyaku process uses this directory"),
            "{why}"
        );
    }
    assert!(ids(&server).is_empty(), "the first one goes on");
}

#[test]
fn port_bases_that_cannot_be_are_refused_and_write_nothing() {
    let home = tempfile::tempdir().unwrap();
    let directory = home.path().join("demo");
    let demo = |base: &str| {
        hikyaku([
            "demo",
            "--dir",
            directory.to_str().unwrap(),
            "--port-base",
            base,
        ])
        .refusal()
    };
    assert!(demo("64541").contains("--port-base is over 64540"));
    assert!(demo("70000").contains("--port-base"));
    assert!(demo("many").contains("--port-base"));
    assert!(!directory.exists());
}

#[test]
fn other_ports_than_those_of_the_first_start_are_refused() {
    let home = tempfile::tempdir().unwrap();
    let directory = home.path().join("demo");
    let base = free_base();
    assert!(start(&directory, Some(base)).interrupt().0.success());
    let other = (base + 1).to_string();
    let why = hikyaku([
        "demo",
        "--dir",
        directory.to_str().unwrap(),
        "--port-base",
        &other,
    ])
    .refusal();
    assert!(
        why.contains("hikyaku.toml") && why.contains("--port-base"),
        "{why}"
    );
    assert!(start(&directory, Some(base)).interrupt().0.success());
}

#[test]
fn a_key_without_its_certificate_is_somebodys_and_stays() {
    let home = tempfile::tempdir().unwrap();
    let directory = home.path();
    std::fs::write(directory.join("key.pem"), "an operator's\n").unwrap();
    let why = hikyaku(["demo", "--dir", directory.to_str().unwrap()]).refusal();
    assert!(why.contains("key.pem is there without the other"), "{why}");
    let there = std::fs::read_dir(directory).unwrap().count();
    let key = std::fs::read_to_string(directory.join("key.pem")).unwrap();
    assert_eq!((there, key.as_str()), (1, "an operator's\n"));
}
