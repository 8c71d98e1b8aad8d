//! A load with the server watched: what it took until it was idle again, and how much memory at most.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use crate::load::run;
use crate::machine::{busy_seconds, own_seconds};
use crate::report::{Costs, RunReport, Sourced};
use crate::run::{MESSAGES_ENDLESS, RunOptions, Watch};
use crate::server::{Memory, Reading, Server};
use crate::strace::Tracing;

/// How often memory is looked at.
const MEMORY_EVERY: Duration = Duration::from_millis(500);
/// Every how manieth look is for PSS too.
const PSS_EVERY: u32 = 5;

/// Whom to watch, and how long.
#[derive(Debug, Clone, Default)]
pub struct Watching {
    /// The server's processes, counters and disk.
    pub server: Server,
    /// A server that did nothing for so long has done its work.
    pub idle: Duration,
    /// Longest wait for that.
    pub wait: Duration,
    /// Load under strace for so long afterwards, to count syncs.
    pub sample_syncs: Option<Duration>,
}

impl Watching {
    /// Refuses what could not be watched.
    pub fn check(&self) -> anyhow::Result<()> {
        ensure!(
            self.sample_syncs.is_none() || self.server.is_known(),
            "--sample-syncs needs --server-pid or --server-cgroup"
        );
        self.server.check()
    }
}

/// Runs the load and waits until the server is idle.
pub fn run_watched(
    options: &RunOptions,
    watch: &Arc<Watch>,
    watching: &Watching,
) -> anyhow::Result<RunReport> {
    watching.check()?;
    watching.server.check_listens(options.smtp.address)?;
    let before = watching.server.read();
    let busy = (busy_seconds(), own_seconds());
    let mut peak = Peak::default();
    let ended = AtomicBool::new(false);
    let (report, replied, idle_at) = std::thread::scope(|scope| {
        let sampler = scope.spawn(|| peak.follow(&watching.server, &ended));
        let _end = End(&ended, sampler.thread().clone());
        let report = run(options, watch)?;
        let replied = watching.server.read();
        let deadline = Instant::now() + watching.wait;
        let idle_at = watching.server.wait_idle(watching.idle, deadline);
        anyhow::Ok((report, replied, idle_at))
    })?;
    let mut report = report;
    let after = watching.server.read();
    if watching.server.is_known() || watching.server.metrics.is_some() || after.disk.is_some() {
        let began = watch.began.get().copied().unwrap_or(before.at);
        let mut costs = Costs {
            watched: watching.server.to_string(),
            idle_at_s: idle_at.map(|at| at.saturating_duration_since(began).as_secs_f64()),
            rss_peak: peak.rss,
            pss_peak: peak.pss,
            processes: peak.processes,
            ..Costs::default()
        };
        costs.between(&before, &replied, &after, report.acknowledged);
        costs.others_share = others(busy, &before, &after, costs.cpu_s, &report);
        report.server = Some(costs);
        withhold(&mut report);
    }
    Ok(report)
}

/// Counts syncs by strace under more of the same load, which goes into the same ledger.
pub fn sample_syncs(
    options: &RunOptions,
    watching: &Watching,
    report: &mut RunReport,
) -> anyhow::Result<()> {
    let Some(duration) = watching.sample_syncs else {
        return Ok(());
    };
    let more = RunOptions {
        messages: MESSAGES_ENDLESS,
        deadline: Some(duration),
        seed: options.seed.wrapping_add(1),
        progress: false,
        ..options.clone()
    };
    let watch = Arc::new(Watch::default());
    let tracing = Tracing::attach(&watching.server)?;
    run(&more, &watch).context("load under strace")?;
    let idle = watching
        .server
        .wait_idle(watching.idle, Instant::now() + watching.wait);
    let calls = tracing.detach()?;
    let messages = watch.acknowledged.load(Ordering::Relaxed);
    ensure!(messages > 0, "nothing was acknowledged under strace");
    let total: u64 = calls.iter().map(|(_, calls)| calls).sum();
    let each: Vec<String> = calls
        .iter()
        .map(|(name, calls)| format!("{calls} {name}"))
        .collect();
    let settled = if idle.is_some() { "" } else { ", never idle" };
    let source = format!(
        "strace of {messages} more messages, traced and so slower: {}{settled}",
        if each.is_empty() {
            "no call".to_owned()
        } else {
            each.join(", ")
        },
    );
    let costs = report.server.get_or_insert_default();
    costs.syncs.push(Sourced {
        value: total as f64 / messages as f64,
        source,
    });
    Ok(())
}

/// Costs are figures about the server too: none without the conditions.
fn withhold(report: &mut RunReport) {
    let Err(why) = report.conditions.complete() else {
        return;
    };
    report.withheld.push(format!("the server's costs: {why}"));
    report.server = report.server.take().map(|costs| Costs {
        watched: costs.watched,
        idle_at_s: costs.idle_at_s,
        ..Costs::default()
    });
}

