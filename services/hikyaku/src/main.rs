//! The `hikyaku` binary: configuration, wiring, command line.
//!
//! # Layout, in the order a start goes through them
//! * [`cli`]: what was asked
//! * [`config`]: the file, checked as a whole
//! * [`modes`]: which files are open to others
//! * [`printing`]: standard output
//! * [`telemetry`]: log lines ([`lines`]) and traces
//! * [`demo`]: a directory with everything a first try needs
//! * [`lock`]: one process a data directory
//! * [`ambient`]: clock and randomness
//! * [`users`]: the directory file
//! * [`shards`]: log, stores and state machines
//! * [`services`]: what roles call each other by
//! * [`node`]: every role, wired top to bottom
//! * [`listeners`]: its sockets
//! * [`live`]: what new connections are served with
//! * [`reload`]: configuration and certificates ([`certificates`]) read again, if [`changes`] allows
//! * [`alarms`]: what an operator must look at
//! * [`observe`]: metrics and health over HTTP
//! * [`sweep`]: blobs that nobody names any more
//! * [`unnamed`]: for how long they have been so
//! * [`archive`]: backups, for the admin service
//! * [`operator`]: the other side of the admin socket

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

mod alarms;
mod ambient;
mod archive;
mod budget;
mod certificates;
mod changes;
mod cli;
mod config;
mod demo;
mod lines;
mod listeners;
mod live;
mod lock;
mod modes;
mod node;
mod observe;
mod operator;
mod printing;
mod reload;
mod services;
mod shards;
mod sweep;
mod telemetry;
#[cfg_attr(not(feature = "otlp"), path = "traces_off.rs")]
mod traces;
mod unnamed;
mod users;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, anyhow, bail};
use clap::Parser;
use hikyaku_directory::finding::Severity;
use hikyaku_shard::ambient::Ambient;
use tokio::runtime::{Handle, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::ambient::System;
use crate::cli::{Cli, Command};
use crate::config::Config;
use crate::config::advice::advice;
use crate::modes::open_to_others;
use crate::node::{Node, Source};
use crate::printing::say;
use crate::telemetry::Logging;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let _ = rustls::crypto::ring::default_provider().install_default();
    run(cli.command).unwrap_or_else(|error| printing::failure(&error))
}

fn run(command: Command) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("starting the runtime")?;
    match command {
        Command::All { config } => return serve(runtime, &config, |_| None),
        Command::Demo { dir, port_base } => {
            let file = demo::prepare(&dir, port_base)?;
            return serve(runtime, &file, |node| Some(demo_text(node, &file)));
        }
        Command::Check { file } => check(&file),
        Command::Route { question } => runtime.block_on(operator::route(question)),
        Command::Directory { order } => runtime.block_on(operator::directory(order)),
        Command::Queue { order } => runtime.block_on(operator::queue(order)),
        Command::Shard { order } => runtime.block_on(operator::shard(order)),
        Command::Status { target } => runtime.block_on(operator::status(&target)),
    }?;
    Ok(ExitCode::SUCCESS)
}

fn load(file: &Path) -> Result<Config> {
    Config::load(file).map_err(|problems| anyhow!("{}", operator::join(&problems)))
}

/// Runs a node with the configuration in `file` until it is told to stop or its log fails. Once it
/// serves, it prints where, and what `then` adds.
///
/// Neither what it prints nor its log nor a file that cannot be read holds up its end.
fn serve(
    runtime: Runtime,
    file: &Path,
    then: impl FnOnce(&Node) -> Option<String>,
) -> Result<ExitCode> {
    let within = runtime.enter();
    // before anything else: a signal that nobody waits for ends the process
    let hangup = signal(SignalKind::hangup())?;
    let config = load(file)?;
    let (logging, traces) = Logging::start(&config.telemetry, &config.node.hostname.0)?;
    let out = printing::unread()?;
    let started = |node: &Node| {
        let listeners = node.listeners().iter().cloned();
        for line in listeners.chain(then(node)) {
            out.line(format!("{line}\n").as_bytes());
        }
    };
    let served = runtime.block_on(async {
        let served = run_node(file, config, hangup, logging.clone(), started).await;
        if let Some(traces) = traces {
            traces.stop().await;
        }
        served
    });
    drop(within);
    // a thread that a file system holds up is left behind
    runtime.shutdown_background();
    if let Err(error) = &served {
        logging.write(&format!("hikyaku: {error:#}\n"));
    }
    logging.finish();
    Ok(match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    })
}

