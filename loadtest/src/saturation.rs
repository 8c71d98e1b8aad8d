//! Where does the server give out? One closed loop after the other with more sessions, and one open loop after the
//! other at rising rates.
//!
//! Each number of sessions is kept busy for some seconds. Each rate is offered for as long, and sending goes on for that
//! time again at most: what is not answered by then counts with the time it has waited. Before the next step the server
//! is idle again. All goes into one ledger, which must balance in the end.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::axis::number;
use crate::histogram::Percentiles;
use crate::maildrops::VerifyOptions;
use crate::plot::{Across, Column, Dot, Picture};
use crate::report::{Conditions, RunReport};
use crate::run::{MESSAGES_ENDLESS, RunOptions, SESSIONS_MAX, Watch};
use crate::tally::OWN_SHARE;
use crate::verify::{VerifyReport, verify};
use crate::watched::{Watching, run_watched};

/// The most rates of one sweep, and the most numbers of sessions.
const RATES_MAX: usize = 100;
/// A server that accepts less than this share of what is offered has given out.
const GIVEN_OUT: f64 = 0.5;
/// Between two rates, where the server is not watched.
const PAUSE: Duration = Duration::from_secs(2);

/// The rates to be offered, in messages per second: `500,1000,2000`, and `500-8000/5` for five from 500 to 8,000, each
/// as many times the one before.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Rates(pub Vec<f64>);

impl FromStr for Rates {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Rates> {
        let number = |word: &str| -> anyhow::Result<f64> {
            let rate: f64 = word.parse().with_context(|| format!("rate {word:?}"))?;
            ensure!(
                rate.is_finite() && rate > 0.0,
                "rate {word:?} is not above 0"
            );
            Ok(rate)
        };
        let mut rates = Vec::new();
        for part in text.split(',') {
            let Some((low, rest)) = part.split_once('-') else {
                rates.push(number(part)?);
                continue;
            };
            let Some((high, steps)) = rest.split_once('/') else {
                bail!("{part:?} is not LOW-HIGH/STEPS");
            };
            let (low, high) = (number(low)?, number(high)?);
            let steps: usize = steps.parse().with_context(|| format!("steps {steps:?}"))?;
            ensure!(
                (2..=RATES_MAX).contains(&steps) && low < high,
                "{part:?} needs 2 to {RATES_MAX} steps upwards"
            );
            let factor = (high / low).powf(1.0 / (steps - 1) as f64);
            rates.extend((0..steps).map(|n| (low * factor.powi(n as i32)).round()));
        }
        ensure!(
            !rates.is_empty() && rates.len() <= RATES_MAX,
            "1 to {RATES_MAX} rates"
        );
        Ok(Rates(rates))
    }
}

/// The numbers of sessions to be kept busy, in the notation of [`Rates`], rounded; each is above the one before.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts(pub Vec<usize>);

impl FromStr for Counts {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Counts> {
        let mut counts: Vec<usize> = text
            .parse::<Rates>()?
            .0
            .into_iter()
            .map(|number| number.round() as usize)
            .collect();
        ensure!(
            counts.iter().all(|n| (1..=SESSIONS_MAX).contains(n)),
            "sessions must be 1..{SESSIONS_MAX}"
        );
        counts.sort_unstable();
        counts.dedup();
        Ok(Counts(counts))
    }
}

/// What is tried, one after the other.
#[derive(Debug, Clone, Default)]
pub struct Steps {
    /// Closed loops of so many sessions.
    pub session_counts: Counts,
    /// Open loops at these rates, by the sessions of the load.
    pub rates: Rates,
    /// For how long each.
    pub each: Duration,
}

/// What a sweep found.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct SaturationReport {
    /// For how long each number of sessions was kept busy, and each rate offered.
    pub step_s: f64,
    /// One report for each number of sessions.
    pub closed: Vec<RunReport>,
    /// One report for each rate.
    pub steps: Vec<RunReport>,
    /// The highest accepted rate.
    pub peak: Option<f64>,
    /// Rates that were not offered any more, because the server had given out.
    pub left_out: Vec<f64>,
    /// The ledger of all steps, held against the maildrops.
    pub verify: Option<VerifyReport>,
}

