//! What a running node takes up: its configuration on SIGHUP, its certificate when the files have changed.
//!
//! A configuration is taken as a whole or not at all: everything that `hikyaku check` looks at is looked at first, and a key
//! that needs a restart refuses it. What is refused changes nothing but an alarm.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hikyaku_directory::file::{DirectoryFile, PreparedFile};
use hikyaku_directory::ldif_directory::Stillness;
use hikyaku_serve::metrics;
use hikyaku_serve::tasks::Tasks;
use hikyaku_serve::tls::Material;
use hikyaku_shard::ambient::SharedAmbient;
use tokio::signal::unix::Signal;
use tokio::time::timeout;
use tracing_subscriber::EnvFilter;

use crate::alarms::{About, Alarms};
use crate::changes::Changes;
use crate::config::Config;
use crate::live::{Live, Serving};
use crate::telemetry::{self, Logging};
use crate::{certificates, users};

/// Changed files are read once size and time have been still for this long.
const STILL_MS: u64 = 2000;
/// How often they are looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// A configuration that takes longer to be read is an alarm: its file system may hang.
const SLOW: Duration = Duration::from_secs(30);

/// See the module.
pub struct Reloader {
    /// The configuration file.
    pub file: PathBuf,
    /// What it changes.
    pub live: Arc<Live>,
    /// The directory, whose settings are in it.
    pub directory: Arc<DirectoryFile>,
    /// The log, whose filter is in it.
    pub logging: Logging,
    /// Where what is wrong is said.
    pub alarms: Alarms,
    /// The clock.
    pub ambient: SharedAmbient,
    /// SIGHUP.
    pub hangup: Signal,
    /// The certificate's files as they were read last.
    pub certificate: Stillness,
}

/// A configuration that nothing is wrong with.
struct Prepared {
    config: Config,
    changed: Vec<String>,
    tls: Option<Material>,
    certificate: Stillness,
    directory: PreparedFile,
    filter: EnvFilter,
}

impl Reloader {
    /// A watch over the certificate's files as they are now: call it before they are read.
    pub fn watch(config: &Config) -> Stillness {
        Stillness::new(certificates::stamp(config.tls.as_ref()), STILL_MS)
    }

    /// Goes on until the node drains.
    pub fn start(mut self, tasks: &Tasks) {
        let draining = tasks.draining();
        tasks.spawn("reload", async move {
            // a file that hangs does not keep the node from its end
            tokio::select! {
                biased;
                () = draining.cancelled() => {}
                () = self.look_again() => {}
            }
        });
    }

    async fn look_again(&mut self) {
        loop {
            self.warn_of_expiry();
            tokio::select! {
                biased;
                Some(()) = self.hangup.recv() => self.reload().await,
                () = tokio::time::sleep(LOOK_INTERVAL) => self.look().await,
            }
        }
    }

