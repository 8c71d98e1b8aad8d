//! What the options of the command line mean: the load, the reading and the server they describe. What is contradictory
//! or not there is refused.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use loadtest::drain::DrainOptions;
use loadtest::loopback;
use loadtest::machine::Storage;
use loadtest::maildrops::VerifyOptions;
use loadtest::net::{Endpoint, Protection, Tls};
use loadtest::report::Setting;
use loadtest::run::{Recipients, RunOptions, Senders};
use loadtest::server::{Metrics, Server};
use loadtest::users::{self, User};
use loadtest::watched::Watching;

use super::{DrainArgs, LoadArgs, Output, Pop3Args, Reading, ServerArgs, TlsArgs};

/// SMTP sessions that fill maildrops before they are drained.
const FILL_SESSIONS: usize = 20;

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
            recipients: if self.in_turn {
                Recipients::InTurn
            } else {
                Recipients::Random
            },
            recipients_per_message: self.recipients_per_message,
            messages_per_connection: self.per_connection,
            reconnect_on_error: self.reconnect_on_error,
            deadline: None,
            ledger: ledger.to_owned(),
            seed,
            senders: match self.senders.as_str() {
                "users" => Senders::Users,
                "null" => Senders::Null,
                address => Senders::Fixed(address.to_owned()),
            },
            timeout: output.timeout,
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
    ) -> VerifyOptions {
        VerifyOptions {
            ledger,
            users,
            pop3,
            wait: self.wait,
            settle: self.settle,
            delete: self.delete,
            sessions: self.pop3_sessions,
            timeout: output.timeout,
            progress: !output.quiet,
        }
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
            idle: self.idle,
            wait,
            sample_syncs: self.sample_syncs,
        };
        watching.check()?;
        Ok(watching)
    }
}

impl Output {
    /// Writes the report as JSON, if asked to.
    pub(crate) fn write(&self, report: &impl serde::Serialize) -> anyhow::Result<()> {
        let Some(path) = &self.json else {
            return Ok(());
        };
        let text = serde_json::to_string_pretty(report)? + "\n";
        std::fs::write(path, text).with_context(|| format!("{}", path.display()))
    }
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
        let watching = self.server.watching(self.wait)?;
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
            timeout: self.output.timeout,
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