/// Takes all the steps. `load` says all but sessions, rate, messages and deadline.
pub fn sweep(
    load: &RunOptions,
    steps: &Steps,
    watching: &Watching,
    reading: Option<&VerifyOptions>,
) -> anyhow::Result<SaturationReport> {
    ensure!(!steps.each.is_zero(), "a step of no time");
    let mut sweep = Sweep {
        load,
        watching,
        taken: 0,
        report: SaturationReport {
            step_s: steps.each.as_secs_f64(),
            ..SaturationReport::default()
        },
    };
    for sessions in &steps.session_counts.0 {
        let mut done = sweep.step(RunOptions {
            sessions: *sessions,
            messages: MESSAGES_ENDLESS,
            deadline: Some(steps.each),
            progress: false,
            ..load.clone()
        })?;
        // as many as there is time for
        done.messages = done.acknowledged;
        sweep.report.closed.push(done);
    }
    for (at, rate) in steps.rates.0.iter().enumerate() {
        let done = sweep.step(RunOptions {
            rate: Some(*rate),
            messages: (rate * steps.each.as_secs_f64()).ceil() as u64,
            deadline: Some(steps.each * 2),
            ..load.clone()
        })?;
        let accepted = done.accept_rate.unwrap_or(0.0);
        sweep.report.steps.push(done);
        if accepted < GIVEN_OUT * rate {
            sweep.report.left_out = steps.rates.0[at + 1..].to_vec();
            break;
        }
    }
    let mut report = sweep.report;
    report.verify = reading.map(verify).transpose().context("verifying")?;
    Ok(report)
}

/// A sweep under way.
struct Sweep<'a> {
    load: &'a RunOptions,
    watching: &'a Watching,
    taken: u64,
    report: SaturationReport,
}

impl Sweep<'_> {
    fn step(&mut self, options: RunOptions) -> anyhow::Result<RunReport> {
        if self.taken > 0 && !self.watching.server.is_known() {
            std::thread::sleep(PAUSE);
        }
        if self.load.progress {
            match options.rate {
                Some(rate) => eprintln!("offering {rate}/s"),
                None => eprintln!("{} sessions", options.sessions),
            }
        }
        let options = RunOptions {
            seed: options.seed.wrapping_add(self.taken),
            ..options
        };
        self.taken += 1;
        let done = run_watched(&options, &Arc::new(Watch::default()), self.watching)?;
        let peak = self.report.peak.into_iter().chain(done.accept_rate);
        self.report.peak = peak.reduce(f64::max);
        Ok(done)
    }
}

impl SaturationReport {
    /// Whether something could be measured, and nothing was lost or doubled.
    pub fn succeeded(&self) -> bool {
        self.peak.is_some() && self.verify.as_ref().is_none_or(VerifyReport::balanced)
    }

    fn closed_loops(&self) -> Vec<Dot> {
        let rows = self.closed.iter().filter_map(|step| {
            Some(Dot {
                at: step.conditions.sessions as f64,
                accepted: step.accept_rate?,
                p50_ms: step.data_to_reply.p50_ms,
                p99_ms: step.data_to_reply.p99_ms,
                sound: step.generator.own_share <= OWN_SHARE,
            })
        });
        rows.collect()
    }

    fn open_loops(&self) -> Vec<Dot> {
        let rows = self.steps.iter().filter_map(|step| {
            let open = step.open.as_ref()?;
            Some(Dot {
                at: open.rate,
                accepted: step.accept_rate?,
                p50_ms: open.due_to_reply.p50_ms,
                p99_ms: open.due_to_reply.p99_ms,
                sound: open.behind.is_none(),
            })
        });
        rows.collect()
    }

    /// The picture; an error when there is no figure to be drawn.
    pub fn svg(&self) -> anyhow::Result<String> {
        let all = || self.closed.iter().chain(&self.steps);
        let first = all().next().context("no step was taken")?;
        let mut columns = vec![Column {
            heading: "Closed loops: every session sends when it was answered".to_owned(),
            across: Across::Sessions,
            dots: self.closed_loops(),
        }];
        if let Some(step) = self.steps.first() {
            columns.push(Column {
                heading: format!(
                    "Open loops: {} sessions send what is due",
                    step.conditions.sessions
                ),
                across: Across::Offered,
                dots: self.open_loops(),
            });
        }
        columns.retain(|column| !column.dots.is_empty());
        ensure!(
            !columns.is_empty(),
            "nothing to draw: {}",
            first.withheld.join("; ")
        );
        let title = match self.peak {
            Some(peak) => format!("{} messages/s accepted at most", number(peak.round())),
            None => "Nothing was accepted".to_owned(),
        };
        let picture = Picture {
            title,
            notes: self.notes(&first.conditions, all().last()),
            columns,
        };
        Ok(picture.svg())
    }

    /// The largest share of all cores that others took during a step.
    fn others_share(&self) -> Option<f64> {
        let all = self.closed.iter().chain(&self.steps);
        all.filter_map(|step| step.server.as_ref()?.others_share)
            .reduce(f64::max)
    }

