//! What the server spends, seen from outside: CPU, memory, disk and syncs of its processes.
//!
//! Processes are found by their root (`--server-pid`: that process, its descendants, and what it has reaped) or by
//! their cgroup (`--server-cgroup`: everything that ever ran in it, for servers that fork and let go, such as Postfix).
//! A figure that the kernel does not give to us is left out, never guessed.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use crate::machine::{DiskCounters, Storage, TICKS_PER_SECOND};

/// The longest metrics page read.
const PAGE_MAX: u64 = 4 << 20;
/// How long the metrics page may take.
const PAGE_TIMEOUT: Duration = Duration::from_secs(5);
/// Between two looks at whether the server is idle.
const IDLE_LOOK: Duration = Duration::from_millis(100);
/// A server that uses less than this share of one core is idle.
const IDLE_SHARE: f64 = 0.05;
/// The ending of every counter of syncs.
const SYNCS: &str = "_syncs_total";

/// Whom to watch.
#[derive(Debug, Clone, Default)]
pub struct Server {
    /// Roots of process trees.
    pub pids: Vec<u32>,
    /// Cgroup directories, of version 1 (cpuacct) or 2.
    pub cgroups: Vec<PathBuf>,
    /// The server's own counters.
    pub metrics: Option<Metrics>,
    /// The disk under its data.
    pub storage: Option<Storage>,
}

/// A page of Prometheus metrics; loopback.
#[derive(Debug, Clone)]
pub struct Metrics {
    /// Whom to ask.
    pub address: SocketAddr,
    /// For what.
    pub path: String,
}

/// Everything that only grows, at one moment.
#[derive(Debug, Clone)]
pub(crate) struct Reading {
    pub(crate) at: Instant,
    pub(crate) cpu_s: Option<f64>,
    pub(crate) process_bytes: Option<u64>,
    pub(crate) disk: Option<DiskCounters>,
    pub(crate) syncs: Option<(u64, String)>,
}

/// Memory of all processes together.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Memory {
    pub(crate) rss: u64,
    /// Shared pages counted once; costs the server a walk through its page tables.
    pub(crate) pss: Option<u64>,
    pub(crate) processes: usize,
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pids = self
            .pids
            .iter()
            .map(|pid| format!("process {pid} and its descendants"));
        let cgroups = self
            .cgroups
            .iter()
            .map(|path| format!("cgroup {}", path.display()));
        f.write_str(&pids.chain(cgroups).collect::<Vec<_>>().join(", "))
    }
}

impl Server {
    /// Whether there are processes to watch.
    pub fn is_known(&self) -> bool {
        !self.pids.is_empty() || !self.cgroups.is_empty()
    }

    /// Refuses processes that are not there, and those that would be counted twice.
    pub fn check(&self) -> anyhow::Result<()> {
        let table = processes();
        let mut seen = BTreeSet::new();
        for pid in &self.pids {
            ensure!(table.contains_key(pid), "no process {pid}");
            for member in tree(&table, *pid) {
                ensure!(
                    seen.insert(member),
                    "process {member} would be counted twice"
                );
            }
        }
        for cgroup in &self.cgroups {
            cgroup_cpu(cgroup)?;
            for member in members(cgroup) {
                ensure!(
                    seen.insert(member),
                    "process {member} would be counted twice"
                );
            }
        }
        if let Some(metrics) = &self.metrics {
            let (_, named) = metrics.syncs()?;
            ensure!(!named.is_empty(), "the metrics page has no *{SYNCS}");
        }
        Ok(())
    }

    /// Refuses a server none of whose processes listens on `address`.
    pub(crate) fn check_listens(&self, address: SocketAddr) -> anyhow::Result<()> {
        if !self.is_known() {
            return Ok(());
        }
        crate::listener::check(&self.processes(), address)
    }

    /// The processes alive now.
    pub(crate) fn processes(&self) -> Vec<u32> {
        let table = processes();
        let mut all: BTreeSet<u32> = self.pids.iter().flat_map(|p| tree(&table, *p)).collect();
        all.extend(self.cgroups.iter().flat_map(|group| members(group)));
        all.into_iter().collect()
    }

