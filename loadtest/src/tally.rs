//! What sessions count, and what a report makes of it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::equation::Classes;
use crate::histogram::Histogram;
use crate::report::{Generator, OpenLoop, RunReport};

/// The most different errors a report lists.
const ERRORS_MAX: usize = 20;
/// A generator that is later than this, and by more than [`LAG_SHARE`] of what it measured, measured itself.
const LAG_MAX_MS: f64 = 5.0;
/// See [`LAG_MAX_MS`].
const LAG_SHARE: f64 = 0.25;
/// Messages that may wait for a session before it matters what the sessions are doing.
const WAITING_SHARE: f64 = 0.01;
/// A session that spends more than this share of its time on the generator's own work is no measure of the server.
pub(crate) const OWN_SHARE: f64 = 0.5;

/// What one session, or all of them, counted.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) bytes: u64,
    pub(crate) recipients: Classes,
    /// RCPTs refused for good.
    pub(crate) users_refused: u64,
    /// From the first content byte to the 250.
    pub(crate) data: Histogram,
    /// From due to the 250; at the end, of those not acknowledged too.
    pub(crate) due: Histogram,
    /// How late a free session was.
    pub(crate) lag: Histogram,
    /// How long messages waited for a session to be free.
    pub(crate) wait: Histogram,
    /// When messages were due that were not acknowledged.
    pub(crate) unanswered: Vec<Instant>,
    unserved: u64,
    pub(crate) last_ack: Option<Instant>,
    ended: Option<Instant>,
    /// Composing and bookkeeping while a message could have been under way.
    pub(crate) own: Duration,
    /// From when a message could be sent to its end.
    pub(crate) busy: Duration,
    errors: BTreeMap<String, u64>,
}

impl Tally {
    /// The run is over: every message that was due and not acknowledged, whether nobody got to it or the server did not
    /// take it, has waited until now.
    pub(crate) fn end(&mut self, ended: Instant) {
        self.ended = Some(ended);
        for due in std::mem::take(&mut self.unanswered) {
            if due < ended {
                self.unserved += 1;
                self.due.record(ended - due);
            }
        }
    }

    pub(crate) fn error(&mut self, text: String) {
        self.errors_add(text, 1);
    }

    /// Errors that would be one too many are counted together.
    fn errors_add(&mut self, text: String, times: u64) {
        let full = self.errors.len() >= ERRORS_MAX && !self.errors.contains_key(&text);
        let text = if full { "other".to_owned() } else { text };
        *self.errors.entry(text).or_default() += times;
    }

    pub(crate) fn merge(&mut self, other: Tally) {
        self.bytes += other.bytes;
        self.recipients.merge(other.recipients);
        self.users_refused += other.users_refused;
        self.data.merge(&other.data);
        self.due.merge(&other.due);
        self.lag.merge(&other.lag);
        self.wait.merge(&other.wait);
        self.unanswered.extend(other.unanswered);
        self.unserved += other.unserved;
        self.last_ack = self.last_ack.max(other.last_ack);
        self.own += other.own;
        self.busy += other.busy;
        for (error, times) in other.errors {
            self.errors_add(error, times);
        }
    }

    /// Puts the counts and the rates that can be stood for into `report`, which has its conditions already.
    pub(crate) fn fill(self, report: &mut RunReport, began: Instant, own_cpu_s: f64) {
        let per_1000 = own_cpu_s * 1000.0 / report.acknowledged.max(1) as f64;
        report.generator = Generator {
            cpu_s: own_cpu_s,
            cpu_s_per_1000: (report.acknowledged > 0).then_some(per_1000),
            own_share: self.own.as_secs_f64() / self.busy.as_secs_f64().max(1e-9),
        };
        report.acknowledged_bytes = self.bytes;
        report.recipients = self.recipients;
        // When a message was never acknowledged, the time that the server had for it counts too.
        let until = if report.acknowledged >= report.messages {
            self.last_ack
        } else {
            self.ended
        };
        report.seconds = until.map_or(0.0, |at| at.saturating_duration_since(began).as_secs_f64());
        report.data_to_reply = self.data.percentiles();
        match report.conditions.rate(report.acknowledged, report.seconds) {
            Ok(rate) => report.accept_rate = Some(rate),
            Err(why) => report.withheld.push(format!("accept rate: {why}")),
        }
        if let Some(rate) = report.conditions.rate {
            let open = self.open(rate, report);
            if let Some(why) = &open.behind {
                report
                    .withheld
                    .push(format!("latency from due: the generator {why}"));
            }
            report.open = Some(open);
        }
        report.errors = self.errors;
    }