    /// The conditions that all steps share.
    fn notes(&self, conditions: &Conditions, last: Option<&RunReport>) -> Vec<String> {
        let mut machine = conditions.machine.clone();
        if let Some(last) = last {
            machine.load_after = last.conditions.machine.load_after;
        }
        let proof = match &self.verify {
            Some(report) if report.balanced() => "every 250 verified in a mailbox once",
            Some(_) => "THE LEDGER DOES NOT BALANCE",
            None => "not verified",
        };
        let Conditions {
            size_mix,
            users,
            tls,
            setting,
            ..
        } = conditions;
        vec![
            format!(
                "size {size_mix}, {users} users, TLS {tls}, connections {}, {} s for each step, {proof}",
                conditions.connections(),
                self.step_s
            ),
            match self.others_share() {
                Some(share) => format!(
                    "{machine}, others on it took {:.0} % of all cores at most",
                    share * 100.0
                ),
                None => machine.to_string(),
            },
            setting.to_string(),
        ]
    }
}

/// One row of the table: what it was, how long it took, and the server's CPU-seconds for 1,000 messages.
fn row(
    f: &mut fmt::Formatter<'_>,
    step: &RunReport,
    at: f64,
    latency: Result<(&Percentiles, u64), &str>,
) -> fmt::Result {
    let accepted = step
        .accept_rate
        .map_or("-".to_owned(), |r| format!("{r:.1}"));
    let cpu = step
        .server
        .as_ref()
        .and_then(|costs| costs.cpu_s_per_1000)
        .map_or("-".to_owned(), |cpu| format!("{cpu:.3}"));
    write!(f, "{at:>9.1} {accepted:>9}")?;
    match latency {
        Ok((latency, unserved)) => write!(
            f,
            " {:>9.2} {:>9.2} {:>9.2} {unserved:>9} {cpu:>10}",
            latency.p50_ms, latency.p99_ms, latency.max_ms
        )?,
        Err(why) => write!(f, " the generator did not keep up: it {why}")?,
    }
    writeln!(f)?;
    for (error, times) in &step.errors {
        writeln!(f, "wire: {times} x {error}")?;
    }
    for reason in &step.withheld {
        writeln!(f, "withheld: {reason}")?;
    }
    Ok(())
}

fn head(f: &mut fmt::Formatter<'_>, what: &str, clock: &str) -> fmt::Result {
    writeln!(
        f,
        "{what:>9} {:>9} {:>9} {:>9} {:>9} {:>9} {:>10}  ({clock})",
        "accepted", "p50 ms", "p99 ms", "max ms", "unserved", "CPU-s/1000"
    )
}

impl fmt::Display for SaturationReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(first) = self.closed.first() {
            writeln!(f, "conditions: {}", first.conditions)?;
            head(f, "sessions", "closed loops, DATA to 250")?;
        }
        for step in &self.closed {
            let sessions = step.conditions.sessions as f64;
            row(f, step, sessions, Ok((&step.data_to_reply, 0)))?;
        }
        if let Some(first) = self.steps.first() {
            writeln!(f, "conditions: {}", first.conditions)?;
            head(f, "offered/s", "open loops, due to 250")?;
        }
        for step in &self.steps {
            let Some(open) = &step.open else { continue };
            let latency = match &open.behind {
                None => Ok((&open.due_to_reply, open.unserved)),
                Some(why) => Err(why.as_str()),
            };
            row(f, step, open.rate, latency)?;
        }
        if let Some(share) = self.others_share() {
            writeln!(
                f,
                "others on this machine took {:.0} % of all cores at most",
                share * 100.0
            )?;
        }
        if let Some(peak) = self.peak {
            writeln!(f, "peak: {peak:.1} messages/s accepted")?;
        }
        if !self.left_out.is_empty() {
            writeln!(
                f,
                "left out, since the server had given out: {:?}",
                self.left_out
            )?;
        }
        match &self.verify {
            Some(verify) => write!(f, "{verify}"),
            None => writeln!(f, "not verified: no --pop3"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_listed_or_spread() {
        let rates = |text: &str| text.parse::<Rates>().map(|rates| rates.0);
        assert_eq!(rates("500,1000.5").unwrap(), [500.0, 1000.5]);
        assert_eq!(
            rates("500-8000/5").unwrap(),
            [500.0, 1000.0, 2000.0, 4000.0, 8000.0]
        );
        assert_eq!(rates("10,100-200/2").unwrap(), [10.0, 100.0, 200.0]);
        for bad in [
            "", "x", "0", "-5", "inf", "100-50/3", "1-2", "1-2/1", "1-2/1000",
        ] {
            assert!(rates(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn numbers_of_sessions_are_whole_and_rise() {
        let counts = |text: &str| text.parse::<Counts>().map(|counts| counts.0);
        assert_eq!(counts("1-64/7").unwrap(), [1, 2, 4, 8, 16, 32, 64]);
        assert_eq!(counts("20,5,5.4").unwrap(), [5, 20]);
        for bad in ["0.3", "5000", "x", ""] {
            assert!(counts(bad).is_err(), "{bad}");
        }
    }
}
