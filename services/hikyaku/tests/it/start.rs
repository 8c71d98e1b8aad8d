//! Starts that find what they cannot use.

use std::fs;
use std::process::{Command, Stdio};

use crate::running::Site;
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
