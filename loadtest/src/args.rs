//! The options of the command line, and what they become.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::{Args, Parser, Subcommand};
use loadtest::drain::DrainOptions;
use loadtest::loopback;
use loadtest::machine::Storage;
use loadtest::net::{Endpoint, Protection, Tls};
use loadtest::report::Setting;
use loadtest::run::{Recipients, RunOptions, Senders};
use loadtest::saturation::Rates;
use loadtest::server::{Metrics, Server};
use loadtest::size::SizeMix;
use loadtest::users::{self, User};
use loadtest::verify::VerifyOptions;
use loadtest::watched::Watching;

/// SMTP sessions that fill maildrops before they are drained.
const FILL_SESSIONS: usize = 20;

/// Sends mail by SMTP, keeps a ledger, and proves by POP3 that every acknowledged message is there exactly once.
/// Talks to loopback addresses only.
#[derive(Debug, Parser)]
#[command(name = "loadtest", version)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Send messages in a closed loop, or in an open one with --rate; with --pop3, verify at the end.
    Run(Box<RunArgs>),
    /// Hold all maildrops against a ledger.
    Verify(VerifyArgs),
    /// Offer rising rates in open loops, and draw what becomes of them.
    Sweep(Box<SweepArgs>),
    /// Retrieve and delete mails, and measure it.
    Pop3Drain(Box<DrainArgs>),
    /// Make a directory (LDIF) and its users file.
    Users(UsersArgs),
}

#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    pub(crate) load: LoadArgs,
    /// How many messages must be acknowledged.
    #[arg(long)]
    pub(crate) messages: u64,
    /// Open loop: so many messages are due per second, whatever the server does.
    #[arg(long, value_name = "PER_SECOND")]
    pub(crate) rate: Option<f64>,
    /// Stop sending after so many seconds.
    #[arg(long, value_name = "SECONDS")]
    pub(crate) deadline: Option<f64>,
    /// Append to this ledger (default: a temporary one, removed when it balances).
    #[arg(long)]
    pub(crate) ledger: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) pop3: Pop3Args,
    #[command(flatten)]
    pub(crate) reading: Reading,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
    #[command(flatten)]
    pub(crate) output: Output,
}

/// What is sent, and by whom.
#[derive(Debug, Args)]
pub(crate) struct LoadArgs {
    /// The server's SMTP listener.
    #[arg(long, value_name = "HOST:PORT")]
    smtp: String,
    /// STARTTLS before mail is sent.
    #[arg(long, conflicts_with = "smtps")]
    starttls: bool,
    /// The listener speaks TLS from the first byte.
    #[arg(long)]
    smtps: bool,
    /// Lines of `ADDRESS PASSWORD [LOGIN]`.
    #[arg(long)]
    pub(crate) users: PathBuf,
    /// Bytes (10240, 10K), `mix`, or SHARE:LOW-HIGH,...
    #[arg(long, default_value = "mix")]
    size: SizeMix,
    /// Concurrent SMTP sessions.
    #[arg(long, default_value_t = 20)]
    sessions: usize,
    /// RCPTs of each message.
    #[arg(long, default_value_t = 1)]
    recipients_per_message: usize,
    /// Go on when connections break or messages are deferred.
    #[arg(long)]
    reconnect_on_error: bool,
    /// MAIL FROM: `users` (a random one), `null`, or an address.
    #[arg(long, default_value = "users")]
    senders: String,
    /// Sizes, senders, recipients and arrivals follow from it.
    #[arg(long)]
    seed: Option<u64>,
}

/// How certificates are verified.
#[derive(Debug, Args)]
pub(crate) struct TlsArgs {
    /// Certificates (PEM) that the server's must be issued by.
    #[arg(long, value_name = "FILE", conflicts_with = "tls_insecure")]
    tls_ca: Option<PathBuf>,
    /// The name the server's certificate must have.
    #[arg(long, value_name = "NAME", default_value = "localhost")]
    tls_name: String,
    /// Take any certificate.
    #[arg(long)]
    tls_insecure: bool,
}

