//! One process of the binary in a directory of its own.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rcgen::{CertificateParams, KeyPair, date_time_ymd};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// How long anything may take: the machine may be busy.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The password is `hikyaku`.
const LDIF: &str = "version: 1

dn: dc=example,dc=jp
objectClass: domain
objectClass: domainRelatedObject
dc: example
associatedDomain: example.jp
mailHost: mbox1

dn: uid=bob,dc=example,dc=jp
objectClass: inetOrgPerson
objectClass: inetLocalMailRecipient
uid: bob
cn: Bob
sn: Bob
entryUUID: b0b00000-0000-4000-8000-000000000001
mailLocalAddress: bob@example.jp
userPassword: {CRYPT}$6$saltsalt$b000CbT3CSfVUdzUgPfLcLIEYP8Lo76EeybLAvZuhlPM1DE/I40HbeAXJTBvIHiOY7upOk2M5WPvKFNTPDNyt/
";

/// A directory with everything a node needs; nothing runs.
pub struct Site {
    folder: TempDir,
}

impl Site {
    pub fn new() -> Site {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("directory.ldif"), LDIF).unwrap();
        Site { folder }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes the configuration: the sections every test needs and `more` below them, in `[smtp]` at first.
    pub fn configure(&self, more: &str) {
        let text = format!(
            "[node]\nhostname = \"mail.example.jp\"\n\
             [directory]\nldif = \"directory.ldif\"\npostmaster = \"bob@example.jp\"\n\
             [mbox.mbox1]\nshards = [0]\n\
             [log]\nsegment_bytes = \"2 MiB\"\n\
             [smtp]\nlisten = [\"127.0.0.1:0\"]\n{more}"
        );
        fs::write(self.path("hikyaku.toml"), text).unwrap();
    }

    /// Writes a new pair, valid to the year `until`; answers the certificate.
    pub fn certificate(&self, until: i32) -> Vec<u8> {
        let (certificate, key) = pair(until);
        fs::write(self.path("certificate.pem"), certificate.pem()).unwrap();
        fs::write(self.path("key.pem"), key.serialize_pem()).unwrap();
        certificate.der().to_vec()
    }

    pub fn start(&self) -> Running {
        Running::start(&self.path("hikyaku.toml"))
    }
}

pub fn pair(until: i32) -> (rcgen::Certificate, KeyPair) {
    let mut params = CertificateParams::new(["mail.example.jp".to_owned()]).unwrap();
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(until, 1, 1);
    let key = KeyPair::generate().unwrap();
    (params.self_signed(&key).unwrap(), key)
}

/// The program, without the environment's filter and without input.
pub fn hikyaku() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hikyaku"));
    command.env_remove("HIKYAKU_LOG").stdin(Stdio::null());
    command
}

pub struct Running {
    child: Child,
    config: PathBuf,
    log: PathBuf,
    listeners: Vec<String>,
}

impl Running {
    fn start(config: &Path) -> Running {
        let log = fs::File::create(config.with_extension("log")).unwrap();
        Running::start_logging_to(config, log.into())
    }

    /// The same, with its standard error somewhere else.
    pub fn start_logging_to(config: &Path, errors: Stdio) -> Running {
        let wanted = fs::read_to_string(config)
            .unwrap()
            .matches("127.0.0.1:0\"")
            .count();
        Running::start_with(config, wanted, errors)
    }

    /// The same, with so many listeners.
    pub fn start_with(config: &Path, wanted: usize, errors: Stdio) -> Running {
        let log = config.with_extension("log");
        let mut child = hikyaku()
            .args(["all", "--config"])
            .arg(config)
            .stdout(Stdio::piped())
            .stderr(errors)
            .spawn()
            .unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let mut running = Running {
            child,
            config: config.to_owned(),
            log,
            listeners: Vec::new(),
        };
        for line in out.lines().take(wanted) {
            running.listeners.push(line.unwrap());
        }
        assert_eq!(running.listeners.len(), wanted, "{}", running.log());
        running
    }

    /// Where the first listener `name` is.
    pub fn address(&self, name: &str) -> SocketAddr {
        *self.addresses(name).first().unwrap()
    }

    /// Where all of them are.
    pub fn addresses(&self, name: &str) -> Vec<SocketAddr> {
        let lines = self.listeners.iter();
        let found = lines.filter_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        found.map(|address| address.parse().unwrap()).collect()
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// SIGTERM, and its end, where its log is not in the file.
    pub fn stop_unread(mut self) {
        self.signal(Signal::TERM);
        let status = end(&mut self.child, &self.log);
        assert!(status.success(), "{status}");
    }

    /// Everything it has written to standard error.
    pub fn log(&self) -> String {
        String::from_utf8(fs::read(&self.log).unwrap_or_default()).unwrap()
    }

    /// SIGHUP, until it has said what came of it; answers what it wrote meanwhile.
    pub fn hang_up(&self) -> String {
        let before = self.log().len();
        self.signal(Signal::HUP);
        self.wait_for("an answer to SIGHUP", || {
            let said = self.log()[before..].to_owned();
            let done = said.contains("configuration read again") || said.contains("msg=alarm ");
            (done && said.ends_with('\n')).then_some(said)
        })
    }

    /// What `hikyaku status` prints.
    pub fn status(&self) -> String {
        let output = Command::new(env!("CARGO_BIN_EXE_hikyaku"))
            .arg("status")
            .arg("--socket")
            .arg(self.config.with_file_name("data").join("admin.sock"))
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Looks again and again until there is something to see.
    pub fn wait_for<T>(&self, what: &str, look: impl FnMut() -> Option<T>) -> T {
        wait_for(what, &self.log, look)
    }

    /// SIGTERM, and its end.
    pub fn stop(mut self) -> String {
        self.signal(Signal::TERM);
        let status = end(&mut self.child, &self.log);
        assert!(status.success(), "{status}: {}", self.log());
        self.log()
    }
}

/// SIGTERM.
pub fn terminate(child: &Child) {
    kill_process(Pid::from_child(child), Signal::TERM).unwrap();
}

/// Looks again and again until there is something to see; `log` says why there is not.
pub fn wait_for<T>(what: &str, log: &Path, mut look: impl FnMut() -> Option<T>) -> T {
    #[allow(clippy::disallowed_methods)]
    let begun = Instant::now();
    loop {
        if let Some(seen) = look() {
            return seen;
        }
        let log = || fs::read_to_string(log).unwrap_or_default();
        assert!(
            begun.elapsed() < PATIENCE,
            "{what} is missing; log:\n{}",
            log()
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Waits for the end of a process that writes to `log`.
pub fn end(child: &mut Child, log: &Path) -> ExitStatus {
    #[allow(clippy::disallowed_methods)]
    let begun = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        if begun.elapsed() > PATIENCE {
            let _ = child.kill();
            panic!(
                "it does not end: {}",
                fs::read_to_string(log).unwrap_or_default()
            );
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
