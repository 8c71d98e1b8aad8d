//! Counts the syncs of a server that does not count them itself: strace attached to all its processes for a bounded
//! time, following forks.
//!
//! A traced server is slow, so nothing else is measured meanwhile.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};

use crate::server::Server;

/// What makes data durable. msync and sync_file_range count too, whatever their flags.
const CALLS: &str = "fsync,fdatasync,sync_file_range,msync,sync,syncfs";
/// How long attaching and detaching may take.
const TURN: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// strace at work. Dropped, it lets go of the server.
#[derive(Debug)]
pub(crate) struct Tracing {
    strace: Child,
    table: PathBuf,
}

impl Tracing {
    /// Attaches to every process of `server`; they are under trace when this returns.
    pub(crate) fn attach(server: &Server) -> anyhow::Result<Tracing> {
        let pids = server.processes();
        ensure!(!pids.is_empty(), "no process to trace");
        let table = std::env::temp_dir().join(format!("loadtest-{}.strace", std::process::id()));
        let mut command = Command::new("strace");
        command.args(["-f", "-qq", "-c", "-U", "calls,name", "-e"]);
        command.arg(format!("trace={CALLS}")).arg("-o").arg(&table);
        for pid in &pids {
            command.arg("-p").arg(pid.to_string());
        }
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let strace = command.spawn().context("strace")?;
        let mut tracing = Tracing { strace, table };
        let deadline = Instant::now() + TURN;
        while !pids.iter().all(|pid| is_traced(*pid)) {
            if let Some(status) = tracing.strace.try_wait()? {
                bail!("strace could not attach: {status}");
            }
            ensure!(Instant::now() < deadline, "strace did not attach in time");
            std::thread::sleep(LOOK_EVERY);
        }
        Ok(tracing)
    }

    /// Detaches; how often each call was made.
    pub(crate) fn detach(mut self) -> anyhow::Result<Vec<(String, u64)>> {
        self.interrupt()?;
        let text = std::fs::read_to_string(&self.table).context("strace's table")?;
        Ok(parse(&text))
    }

    fn interrupt(&mut self) -> anyhow::Result<()> {
        if self.strace.try_wait()?.is_some() {
            return Ok(());
        }
        let pid = i32::try_from(self.strace.id())
            .ok()
            .and_then(rustix::process::Pid::from_raw)
            .context("strace's process id")?;
        rustix::process::kill_process(pid, rustix::process::Signal::INT)?;
        let deadline = Instant::now() + TURN;
        while self.strace.try_wait()?.is_none() {
            ensure!(Instant::now() < deadline, "strace does not end");
            std::thread::sleep(LOOK_EVERY);
        }
        Ok(())
    }
}

impl Drop for Tracing {
    fn drop(&mut self) {
        let _ = self.interrupt();
        // It must not stay attached; a killed tracer lets its processes go on.
        let _ = self.strace.kill();
        let _ = self.strace.wait();
        let _ = std::fs::remove_file(&self.table);
    }
}

/// A process that is gone needs no tracing.
fn is_traced(pid: u32) -> bool {
    let Ok(text) = std::fs::read_to_string(format!("/proc/{pid}/status")) else {
        return true;
    };
    text.lines()
        .find_map(|line| line.strip_prefix("TracerPid:"))
        .is_none_or(|tracer| tracer.trim() != "0")
}

/// The rows of `strace -c -U calls,name`.
fn parse(table: &str) -> Vec<(String, u64)> {
    table
        .lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let calls = words.next()?.parse().ok()?;
            let name = words.next()?;
            (name != "total").then(|| (name.to_owned(), calls))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_read() {
        let table = "    calls syscall\n--------- ----------------\n       12 fdatasync\n        3 fsync\n\
                     --------- ----------------\n       15 total\n";
        assert_eq!(
            parse(table),
            [("fdatasync".to_owned(), 12), ("fsync".to_owned(), 3)]
        );
        assert_eq!(parse(""), []);
    }
}