/// Where maildrops are read.
#[derive(Debug, Args)]
pub(crate) struct Pop3Args {
    /// The server's POP3 listener.
    #[arg(long, value_name = "HOST:PORT")]
    pop3: Option<String>,
    /// Its listener that speaks TLS from the first byte.
    #[arg(long, value_name = "HOST:PORT", conflicts_with = "pop3")]
    pop3s: Option<String>,
    /// STLS before the login.
    #[arg(long, conflicts_with = "pop3s")]
    stls: bool,
    #[command(flatten)]
    pub(crate) tls: TlsArgs,
}

#[derive(Debug, Args)]
pub(crate) struct VerifyArgs {
    /// The ledger of all that was sent to these users.
    #[arg(long)]
    pub(crate) ledger: PathBuf,
    /// Lines of `ADDRESS PASSWORD [LOGIN]`.
    #[arg(long)]
    pub(crate) users: PathBuf,
    #[command(flatten)]
    pub(crate) pop3: Pop3Args,
    #[command(flatten)]
    pub(crate) reading: Reading,
    #[command(flatten)]
    pub(crate) output: Output,
}

#[derive(Debug, Args)]
pub(crate) struct SweepArgs {
    #[command(flatten)]
    pub(crate) load: LoadArgs,
    /// Messages per second: `500,1000`, and `500-8000/5` for five from 500 to 8000, evenly by their ratio.
    #[arg(long, value_name = "LIST")]
    pub(crate) rates: Rates,
    /// For how long each rate is offered.
    #[arg(long, value_name = "SECONDS", default_value_t = 10.0)]
    pub(crate) step: f64,
    /// Draw the sweep into this file.
    #[arg(long, value_name = "FILE")]
    pub(crate) svg: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) pop3: Pop3Args,
    #[command(flatten)]
    pub(crate) reading: Reading,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
    #[command(flatten)]
    pub(crate) output: Output,
}

#[derive(Debug, Args)]
pub(crate) struct DrainArgs {
    #[command(flatten)]
    pop3: Pop3Args,
    /// Lines of `ADDRESS PASSWORD [LOGIN]`.
    #[arg(long)]
    users: PathBuf,
    /// How many of the users log in, once each, from the first on.
    #[arg(long)]
    logins: usize,
    /// Mails retrieved and deleted at each login.
    #[arg(long)]
    mails: usize,
    /// Logins at the same time.
    #[arg(long, default_value_t = 1)]
    sessions: usize,
    /// Wait for each response, even if the server offers PIPELINING.
    #[arg(long)]
    no_pipelining: bool,
    /// First send the mails to this SMTP listener, and wait until they can be read.
    #[arg(long, value_name = "HOST:PORT")]
    fill: Option<String>,
    /// Sizes of those.
    #[arg(long, default_value = "10K", requires = "fill")]
    size: SizeMix,
    /// Longest wait, in seconds, for mails to be readable, and for the server to be idle.
    #[arg(long, default_value_t = 60.0, value_name = "SECONDS")]
    wait: f64,
    #[command(flatten)]
    server: ServerArgs,
    #[command(flatten)]
    pub(crate) output: Output,
}

impl DrainArgs {
    pub(crate) fn options(&self) -> anyhow::Result<DrainOptions> {
        let mut users = users::read(&self.users)?;
        ensure!(
            (1..=users.len()).contains(&self.logins),
            "there are {} users to log in",
            users.len()
        );
        users.truncate(self.logins);
        let watching = self.server.watching(seconds(self.wait)?)?;
        ensure!(
            watching.sample_syncs.is_none() && watching.server.metrics.is_none(),
            "syncs are not counted here"
        );
        Ok(DrainOptions {
            pop3: self.pop3.required()?,
            users,
            mails: self.mails,
            sessions: self.sessions,
            pipelining: !self.no_pipelining,
            timeout: self.output.timeout()?,
            server: watching.server,
            idle: watching.idle,
            wait: watching.wait,
            setting: self.server.setting()?,
            progress: !self.output.quiet,
        })
    }

