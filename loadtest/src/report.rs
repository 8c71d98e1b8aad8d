//! What a run found, with the conditions it was found under. A rate without its conditions is not printed.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::equation::Classes;
use crate::histogram::Percentiles;
use crate::machine::{Machine, Storage};
use crate::verify::VerifyReport;

/// What is known about the server and cannot be seen by its protocols; whoever runs it has to say it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Setting {
    /// What a 250 promises, in words.
    pub durability: Option<String>,
    /// Where its data is.
    pub storage: Option<Storage>,
}

impl Setting {
    /// What is missing, by the option that says it.
    pub(crate) fn missing(&self) -> impl Iterator<Item = &'static str> {
        [
            ("durability (--durability)", self.durability.is_none()),
            ("data directory (--data-dir)", self.storage.is_none()),
        ]
        .into_iter()
        .filter_map(|(name, missing)| missing.then_some(name))
    }
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let durability = self.durability.as_deref().unwrap_or("not stated");
        match &self.storage {
            Some(storage) => write!(f, "durability: {durability}; data in {storage}"),
            None => write!(f, "durability: {durability}; data directory not stated"),
        }
    }
}

/// What a figure needs to mean something.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Conditions {
    /// Sizes of the messages.
    pub size_mix: String,
    /// Concurrent SMTP sessions.
    pub sessions: usize,
    /// Users that mail was spread over.
    pub users: usize,
    /// How many of them the server has accepted at RCPT.
    pub users_accepted: usize,
    /// RCPTs it refused for good.
    pub users_refused: u64,
    /// Recipients of each message.
    pub recipients_per_message: usize,
    /// MAIL FROM.
    pub senders: String,
    /// How the sessions were protected, and what was agreed on.
    pub tls: String,
    /// Messages after which another connection was made; nothing when each served for all.
    pub messages_per_connection: Option<u64>,
    /// Whether MAIL, RCPT and DATA went out at once.
    pub pipelining: bool,
    /// Messages due per second in an open loop; nothing in a closed one.
    pub rate: Option<f64>,
    /// The machine, shared by client and server.
    pub machine: Machine,
    /// What was said about the server.
    pub setting: Setting,
}

impl Conditions {
    /// The rate of `count` in `seconds`, or why it would mean nothing.
    pub fn rate(&self, count: u64, seconds: f64) -> Result<f64, String> {
        self.complete()?;
        if count == 0 || seconds <= 0.0 {
            return Err("no rate of nothing".to_owned());
        }
        Ok(count as f64 / seconds)
    }

    /// How long connections served.
    pub(crate) fn connections(&self) -> String {
        match self.messages_per_connection {
            Some(each) => format!("for {each} messages each"),
            None => "kept".to_owned(),
        }
    }

    /// Why no figure about the server's speed would mean anything.
    pub(crate) fn complete(&self) -> Result<(), String> {
        let missing: Vec<&str> = [
            ("size mix", self.size_mix.is_empty()),
            ("sessions", self.sessions == 0),
            ("users", self.users == 0),
            ("recipients per message", self.recipients_per_message == 0),
            ("TLS", self.tls.is_empty()),
            ("cores", self.machine.cores == 0),
            ("processor", self.machine.cpu.is_empty()),
        ]
        .into_iter()
        .filter_map(|(name, missing)| missing.then_some(name))
        .chain(self.setting.missing())
        .collect();
        if !missing.is_empty() {
            return Err(format!("no rate without {}", missing.join(", ")));
        }
        if self.users_refused > 0 {
            return Err(format!(
                "no rate where users do not exist: {} RCPTs refused for good",
                self.users_refused
            ));
        }
        Ok(())
    }
}

impl fmt::Display for Conditions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "size={} sessions={} users={} (accepted {}) recipients-per-message={} senders={} TLS={} connections={} pipelining={} loop=",
            self.size_mix,
            self.sessions,
            self.users,
            self.users_accepted,
            self.recipients_per_message,
            self.senders,
            self.tls,
            self.connections(),
            if self.pipelining { "yes" } else { "no" },
        )?;
        match self.rate {
            Some(rate) => writeln!(f, "open at {rate}/s (Poisson)")?,
            None => writeln!(f, "closed")?,
        }
        writeln!(f, "machine: {}", self.machine)?;
        write!(f, "server: {}", self.setting)
    }
}

