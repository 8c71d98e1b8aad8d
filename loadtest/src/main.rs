//! The command line of the load generator.
//!
//! Exit code 0 when everything asked for happened and the ledger balances, 1 when not, 2 for wrong usage.
// outside the system under test: the machine's own clock is the one that counts
#![allow(clippy::disallowed_methods)]

mod args;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, ensure};
use args::{Cli, Command, DrainArgs, RunArgs, SweepArgs, UsersArgs, VerifyArgs};
use clap::Parser;
use loadtest::run::Watch;
use loadtest::saturation::Steps;
use loadtest::watched::{run_watched, sample_syncs};
use loadtest::{drain, readable, saturation, users, verify};

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Run(args) => command_run(&args),
        Command::Verify(args) => command_verify(&args),
        Command::Sweep(args) => command_sweep(&args),
        Command::Pop3Drain(args) => command_drain(&args),
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
    let seed = args.load.seed()?;
    let ledger = LedgerFile::new(args.ledger.as_deref(), seed);
    let mut options = args.load.options(
        &args.pop3.tls,
        &args.output,
        args.server.setting()?,
        &ledger.path,
        seed,
    )?;
    options.messages = args.messages;
    options.rate = args.rate;
    options.deadline = args.deadline;
    let watching = args.server.watching(args.reading.wait)?;
    let watch = Arc::new(Watch::default());
    let report = match args.pop3.endpoint()? {
        Some(pop3) => {
            let users = options.users.clone();
            let path = ledger.path.clone();
            let reading = args.reading.options(path, users, pop3, &args.output);
            readable::run_and_verify(&options, &watch, &watching, &reading)?
        }
        None => {
            let mut report = run_watched(&options, &watch, &watching)?;
            sample_syncs(&options, &watching, &mut report)?;
            report
        }
    };
    print!("{report}");
    ledger.settle(report.succeeded())?;
    args.output.write(&report)?;
    Ok(report.succeeded())
}

fn command_verify(args: &VerifyArgs) -> anyhow::Result<bool> {
    let options = args.reading.options(
        args.ledger.clone(),
        users::read(&args.users)?,
        args.pop3.required()?,
        &args.output,
    );
    let report = verify::verify(&options)?;
    print!("{report}");
    args.output.write(&report)?;
    Ok(report.balanced())
}

fn command_sweep(args: &SweepArgs) -> anyhow::Result<bool> {
    let seed = args.load.seed()?;
    let ledger = LedgerFile::new(args.ledger.as_deref(), seed);
    let setting = args.server.setting()?;
    let load = args
        .load
        .options(&args.pop3.tls, &args.output, setting, &ledger.path, seed)?;
    let watching = args.server.watching(args.reading.wait)?;
    ensure!(
        watching.sample_syncs.is_none(),
        "a sweep does not sample syncs: use `run`"
    );
    let reading = match args.pop3.endpoint()? {
        Some(pop3) => {
            let (path, users) = (ledger.path.clone(), load.users.clone());
            Some(args.reading.options(path, users, pop3, &args.output))
        }
        None => None,
    };
    let steps = Steps {
        session_counts: args.session_counts.clone().unwrap_or_default(),
        rates: args.rates.clone().unwrap_or_default(),
        each: args.step,
    };
    let report = saturation::sweep(&load, &steps, &watching, reading.as_ref())?;
    print!("{report}");
    ledger.settle(report.succeeded())?;
    args.output.write(&report)?;
    if let Some(path) = &args.svg {
        std::fs::write(path, report.svg()?).with_context(|| format!("{}", path.display()))?;
    }
    Ok(report.succeeded())
}

fn command_drain(args: &DrainArgs) -> anyhow::Result<bool> {
    let options = args.options()?;
    let ledger = LedgerFile::new(None, 0);
    if let Some(fill) = args.fill(&options, &ledger.path)? {
        let filled = drain::fill(&fill, &options);
        ledger.settle(true)?;
        filled?;
    }
    let report = drain::drain(&options)?;
    print!("{report}");
    args.output.write(&report)?;
    Ok(report.succeeded())
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

/// The ledger asked for, or a temporary one that is removed when it has served.
struct LedgerFile {
    path: PathBuf,
    temporary: bool,
}

impl LedgerFile {
    fn new(given: Option<&Path>, seed: u64) -> LedgerFile {
        let name = format!("loadtest-{}-{seed:016x}.ledger", std::process::id());
        LedgerFile {
            path: given.map_or_else(|| std::env::temp_dir().join(name), Path::to_owned),
            temporary: given.is_none(),
        }
    }

    fn settle(&self, succeeded: bool) -> anyhow::Result<()> {
        if !self.temporary {
            return Ok(());
        }
        if succeeded {
            return std::fs::remove_file(&self.path).context("removing the temporary ledger");
        }
        eprintln!("ledger kept: {}", self.path.display());
        Ok(())
    }
}