    /// All counters now.
    pub(crate) fn read(&self) -> Reading {
        let metered = self.metrics.as_ref().and_then(|m| m.syncs().ok());
        Reading {
            at: Instant::now(),
            cpu_s: self.cpu_s(),
            process_bytes: self.process_bytes(),
            disk: self.storage.as_ref().and_then(Storage::counters),
            syncs: metered.filter(|(_, named)| !named.is_empty()),
        }
    }

    /// CPU-seconds so far, kernel time included; nothing when a process to be watched is gone.
    fn cpu_s(&self) -> Option<f64> {
        if !self.is_known() {
            return None;
        }
        let mut sum = 0.0;
        if !self.pids.is_empty() {
            let table = processes();
            for pid in &self.pids {
                table.get(pid)?;
                // A process passes to its parent what it and its children have used when it is waited for, so the sum
                // over a tree loses nothing.
                sum += tree(&table, *pid)
                    .iter()
                    .filter_map(|p| table.get(p))
                    .map(|p| p.ticks as f64 / TICKS_PER_SECOND)
                    .sum::<f64>();
            }
        }
        for cgroup in &self.cgroups {
            sum += cgroup_cpu(cgroup).ok()?;
        }
        Some(sum)
    }

    /// Bytes that the processes caused to be written to disks. Only of process trees: what left a cgroup is forgotten.
    fn process_bytes(&self) -> Option<u64> {
        if self.pids.is_empty() || !self.cgroups.is_empty() {
            return None;
        }
        let table = processes();
        let mut sum = 0;
        for pid in self.pids.iter().flat_map(|p| tree(&table, *p)) {
            // A process that ended since the table was read has passed its sum to its parent.
            let Ok(text) = std::fs::read_to_string(format!("/proc/{pid}/io")) else {
                if self.pids.contains(&pid) {
                    return None;
                }
                continue;
            };
            sum += text
                .lines()
                .find_map(|l| l.strip_prefix("write_bytes: "))
                .and_then(|n| n.parse::<u64>().ok())?;
        }
        Some(sum)
    }

    /// Memory now.
    pub(crate) fn memory(&self, with_pss: bool) -> Memory {
        let mut memory = Memory::default();
        let mut pss = 0;
        let mut complete = with_pss;
        for pid in self.processes() {
            let Some(rss) = kilobytes(pid, "status", "VmRSS:") else {
                continue;
            };
            memory.rss += rss;
            memory.processes += 1;
            if with_pss {
                match kilobytes(pid, "smaps_rollup", "Pss:") {
                    Some(part) => pss += part,
                    None => complete = false,
                }
            }
        }
        memory.pss = complete.then_some(pss);
        memory
    }

    /// Waits until the server has been idle for `window`, at most until `deadline`. Answers when the idle time began.
    pub(crate) fn wait_idle(&self, window: Duration, deadline: Instant) -> Option<Instant> {
        let mut looks: Vec<(Instant, f64)> = vec![(Instant::now(), self.cpu_s()?)];
        loop {
            std::thread::sleep(IDLE_LOOK);
            let now = (Instant::now(), self.cpu_s()?);
            looks.push(now);
            // the latest look that is a whole window ago
            let start = looks.iter().rposition(|look| now.0 - look.0 >= window);
            if let Some(start) = start {
                looks.drain(..start);
                if let Some(at) = idle_since(&looks) {
                    return Some(at);
                }
            }
            if now.0 >= deadline {
                return None;
            }
        }
    }
}

impl Metrics {
    /// `http://HOST:PORT/path`, loopback.
    pub fn parse(url: &str) -> anyhow::Result<Metrics> {
        let rest = url
            .strip_prefix("http://")
            .with_context(|| format!("{url} is not http://HOST:PORT/PATH"))?;
        let (host, path) = rest.split_once('/').unwrap_or((rest, "metrics"));
        ensure!(
            !path.bytes().any(|b| b <= b' '),
            "{url} has a space in its path"
        );
        Ok(Metrics {
            address: crate::loopback(host)?,
            path: format!("/{path}"),
        })
    }