    /// The load that fills the maildrops, if one is asked for.
    pub(crate) fn fill(
        &self,
        drain: &DrainOptions,
        ledger: &Path,
    ) -> anyhow::Result<Option<RunOptions>> {
        let Some(smtp) = &self.fill else {
            return Ok(None);
        };
        let users = drain.users.clone();
        let size = self.size.clone();
        Ok(Some(RunOptions {
            messages: (self.logins * self.mails) as u64,
            sessions: FILL_SESSIONS,
            recipients: Recipients::InTurn,
            reconnect_on_error: true,
            timeout: drain.timeout,
            progress: drain.progress,
            ..RunOptions::new(loopback(smtp)?, users, size, ledger.to_owned())
        }))
    }
}

/// How maildrops are read.
#[derive(Debug, Args)]
pub(crate) struct Reading {
    /// Delete what was read, if the ledger balances.
    #[arg(long)]
    delete: bool,
    /// Longest wait, in seconds, for the last acknowledged message to appear, and for the server to be idle.
    #[arg(long, default_value_t = 60.0, value_name = "SECONDS")]
    wait: f64,
    /// Wait so long for a copy too many before the last pass.
    #[arg(long, default_value_t = 0.5, value_name = "SECONDS")]
    settle: f64,
    /// Maildrops read at once.
    #[arg(long, default_value_t = 4)]
    pop3_sessions: usize,
}

/// What is known about the server beside its protocols. Without --durability and --data-dir no rate is printed.
#[derive(Debug, Args)]
#[command(next_help_heading = "The server under test")]
pub(crate) struct ServerArgs {
    /// What a 250 promises, in words: `fdatasync before 250`.
    #[arg(long, value_name = "TEXT")]
    durability: Option<String>,
    /// The directory of the server's data; its disk is named in the report.
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Watch this process and its descendants; may be repeated.
    #[arg(long, value_name = "PID")]
    server_pid: Vec<u32>,
    /// Watch all processes of this cgroup (version 1: its cpuacct directory); may be repeated.
    #[arg(long, value_name = "DIR")]
    server_cgroup: Vec<PathBuf>,
    /// Take the number of syncs from the server's Prometheus page.
    #[arg(long, value_name = "URL")]
    metrics: Option<String>,
    /// Afterwards, send so many seconds more with strace attached to the server, and count its syncs.
    #[arg(long, value_name = "SECONDS")]
    sample_syncs: Option<f64>,
    /// The server has done its work when it did nothing for so long.
    #[arg(long, value_name = "SECONDS", default_value_t = 1.0)]
    idle: f64,
}

/// What is shown and written.
#[derive(Debug, Args)]
pub(crate) struct Output {
    /// Longest wait for one reply.
    #[arg(long, default_value_t = 70.0, value_name = "SECONDS")]
    timeout: f64,
    /// No progress on stderr.
    #[arg(long)]
    pub(crate) quiet: bool,
    /// Write the report as JSON.
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct UsersArgs {
    /// How many.
    #[arg(long)]
    pub(crate) count: usize,
    /// Their domain.
    #[arg(long)]
    pub(crate) domain: String,
    /// Names of the mboxes they are spread over.
    #[arg(long, value_delimiter = ',', default_value = "mbox1")]
    pub(crate) mbox: Vec<String>,
    /// The LDIF file to write.
    #[arg(long)]
    pub(crate) ldif: PathBuf,
    /// The users file to write; it holds passwords and is made for its owner only.
    #[arg(long)]
    pub(crate) users: PathBuf,
}

impl LoadArgs {
    /// The load that these options describe: a closed loop of no message, to be completed.
    pub(crate) fn options(
        &self,
        tls: &TlsArgs,
        output: &Output,
        setting: Setting,
        ledger: &Path,
        seed: u64,
    ) -> anyhow::Result<RunOptions> {
        let protection = match (self.smtps, self.starttls) {
            (true, _) => Protection::Implicit(tls.tls()?),
            (_, true) => Protection::Upgrade(tls.tls()?),
            _ => Protection::None,
        };
        Ok(RunOptions {
            smtp: Endpoint {
                address: loopback(&self.smtp)?,
                protection,
            },
            users: users::read(&self.users)?,
            messages: 0,
            mix: self.size.clone(),
            sessions: self.sessions,
            rate: None,
            recipients: Recipients::Random,
            recipients_per_message: self.recipients_per_message,
            reconnect_on_error: self.reconnect_on_error,
            deadline: None,
            ledger: ledger.to_owned(),
            seed,
            senders: match self.senders.as_str() {
                "users" => Senders::Users,
                "null" => Senders::Null,
                address => Senders::Fixed(address.to_owned()),
            },
            timeout: output.timeout()?,
            setting,
            progress: !output.quiet,
        })
    }

