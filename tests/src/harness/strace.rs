//! A server under strace, to be killed at one of its system calls: no hooks in the product.
//!
//! strace counts calls by thread, so `when` is the n-th such call of whichever thread gets there first; under load
//! that is the log's committer for the calls that make records durable.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::binary::program;
use super::server::{Server, Traced, listeners_of};
use super::site::Site;

/// How long a call that is to be followed by a kill is held after it was done.
const HELD: Duration = Duration::from_secs(5);
/// Bytes of data that the trace shows of each call.
const SHOWN: usize = 4096;

/// Where the process dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Moment {
    /// At the n-th write to a file: nothing of it is in the file.
    BeforeWrite,
    /// At the n-th data sync: written, not durable.
    BeforeSync,
    /// Right after the n-th data sync, before anyone could be told: durable.
    AfterSync,
    /// At the n-th send on a socket: whatever was to be said is not.
    BeforeReply,
}

impl Moment {
    /// All of them.
    pub const ALL: [Moment; 4] = [
        Moment::BeforeWrite,
        Moment::BeforeSync,
        Moment::AfterSync,
        Moment::BeforeReply,
    ];

    fn injection(self, when: u32) -> String {
        match self {
            Moment::BeforeWrite => format!("pwrite64:signal=KILL:when={when}"),
            Moment::BeforeSync => format!("fdatasync:signal=KILL:when={when}"),
            Moment::AfterSync => format!("fdatasync:delay_exit={}:when={when}", HELD.as_micros()),
            Moment::BeforeReply => format!("sendto:signal=KILL:when={when}"),
        }
    }
}

/// A server that will die.
#[derive(Debug)]
pub struct Doomed {
    /// It, for now.
    pub server: Server,
    trace: PathBuf,
    moment: Moment,
}

impl Doomed {
    /// Starts `site` so that it dies at the `when`-th occasion of `moment`. `None` when it died before it listened,
    /// which is a death too.
    ///
    /// # Panics
    /// When it does not come up for another reason.
    pub fn start(site: &Site, moment: Moment, when: u32) -> (Option<Doomed>, PathBuf) {
        let trace = site.home().join("trace");
        let _ = std::fs::remove_file(&trace);
        let mut command = Command::new("strace");
        command.args([
            "-f",
            "-qq",
            "-xx",
            "-y",
            "-s",
            &SHOWN.to_string(),
            "-e",
            "signal=none",
        ]);
        if moment == Moment::AfterSync {
            // much faster, but signals are not injected then
            command.arg("--seccomp-bpf");
        }
        command.args(["-e", "trace=pwrite64,fdatasync,sendto", "-e"]);
        command
            .arg(format!("inject={}", moment.injection(when)))
            .arg("-o")
            .arg(&trace);
        command
            .arg(program("hikyaku"))
            .arg("all")
            .arg("--config")
            .arg(site.config());
        match Server::spawn(command, &site.log_file(), Traced::Yes, listeners_of(site)) {
            Ok(server) => (
                Some(Doomed {
                    server,
                    trace: trace.clone(),
                    moment,
                }),
                trace,
            ),
            Err(why) if why.contains("signal: 9") => (None, trace),
            Err(why) if why.contains("the traced process is gone") => (None, trace),
            Err(why) => panic!("{why}"),
        }
    }

    /// Waits for the moment and for the end; `false` when it did not come within `limit` and the process was killed
    /// for no reason.
    pub fn wait(mut self, limit: Duration) -> bool {
        let began = std::time::Instant::now();
        loop {
            if self.server.ended().is_some() {
                return true;
            }
            if self.moment == Moment::AfterSync && is_held(&self.trace) {
                self.server.kill();
                return true;
            }
            if began.elapsed() > limit {
                self.server.kill();
                return false;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

fn is_held(trace: &Path) -> bool {
    use std::io::{Read, Seek, SeekFrom};
    let Ok(mut file) = std::fs::File::open(trace) else {
        return false;
    };
    let length = file.metadata().map_or(0, |metadata| metadata.len());
    let mut tail = Vec::new();
    let _ = file.seek(SeekFrom::Start(length.saturating_sub(64 << 10)));
    let _ = file.read_to_end(&mut tail);
    tail.windows(9).any(|bytes| bytes == b"(DELAYED)")
}

/// One write to a file, from a trace.
#[derive(Clone, Debug)]
pub struct Written {
    /// The file.
    pub path: PathBuf,
    /// Where.
    pub offset: u64,
    /// How much.
    pub length: u64,
    /// The first bytes of it.
    pub shown: Vec<u8>,
    /// The call was seen to end.
    pub done: bool,
}

/// The last writes of the thread that died in a call, or was held in it: those that no sync had followed when it died.
/// The thread is found by its last line.
pub fn last_writes(trace: &Path, moment: Moment) -> Vec<Written> {
    let text = std::fs::read_to_string(trace).unwrap_or_default();
    let deadly = match moment {
        Moment::BeforeWrite => "pwrite64(",
        Moment::BeforeSync | Moment::AfterSync => "fdatasync(",
        Moment::BeforeReply => return Vec::new(),
    };
    let lines = || {
        text.lines()
            .filter_map(|line| line.split_once(' '))
            .map(|(pid, rest)| (pid, rest.trim_start()))
    };
    let died = |rest: &str| match moment {
        Moment::AfterSync => rest.contains("(DELAYED)"),
        _ => rest.starts_with(deadly) && (rest.contains("<unfinished") || rest.contains("= ?")),
    };
    let Some(thread) = lines()
        .filter(|(_, rest)| died(rest))
        .map(|(pid, _)| pid)
        .next_back()
    else {
        return Vec::new();
    };
    let mut writes: Vec<Written> = Vec::new();
    let mut synced = 0;
    for (_, rest) in lines().filter(|(pid, _)| *pid == thread) {
        if rest.starts_with("pwrite64(") {
            writes.extend(written(rest));
        } else if rest.starts_with("<... pwrite64 resumed>") && !rest.contains("= ?") {
            if let Some(last) = writes.last_mut() {
                last.done = true;
            }
        } else if rest.contains("fdatasync") && rest.contains("= 0") && !rest.contains("(DELAYED)")
        {
            synced = writes.len();
        }
    }
    writes.split_off(synced)
}

/// `pwrite64(7</path>, "\x00"..., 4096, 0) = 4096`
fn written(call: &str) -> Option<Written> {
    let path = hikyaku_power::record::unescape_path(call.split_once('<')?.1.split_once('>')?.0);
    let (_, rest) = call.split_once(">, \"")?;
    let (data, rest) = rest.split_once('"')?;
    let rest = rest.trim_start_matches("...").trim_start_matches(", ");
    let (length, rest) = rest.split_once(", ")?;
    let offset: String = rest.chars().take_while(char::is_ascii_digit).collect();
    Some(Written {
        path: path.into(),
        offset: offset.parse().ok()?,
        length: length.parse().ok()?,
        shown: hikyaku_power::record::unescape(data),
        done: !call.contains("<unfinished") && !call.contains("= ?"),
    })
}