impl Costs {
    fn between(&mut self, before: &Reading, replied: &Reading, after: &Reading, messages: u64) {
        if messages == 0 {
            return;
        }
        let each = messages as f64;
        // A process that left the tree has taken its time along: then less is known than nothing.
        let grown = |from: Option<f64>, to: Option<f64>| Some(to? - from?).filter(|s| *s >= 0.0);
        self.cpu_s = grown(before.cpu_s, after.cpu_s);
        self.cpu_s_per_1000 = self.cpu_s.map(|s| s * 1000.0 / each);
        self.cpu_until_last_reply_s = grown(before.cpu_s, replied.cpu_s);
        if let (Some(from), Some(to)) = (before.process_bytes, after.process_bytes) {
            self.disk_bytes.push(Sourced {
                value: to.saturating_sub(from) as f64 / each,
                source: "write_bytes of the server's processes".to_owned(),
            });
        }
        if let (Some(from), Some(to)) = (before.disk, after.disk) {
            self.disk_bytes.push(Sourced {
                value: to.written_bytes.saturating_sub(from.written_bytes) as f64 / each,
                source: "the disk's statistics, with whatever else wrote to it".to_owned(),
            });
            let flushes = to.flushes.saturating_sub(from.flushes);
            if flushes > 0 {
                self.syncs.push(Sourced {
                    value: flushes as f64 / each,
                    source: "flushes of the disk, with whatever else caused them".to_owned(),
                });
            }
        }
        if let (Some((from, _)), Some((to, names))) = (&before.syncs, &after.syncs) {
            self.syncs.push(Sourced {
                value: to.saturating_sub(*from) as f64 / each,
                source: format!("the server's own {names}"),
            });
        }
    }
}

/// The share of all cores that neither server nor generator used, or that the hypervisor gave to others.
fn others(
    (busy, own): (Option<f64>, f64),
    before: &Reading,
    after: &Reading,
    server: Option<f64>,
    report: &RunReport,
) -> Option<f64> {
    let all = busy_seconds()? - busy?;
    let ours = own_seconds() - own + server?;
    let seconds = (after.at - before.at).as_secs_f64();
    let cores = report.conditions.machine.cores.max(1) as f64;
    Some(((all - ours) / (seconds * cores)).clamp(0.0, 1.0))
}

#[derive(Default)]
struct Peak {
    rss: u64,
    pss: Option<u64>,
    processes: usize,
}

impl Peak {
    fn follow(&mut self, server: &Server, ended: &AtomicBool) {
        if !server.is_known() {
            return;
        }
        for look in 0.. {
            // the last look is after the load, when what is buffered for each message is at its most
            let last = ended.load(Ordering::Acquire);
            self.raise(server.memory(last || look % PSS_EVERY == 0));
            if last {
                return;
            }
            std::thread::park_timeout(MEMORY_EVERY);
        }
    }

    fn raise(&mut self, now: Memory) {
        self.rss = self.rss.max(now.rss);
        self.pss = self.pss.max(now.pss);
        self.processes = self.processes.max(now.processes);
    }
}

struct End<'a>(&'a AtomicBool, std::thread::Thread);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
        self.1.unpark();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::DiskCounters;

    fn reading(cpu_s: f64, bytes: u64, syncs: u64) -> Reading {
        Reading {
            at: Instant::now(),
            cpu_s: Some(cpu_s),
            process_bytes: Some(bytes),
            disk: Some(DiskCounters {
                written_bytes: bytes * 2,
                flushes: syncs * 3,
            }),
            syncs: Some((syncs, "x_syncs_total".to_owned())),
        }
    }

    #[test]
    fn costs_are_what_grew_divided_by_the_messages() {
        let mut costs = Costs::default();
        let (before, replied) = (reading(10.0, 5000, 7), reading(11.0, 6000, 8));
        costs.between(&before, &replied, &reading(12.0, 9000, 17), 100);
        assert_eq!((costs.cpu_s, costs.cpu_s_per_1000), (Some(2.0), Some(20.0)));
        assert_eq!(costs.cpu_until_last_reply_s, Some(1.0));
        let values = |all: &[Sourced]| all.iter().map(|f| f.value).collect::<Vec<_>>();
        assert_eq!(values(&costs.disk_bytes), [40.0, 80.0]);
        assert_eq!(values(&costs.syncs), [0.3, 0.1]);
        let mut shrunk = Costs::default();
        shrunk.between(&replied, &before, &before, 100);
        assert_eq!((shrunk.cpu_s, shrunk.cpu_s_per_1000), (None, None));
        let mut nothing = Costs::default();
        nothing.between(&before, &replied, &replied, 0);
        assert_eq!(nothing, Costs::default());
    }

    #[test]
    fn no_costs_without_the_conditions() {
        let mut report = RunReport {
            server: Some(Costs {
                cpu_s_per_1000: Some(0.3),
                rss_peak: 1,
                ..Costs::default()
            }),
            ..RunReport::default()
        };
        withhold(&mut report);
        assert_eq!(report.server, Some(Costs::default()));
        assert!(report.withheld[0].contains("--durability"), "{report}");
    }
}
