//! Starts that find what they cannot use.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::Signal;

use crate::running::{Site, end, hikyaku, terminate, wait_for};
use crate::talk::Smtp;

#[test]
fn a_node_starts_beside_shards_in_trouble_and_says_so() {
    let site = Site::new();
    site.configure("");
    let running = site.start();
    let address = running.address("smtp");
    assert!(Smtp::connect(address).send("stored").starts_with("250"));
    running.wait_for("the mail in the mailbox", || {
        running.log().contains("msg=settled").then_some(())
    });
    running.stop();
    // the stores stay, and are not of the log they find
    fs::rename(site.path("data/log"), site.path("log.away")).unwrap();
    let running = site.start();
    for shard in ["home-0", "mbox-0"] {
        running.wait_for("the trouble in the status", || {
            let status = running.status();
            let line = status.lines().find(|line| line.contains(shard))?;
            line.contains("another incarnation").then_some(())
        });
    }
    // mail is taken, and waits
    let said = Smtp::connect(running.address("smtp")).send("waits");
    assert!(said.starts_with("250"), "{said}");
    running.stop();
}

#[test]
fn a_store_that_cannot_be_opened_ends_the_start_and_is_named() {
    let site = Site::new();
    site.configure("");
    site.start().stop();
    let store = site.path("data/store/mbox-0");
    fs::write(store.join("current"), "no version").unwrap();
    let ended = Command::new(env!("CARGO_BIN_EXE_hikyaku"))
        .args(["all", "--config"])
        .arg(site.path("hikyaku.toml"))
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(!ended.status.success());
    let said = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert!(
        said.contains("opening the store") && said.contains("mbox-0"),
        "{said}"
    );
}

/// Makes a FIFO that nobody writes to.
fn fifo(path: &Path) {
    let made = Command::new("mkfifo").arg(path).status().unwrap();
    assert!(made.success());
}

/// Whether a process has a handler for SIGTERM, by the mask of the signals that it catches.
fn catches_sigterm(process: &Child) -> bool {
    let status = fs::read_to_string(format!("/proc/{}/status", process.id())).unwrap();
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
    let caught = caught.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    caught.unwrap_or(0) & (1 << (Signal::TERM.as_raw() - 1)) != 0
}

#[test]
fn a_fifo_holds_up_no_check() {
    for name in ["hikyaku.toml", "certificate.pem", "key.pem"] {
        let site = Site::new();
        site.certificate(2099);
        site.configure("[tls]\ncertificate = \"certificate.pem\"\nkey = \"key.pem\"\n");
        fs::remove_file(site.path(name)).unwrap();
        fifo(&site.path(name));
        let log = site.path("said.log");
        let mut check = hikyaku()
            .arg("check")
            .arg(site.path("hikyaku.toml"))
            .stderr(fs::File::create(&log).unwrap())
            .spawn()
            .unwrap();
        assert!(!end(&mut check, &log).success(), "{name}");
        let why = fs::read_to_string(&log).unwrap();
        assert!(
            why.contains(name) && why.contains("is not a regular file"),
            "{name}: {why}"
        );
    }
}

#[test]
fn a_start_that_hangs_is_ended_by_a_signal() {
    for name in [
        "hikyaku.toml",
        "directory.ldif",
        "certificate.pem",
        "key.pem",
    ] {
        let site = Site::new();
        site.certificate(2099);
        site.configure("[tls]\ncertificate = \"certificate.pem\"\nkey = \"key.pem\"\n");
        fs::remove_file(site.path(name)).unwrap();
        fifo(&site.path(name));
        let log = site.path("said.log");
        let mut start = hikyaku()
            .args(["all", "--config"])
            .arg(site.path("hikyaku.toml"))
            .stderr(fs::File::create(&log).unwrap())
            .spawn()
            .unwrap();
        // it refuses the file, or has come to where SIGTERM does not end it by itself
        let ended = wait_for("a start that hangs", &log, || {
            let ended = start.try_wait().unwrap().is_some();
            (ended || catches_sigterm(&start)).then_some(ended)
        });
        if !ended {
            terminate(&start);
        }
        end(&mut start, &log);
    }
}

#[test]
fn a_reading_that_hangs_holds_up_no_end() {
    let site = Site::new();
    site.configure("");
    let text = fs::read_to_string(site.path("hikyaku.toml")).unwrap();
    let text = text.replace("[node]\n", "[node]\ndrain_timeout = \"1h\"\n");
    fs::write(site.path("hikyaku.toml"), &text).unwrap();
    let node = site.start();
    fifo(&site.path("fifo"));
    // taken for a changed directory file, which is read by itself
    fs::rename(site.path("fifo"), site.path("directory.ldif")).unwrap();
    std::thread::sleep(Duration::from_secs(4));
    fifo(&site.path("fifo"));
    fs::rename(site.path("fifo"), site.path("hikyaku.toml")).unwrap();
    let said = node.hang_up();
    assert!(
        said.contains("hikyaku.toml: is not a regular file"),
        "{said}"
    );
    node.stop();
}
