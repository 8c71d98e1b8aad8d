//! What is to be sent, by how many sessions, in a closed or an open loop; [`crate::load::run`] does it.
//!
//! Closed: a session sends its next message when the last one was answered, so a slow server is asked for less. Open
//! (`rate`): messages are due by a schedule that does not look at the server; a message due while all sessions are
//! busy waits, and its latency counts from the moment it was due. A server that stalls cannot hide it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::{Duration, Instant};

use anyhow::ensure;

use crate::net::Endpoint;
use crate::report::Setting;
use crate::size::SizeMix;
use crate::users::User;

/// The most sessions of one run; each is a thread.
pub const SESSIONS_MAX: usize = 4096;
/// The most recipients of one message (RFC 5321 section 4.5.3.1.8 guarantees 100).
pub const RECIPIENTS_MAX: usize = 100;
/// The highest rate of an open loop; far above what threads can do.
pub const RATE_MAX: f64 = 1e6;

/// For a load that only its deadline ends.
pub const MESSAGES_ENDLESS: u64 = u64::MAX >> 1;

/// Whose name stands in MAIL FROM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Senders {
    /// A random user, who then gets the DSNs.
    Users,
    /// The null reverse-path.
    Null,
    /// Always the same.
    Fixed(String),
}

/// Who gets a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recipients {
    /// Random users, different ones within a message.
    Random,
    /// One user after the other, so that all get equally many.
    InTurn,
}

/// What to do.
#[derive(Debug, Clone)]
pub struct RunOptions {
    /// The server; loopback.
    pub smtp: Endpoint,
    /// Who gets mail.
    pub users: Vec<User>,
    /// How many messages must be acknowledged.
    pub messages: u64,
    /// How big they are.
    pub mix: SizeMix,
    /// How many sessions at once.
    pub sessions: usize,
    /// Messages due per second in the mean; nothing for a closed loop.
    pub rate: Option<f64>,
    /// Who gets a message.
    pub recipients: Recipients,
    /// RCPTs of each message.
    pub recipients_per_message: usize,
    /// Messages after which a session quits and another connection is made; nothing to keep each for all.
    pub messages_per_connection: Option<u64>,
    /// Go on when a connection breaks or a message is deferred.
    pub reconnect_on_error: bool,
    /// Stop then, done or not.
    pub deadline: Option<Duration>,
    /// Where the ledger is; appended to.
    pub ledger: PathBuf,
    /// Sizes, senders, recipients and arrivals follow from it (attempt ids do not).
    pub seed: u64,
    /// MAIL FROM.
    pub senders: Senders,
    /// Longest wait for one reply.
    pub timeout: Duration,
    /// What is known about the server and cannot be seen from here.
    pub setting: Setting,
    /// Show progress on stderr.
    pub progress: bool,
}

impl RunOptions {
    /// A closed loop of 100 messages of 10 KiB by one session, to be adapted.
    pub fn new(smtp: SocketAddr, users: Vec<User>, mix: SizeMix, ledger: PathBuf) -> RunOptions {
        RunOptions {
            smtp: smtp.into(),
            users,
            messages: 100,
            mix,
            sessions: 1,
            rate: None,
            recipients: Recipients::Random,
            recipients_per_message: 1,
            messages_per_connection: None,
            reconnect_on_error: false,
            deadline: None,
            ledger,
            seed: 0,
            senders: Senders::Null,
            timeout: Duration::from_secs(70),
            setting: Setting::default(),
            progress: false,
        }
    }

    /// Refuses what cannot be run.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        self.smtp.ensure_loopback()?;
        ensure!(
            (1..=SESSIONS_MAX).contains(&self.sessions),
            "sessions must be 1..{SESSIONS_MAX}"
        );
        let rcpts = self.recipients_per_message;
        ensure!(
            (1..=RECIPIENTS_MAX).contains(&rcpts),
            "recipients per message must be 1..{RECIPIENTS_MAX}"
        );
        ensure!(
            self.messages_per_connection != Some(0),
            "a connection carries at least one message"
        );
        ensure!(
            rcpts <= self.users.len(),
            "fewer users than recipients per message"
        );
        if let Some(rate) = self.rate {
            ensure!(
                rate > 0.0 && rate <= RATE_MAX,
                "the rate must be above 0 and at most {RATE_MAX} messages per second"
            );
        }
        Ok(())
    }
}

/// What is happening, for whoever watches a run from another thread.
#[derive(Debug, Default)]
pub struct Watch {
    /// When the first message was, or was due, to be sent.
    pub began: OnceLock<Instant>,
    /// Messages acknowledged so far.
    pub acknowledged: AtomicU64,
    /// Attempts begun so far.
    pub attempts: AtomicU64,
    /// Sessions opened so far.
    pub connections: AtomicU64,
    /// Set it to end the run after the transactions under way.
    pub stop: AtomicBool,
}
