//! The load generator as a process of its own: it keeps the ledger, and reads by POP3 only.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use loadtest::ledger::{AttemptId, Event};
use loadtest::verify::VerifyReport;

use super::binary::{Said, program, run};
use super::site::Site;

/// How a load is shaped.
#[derive(Clone, Debug)]
pub struct Load {
    /// How many messages must be acknowledged.
    pub messages: u64,
    /// Concurrent SMTP sessions.
    pub sessions: usize,
    /// Sizes, in the load generator's notation.
    pub size: String,
    /// RCPTs of each message.
    pub recipients: usize,
    /// MAIL FROM, in the load generator's notation; `null` reaches full mailboxes too.
    pub senders: &'static str,
    /// Stop after so long, done or not.
    pub deadline: Duration,
    /// Everything but attempt ids follows from it.
    pub seed: u64,
}

impl Default for Load {
    fn default() -> Load {
        Load {
            messages: 1_000_000,
            sessions: 16,
            size: "mix".to_owned(),
            recipients: 1,
            senders: "users",
            deadline: Duration::from_secs(600),
            seed: 1,
        }
    }
}

/// A load under way. Killed when dropped; its ledger stays believable.
#[derive(Debug)]
pub struct Loading {
    child: Child,
    errors: PathBuf,
}

impl Load {
    fn command(&self, site: &Site) -> Command {
        let mut command = Command::new(program("loadtest"));
        command.args([
            "run",
            "--quiet",
            "--reconnect-on-error",
            "--smtp",
            &site.smtp.to_string(),
        ]);
        command
            .arg("--users")
            .arg(site.accounts())
            .arg("--ledger")
            .arg(site.ledger());
        command.args([
            "--messages",
            &self.messages.to_string(),
            "--sessions",
            &self.sessions.to_string(),
        ]);
        command.args([
            "--size",
            &self.size,
            "--senders",
            self.senders,
            "--recipients-per-message",
            &self.recipients.to_string(),
        ]);
        command.args([
            "--deadline",
            &self.deadline.as_secs_f64().to_string(),
            "--seed",
            &self.seed.to_string(),
        ]);
        command
    }

    /// Starts it against `site`, which may come and go.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start(&self, site: &Site) -> Loading {
        let errors = site.home().join("loadtest.log");
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(&errors)
            .expect("log file");
        let mut command = self.command(site);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        let child = command
            .spawn()
            .unwrap_or_else(|error| panic!("loadtest: {error}"));
        Loading { child, errors }
    }

    /// Runs it to its end.
    pub fn run(&self, site: &Site) -> Said {
        run(&mut self.command(site))
    }
}

impl Loading {
    /// Ends it in the middle of whatever it does.
    ///
    /// # Panics
    /// When it had failed before.
    pub fn end(mut self) {
        if let Some(status) = self.child.try_wait().expect("its exit status") {
            let said = std::fs::read_to_string(&self.errors).unwrap_or_default();
            assert!(
                status.code() == Some(0),
                "the load generator ended with {status}:\n{said}"
            );
        }
    }

    /// Whether it is still sending.
    ///
    /// # Panics
    /// When it cannot be asked.
    pub fn runs(&mut self) -> bool {
        self.child.try_wait().expect("its exit status").is_none()
    }
}

impl Drop for Loading {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Holds all maildrops of `site` against its ledger, by a process of its own.
///
/// # Panics
/// When it gives no verdict.
pub fn verify(site: &Site, wait: Duration) -> VerifyReport {
    verify_settled(site, wait, Duration::from_millis(200))
}

/// The same, with so long a wait for copies too many.
///
/// # Panics
/// When it gives no verdict.
pub fn verify_settled(site: &Site, wait: Duration, settle: Duration) -> VerifyReport {
    let json = site.home().join("verdict.json");
    let mut command = Command::new(program("loadtest"));
    command.args(["verify", "--quiet", "--pop3", &site.pop3.to_string()]);
    command
        .arg("--users")
        .arg(site.accounts())
        .arg("--ledger")
        .arg(site.ledger())
        .arg("--json")
        .arg(&json);
    command.args([
        "--wait",
        &wait.as_secs_f64().to_string(),
        "--settle",
        &settle.as_secs_f64().to_string(),
    ]);
    let said = run(&mut command);
    let text = std::fs::read(&json)
        .unwrap_or_else(|error| panic!("no verdict ({error}):\n{}{}", said.out, said.err));
    std::fs::remove_file(&json).expect("the verdict's file");
    serde_json::from_slice(&text).expect("a verdict")
}

/// Fails with all that is wrong unless the ledger balances.
///
/// # Panics
/// When it does not.
#[track_caller]
pub fn assert_balanced(report: &VerifyReport) {
    assert!(report.balanced(), "the ledger does not balance:\n{report}");
}

/// Which mails a ledger knows to be acknowledged, by the queue id in the 250.
pub fn acknowledged(ledger: &Path) -> BTreeMap<String, AttemptId> {
    let mut found = BTreeMap::new();
    for event in events(ledger) {
        if let Event::Outcome {
            id,
            reply: Some(reply),
            ..
        } = event
            && let Some(queue_id) = queue_id(&reply)
        {
            found.insert(queue_id.to_owned(), id);
        }
    }
    found
}

/// The queue id that a 250 names.
pub fn queue_id(reply: &str) -> Option<&str> {
    reply
        .strip_prefix("250")?
        .split_once("queued as ")?
        .1
        .split_whitespace()
        .next()
}

/// Everything in a ledger, up to a line that is still being written.
pub fn events(ledger: &Path) -> Vec<Event> {
    let Ok(file) = std::fs::File::open(ledger) else {
        return Vec::new();
    };
    let lines = BufReader::new(file).split(b'\n').map_while(Result::ok);
    lines
        .filter_map(|line| serde_json::from_slice(&line).ok())
        .collect()
}
