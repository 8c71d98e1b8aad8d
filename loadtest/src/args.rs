//! The options of the command line.

mod meaning;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::{Args, Parser, Subcommand};
use loadtest::saturation::{Counts, Rates};
use loadtest::size::SizeMix;

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
    /// Offer rising rates in open loops, use rising numbers of sessions in closed ones, and draw what comes of it.
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
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub(crate) deadline: Option<Duration>,
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
    /// One user after the other gets a message, so that all get equally many (default: random ones).
    #[arg(long)]
    in_turn: bool,
    /// Quit after so many messages and connect again, with a full handshake under TLS (default: sessions are kept).
    #[arg(long, value_name = "MESSAGES")]
    per_connection: Option<u64>,
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
    #[arg(long, value_name = "LIST", required_unless_present = "session_counts")]
    pub(crate) rates: Option<Rates>,
    /// Closed loops of so many sessions, in the same notation: `1-64/7`.
    #[arg(long, value_name = "LIST")]
    pub(crate) session_counts: Option<Counts>,
    /// For how long each rate is offered, and each number of sessions kept busy.
    #[arg(long, value_name = "SECONDS", value_parser = seconds, default_value = "10")]
    pub(crate) step: Duration,
    /// Append to this ledger (default: a temporary one, removed when it balances).
    #[arg(long)]
    pub(crate) ledger: Option<PathBuf>,
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
    #[arg(long, value_name = "SECONDS", value_parser = seconds, default_value = "60")]
    wait: Duration,
    #[command(flatten)]
    server: ServerArgs,
    #[command(flatten)]
    pub(crate) output: Output,
}

/// How maildrops are read.
#[derive(Debug, Args)]
pub(crate) struct Reading {
    /// Delete what was read, if the ledger balances.
    #[arg(long)]
    delete: bool,
    /// Longest wait, in seconds, for the last acknowledged message to appear, and for the server to be idle.
    #[arg(long, value_name = "SECONDS", value_parser = seconds, default_value = "60")]
    pub(crate) wait: Duration,
    /// Wait so long for a copy too many before the last pass.
    #[arg(long, value_name = "SECONDS", value_parser = seconds, default_value = "0.5")]
    settle: Duration,
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
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    sample_syncs: Option<Duration>,
    /// The server has done its work when it did nothing for so long.
    #[arg(long, value_name = "SECONDS", value_parser = seconds, default_value = "1")]
    idle: Duration,
}

/// What is shown and written.
#[derive(Debug, Args)]
pub(crate) struct Output {
    /// Longest wait for one reply.
    #[arg(long, value_name = "SECONDS", value_parser = seconds, default_value = "70")]
    timeout: Duration,
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

/// So many seconds, if they are a time to wait.
fn seconds(text: &str) -> anyhow::Result<Duration> {
    let number: f64 = text.parse().context("not a number of seconds")?;
    ensure!(
        (0.0..=1e6).contains(&number),
        "{number} seconds are not a time to wait"
    );
    Ok(Duration::from_secs_f64(number))
}