    /// The sum of all counters of syncs, and their names.
    fn syncs(&self) -> anyhow::Result<(u64, String)> {
        let page = self.page().context("metrics")?;
        let mut names = BTreeSet::new();
        let mut sum = 0.0;
        for line in page.lines().filter(|line| !line.starts_with('#')) {
            let Some((series, value)) = line.rsplit_once(' ') else {
                continue;
            };
            let name = series.split('{').next().unwrap_or_default();
            if name.ends_with(SYNCS) {
                names.insert(name.to_owned());
                sum += value.parse::<f64>().unwrap_or(0.0);
            }
        }
        let names: Vec<String> = names.into_iter().collect();
        Ok((sum as u64, names.join(" + ")))
    }

    fn page(&self) -> anyhow::Result<String> {
        let mut stream = std::net::TcpStream::connect_timeout(&self.address, PAGE_TIMEOUT)?;
        stream.set_read_timeout(Some(PAGE_TIMEOUT))?;
        stream.set_write_timeout(Some(PAGE_TIMEOUT))?;
        let Metrics { address, path } = self;
        // HTTP/1.0: the page ends with the connection, and is never chunked
        stream.write_all(
            format!("GET {path} HTTP/1.0\r\nHost: {address}\r\nConnection: close\r\n\r\n")
                .as_bytes(),
        )?;
        let mut text = String::new();
        stream.take(PAGE_MAX).read_to_string(&mut text)?;
        let (head, body) = text.split_once("\r\n\r\n").context("no HTTP answer")?;
        let status = head.split(' ').nth(1).unwrap_or_default();
        ensure!(status == "200", "the page answers {status}");
        Ok(body.to_owned())
    }
}

/// Since when a server was idle that was looked at for a whole window, if it was. What little it did in the window may
/// have been the end of its work, so the idle time begins after the last look that saw it do something.
fn idle_since(looks: &[(Instant, f64)]) -> Option<Instant> {
    let busy = |from: &(Instant, f64), to: &(Instant, f64)| {
        to.1 - from.1 > IDLE_SHARE * (to.0 - from.0).as_secs_f64()
    };
    let (first, last) = (looks.first()?, looks.last()?);
    if busy(first, last) {
        return None;
    }
    let worked = looks
        .windows(2)
        .rfind(|pair| busy(&pair[0], &pair[1]))
        .map(|pair| pair[1].0);
    Some(worked.unwrap_or(first.0))
}

/// What `/proc/PID/stat` says about one process.
#[derive(Debug, Clone, Copy)]
struct Process {
    parent: u32,
    /// Own time and that of all children waited for.
    ticks: u64,
}

fn processes() -> BTreeMap<u32, Process> {
    let Ok(directory) = std::fs::read_dir("/proc") else {
        return BTreeMap::new();
    };
    directory
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter_map(|pid| Some((pid, process(pid)?)))
        .collect()
}

/// proc(5): behind the name in parentheses come state (the third field), parent, ..., and as 14th to 17th field user
/// and system time of the process and of its children.
fn process(pid: u32) -> Option<Process> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let words: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = words
        .get(11..15)?
        .iter()
        .filter_map(|w| w.parse::<u64>().ok())
        .sum();
    Some(Process {
        parent: words.get(1)?.parse().ok()?,
        ticks,
    })
}

/// `root` and its descendants.
fn tree(table: &BTreeMap<u32, Process>, root: u32) -> Vec<u32> {
    let mut found = vec![root];
    let mut at = 0;
    while let Some(parent) = found.get(at).copied() {
        at += 1;
        let children = table.iter().filter(|(_, p)| p.parent == parent);
        found.extend(children.map(|(pid, _)| *pid));
    }
    found
}

fn kilobytes(pid: u32, file: &str, field: &str) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/{file}")).ok()?;
    let number = text.lines().find_map(|line| line.strip_prefix(field))?;
    let kilobytes: u64 = number.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kilobytes << 10)
}

/// CPU-seconds of all that ever ran in a cgroup and below.
fn cgroup_cpu(directory: &Path) -> anyhow::Result<f64> {
    if let Ok(text) = std::fs::read_to_string(directory.join("cpuacct.usage")) {
        let nanoseconds: u64 = text.trim().parse().context("cpuacct.usage")?;
        return Ok(nanoseconds as f64 / 1e9);
    }
    let path = directory.join("cpu.stat");
    let text = std::fs::read_to_string(&path).with_context(|| {
        format!(
            "{} has neither cpuacct.usage nor cpu.stat",
            directory.display()
        )
    })?;
    let usage = text
        .lines()
        .find_map(|line| line.strip_prefix("usage_usec "))
        .with_context(|| format!("{} has no usage_usec", path.display()))?;
    Ok(usage.trim().parse::<u64>()? as f64 / 1e6)
}