async fn run_node(
    file: &Path,
    config: Config,
    hangup: Signal,
    logging: Logging,
    started: impl FnOnce(&Node),
) -> Result<()> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    lock::nothing_for_others();
    let source = Source {
        file: file.to_owned(),
        hangup,
        logging,
    };
    // on a thread of its own: a start reads files, and a signal must not wait for them
    let starting =
        tokio::task::spawn_blocking(|| Handle::current().block_on(Node::start(config, source)));
    let node = tokio::select! {
        biased;
        started = starting => started.context("starting")??,
        // nothing is answered yet; what the log and the stores hold they hold
        _ = interrupt.recv() => return Ok(()),
        _ = terminate.recv() => return Ok(()),
    };
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        configuration = %file.display(),
        listeners = node.listeners().join(", "),
        "started"
    );
    started(&node);
    let failure = tokio::select! {
        biased;
        reason = node.failed() => Some(reason),
        _ = interrupt.recv() => None,
        _ = terminate.recv() => None,
    };
    if let Some(reason) = failure {
        // what was answered is durable; what was not must not be answered any more
        bail!("the log failed and nothing more can be made durable: {reason}");
    }
    tracing::info!("stopping; interrupt again to stop at once");
    tokio::select! {
        biased;
        () = node.stop() => tracing::info!("stopped"),
        _ = interrupt.recv() => tracing::warn!("interrupted while stopping; the next start replays what was not flushed"),
    }
    Ok(())
}

/// What to try with a demo that runs.
fn demo_text(node: &Node, file: &Path) -> String {
    let port = |name: &str| {
        let found = node
            .listeners()
            .iter()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        found.unwrap_or("-").to_owned()
    };
    let (smtp, pop3, pop3s) = (port("smtp"), port("pop3"), port("pop3s"));
    let password = demo::PASSWORD;
    format!(
        "\n# Send a mail to bob, read it (in the clear, then under TLS), ask where mail for the group goes:\n\
         printf 'From: alice@example.jp\\r\\nTo: bob@example.jp\\r\\nSubject: hello\\r\\n\\r\\nIt works.\\r\\n' | curl -sS --url smtp://{smtp} --mail-from alice@example.jp --mail-rcpt bob@example.jp -T -\n\
         curl -sS pop3://bob:{password}@{pop3}/1\n\
         curl -sS --insecure pop3s://bob:{password}@{pop3s}/1\n\
         # In another terminal, the operator's side: {} route explain team@example.jp --config {}\n\
         # Ctrl-C stops; starting again goes on with the same mail.",
        pasted(&std::env::current_exe().unwrap_or_else(|_| "hikyaku".into())),
        pasted(file)
    )
}

/// A path as a shell takes it.
fn pasted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |letter: char| letter.is_ascii_alphanumeric() || "/._-+".contains(letter);
    match text.chars().all(plain) {
        true => text,
        false => format!("'{}'", text.replace('\'', r"'\''")),
    }
}

/// `hikyaku check`
fn check(file: &Path) -> Result<()> {
    let config = load(file)?;
    telemetry::filter(&config.telemetry)?;
    if let Some(files) = &config.tls {
        let now_s = i64::try_from(System.now_ms() / 1000)?;
        let material =
            certificates::load(files, None, now_s).map_err(|why| anyhow!("tls: {why}"))?;
        let certificate = files.certificate.get_ref();
        if let Some(why) = certificates::invalid(certificate, &material, now_s) {
            bail!("tls: {why}");
        }
        if let Some(warning) = certificates::warning(certificate, &material, now_s) {
            say(warning)?;
        }
        if let Some(warning) = certificates::gap(certificate, &material) {
            say(warning)?;
        }
    }
    let table = users::load(&config)?.table();
    for warning in advice(&config)
        .into_iter()
        .chain(open_to_others(file, &config))
    {
        say(format_args!("warning: {warning}"))?;
    }
    let ldif: &PathBuf = config.directory.ldif.get_ref();
    for line in users::located(ldif, table.findings()) {
        say(line)?;
    }
    for remark in table.remarks() {
        say(format_args!("{}: {remark}", ldif.display()))?;
    }
    let mut errors = table.findings().iter();
    if errors.any(|finding| finding.severity == Severity::Error) {
        let troubles = table.troubles().join("; ");
        bail!("{}: errors, see above. {troubles}", ldif.display());
    }
    for line in budget::lines(&config) {
        say(line)?;
    }
    say(format_args!("{}: ok", file.display()))
}
