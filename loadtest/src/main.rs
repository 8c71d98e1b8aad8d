//! The command line of the load generator: `run`, `verify`, `users`.
//!
//! Exit code 0 when everything asked for happened and the ledger balances, 1 when not, 2 for wrong usage.
// outside the system under test: the machine's own clock is the one that counts
#![allow(clippy::disallowed_methods)]

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::{Args, Parser, Subcommand};
use loadtest::run::{RunOptions, Senders, Watch};
use loadtest::size::SizeMix;
use loadtest::verify::VerifyOptions;
use loadtest::{loopback, readable, run, users, verify};

/// Sends mail by SMTP, keeps a ledger, and proves by POP3 that every acknowledged message is there exactly once.
/// Talks to loopback addresses only.
#[derive(Debug, Parser)]
#[command(name = "loadtest", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Send messages in a closed loop; with --pop3, verify at the end.
    Run(RunArgs),
    /// Hold all maildrops against a ledger.
    Verify(VerifyArgs),
    /// Make a directory (LDIF) and its users file.
    Users(UsersArgs),
}

#[derive(Debug, Args)]
struct RunArgs {
    /// The server's SMTP listener.
    #[arg(long, value_name = "HOST:PORT")]
    smtp: String,
    /// Lines of `ADDRESS PASSWORD [LOGIN]`.
    #[arg(long)]
    users: PathBuf,
    /// How many messages must be acknowledged.
    #[arg(long)]
    messages: u64,
    /// Bytes (10240, 10K), `mix`, or SHARE:LOW-HIGH,...
    #[arg(long, default_value = "mix")]
    size: SizeMix,
    /// Concurrent SMTP sessions.
    #[arg(long, default_value_t = 20)]
    sessions: usize,
    /// The server's POP3 listener; verify when all is sent.
    #[arg(long, value_name = "HOST:PORT")]
    pop3: Option<String>,
    /// Append to this ledger (default: a temporary one, removed when it balances).
    #[arg(long)]
    ledger: Option<PathBuf>,
    /// RCPTs of each message.
    #[arg(long, default_value_t = 1)]
    recipients_per_message: usize,
    /// Go on when connections break or messages are deferred.
    #[arg(long)]
    reconnect_on_error: bool,
    /// Stop sending after so many seconds.
    #[arg(long, value_name = "SECONDS")]
    deadline: Option<f64>,
    /// MAIL FROM: `users` (a random one), `null`, or an address.
    #[arg(long, default_value = "users")]
    senders: String,
    /// Sizes, senders and recipients follow from it.
    #[arg(long)]
    seed: Option<u64>,
    #[command(flatten)]
    reading: Reading,
    /// Write the report as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct VerifyArgs {
    /// The ledger of all that was sent to these users.
    #[arg(long)]
    ledger: PathBuf,
    /// Lines of `ADDRESS PASSWORD [LOGIN]`.
    #[arg(long)]
    users: PathBuf,
    /// The server's POP3 listener.
    #[arg(long, value_name = "HOST:PORT")]
    pop3: String,
    #[command(flatten)]
    reading: Reading,
    /// Write the report as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// How maildrops are read.
#[derive(Debug, Args)]
struct Reading {
    /// Delete what was read, if the ledger balances.
    #[arg(long)]
    delete: bool,
    /// Longest wait, in seconds, for the last acknowledged message to appear.
    #[arg(long, default_value_t = 60.0, value_name = "SECONDS")]
    wait: f64,
    /// Wait so long for a copy too many before the last pass.
    #[arg(long, default_value_t = 0.5, value_name = "SECONDS")]
    settle: f64,
    /// Maildrops read at once.
    #[arg(long, default_value_t = 4)]
    pop3_sessions: usize,
    /// Longest wait for one reply.
    #[arg(long, default_value_t = 70.0, value_name = "SECONDS")]
    timeout: f64,
    /// No progress on stderr.
    #[arg(long)]
    quiet: bool,
}

#[derive(Debug, Args)]
struct UsersArgs {
    /// How many.
    #[arg(long)]
    count: usize,
    /// Their domain.
    #[arg(long)]
    domain: String,
    /// Names of the mboxes they are spread over.
    #[arg(long, value_delimiter = ',', default_value = "mbox1")]
    mbox: Vec<String>,
    /// The LDIF file to write.
    #[arg(long)]
    ldif: PathBuf,
    /// The users file to write; it holds passwords and is made for its owner only.
    #[arg(long)]
    users: PathBuf,
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Run(args) => command_run(&args),
        Command::Verify(args) => command_verify(&args),
        Command::Users(args) => command_users(&args),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("loadtest: {error:#}");
            ExitCode::from(1)
        }
    }
}

