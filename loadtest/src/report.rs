//! What a run found, with the conditions it was found under. A rate without its conditions is not printed.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::equation::Class;
use crate::histogram::Percentiles;
use crate::verify::VerifyReport;

/// What a figure needs to mean something.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Conditions {
    /// Sizes of the messages.
    pub size_mix: String,
    /// Concurrent SMTP sessions.
    pub sessions: usize,
    /// Users that mail was spread over.
    pub users: usize,
    /// Recipients of each message.
    pub recipients_per_message: usize,
    /// How the sessions were protected.
    pub tls: String,
    /// Cores of the machine, shared by client and server.
    pub cores: usize,
}

impl Conditions {
    /// The rate of `count` in `seconds`, or why it would mean nothing.
    pub fn rate(&self, count: u64, seconds: f64) -> Result<f64, String> {
        let missing: Vec<&str> = [
            ("size mix", self.size_mix.is_empty()),
            ("sessions", self.sessions == 0),
            ("users", self.users == 0),
            ("recipients per message", self.recipients_per_message == 0),
            ("TLS", self.tls.is_empty()),
            ("cores", self.cores == 0),
        ]
        .into_iter()
        .filter_map(|(name, missing)| missing.then_some(name))
        .collect();
        if !missing.is_empty() {
            return Err(format!("no rate without {}", missing.join(", ")));
        }
        if count == 0 || seconds <= 0.0 {
            return Err("no rate of nothing".to_owned());
        }
        Ok(count as f64 / seconds)
    }
}

impl fmt::Display for Conditions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Conditions {
            size_mix,
            sessions,
            users,
            recipients_per_message,
            tls,
            cores,
        } = self;
        write!(
            f,
            "size={size_mix} sessions={sessions} users={users} recipients-per-message={recipients_per_message} \
             TLS={tls} cores={cores} loop=closed"
        )
    }
}

/// How many (attempt, recipient) pairs ended in each class.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Classes {
    /// Acknowledged.
    pub ack: u64,
    /// Refused.
    pub nak: u64,
    /// Unknown.
    pub unk: u64,
    /// Nothing decided.
    pub none: u64,
}

impl Classes {
    /// Counts one pair.
    pub fn count(&mut self, class: Class) {
        match class {
            Class::Ack => self.ack += 1,
            Class::Nak => self.nak += 1,
            Class::Unk => self.unk += 1,
            Class::None => self.none += 1,
        }
    }

    /// Adds another session's counts.
    pub fn merge(&mut self, other: Classes) {
        self.ack += other.ack;
        self.nak += other.nak;
        self.unk += other.unk;
        self.none += other.none;
    }
}

/// When the last acknowledged message could be read, in seconds since the first was sent.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Readable {
    /// Until then a maildrop was seen that lacked one.
    pub not_before_s: f64,
    /// By then every maildrop had been seen with all of them.
    pub by_s: f64,
    /// Messages per second until `by_s`.
    pub rate: Option<f64>,
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
    /// From the first connection to the last 250.
    pub seconds: f64,
    /// Messages per second in that time.
    pub accept_rate: Option<f64>,
    /// From the first content byte to the 250.
    pub data_to_reply: Percentiles,
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
        writeln!(f, "conditions: {} seed={}", self.conditions, self.seed)?;
        writeln!(
            f,
            "messages: asked={} attempts={} acknowledged={} bytes={} connections={}",
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
            let proof = if self.verify.is_some() {
                ""
            } else {
                " (not verified: no --pop3)"
            };
            writeln!(
                f,
                "accepted: {rate:.1} messages/s in {:.2} s{proof}",
                self.seconds
            )?;
        }
        let Percentiles {
            count,
            p50_ms,
            p95_ms,
            p99_ms,
            max_ms,
        } = &self.data_to_reply;
        if *count > 0 {
            writeln!(
                f,
                "DATA-to-250 ms: p50={p50_ms:.2} p95={p95_ms:.2} p99={p99_ms:.2} max={max_ms:.2} n={count}"
            )?;
        }
        if let Some(Readable {
            not_before_s,
            by_s,
            rate: Some(rate),
        }) = &self.readable
        {
            writeln!(
                f,
                "end to end: {rate:.1} messages/s (all readable by {by_s:.2} s, not before {not_before_s:.2} s)"
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
            cores: 2,
        }
    }

    #[test]
    fn no_rate_without_its_conditions() {
        assert_eq!(whole().rate(100, 2.0), Ok(50.0));
        let cases = [
            (
                "size mix",
                Conditions {
                    size_mix: String::new(),
                    ..whole()
                },
            ),
            (
                "sessions",
                Conditions {
                    sessions: 0,
                    ..whole()
                },
            ),
            (
                "users",
                Conditions {
                    users: 0,
                    ..whole()
                },
            ),
            (
                "recipients",
                Conditions {
                    recipients_per_message: 0,
                    ..whole()
                },
            ),
            (
                "TLS",
                Conditions {
                    tls: String::new(),
                    ..whole()
                },
            ),
            (
                "cores",
                Conditions {
                    cores: 0,
                    ..whole()
                },
            ),
        ];
        for (name, conditions) in cases {
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
        assert!(
            text.contains("size=10240 sessions=20 users=100") && text.contains("TLS=none cores=2")
        );
        assert!(text.contains("50.0 messages/s") && text.contains("not verified"));
        report.accept_rate = None;
        assert!(!report.to_string().contains("messages/s"));
    }
}