/// When the last acknowledged message could be read, in seconds since the first was sent.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Readable {
    /// Until then a maildrop was seen that lacked one; 0 if none ever was.
    pub not_before_s: f64,
    /// By then every maildrop had been seen with all of them; the time to look is in it.
    pub by_s: f64,
    /// When the server stopped working, if it was watched and no maildrop lacked anything when looked into after that.
    pub idle_at_s: Option<f64>,
    /// Messages per second until `idle_at_s`, or else until `by_s`.
    pub rate: Option<f64>,
}

/// What an open loop adds.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct OpenLoop {
    /// Messages due per second.
    pub rate: f64,
    /// From when a message was due to its 250. Those that never got one, for whatever reason, count with the time until
    /// the end.
    pub due_to_reply: Percentiles,
    /// How late the generator's free sessions woke.
    pub lag: Percentiles,
    /// How long messages waited that were due while no session was free.
    pub wait: Percentiles,
    /// Due before the end, and not acknowledged.
    pub unserved: u64,
    /// Why the generator itself could not keep up; then the latencies say nothing about the server.
    pub behind: Option<String>,
}

/// What the generator itself took.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Generator {
    /// CPU-seconds.
    pub cpu_s: f64,
    /// The same for 1,000 messages.
    pub cpu_s_per_1000: Option<f64>,
    /// Share of its sessions' time that went into composing messages and keeping the ledger.
    pub own_share: f64,
}

/// A figure, and where it comes from.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Sourced {
    /// The figure.
    pub value: f64,
    /// Its source.
    pub source: String,
}

/// What the server took, for one acknowledged message or for 1,000.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Costs {
    /// Whose processes.
    pub watched: String,
    /// CPU-seconds until the server was idle again.
    pub cpu_s: Option<f64>,
    /// The same for 1,000 messages.
    pub cpu_s_per_1000: Option<f64>,
    /// CPU-seconds until the last 250.
    pub cpu_until_last_reply_s: Option<f64>,
    /// When it stopped working, in seconds since the first message; nothing if it did not.
    pub idle_at_s: Option<f64>,
    /// Share of all cores that others than server and generator took meanwhile.
    pub others_share: Option<f64>,
    /// Most resident bytes of all processes together.
    pub rss_peak: u64,
    /// The same with shared pages counted once.
    pub pss_peak: Option<u64>,
    /// Most processes at once.
    pub processes: usize,
    /// Bytes written to disk, for one message.
    pub disk_bytes: Vec<Sourced>,
    /// Syncs, for one message.
    pub syncs: Vec<Sourced>,
}

impl fmt::Display for Costs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let (Some(per_1000), Some(total)) = (self.cpu_s_per_1000, self.cpu_s) {
            let until = match self.idle_at_s {
                Some(at) => format!("idle at {at:.2} s"),
                None => "never idle, so some may be missing".to_owned(),
            };
            let early = self.cpu_until_last_reply_s.unwrap_or(total);
            writeln!(
                f,
                "server CPU: {per_1000:.3} s for 1,000 messages ({total:.2} s, {early:.2} s of it until the last 250; {until}; {})",
                self.watched
            )?;
        }
        if let Some(share) = self.others_share {
            writeln!(
                f,
                "others on this machine took {:.0} % of all cores meanwhile",
                share * 100.0
            )?;
        }
        let megabytes = |bytes: u64| bytes as f64 / 1e6;
        if self.rss_peak > 0 {
            write!(
                f,
                "server memory: peak RSS {:.0} MB",
                megabytes(self.rss_peak)
            )?;
            if let Some(pss) = self.pss_peak {
                write!(f, ", peak PSS {:.0} MB", megabytes(pss))?;
            }
            writeln!(f, " in {} processes", self.processes)?;
        }
        for Sourced { value, source } in &self.disk_bytes {
            writeln!(f, "disk: {value:.0} bytes a message ({source})")?;
        }
        for Sourced { value, source } in &self.syncs {
            writeln!(f, "syncs: {value:.3} a message ({source})")?;
        }
        Ok(())
    }
}

