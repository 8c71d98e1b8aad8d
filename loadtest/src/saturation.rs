//! Where does the server give out? One open loop after the other at rising rates.
//!
//! Each rate is offered for some seconds, and sending goes on for as long again at most: what is not answered by then
//! counts with the time it has waited. Before the next rate the server is idle again. All goes into one ledger, which
//! must balance in the end.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::plot::{Dot, draw};
use crate::report::{Conditions, RunReport};
use crate::run::{RunOptions, Watch};
use crate::verify::{VerifyOptions, VerifyReport, verify};
use crate::watched::{Watching, run_watched};

/// The most rates of one sweep.
const RATES_MAX: usize = 100;
/// A server that accepts less than this share of what is offered has given out.
const GIVEN_OUT: f64 = 0.5;
/// Between two rates, where the server is not watched.
const PAUSE: Duration = Duration::from_secs(2);

/// The rates to be offered, in messages per second: `500,1000,2000`, and `500-8000/5` for five from 500 to 8,000, each
/// as many times the one before.
#[derive(Debug, Clone, PartialEq)]
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

/// What a sweep found.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct SaturationReport {
    /// For how long each rate was offered.
    pub step_s: f64,
    /// One report for each rate.
    pub steps: Vec<RunReport>,
    /// The highest accepted rate.
    pub peak: Option<f64>,
    /// Rates that were not offered any more, because the server had given out.
    pub left_out: Vec<f64>,
    /// The ledger of all steps, held against the maildrops.
    pub verify: Option<VerifyReport>,
}

/// Offers each of `rates` for `step`. `load` says all but rate, messages and deadline.
pub fn sweep(
    load: &RunOptions,
    rates: &Rates,
    step: Duration,
    watching: &Watching,
    reading: Option<&VerifyOptions>,
) -> anyhow::Result<SaturationReport> {
    ensure!(!step.is_zero(), "a step of no time");
    let mut report = SaturationReport {
        step_s: step.as_secs_f64(),
        ..SaturationReport::default()
    };
    for (at, rate) in rates.0.iter().enumerate() {
        if at > 0 && !watching.server.is_known() {
            std::thread::sleep(PAUSE);
        }
        let options = RunOptions {
            rate: Some(*rate),
            messages: (rate * step.as_secs_f64()).ceil() as u64,
            deadline: Some(step * 2),
            seed: load.seed.wrapping_add(at as u64),
            ..load.clone()
        };
        if load.progress {
            eprintln!("offering {rate}/s");
        }
        let done = run_watched(&options, &Arc::new(Watch::default()), watching)?;
        let accepted = done.accept_rate;
        report.steps.push(done);
        let peak = report.peak.into_iter().chain(accepted).reduce(f64::max);
        report.peak = peak;
        if accepted.unwrap_or(0.0) < GIVEN_OUT * rate {
            report.left_out = rates.0[at + 1..].to_vec();
            break;
        }
    }
    report.verify = reading.map(verify).transpose().context("verifying")?;
    Ok(report)
}

impl SaturationReport {
    /// Whether something could be measured, and nothing was lost or doubled.
    pub fn succeeded(&self) -> bool {
        self.peak.is_some() && self.verify.as_ref().is_none_or(VerifyReport::balanced)
    }

    fn dots(&self) -> Vec<Dot> {
        let rows = self.steps.iter().filter_map(|step| {
            let open = step.open.as_ref()?;
            Some(Dot {
                offered: open.rate,
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
        let dots = self.dots();
        let first = self.steps.first().context("no rate was offered")?;
        ensure!(
            !dots.is_empty(),
            "nothing to draw: {}",
            first.withheld.join("; ")
        );
        let Conditions {
            size_mix,
            sessions,
            users,
            tls,
            machine,
            setting,
            ..
        } = &first.conditions;
        let mut machine = machine.clone();
        if let Some(last) = self.steps.last() {
            machine.load_after = last.conditions.machine.load_after;
        }
        let proof = match &self.verify {
            Some(report) if report.balanced() => "every 250 verified in a mailbox once",
            Some(_) => "THE LEDGER DOES NOT BALANCE",
            None => "not verified",
        };
        let notes = [
            format!(
                "size {size_mix}, {sessions} sessions, {users} users, TLS {tls}, {} s for each rate, {proof}",
                self.step_s
            ),
            machine.to_string(),
            setting.to_string(),
        ];
        let title = match self.peak {
            Some(peak) => format!("Saturation: {peak:.0} messages/s accepted at most"),
            None => "Saturation".to_owned(),
        };
        Ok(draw(&title, &notes, &dots))
    }
}

impl fmt::Display for SaturationReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(first) = self.steps.first() {
            writeln!(f, "conditions: {}", first.conditions)?;
        }
        writeln!(
            f,
            "{:>9} {:>9} {:>9} {:>9} {:>9} {:>9} {:>10}",
            "offered/s", "accepted", "p50 ms", "p99 ms", "max ms", "unserved", "CPU-s/1000"
        )?;
        for step in &self.steps {
            let Some(open) = &step.open else { continue };
            let accepted = step
                .accept_rate
                .map_or("-".to_owned(), |r| format!("{r:.1}"));
            let cpu = step
                .server
                .as_ref()
                .and_then(|costs| costs.cpu_s_per_1000)
                .map_or("-".to_owned(), |cpu| format!("{cpu:.3}"));
            let latency = &open.due_to_reply;
            write!(f, "{:>9.1} {accepted:>9}", open.rate)?;
            match &open.behind {
                None => write!(
                    f,
                    " {:>9.2} {:>9.2} {:>9.2} {:>9} {cpu:>10}",
                    latency.p50_ms, latency.p99_ms, latency.max_ms, open.unserved
                )?,
                Some(why) => write!(f, " the generator did not keep up: it {why}")?,
            }
            writeln!(f)?;
            for (error, times) in &step.errors {
                writeln!(f, "wire: {times} x {error}")?;
            }
            for reason in &step.withheld {
                writeln!(f, "withheld: {reason}")?;
            }
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
}
