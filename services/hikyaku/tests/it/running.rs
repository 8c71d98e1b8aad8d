//! One process of the binary in a directory of its own.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rcgen::{CertificateParams, KeyPair, date_time_ymd};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// How long anything may take: the machine may be busy.
pub const PATIENCE: Duration = Duration::from_secs(60);

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
userPassword: {CRYPT}$6$saltsalt$qFmFH.bQmmtXzyBY0s9v7Oicd2z4XSIecDzlB5KiA2/jctKu9YterLp8wwnSq.qc.eoxqOmSuNp2xS0ktL3nh/
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

pub struct Running {
    child: Child,
    config: PathBuf,
    log: PathBuf,
    listeners: Vec<String>,
}

impl Running {
    fn start(config: &Path) -> Running {
        let log = config.with_extension("log");
        let mut child = Command::new(env!("CARGO_BIN_EXE_hikyaku"))
            .args(["all", "--config"])
            .arg(config)
            .env_remove("HIKYAKU_LOG")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(fs::File::create(&log).unwrap())
            .spawn()
            .unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let mut running = Running {
            child,
            config: config.to_owned(),
            log,
            listeners: Vec::new(),
        };
        let wanted = fs::read_to_string(config)
            .unwrap()
            .matches("127.0.0.1:0\"")
            .count();
        for line in out.lines().take(wanted) {
            running.listeners.push(line.unwrap());
        }
        assert_eq!(running.listeners.len(), wanted, "{}", running.log());
        running
    }

    /// Where the listener `name` is.
    pub fn address(&self, name: &str) -> SocketAddr {
        let found = self
            .listeners
            .iter()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        found.unwrap().parse().unwrap()
    }

    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
    }

    /// Everything it has written to standard error.
    pub fn log(&self) -> String {
        String::from_utf8(fs::read(&self.log).unwrap()).unwrap()
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
    pub fn wait_for<T>(&self, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
        #[allow(clippy::disallowed_methods)]
        let begun = Instant::now();
        loop {
            if let Some(seen) = look() {
                return seen;
            }
            assert!(
                begun.elapsed() < PATIENCE,
                "{what} is missing; log:\n{}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// SIGTERM, and its end.
    pub fn stop(mut self) -> String {
        self.signal(Signal::TERM);
        let status = self.child.wait().unwrap();
        assert!(status.success(), "{status}: {}", self.log());
        self.log()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