/// What one run found.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct RunReport {
    /// The conditions.
    pub conditions: Conditions,
    /// The workload's seed.
    pub seed: u64,
    /// Messages that were asked for.
    pub messages: u64,
    /// Transactions begun.
    pub attempts: u64,
    /// Messages acknowledged.
    pub acknowledged: u64,
    /// Bytes of those.
    pub acknowledged_bytes: u64,
    /// Outcomes by recipient.
    pub recipients: Classes,
    /// Sessions opened.
    pub connections: u64,
    /// From the first connection (open loop: from the schedule's begin) to the last 250; to the end of the run when not
    /// everything was acknowledged.
    pub seconds: f64,
    /// Messages per second in that time.
    pub accept_rate: Option<f64>,
    /// From the first content byte to the 250.
    pub data_to_reply: Percentiles,
    /// What an open loop adds.
    pub open: Option<OpenLoop>,
    /// What the generator took.
    pub generator: Generator,
    /// What the server took, if it was watched.
    pub server: Option<Costs>,
    /// End to end, when maildrops were read.
    pub readable: Option<Readable>,
    /// The sweep, when maildrops were read.
    pub verify: Option<VerifyReport>,
    /// What went wrong on the wire, and how often.
    pub errors: BTreeMap<String, u64>,
    /// Figures that are not given, and why.
    pub withheld: Vec<String>,
}

impl RunReport {
    /// Whether everything that was asked for was acknowledged, and the equation holds if it was checked.
    pub fn succeeded(&self) -> bool {
        self.acknowledged >= self.messages
            && self.verify.as_ref().is_none_or(VerifyReport::balanced)
    }
}

impl fmt::Display for RunReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "conditions: {}", self.conditions)?;
        writeln!(
            f,
            "messages: seed={} asked={} attempts={} acknowledged={} bytes={} connections={}",
            self.seed,
            self.messages,
            self.attempts,
            self.acknowledged,
            self.acknowledged_bytes,
            self.connections
        )?;
        let Classes {
            ack,
            nak,
            unk,
            none,
        } = self.recipients;
        writeln!(f, "recipients: ack={ack} nak={nak} unk={unk} none={none}")?;
        if let Some(rate) = self.accept_rate {
            let proof = match &self.verify {
                Some(verify) if !verify.balanced() => {
                    " (AND THE LEDGER DOES NOT BALANCE)".to_owned()
                }
                Some(verify) if verify.dsns > 0 => format!(" ({} CAME BACK AS DSNs)", verify.dsns),
                Some(_) => String::new(),
                None => " (not verified: no --pop3)".to_owned(),
            };
            writeln!(
                f,
                "accepted: {rate:.1} messages/s in {:.2} s{proof}",
                self.seconds
            )?;
        }
        if self.data_to_reply.count > 0 {
            writeln!(f, "DATA-to-250 ms: {}", self.data_to_reply)?;
        }
        if let Some(open) = &self.open {
            write!(f, "{open}")?;
        }
        if let Some(readable) = &self.readable {
            write!(f, "{readable}")?;
        }
        if let Some(costs) = &self.server {
            write!(f, "{costs}")?;
        }
        if let Some(per_1000) = self.generator.cpu_s_per_1000 {
            writeln!(
                f,
                "generator: {per_1000:.3} CPU-s for 1,000 messages, {:.0} % of its sessions' time its own work",
                self.generator.own_share * 100.0
            )?;
        }
        for (error, times) in &self.errors {
            writeln!(f, "wire: {times} x {error}")?;
        }
        for reason in &self.withheld {
            writeln!(f, "withheld: {reason}")?;
        }
        if let Some(verify) = &self.verify {
            write!(f, "{verify}")?;
        }
        Ok(())
    }
}

