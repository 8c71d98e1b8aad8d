//! The `hikyaku` binary: configuration, wiring, command line.
//!
//! # Layout, in the order a start goes through them
//! * [`cli`]: what was asked
//! * [`config`]: the file, checked as a whole
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
mod node;
mod observe;
mod operator;
mod reload;
mod services;
mod shards;
mod sweep;
mod telemetry;
#[cfg_attr(not(feature = "otlp"), path = "traces_off.rs")]
mod traces;
mod users;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, anyhow, bail};
use clap::Parser;
use hikyaku_directory::finding::Severity;
use hikyaku_shard::ambient::Ambient;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::ambient::System;
use crate::cli::{Cli, Command};
use crate::config::Config;
use crate::node::{Node, Source};
use crate::telemetry::Logging;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let _ = rustls::crypto::ring::default_provider().install_default();
    match run(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("hikyaku: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("starting the runtime")?;
    match command {
        Command::All { config } => runtime.block_on(serve(&config, |_| {})),
        Command::Demo { dir, port_base } => {
            let file = demo::prepare(&dir, port_base)?;
            runtime.block_on(serve(&file, |node| print_demo(node, &file)))
        }
        Command::Check { file } => check(&file),
        Command::Route { question } => runtime.block_on(operator::route(question)),
        Command::Directory { order } => runtime.block_on(operator::directory(order)),
        Command::Queue { order } => runtime.block_on(operator::queue(order)),
        Command::Shard { order } => runtime.block_on(operator::shard(order)),
        Command::Status { target } => runtime.block_on(operator::status(&target)),
    }
}

fn load(file: &Path) -> Result<Config> {
    Config::load(file).map_err(|problems| anyhow!("{}", operator::join(&problems)))
}

/// Runs a node with the configuration in `file` until it is told to stop or its log fails.
async fn serve(file: &Path, started: impl FnOnce(&Node)) -> Result<()> {
    // before anything else: a signal that nobody waits for ends the process
    let hangup = signal(SignalKind::hangup())?;
    let config = load(file)?;
    let (logging, traces) = Logging::start(&config.telemetry, &config.node.hostname.0)?;
    let served = run_node(file, config, hangup, logging, started).await;
    if let Some(traces) = traces {
        traces.stop().await;
    }
    served
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
    let node = tokio::select! {
        biased;
        started = Node::start(config, source) => started?,
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
    for listener in node.listeners() {
        println!("{listener}");
    }
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

fn print_demo(node: &Node, file: &Path) {
    let port = |name: &str| {
        let found = node
            .listeners()
            .iter()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        found.unwrap_or("-").to_owned()
    };
    let (smtp, pop3, pop3s) = (port("smtp"), port("pop3"), port("pop3s"));
    let password = demo::PASSWORD;
    println!(
        "\n# Send a mail to bob, read it (in the clear, then under TLS), ask where mail for the group goes:\n\
         printf 'From: alice@example.jp\\r\\nTo: bob@example.jp\\r\\nSubject: hello\\r\\n\\r\\nIt works.\\r\\n' | curl -sS --url smtp://{smtp} --mail-from alice@example.jp --mail-rcpt bob@example.jp -T -\n\
         curl -sS pop3://bob:{password}@{pop3}/1\n\
         curl -sS --insecure pop3s://bob:{password}@{pop3s}/1\n\
         # In another terminal, the operator's side: {} route explain team@example.jp --config {}\n\
         # Ctrl-C stops; starting again goes on with the same mail.",
        pasted(&std::env::current_exe().unwrap_or_else(|_| "hikyaku".into())),
        pasted(file)
    );
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
            println!("{warning}");
        }
    }
    let (directory, _) = users::load(&config)?;
    let table = directory.table();
    let ldif: &PathBuf = config.directory.ldif.get_ref();
    for line in users::located(ldif, table.findings()) {
        println!("{line}");
    }
    let errors = table
        .findings()
        .iter()
        .filter(|finding| finding.severity == Severity::Error)
        .count();
    if errors > 0 {
        bail!(
            "{errors} broken directory entries; at run time mail for each of them alone is answered 451"
        );
    }
    for line in budget::lines(&config) {
        println!("{line}");
    }
    println!("{}: ok", file.display());
    Ok(())
}
