//! Output that nobody reads, or that cannot be written: mail, commands and the end wait for none of
//! it.

use std::fs::File;
use std::io::{BufRead, BufReader, PipeReader, Read, pipe};
use std::net::SocketAddr;
use std::process::{Command, Output, Stdio};

use crate::running::{Running, Site, hikyaku};
use crate::talk::{Smtp, connect, get};

const MAILS: usize = 300;

/// A site that logs far more for a mail than a postmaster reads.
fn site(filter: &str) -> Site {
    let site = Site::new();
    site.configure(&format!(
        "[pop3]\nlisten = [\"127.0.0.1:0\"]\ncleartext_login = true\n\
         [telemetry]\nmetrics_listen = \"127.0.0.1:0\"\nlog_filter = \"{filter}\"\n"
    ));
    site
}

/// How many mails bob's maildrop has.
fn mails(pop3: SocketAddr) -> usize {
    let mut stream = BufReader::new(connect(pop3));
    let mut last = String::new();
    std::io::Write::write_all(
        stream.get_mut(),
        b"USER bob\r\nPASS hikyaku\r\nSTAT\r\nQUIT\r\n",
    )
    .unwrap();
    for _ in 0..4 {
        last.clear();
        stream.read_line(&mut last).unwrap();
        assert!(last.starts_with("+OK"), "{last}");
    }
    last.split(' ').nth(1).unwrap().parse().unwrap()
}

fn sample(page: &str, name: &str) -> u64 {
    let line = page.lines().find_map(|line| line.strip_prefix(name));
    line.unwrap_or("0").trim().parse().unwrap()
}

#[test]
fn a_log_that_nobody_reads_holds_nothing_up_and_says_later_what_is_missing() {
    let site = site("trace");
    let (reader, writer) = pipe().unwrap();
    let node = Running::start_logging_to(&site.path("hikyaku.toml"), writer.into());
    let mut smtp = Smtp::connect(node.address("smtp"));
    let left_out = || {
        let page = get(node.address("metrics"), "/metrics").1;
        sample(&page, "hikyaku_lines_left_out_total ")
    };
    let mut sent = 0;
    while sent < MAILS || left_out() == 0 {
        assert!(smtp.send(&format!("mail {sent}")).starts_with("250 "));
        sent += 1;
    }
    node.wait_for("all mails in the mailbox", || {
        (mails(node.address("pop3")) == sent).then_some(())
    });
    assert_eq!(get(node.address("metrics"), "/healthz").0, 200);
    let status = node.status();
    assert!(
        status.contains("ALARM standard error is not read: "),
        "{status}"
    );
    // nobody reads yet, and it ends all the same; what is in the pipe stays
    let mut text = String::new();
    node.stop_unread();
    read_all(reader, &mut text);
    assert!(text.lines().count() > 10, "{text}");
    for line in text.lines().rev().skip(1) {
        assert!(line.starts_with("ts=2"), "not a whole line: {line}");
    }
}

#[test]
fn a_reader_that_comes_back_hears_how_many_lines_are_missing() {
    let site = site("trace");
    let (reader, writer) = pipe().unwrap();
    let node = Running::start_logging_to(&site.path("hikyaku.toml"), writer.into());
    let mut smtp = Smtp::connect(node.address("smtp"));
    let left_out = || {
        let page = get(node.address("metrics"), "/metrics").1;
        sample(&page, "hikyaku_lines_left_out_total ")
    };
    while left_out() == 0 {
        assert!(smtp.send("mail").starts_with("250 "));
    }
    let reading = std::thread::spawn(move || {
        let mut text = String::new();
        read_all(reader, &mut text);
        text
    });
    node.wait_for("the end of the alarm", || {
        (!node.status().contains("ALARM ")).then_some(())
    });
    let missing = left_out();
    node.stop_unread();
    let text = reading.join().unwrap();
    let mut told = 0;
    for line in text.lines() {
        assert!(line.starts_with("ts=2"), "not a whole line: {line}");
        if line.contains("lines were left out: standard error was not read in time") {
            let (_, count) = line.split_once(" left_out=").unwrap();
            told += count.parse::<u64>().unwrap();
        }
    }
    assert!(
        told >= missing && missing > 0,
        "{told} of {missing} were told of"
    );
    assert!(text.contains(" msg=stopped"), "the end of the log");
}

