//! The running process: started, watched, stopped or killed, and gone when the test is.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, mpsc};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::binary::program;
use super::site::Site;

/// Longest wait for the listeners.
pub const START_TIMEOUT: Duration = Duration::from_secs(120);
/// Longest wait for the end after SIGTERM: the drain, and what is left to flush.
const STOP_TIMEOUT: Duration = Duration::from_secs(120);

/// A running `hikyaku all`.
#[derive(Debug)]
pub struct Server {
    child: Child,
    pid: Pid,
    log: PathBuf,
    lines: Mutex<mpsc::Receiver<String>>,
    /// What it listens on, in its own words.
    pub listeners: Vec<String>,
    /// From the start of the process to the last listener.
    pub started_in: Duration,
}

impl Server {
    /// Starts `site` and waits until it listens.
    ///
    /// # Panics
    /// When it does not come up.
    pub fn start(site: &Site) -> Server {
        Server::try_start(site).unwrap_or_else(|why| panic!("{why}"))
    }

    /// The same, for a start that may be refused.
    ///
    /// # Errors
    /// What the process said when it ended instead.
    pub fn try_start(site: &Site) -> Result<Server, String> {
        let mut command = Command::new(program("hikyaku"));
        command.arg("all").arg("--config").arg(site.config());
        Server::spawn(command, &site.log_file(), Traced::No, listeners_of(site))
    }

    /// Starts a configuration that is no [`Site`]'s and waits until it has said `listeners` listeners.
    ///
    /// # Errors
    /// What the process said when it ended instead.
    pub fn configured(config: &Path, log: &Path, listeners: usize) -> Result<Server, String> {
        let mut command = Command::new(program("hikyaku"));
        command.arg("all").arg("--config").arg(config);
        Server::spawn(command, log, Traced::No, listeners)
    }

    /// Starts `site` as a supervisor with this umask would.
    ///
    /// # Panics
    /// When it does not come up.
    pub fn start_under_umask(site: &Site, umask: &str) -> Server {
        let mut command = Command::new("sh");
        command
            .args(["-c", "umask \"$0\" && exec \"$@\"", umask])
            .arg(program("hikyaku"))
            .arg("all")
            .arg("--config")
            .arg(site.config());
        Server::spawn(command, &site.log_file(), Traced::No, listeners_of(site))
            .unwrap_or_else(|why| panic!("{why}"))
    }

    /// Starts `site` and kills it so long `after` its start, wherever it is by then; says whether it listened.
    ///
    /// # Panics
    /// When it cannot be started, or ended by itself.
    pub fn start_and_kill(site: &Site, after: Duration) -> bool {
        let mut command = Command::new(program("hikyaku"));
        command.arg("all").arg("--config").arg(site.config());
        let mut child = begin(&mut command, &site.log_file());
        let lines = lines_of(child.stdout.take().expect("a pipe"));
        std::thread::sleep(after);
        child.kill().expect("it runs");
        let status = child.wait().expect("its exit status");
        assert!(
            status.code().is_none(),
            "it ended with {status} before it was killed"
        );
        lines.iter().count() >= listeners_of(site)
    }

    /// Starts `hikyaku demo` in `directory` and waits until it listens.
    ///
    /// # Errors
    /// What the process said when it ended instead.
    pub fn demo(directory: &Path, port_base: Option<u16>, log: &Path) -> Result<Server, String> {
        let mut command = Command::new(program("hikyaku"));
        command.arg("demo").arg("--dir").arg(directory);
        if let Some(port_base) = port_base {
            command.args(["--port-base", &port_base.to_string()]);
        }
        Server::spawn(command, log, Traced::No, 3)
    }

    /// The next line of its standard output, after the listeners.
    ///
    /// # Errors
    /// When none comes in time, or ever.
    pub fn next_line(&self, limit: Duration) -> Result<String, mpsc::RecvTimeoutError> {
        self.lines.lock().expect("not poisoned").recv_timeout(limit)
    }