    /// The seed given, or one from the operating system.
    pub(crate) fn seed(&self) -> anyhow::Result<u64> {
        match self.seed {
            Some(seed) => Ok(seed),
            None => getrandom::u64().map_err(|e| anyhow::anyhow!("no randomness: {e}")),
        }
    }
}

impl TlsArgs {
    fn tls(&self) -> anyhow::Result<Tls> {
        ensure!(
            self.tls_ca.is_some() || self.tls_insecure,
            "TLS needs --tls-ca FILE, or --tls-insecure to take any certificate"
        );
        Tls::new(&self.tls_name, self.tls_ca.as_deref())
    }
}

impl Pop3Args {
    /// The listener, if one is given.
    pub(crate) fn endpoint(&self) -> anyhow::Result<Option<Endpoint>> {
        let (address, protection) = match (&self.pop3, &self.pop3s) {
            (Some(address), _) if self.stls => (address, Protection::Upgrade(self.tls.tls()?)),
            (Some(address), _) => (address, Protection::None),
            (_, Some(address)) => (address, Protection::Implicit(self.tls.tls()?)),
            (None, None) => return Ok(None),
        };
        Ok(Some(Endpoint {
            address: loopback(address)?,
            protection,
        }))
    }

    /// The listener, where there must be one.
    pub(crate) fn required(&self) -> anyhow::Result<Endpoint> {
        self.endpoint()?.context("--pop3 or --pop3s is needed")
    }
}

impl Reading {
    pub(crate) fn options(
        &self,
        ledger: PathBuf,
        users: Vec<User>,
        pop3: Endpoint,
        output: &Output,
    ) -> anyhow::Result<VerifyOptions> {
        Ok(VerifyOptions {
            ledger,
            users,
            pop3,
            wait: self.wait()?,
            settle: seconds(self.settle)?,
            delete: self.delete,
            sessions: self.pop3_sessions,
            timeout: output.timeout()?,
            progress: !output.quiet,
        })
    }

    pub(crate) fn wait(&self) -> anyhow::Result<Duration> {
        seconds(self.wait)
    }
}

impl ServerArgs {
    pub(crate) fn setting(&self) -> anyhow::Result<Setting> {
        Ok(Setting {
            durability: self.durability.clone(),
            storage: self.data_dir.as_deref().map(Storage::under).transpose()?,
        })
    }

    /// Whom to watch. Refuses processes that are not there.
    pub(crate) fn watching(&self, wait: Duration) -> anyhow::Result<Watching> {
        let watching = Watching {
            server: Server {
                pids: self.server_pid.clone(),
                cgroups: self.server_cgroup.clone(),
                metrics: self.metrics.as_deref().map(Metrics::parse).transpose()?,
                storage: self.setting()?.storage,
            },
            idle: seconds(self.idle)?,
            wait,
            sample_syncs: self.sample_syncs.map(seconds).transpose()?,
        };
        watching.check()?;
        Ok(watching)
    }
}

impl Output {
    pub(crate) fn timeout(&self) -> anyhow::Result<Duration> {
        seconds(self.timeout)
    }

    /// Writes the report as JSON, if asked to.
    pub(crate) fn write(&self, report: &impl serde::Serialize) -> anyhow::Result<()> {
        let Some(path) = &self.json else {
            return Ok(());
        };
        let text = serde_json::to_string_pretty(report)? + "\n";
        std::fs::write(path, text).with_context(|| format!("{}", path.display()))
    }
}

pub(crate) fn seconds(number: f64) -> anyhow::Result<Duration> {
    ensure!(
        (0.0..=1e6).contains(&number),
        "{number} seconds are not a time to wait"
    );
    Ok(Duration::from_secs_f64(number))
}
