//! The command line. Questions and orders go to the running process over its admin socket, never to its files.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// A mail cluster in one binary.
#[derive(Debug, Parser)]
#[command(name = "hikyaku", version, about, disable_help_subcommand = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run every role in this process
    All {
        /// The configuration file
        #[arg(long, env = "HIKYAKU_CONFIG")]
        config: PathBuf,
    },
    /// Run everything with sample users in a directory of its own
    Demo {
        /// Where to keep it
        #[arg(long, default_value = "hikyaku-demo")]
        dir: PathBuf,
        /// First port of the thousand it picks from: SMTP is N+525, POP3 N+110, POP3S N+995 [default: 2000, or as it was]
        #[arg(long, value_name = "N")]
        port_base: Option<u16>,
    },
    /// Say what is wrong with a configuration and its directory, without starting
    Check {
        /// The configuration file
        file: PathBuf,
    },
    /// Ask how mail is routed
    Route {
        /// What to ask
        #[command(subcommand)]
        question: Route,
    },
    /// Take the directory file as it is
    Directory {
        /// What to do
        #[command(subcommand)]
        order: Directory,
    },
    /// Look at mail on its way, hold it, let it go, delete it, try it again
    Queue {
        /// What to do
        #[command(subcommand)]
        order: Queue,
    },
    /// Back mailbox shards up and bring accounts back
    Shard {
        /// What to do
        #[command(subcommand)]
        order: Shard,
    },
    /// Say how the shards and listeners are
    Status {
        /// The running process
        #[command(flatten)]
        target: Target,
    },
}

/// `hikyaku route ...`
#[derive(Debug, Subcommand)]
pub enum Route {
    /// Where mail for an address goes, step by step, and why
    Explain {
        /// user@domain
        address: String,
        /// The running process
        #[command(flatten)]
        target: Target,
    },
}

/// `hikyaku directory ...`
#[derive(Debug, Subcommand)]
pub enum Directory {
    /// Let the running process answer from the file although it has lost more than a tenth of its entries
    Accept {
        /// The running process
        #[command(flatten)]
        target: Target,
    },
}

/// Which part of the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum QueueState {
    /// Accepted, not tried yet
    Incoming,
    /// Due now
    Active,
    /// To be tried again later
    Deferred,
    /// Waiting for an operator
    Hold,
}

impl QueueState {
    /// The word in the admin protocol.
    pub fn word(self) -> &'static str {
        match self {
            QueueState::Incoming => "incoming",
            QueueState::Active => "active",
            QueueState::Deferred => "deferred",
            QueueState::Hold => "hold",
        }
    }
}

/// `hikyaku queue ...`
#[derive(Debug, Subcommand)]
pub enum Queue {
    /// List messages, oldest first
    List {
        /// Only messages with a recipient in this state
        #[arg(long)]
        state: Option<QueueState>,
        /// Only this tenant's
        #[arg(long)]
        tenant: Option<String>,
        /// Only with an address containing this
        #[arg(long)]
        address: Option<String>,
        /// At most this many
        #[arg(long, default_value_t = 1000)]
        limit: u32,
        /// The running process
        #[command(flatten)]
        target: Target,
    },
    /// Everything known about one message
    Show {
        /// The queue id
        id: String,
        /// The running process
        #[command(flatten)]
        target: Target,
    },
    /// Keep messages where they are until released
    Hold(Order),
    /// Let held messages go on
    Release(Order),
    /// Delete messages; nobody is told
    Delete {
        /// Which
        #[command(flatten)]
        order: Order,
        /// Do not ask before all are deleted
        #[arg(long)]
        yes: bool,
    },
    /// Try messages again now
    Retry(Order),
}

/// Which messages an order is for.
#[derive(Debug, Args)]
pub struct Order {
    /// Queue ids
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    pub ids: Vec<String>,
    /// Every message the order can apply to
    #[arg(long)]
    pub all: bool,
    /// For the record
    #[arg(long, default_value = "operator")]
    pub reason: String,
    /// The running process
    #[command(flatten)]
    pub target: Target,
}

/// `hikyaku shard ...`
#[derive(Debug, Subcommand)]
pub enum Shard {
    /// Write what a shard holds to a file
    Snapshot {
        /// e.g. mbox-0
        shard: String,
        /// The file to write; it must not exist
        file: PathBuf,
        /// The running process
        #[command(flatten)]
        target: Target,
    },
    /// Bring back the accounts of a snapshot that the process does not have
    Restore {
        /// The snapshot
        file: PathBuf,
        /// The running process
        #[command(flatten)]
        target: Target,
    },
}

/// How to find the running process.
#[derive(Clone, Debug, Args)]
pub struct Target {
    /// Its configuration file [default: ./hikyaku.toml, else ./hikyaku-demo/hikyaku.toml]
    #[arg(long, env = "HIKYAKU_CONFIG")]
    pub config: Option<PathBuf>,
    /// Its admin socket; then its configuration is not read
    #[arg(long)]
    pub socket: Option<PathBuf>,
}