fn command_run(args: &RunArgs) -> anyhow::Result<bool> {
    let users = users::read(&args.users)?;
    let seed = match args.seed {
        Some(seed) => seed,
        None => getrandom::u64().map_err(|e| anyhow::anyhow!("no randomness: {e}"))?,
    };
    let temporary = std::env::temp_dir().join(format!(
        "loadtest-{}-{seed:016x}.ledger",
        std::process::id()
    ));
    let ledger = args.ledger.clone().unwrap_or_else(|| temporary.clone());
    let options = RunOptions {
        smtp: loopback(&args.smtp)?,
        users: users.clone(),
        messages: args.messages,
        mix: args.size.clone(),
        sessions: args.sessions,
        recipients_per_message: args.recipients_per_message,
        reconnect_on_error: args.reconnect_on_error,
        deadline: args.deadline.map(seconds).transpose()?,
        ledger: ledger.clone(),
        seed,
        senders: match args.senders.as_str() {
            "users" => Senders::Users,
            "null" => Senders::Null,
            address => Senders::Fixed(address.to_owned()),
        },
        timeout: seconds(args.reading.timeout)?,
        progress: !args.reading.quiet,
    };
    let watch = Arc::new(Watch::default());
    let report = match &args.pop3 {
        Some(pop3) => {
            let sweep = args.reading.options(ledger, users, pop3)?;
            readable::run_and_verify(&options, &watch, &sweep)?
        }
        None => run::run(&options, &watch)?,
    };
    print!("{report}");
    if args.ledger.is_none() {
        if report.succeeded() {
            std::fs::remove_file(&temporary).context("removing the temporary ledger")?;
        } else {
            eprintln!("ledger kept: {}", temporary.display());
        }
    }
    write_json(args.json.as_deref(), &report)?;
    Ok(report.succeeded())
}

fn command_verify(args: &VerifyArgs) -> anyhow::Result<bool> {
    let options =
        args.reading
            .options(args.ledger.clone(), users::read(&args.users)?, &args.pop3)?;
    let report = verify::verify(&options)?;
    print!("{report}");
    write_json(args.json.as_deref(), &report)?;
    Ok(report.balanced())
}

fn command_users(args: &UsersArgs) -> anyhow::Result<bool> {
    let (ldif, users) = users::generate(args.count, &args.domain, &args.mbox)?;
    let write = |path: &Path, text: &str, mode: u32| {
        use std::io::Write;
        use std::os::unix::fs::OpenOptionsExt;
        let mut open = std::fs::OpenOptions::new();
        open.write(true).create(true).truncate(true).mode(mode);
        let mut file = open
            .open(path)
            .with_context(|| format!("{}", path.display()))?;
        file.write_all(text.as_bytes())
            .with_context(|| format!("{}", path.display()))
    };
    write(&args.ldif, &ldif, 0o644)?;
    write(&args.users, &users, 0o600)?;
    Ok(true)
}

impl Reading {
    fn options(
        &self,
        ledger: PathBuf,
        users: Vec<users::User>,
        pop3: &str,
    ) -> anyhow::Result<VerifyOptions> {
        Ok(VerifyOptions {
            ledger,
            users,
            pop3: loopback(pop3)?,
            wait: seconds(self.wait)?,
            settle: seconds(self.settle)?,
            delete: self.delete,
            sessions: self.pop3_sessions,
            timeout: seconds(self.timeout)?,
            progress: !self.quiet,
        })
    }
}

fn seconds(number: f64) -> anyhow::Result<Duration> {
    ensure!(
        (0.0..=1e6).contains(&number),
        "{number} seconds are not a time to wait"
    );
    Ok(Duration::from_secs_f64(number))
}

fn write_json(path: Option<&Path>, report: &impl serde::Serialize) -> anyhow::Result<()> {
    let Some(path) = path else { return Ok(()) };
    let text = serde_json::to_string_pretty(report)? + "\n";
    std::fs::write(path, text).with_context(|| format!("{}", path.display()))
}