    async fn reload(&mut self) {
        let (file, directory) = (self.file.clone(), self.directory.clone());
        let (serving, now_s) = (self.live.serving(), self.now_s());
        let mut reading =
            tokio::task::spawn_blocking(move || prepare(&file, &serving, &directory, now_s));
        let file = self.file.display().to_string();
        let prepared = match timeout(SLOW, &mut reading).await {
            Ok(prepared) => prepared,
            Err(_) => {
                let alarm = format!(
                    "{file}: not read yet, after {} s; the configuration read before goes on",
                    SLOW.as_secs()
                );
                self.alarms.raise(About::Configuration, alarm);
                reading.await
            }
        };
        let Ok(prepared) = prepared else { return };
        match prepared {
            Ok(prepared) => {
                let changed = prepared.changed.join(" ");
                self.take(prepared);
                metrics::RELOADS.count(r#"what="configuration",result="ok""#);
                tracing::info!(file, changed, "configuration read again");
                self.alarms.clear(About::Configuration);
                self.alarms.clear(About::Certificate);
            }
            Err(problems) => {
                metrics::RELOADS.count(r#"what="configuration",result="refused""#);
                for problem in &problems {
                    tracing::error!(problem, "configuration refused");
                }
                let first = problems.first().map(String::as_str).unwrap_or_default();
                let more = match problems.len() {
                    0 | 1 => String::new(),
                    count => format!(" (and {} more)", count - 1),
                };
                let alarm = format!(
                    "{file}: refused, the configuration read before goes on: {first}{more}"
                );
                self.alarms.raise(About::Configuration, alarm);
            }
        }
    }

    /// Nothing here can fail.
    fn take(&mut self, prepared: Prepared) {
        self.certificate = prepared.certificate;
        for line in users::located(
            prepared.config.directory.ldif.get_ref(),
            prepared.directory.findings(),
        ) {
            tracing::warn!(line, "directory entry");
        }
        self.directory.adopt(prepared.directory);
        self.logging.set_filter(prepared.filter);
        self.live
            .replace(Serving::new(Arc::new(prepared.config), prepared.tls));
    }

    /// Reads the certificate again if its files have changed and lie still.
    async fn look(&mut self) {
        let serving = self.live.serving();
        let Some(files) = serving.config.tls.clone() else {
            return;
        };
        let named = files.clone();
        let looked = tokio::task::spawn_blocking(move || certificates::stamp(Some(&named))).await;
        let Ok(stamp) = looked else { return };
        if !self.certificate.observe(stamp, self.ambient.now_ms()) {
            return;
        }
        let (served, now_s) = (serving.tls.clone(), self.now_s());
        let loaded =
            tokio::task::spawn_blocking(move || certificates::load(&files, served.as_ref(), now_s));
        match loaded.await {
            Ok(Ok(material)) => {
                metrics::RELOADS.count(r#"what="certificate",result="ok""#);
                tracing::info!("certificate read again; new connections get it");
                self.alarms.clear(About::Certificate);
                self.live.replace(Serving {
                    tls: Some(material),
                    ..Serving::clone(&serving)
                });
            }
            Ok(Err(why)) => {
                metrics::RELOADS.count(r#"what="certificate",result="refused""#);
                let alarm = format!("{why}; the certificate read before goes on");
                self.alarms.raise(About::Certificate, alarm);
            }
            Err(_) => {}
        }
    }

    fn warn_of_expiry(&self) {
        let serving = self.live.serving();
        let warning = match (&serving.config.tls, &serving.tls) {
            (Some(files), Some(material)) => {
                certificates::warning(files.certificate.get_ref(), material, self.now_s())
            }
            _ => None,
        };
        match warning {
            Some(warning) => self.alarms.raise(About::Expiry, warning),
            None => self.alarms.clear(About::Expiry),
        }
    }

    fn now_s(&self) -> i64 {
        i64::try_from(self.ambient.now_ms() / 1000).unwrap_or(i64::MAX)
    }
}

/// Reads `file` and looks at everything it names; an error says everything that is wrong. Blocks.
fn prepare(
    file: &Path,
    serving: &Serving,
    directory: &DirectoryFile,
    now_s: i64,
) -> Result<Prepared, Vec<String>> {
    let config = Config::load(file)
        .map_err(|problems| problems.iter().map(ToString::to_string).collect::<Vec<_>>())?;
    // before they are read: a change while reading is seen by the watch
    let certificate = Reloader::watch(&config);
    let changes = Changes::between(&serving.config, &config);
    let mut problems: Vec<String> = changes
        .restart
        .iter()
        .map(|key| format!("{}: {key} cannot change without a restart", file.display()))
        .collect();
    let tls = match &config.tls {
        Some(files) => certificates::load(files, serving.tls.as_ref(), now_s)
            .map(Some)
            .unwrap_or_else(|why| {
                problems.push(why);
                None
            }),
        None => None,
    };
    let filter = telemetry::filter(&config.telemetry)
        .map_err(|error| problems.push(format!("{}: {error:#}", file.display())))
        .ok();
    let directory = directory
        .prepare(users::settings(&config))
        .map_err(|why| problems.push(why))
        .ok();
    match (filter, directory) {
        (Some(filter), Some(directory)) if problems.is_empty() => Ok(Prepared {
            config,
            changed: changes.live,
            tls,
            certificate,
            directory,
            filter,
        }),
        _ => Err(problems),
    }
}