fn read_all(mut reader: PipeReader, text: &mut String) {
    reader.read_to_string(text).unwrap();
}

/// Places that take nothing: a full disk, and a pipe without a reader.
fn places() -> [(&'static str, Stdio); 2] {
    let full = File::options().write(true).open("/dev/full").unwrap();
    let (_, closed) = pipe().unwrap();
    [
        ("a full disk", full.into()),
        ("a closed pipe", closed.into()),
    ]
}

#[test]
fn a_server_goes_on_whatever_becomes_of_its_log() {
    for (place, errors) in places() {
        let site = site("info");
        let node = Running::start_logging_to(&site.path("hikyaku.toml"), errors);
        for number in 0..50 {
            let said = Smtp::connect(node.address("smtp")).send(&number.to_string());
            assert!(said.starts_with("250 "), "{place}: {said}");
        }
        node.stop_unread();
    }
}

#[test]
fn a_server_goes_on_whatever_becomes_of_its_standard_output() {
    for (place, out) in places() {
        let site = site("info");
        let log = site.path("server.log");
        let mut child = hikyaku()
            .args(["all", "--config"])
            .arg(site.path("hikyaku.toml"))
            .stdout(out)
            .stderr(File::create(&log).unwrap())
            .spawn()
            .unwrap();
        let socket = site.path("data").join("admin.sock");
        let status = crate::running::wait_for("the admin socket", &log, || {
            let asked = command(&["status"], &site).output().unwrap();
            (socket.exists() && asked.status.success()).then_some(asked)
        });
        let status = String::from_utf8(status.stdout).unwrap();
        let smtp = status
            .lines()
            .find_map(|line| line.strip_prefix("listener smtp "));
        let said = Smtp::connect(smtp.unwrap().parse().unwrap()).send("one");
        assert!(said.starts_with("250 "), "{place}: {said}");
        crate::running::terminate(&child);
        assert!(crate::running::end(&mut child, &log).success(), "{place}");
    }
}

fn command(words: &[&str], site: &Site) -> Command {
    let mut command = hikyaku();
    command
        .args(words)
        .arg("--config")
        .arg(site.path("hikyaku.toml"));
    command
}

#[test]
fn a_command_ends_quietly_when_its_reader_goes_and_says_when_a_disk_is_full() {
    let site = site("info");
    let node = site.start();
    assert!(
        Smtp::connect(node.address("smtp"))
            .send("one")
            .starts_with("250 ")
    );
    let check = |words: &[&str]| {
        let mut check = hikyaku();
        check.args(words).arg(site.path("hikyaku.toml"));
        check
    };
    type Asked<'a> = &'a dyn Fn() -> Command;
    let cases: [(&str, Asked<'_>); 5] = [
        ("queue list", &|| command(&["queue", "list"], &site)),
        ("queue retry", &|| {
            command(&["queue", "retry", "--all"], &site)
        }),
        ("status", &|| command(&["status"], &site)),
        ("route explain", &|| {
            command(&["route", "explain", "bob@example.jp"], &site)
        }),
        ("check", &|| check(&["check"])),
    ];
    for (name, asked) in cases {
        let [(_, full), (_, closed)] = places();
        let said = |out: Stdio| -> Output { asked().stdout(out).output().unwrap() };
        let quiet = said(closed);
        let errors = String::from_utf8_lossy(&quiet.stderr).into_owned();
        assert_eq!(
            (quiet.status.code(), errors.as_str()),
            (Some(141), ""),
            "{name}"
        );
        let full = said(full);
        let errors = String::from_utf8_lossy(&full.stderr).into_owned();
        assert_eq!(full.status.code(), Some(1), "{name}: {errors}");
        assert!(
            errors.starts_with("hikyaku: standard output: No space left"),
            "{name}: {errors}"
        );
    }
    node.stop();
}
