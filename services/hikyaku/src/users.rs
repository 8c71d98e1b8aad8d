//! The directory file: read at start, read again when it has changed and lies still.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use futures_util::future::BoxFuture;
use hikyaku_directory::file::{self, DirectoryFile, OpenError};
use hikyaku_directory::finding::Finding;
use hikyaku_directory::ldif_directory::{LdifDirectory, Reload, Stamp, Stillness};
use hikyaku_directory::password::PoolLimits;
use hikyaku_directory::settings::Settings;
use hikyaku_proto::v1::DirectoryAcceptReply;
use hikyaku_serve::tasks::Tasks;
use hikyaku_shard::ambient::SharedAmbient;
use tonic::Status;

use crate::budget::HASHING_MIB_MAX;
use crate::config::Config;

/// A changed file is read once its size and time have been still for this long.
const STILL_MS: u64 = 2000;
/// The last good directory file, in the data directory.
const LAST_GOOD: &str = "directory.last-good.ldif";
/// How often the file is looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// The stamp of a file that cannot be looked at.
const NEVER: Stamp = Stamp {
    size: 0,
    modified_ns: 0,
};

/// What the configuration says about the directory.
pub fn settings(config: &Config) -> Settings {
    let mboxes: Vec<&str> = config.mbox.keys().map(String::as_str).collect();
    let domain = match (
        &config.directory.default_domain,
        &config.directory.postmaster,
    ) {
        (Some(domain), _) => domain.0.clone(),
        (None, Some(postmaster)) => postmaster.0.domain().to_owned(),
        (None, None) => config.node.hostname.0.clone(),
    };
    Settings {
        postmaster: config
            .directory
            .postmaster
            .as_ref()
            .map(|address| address.0.clone()),
        host_name: Some(config.node.hostname.0.clone()),
        recipient_delimiter: config.directory.recipient_delimiter.chars().next(),
        quota_bytes_default: config.directory.quota_bytes_default.0,
        ..Settings::new(&mboxes, &domain)
    }
}

/// Opens the directory of a node: the configured file, or the last good one.
///
/// # Errors
/// When neither can be used: one line for each reason.
pub fn open(config: &Config, recent_key: [u8; 32]) -> Result<(DirectoryFile, Stamp)> {
    let file = config.directory.ldif.get_ref();
    // taken first: a change while reading is seen by the watch
    let stamp = stamp(file).unwrap_or(NEVER);
    let last_good = config.node.data_dir.join(LAST_GOOD);
    let opened = DirectoryFile::open(file, &last_good, settings(config), hashing(), recent_key);
    match opened {
        Ok(opened) => Ok((opened, stamp)),
        Err(OpenError::Io(error)) => Err(error).with_context(|| file.display().to_string()),
        Err(OpenError::Refused(findings)) => bail!("{}", located(file, &findings).join("\n")),
    }
}

/// Reads the directory; what is wrong with single entries is in its table's findings.
///
/// # Errors
/// When the file as a whole cannot be used: one line for each reason.
pub fn load(config: &Config) -> Result<LdifDirectory> {
    let file = config.directory.ldif.get_ref();
    let settings = settings(config);
    let bytes = file::read(file, settings.limits.file_bytes_max)
        .with_context(|| file.display().to_string())?;
    match LdifDirectory::load(&bytes, settings, hashing()) {
        Ok(directory) => Ok(directory),
        Err(findings) => bail!("{}", located(file, &findings).join("\n")),
    }
}

/// Findings with the file in front, one line each.
pub fn located(file: &Path, findings: &[Finding]) -> Vec<String> {
    findings
        .iter()
        .map(|finding| format!("{}: {finding}", file.display()))
        .collect()
}

/// Looks at the file, last read with the stamp `read`, while the node runs. What hangs, a file
/// system that is away, holds up neither the node nor its end.
pub fn watch(
    tasks: &Tasks,
    ambient: SharedAmbient,
    path: PathBuf,
    read: Stamp,
    file: Arc<DirectoryFile>,
) {
    let draining = tasks.draining();
    tasks.spawn("directory watch", async move {
        tokio::select! {
            biased;
            () = draining.cancelled() => {}
            () = look_again(&ambient, &path, read, &file) => {}
        }
    });
}

async fn look_again(ambient: &SharedAmbient, path: &Path, read: Stamp, file: &Arc<DirectoryFile>) {
    let mut stillness = Stillness::new(read, STILL_MS);
    loop {
        tokio::time::sleep(LOOK_INTERVAL).await;
        let looked_at = path.to_owned();
        let looked = tokio::task::spawn_blocking(move || stamp(&looked_at)).await;
        // a file that is away for a moment is being replaced
        let Ok(Some(stamp)) = looked else { continue };
        if stillness.observe(stamp, ambient.now_ms()) {
            let (file, path) = (file.clone(), path.to_owned());
            let _ = tokio::task::spawn_blocking(move || reload(&file, &path)).await;
        }
    }
}

fn stamp(file: &Path) -> Option<Stamp> {
    let metadata = std::fs::metadata(file).ok()?;
    let modified = metadata.modified().ok()?.duration_since(UNIX_EPOCH).ok()?;
    Some(Stamp {
        size: metadata.len(),
        modified_ns: modified.as_nanos(),
    })
}

fn reload(file: &DirectoryFile, path: &Path) {
    match file.reload() {
        Ok(Reload::Replaced { findings, .. }) => {
            tracing::info!(file = %path.display(), "directory read again");
            for line in located(path, &findings) {
                tracing::warn!(line, "directory entry");
            }
        }
        Ok(Reload::Refused { findings }) => {
            for line in located(path, &findings) {
                tracing::error!(line, "directory");
            }
        }
        Ok(Reload::TooMuchLost { .. }) | Err(_) => {}
    }
    if let Some(alarm) = file.alarm() {
        tracing::error!(alarm, "directory");
    }
}

/// `hikyaku directory accept`: takes the file as it is now.
pub fn accept(
    file: Arc<DirectoryFile>,
) -> BoxFuture<'static, Result<DirectoryAcceptReply, Status>> {
    Box::pin(async move {
        let taken = tokio::task::spawn_blocking(move || file.accept()).await;
        let reload = taken
            .map_err(|_| Status::unavailable("the node is stopping"))?
            .map_err(|error| Status::failed_precondition(error.to_string()))?;
        let lines = |findings: Vec<Finding>| findings.iter().map(ToString::to_string).collect();
        match reload {
            Reload::Replaced { entries, findings } => {
                tracing::info!(entries, "the operator has accepted the directory file");
                Ok(DirectoryAcceptReply {
                    entries: entries as u64,
                    findings: lines(findings),
                })
            }
            Reload::Refused { findings } => {
                let why: Vec<String> = lines(findings);
                Err(Status::failed_precondition(why.join("\n")))
            }
            Reload::TooMuchLost { .. } => Err(Status::internal("the loss was not accepted")),
        }
    })
}
/// What costly password hashes may take.
fn hashing() -> PoolLimits {
    PoolLimits {
        memory_mib_max: HASHING_MIB_MAX,
        ..PoolLimits::default()
    }
}
