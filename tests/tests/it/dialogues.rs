//! SMTP and POP3, line by line: every file of `tests/dialogues` is one behaviour, played against a server of its own.
//!
//! A comment `# with section.key = value` sets a key of its configuration, `# with certificate` gives it TLS, and
//! `# with smtp.proxy_networks = [...]` a listener for load balancers.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use hikyaku_tests::harness::dialogue::{Stage, play};
use hikyaku_tests::harness::server::Server;
use hikyaku_tests::harness::site::{PASSWORD, Plan, Site};
use hikyaku_tests::harness::talk::{Talk, send_mail, wait_for_mails};

/// Dialogues at the same time: most of their time is waiting for more mail that must not come.
const AT_ONCE: usize = 8;

#[test]
fn every_dialogue_happens_as_written() {
    let all = dialogues();
    assert!(all.len() >= 70, "only {} dialogues are there", all.len());
    let count = all.len();
    let (waiting, failures) = (Mutex::new(all), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                loop {
                    let Some(file) = waiting.lock().unwrap().pop_front() else {
                        return;
                    };
                    if let Err(why) = perform(&file) {
                        let name = file.file_name().unwrap().to_string_lossy().into_owned();
                        failures.lock().unwrap().push(format!("{name}, {why}"));
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().unwrap();
    assert!(
        failures.is_empty(),
        "{} of {count} dialogues:\n{}",
        failures.len(),
        failures.join("\n")
    );
}

fn dialogues() -> VecDeque<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("dialogues");
    let mut files: Vec<PathBuf> = std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    assert!(
        files
            .iter()
            .all(|file| file.extension().is_some_and(|ending| ending == "txt")),
        "{files:?}"
    );
    files.into()
}

fn perform(file: &Path) -> Result<(), String> {
    let text = std::fs::read_to_string(file).unwrap();
    let mut plan = Plan::sample();
    for wish in text.lines().filter_map(|line| line.strip_prefix("# with ")) {
        plan = match wish {
            "certificate" => plan.certificate(),
            _ => {
                let (name, value) = wish.split_once(" = ").ok_or("# with section.key = value")?;
                let (section, key) = name.split_once('.').ok_or("# with section.key = value")?;
                match name {
                    "smtp.proxy_networks" => plan.balancers(value),
                    _ => plan.set(section, key, value),
                }
            }
        };
    }
    let site = Site::new(plan);
    let mut server = Server::start(&site);
    let stage = Stage {
        site: &site,
        server: &server,
    };
    play(stage, &text)?;
    match server.stop().0 {
        status if status.success() => Ok(()),
        status => Err(format!("afterwards the server ended with {status}")),
    }
}

#[test]
fn content_over_the_limit_is_refused_at_its_end_and_leaves_nothing() {
    let site = Site::new(Plan::sample().set("smtp", "message_bytes_max", "\"64 KiB\""));
    let _server = Server::start(&site);
    let line = "0123456789abcdefghijklmnopqrstuvwxyz\n";
    let reply = send_mail(
        site.smtp,
        "a@elsewhere.example",
        &["bob@example.jp"],
        &line.repeat(2000),
    );
    assert!(reply.starts_with("552 5.3.4"), "{reply}");
    let reply = send_mail(
        site.smtp,
        "a@elsewhere.example",
        &["bob@example.jp"],
        &line.repeat(1000),
    );
    assert!(reply.starts_with("250 2.0.0"), "{reply}");
    let mails = wait_for_mails(site.pop3, "bob", PASSWORD, 1);
    let (_, body) = mails[0].split_once("\n0123").unwrap();
    assert_eq!(
        body.trim_end().len() + 5,
        line.len() * 1000,
        "what was below the limit came whole"
    );
}

#[test]
fn a_mail_cut_off_before_its_end_leaves_nothing() {
    let site = Site::new(Plan::sample());
    let _server = Server::start(&site);
    let mut talk = Talk::connect(site.smtp).unwrap();
    talk.reply();
    talk.smtp("EHLO client.example");
    talk.smtp("MAIL FROM:<a@elsewhere.example>");
    talk.smtp("RCPT TO:<bob@example.jp>");
    assert!(talk.smtp("DATA").starts_with("354"));
    talk.send(b"Subject: half\r\n\r\nnot the end\r\n").unwrap();
    drop(talk);
    let reply = send_mail(
        site.smtp,
        "a@elsewhere.example",
        &["bob@example.jp"],
        "Subject: whole\n\nbody",
    );
    assert!(reply.starts_with("250"), "{reply}");
    let mails = wait_for_mails(site.pop3, "bob", PASSWORD, 1);
    assert!(mails[0].contains("Subject: whole"), "{}", mails[0]);
}