impl fmt::Display for OpenLoop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.behind {
            None => writeln!(f, "due-to-250 ms: {}", self.due_to_reply)?,
            Some(why) => writeln!(f, "THE GENERATOR DID NOT KEEP UP: it {why}")?,
        }
        writeln!(
            f,
            "schedule: {} of {} messages found no session free (waited p99 {:.2} ms), {} never acknowledged; \
             the generator's own lateness p99 {:.2} ms, max {:.2} ms",
            self.wait.count,
            self.wait.count + self.lag.count,
            self.wait.p99_ms,
            self.unserved,
            self.lag.p99_ms,
            self.lag.max_ms,
        )
    }
}

impl fmt::Display for Readable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(rate) = self.rate else {
            return Ok(());
        };
        let Readable {
            not_before_s, by_s, ..
        } = self;
        match self.idle_at_s {
            Some(at) => writeln!(
                f,
                "end to end: {rate:.1} messages/s (server idle at {at:.2} s and nothing lacking then; all seen by {by_s:.2} s)"
            ),
            None => writeln!(
                f,
                "end to end: {rate:.1} messages/s (all readable by {by_s:.2} s, not before {not_before_s:.2} s)"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole() -> Conditions {
        Conditions {
            size_mix: "10240".into(),
            sessions: 20,
            users: 100,
            recipients_per_message: 1,
            tls: "none".into(),
            machine: Machine {
                cores: 2,
                cpu: "a processor".into(),
                ..Machine::default()
            },
            setting: Setting {
                durability: Some("synced".into()),
                storage: Some(Storage::default()),
            },
            ..Conditions::default()
        }
    }

    #[test]
    fn no_rate_without_its_conditions() {
        assert_eq!(whole().rate(100, 2.0), Ok(50.0));
        type Remove = fn(&mut Conditions);
        let without: [(&str, Remove); 10] = [
            ("size mix", |c| c.size_mix.clear()),
            ("sessions", |c| c.sessions = 0),
            ("users", |c| c.users = 0),
            ("recipients", |c| c.recipients_per_message = 0),
            ("TLS", |c| c.tls.clear()),
            ("cores", |c| c.machine.cores = 0),
            ("processor", |c| c.machine.cpu.clear()),
            ("--durability", |c| c.setting.durability = None),
            ("--data-dir", |c| c.setting.storage = None),
            ("users do not exist", |c| c.users_refused = 1),
        ];
        for (name, remove) in without {
            let mut conditions = whole();
            remove(&mut conditions);
            assert!(
                conditions.rate(100, 2.0).is_err_and(|e| e.contains(name)),
                "{name}"
            );
        }
        assert!(whole().rate(0, 2.0).is_err() && whole().rate(1, 0.0).is_err());
    }

    #[test]
    fn the_text_states_the_conditions_and_a_withheld_rate_is_not_in_it() {
        let mut report = RunReport {
            conditions: whole(),
            accept_rate: Some(50.0),
            ..RunReport::default()
        };
        let text = report.to_string();
        for said in [
            "size=10240 sessions=20 users=100",
            "TLS=none",
            "loop=closed",
            "a processor, 2 cores",
            "durability: synced",
            "50.0 messages/s",
            "not verified",
        ] {
            assert!(text.contains(said), "{said}: {text}");
        }
        report.accept_rate = None;
        assert!(!report.to_string().contains("messages/s"));
    }

    #[test]
    fn latencies_of_a_generator_that_did_not_keep_up_are_not_printed() {
        let mut report = RunReport {
            open: Some(OpenLoop::default()),
            ..RunReport::default()
        };
        assert!(report.to_string().contains("due-to-250"));
        report.open = Some(OpenLoop {
            behind: Some("slept".into()),
            ..OpenLoop::default()
        });
        let text = report.to_string();
        assert!(!text.contains("due-to-250") && text.contains("DID NOT KEEP UP: it slept"));
    }
}