/// The processes in a cgroup and below.
fn members(directory: &Path) -> Vec<u32> {
    let text = std::fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
    let mut found: Vec<u32> = text.lines().filter_map(|line| line.parse().ok()).collect();
    let Ok(entries) = std::fs::read_dir(directory) else {
        return found;
    };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(members(&entry.path()));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    fn watching(pid: u32) -> Server {
        Server {
            pids: vec![pid],
            ..Server::default()
        }
    }

    #[test]
    fn a_tree_counts_what_its_ended_children_used() {
        // the inner shell works and ends; the outer one has waited for it when it speaks
        let script = "sh -c 'i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done'; echo done; read x";
        let mut shell = Command::new("sh")
            .args(["-c", script])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let server = watching(shell.id());
        server.check().unwrap();
        let mut line = [0; 5];
        shell.stdout.take().unwrap().read_exact(&mut line).unwrap();
        let reading = server.read();
        assert!(reading.cpu_s.unwrap() >= 0.02, "{reading:?}");
        assert!(server.memory(true).rss > 100 << 10);
        assert!(server.memory(true).pss.unwrap() <= server.memory(true).rss * 2);
        let soon = Instant::now() + Duration::from_secs(30);
        assert!(server.wait_idle(Duration::from_millis(300), soon).is_some());
        drop(shell.stdin.take());
        shell.wait().unwrap();
        assert_eq!(server.read().cpu_s, None, "it is gone");
        assert!(server.check().is_err());
    }

    #[test]
    fn a_busy_server_is_not_idle() {
        let mut shell = Command::new("sh")
            .args(["-c", "while :; do :; done"])
            .spawn()
            .unwrap();
        let soon = Instant::now() + Duration::from_millis(900);
        let idle = watching(shell.id()).wait_idle(Duration::from_millis(300), soon);
        shell.kill().unwrap();
        shell.wait().unwrap();
        assert_eq!(idle, None);
    }

    #[test]
    fn idle_time_begins_after_the_last_work() {
        let began = Instant::now();
        let looks = |cpu: [f64; 11]| -> Vec<(Instant, f64)> {
            let at = |n| began + IDLE_LOOK * n;
            (0..).map(at).zip(cpu).collect()
        };
        let after = |n| Some(began + IDLE_LOOK * n);
        assert_eq!(idle_since(&looks([7.0; 11])), after(0));
        let mut late = [7.01; 11];
        late[..4].fill(7.0);
        assert_eq!(idle_since(&looks(late)), after(4));
        let mut busy = [7.1; 11];
        busy[0] = 7.0;
        assert_eq!(idle_since(&looks(busy)), None);
        assert_eq!(idle_since(&[]), None);
    }

    #[test]
    fn nothing_is_counted_twice() {
        let mut server = watching(std::process::id());
        server.check().unwrap();
        server.pids.push(std::process::id());
        assert!(server.check().unwrap_err().to_string().contains("twice"));
    }

    #[test]
    fn both_kinds_of_cgroup_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        assert!(cgroup_cpu(dir.path()).is_err());
        write("cpu.stat", "usage_usec 2500000\nuser_usec 1\n");
        assert_eq!(cgroup_cpu(dir.path()).unwrap(), 2.5);
        write("cpuacct.usage", "1500000000\n");
        assert_eq!(cgroup_cpu(dir.path()).unwrap(), 1.5);
        write("cgroup.procs", "12\n13\n");
        std::fs::create_dir(dir.path().join("below")).unwrap();
        write("below/cgroup.procs", "14\n");
        assert_eq!(members(dir.path()), [12, 13, 14]);
    }

    #[test]
    fn only_the_own_machine_is_asked_for_metrics() {
        assert!(Metrics::parse("https://127.0.0.1:1/metrics").is_err());
        assert!(Metrics::parse("http://192.0.2.1:80/metrics").is_err());
        assert_eq!(Metrics::parse("http://127.0.0.1:9/").unwrap().path, "/");
        assert_eq!(
            Metrics::parse("http://127.0.0.1:9").unwrap().path,
            "/metrics"
        );
    }
}