    fn open(&self, rate: f64, report: &RunReport) -> OpenLoop {
        let mut open = OpenLoop {
            rate,
            due_to_reply: self.due.percentiles(),
            lag: self.lag.percentiles(),
            wait: self.wait.percentiles(),
            unserved: self.unserved,
            behind: None,
        };
        let sent = open.lag.count + open.wait.count;
        let waiting = open.wait.count as f64 > WAITING_SHARE * sent as f64;
        let lag = open.lag.p99_ms;
        open.behind = if lag > LAG_MAX_MS && lag > LAG_SHARE * open.due_to_reply.p99_ms {
            Some(format!("woke too late itself (p99 {lag:.1} ms)"))
        } else if waiting && report.generator.own_share > OWN_SHARE {
            Some(format!(
                "was busy with its own work ({:.0} % of its sessions' time) while messages waited",
                report.generator.own_share * 100.0
            ))
        } else {
            None
        };
        open
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Conditions;

    fn report() -> RunReport {
        RunReport {
            acknowledged: 100,
            conditions: Conditions {
                rate: Some(10.0),
                ..Conditions::default()
            },
            ..RunReport::default()
        }
    }

    fn filled(tally: Tally) -> OpenLoop {
        let mut report = report();
        tally.fill(&mut report, Instant::now(), 0.1);
        report.open.unwrap()
    }

    #[test]
    fn a_generator_that_wakes_late_says_so_and_a_slow_server_is_not_blamed_on_it() {
        let late = |lag_ms: u64, latency_ms: u64| {
            let mut tally = Tally::default();
            for _ in 0..100 {
                tally.lag.record(Duration::from_millis(lag_ms));
                tally.due.record(Duration::from_millis(latency_ms));
            }
            filled(tally).behind.is_some()
        };
        assert!(late(20, 30));
        assert!(!late(20, 500));
        assert!(!late(1, 2));
    }

    #[test]
    fn a_generator_busy_with_itself_says_so() {
        let busy = |own_ms: u64, waiting: bool| {
            let mut tally = Tally {
                own: Duration::from_millis(own_ms),
                busy: Duration::from_millis(100),
                ..Tally::default()
            };
            for _ in 0..100 {
                let histogram = if waiting {
                    &mut tally.wait
                } else {
                    &mut tally.lag
                };
                histogram.record(Duration::from_micros(10));
                tally.due.record(Duration::from_millis(1));
            }
            filled(tally).behind.is_some()
        };
        assert!(busy(80, true));
        assert!(!busy(80, false));
        assert!(!busy(20, true));
    }

    #[test]
    fn what_was_never_acknowledged_is_in_the_percentiles() {
        let mut tally = Tally::default();
        tally.due.record(Duration::from_millis(1));
        let began = Instant::now();
        tally.unanswered.push(began);
        tally.unanswered.push(began + Duration::from_secs(9));
        tally.end(began + Duration::from_secs(5));
        let open = filled(tally);
        assert_eq!(open.unserved, 1);
        assert!(open.due_to_reply.max_ms >= 5000.0);
    }

    #[test]
    fn the_clock_runs_on_for_what_was_never_acknowledged() {
        let seconds = |messages| {
            let began = Instant::now();
            let mut tally = Tally {
                last_ack: Some(began + Duration::from_secs(1)),
                ..Tally::default()
            };
            tally.end(began + Duration::from_secs(10));
            let mut report = RunReport {
                messages,
                ..report()
            };
            tally.fill(&mut report, began, 0.1);
            report.seconds
        };
        assert_eq!(seconds(100), 1.0);
        assert_eq!(seconds(101), 10.0);
    }
}