    /// Starts `command`, which runs the server, directly or under strace, and waits for `listeners` lines.
    ///
    /// # Errors
    /// What the process said when it ended instead.
    pub(crate) fn spawn(
        mut command: Command,
        log: &Path,
        traced: Traced,
        listeners: usize,
    ) -> Result<Server, String> {
        let began = Instant::now();
        let from = std::fs::metadata(log).map_or(0, |metadata| metadata.len());
        let mut child = begin(&mut command, log);
        let lines = lines_of(child.stdout.take().expect("a pipe"));
        let own = Pid::from_child(&child);
        let mut server = Server {
            child,
            pid: own,
            log: log.to_owned(),
            lines: Mutex::new(lines),
            listeners: Vec::new(),
            started_in: Duration::ZERO,
        };
        while server.listeners.len() < listeners {
            match server.next_line(START_TIMEOUT.saturating_sub(began.elapsed())) {
                Ok(line) => server.listeners.push(line),
                Err(mpsc::RecvTimeoutError::Disconnected) => {
                    let status = server.child.wait().expect("its exit status");
                    return Err(format!(
                        "it ended with {status}:\n{}",
                        server.log_from(from)
                    ));
                }
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    return Err(format!(
                        "it does not listen after {START_TIMEOUT:?}:\n{}",
                        server.log_from(from)
                    ));
                }
            }
        }
        server.started_in = began.elapsed();
        if traced == Traced::Yes {
            server.pid = only_child(own).ok_or("the traced process is gone")?;
        }
        Ok(server)
    }

    /// The process itself, not its tracer.
    pub fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// The address of the first listener with this name.
    ///
    /// # Panics
    /// When there is none.
    pub fn address(&self, name: &str) -> SocketAddr {
        let found = self
            .listeners
            .iter()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        found
            .and_then(|address| address.parse().ok())
            .unwrap_or_else(|| panic!("no {name} in {:?}", self.listeners))
    }

    /// Kills it as a crash would, and waits until nothing of it runs.
    ///
    /// # Panics
    /// When it cannot be waited for.
    pub fn kill(&mut self) {
        let _ = kill_process(self.pid, Signal::KILL);
        self.child.wait().expect("its exit status");
    }

    /// Asks it to stop and waits; says how it ended and how long that took.
    ///
    /// # Panics
    /// When it does not stop.
    pub fn stop(&mut self) -> (ExitStatus, Duration) {
        self.signal(Signal::TERM)
    }

    /// Ctrl-C.
    ///
    /// # Panics
    /// When it does not stop.
    pub fn interrupt(&mut self) -> (ExitStatus, Duration) {
        self.signal(Signal::INT)
    }

    fn signal(&mut self, signal: Signal) -> (ExitStatus, Duration) {
        let began = Instant::now();
        kill_process(self.pid, signal).expect("it runs");
        while began.elapsed() < STOP_TIMEOUT {
            if let Some(status) = self.ended() {
                return (status, began.elapsed());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("it does not stop within {STOP_TIMEOUT:?}:\n{}", self.log());
    }

    /// How it ended, if it did.
    ///
    /// # Panics
    /// When it cannot be asked.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("its exit status")
    }

    /// Memory it holds now, octets.
    ///
    /// # Panics
    /// When it does not run.
    pub fn resident(&self) -> u64 {
        self.status_kib("VmRSS:") << 10
    }

    /// Memory it held at most, octets.
    ///
    /// # Panics
    /// When it does not run.
    pub fn resident_peak(&self) -> u64 {
        self.status_kib("VmHWM:") << 10
    }

    /// File descriptors it has open.
    ///
    /// # Panics
    /// When it does not run.
    pub fn descriptors(&self) -> usize {
        let open = std::fs::read_dir(format!("/proc/{}/fd", self.pid())).expect("it runs");
        open.count()
    }

    fn status_kib(&self, key: &str) -> u64 {
        let text =
            std::fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("it runs");
        let value = text
            .lines()
            .find_map(|line| line.strip_prefix(key))
            .expect("a memory figure");
        value
            .split_whitespace()
            .next()
            .and_then(|kib| kib.parse().ok())
            .expect("a number")
    }

    /// Everything it logged, earlier starts included.
    pub fn log(&self) -> String {
        self.log_from(0)
    }

    fn log_from(&self, from: u64) -> String {
        let bytes = std::fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(bytes.get(from as usize..).unwrap_or_default()).into_owned()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = kill_process(self.pid, Signal::KILL);
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Starts `command` with its standard output to be read and its standard error added to `log`.
fn begin(command: &mut Command, log: &Path) -> Child {
    let errors = File::options()
        .create(true)
        .append(true)
        .open(log)
        .expect("log file");
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(errors);
    command
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

/// Whether the process started is strace and the server its child.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Traced {
    No,
    Yes,
}

/// How many listeners a site prints.
pub(crate) fn listeners_of(site: &Site) -> usize {
    let text = std::fs::read_to_string(site.config()).expect("configuration file");
    let lines = text.lines().filter(|line| line.starts_with("listen"));
    lines.map(|line| line.matches("\"127.").count()).sum()
}

fn lines_of(stdout: std::process::ChildStdout) -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            // nobody may listen any more; the pipe is emptied all the same
            let _ = sender.send(line);
        }
    });
    receiver
}

fn only_child(parent: Pid) -> Option<Pid> {
    let parent = parent.as_raw_nonzero();
    let text = std::fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).ok()?;
    Pid::from_raw(text.split_whitespace().next()?.parse().ok()?)
}
