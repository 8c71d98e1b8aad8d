//! A data directory is one process's at a time, and nobody else's to look into.

use std::fs::File;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;

use anyhow::{Context, Result, bail};
use rustix::fs::{FlockOperation, Mode, flock};
use rustix::process::umask;

/// From now on whatever this process makes is for its user alone, whatever umask it was started with: mail and password hashes
/// are in it, and the libraries under it make files too.
pub fn nothing_for_others() {
    umask(Mode::RWXG | Mode::RWXO);
}

/// The lock on a data directory, held while it lives.
#[derive(Debug)]
pub struct DirectoryLock {
    _file: File,
}

impl DirectoryLock {
    /// Locks `directory`, creating it.
    ///
    /// # Errors
    /// When another process holds it, or the directory cannot be used.
    pub fn take(directory: &Path) -> Result<DirectoryLock> {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .with_context(|| format!("creating {}", directory.display()))?;
        close_to_others(directory)
            .with_context(|| format!("looking at {}", directory.display()))?;
        sync_parent(directory)
            .with_context(|| format!("making the name {} durable", directory.display()))?;
        let path = directory.join("LOCK");
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .with_context(|| format!("opening {}", path.display()))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(DirectoryLock { _file: file }),
            Err(rustix::io::Errno::WOULDBLOCK) => {
                bail!(
                    "{}: another hikyaku process uses this directory",
                    directory.display()
                )
            }
            Err(error) => Err(error).with_context(|| format!("locking {}", path.display())),
        }
    }
}

/// One that was there before may have been made with any mode, by a supervisor or a mount.
fn close_to_others(directory: &Path) -> std::io::Result<()> {
    let mut permissions = std::fs::metadata(directory)?.permissions();
    if permissions.mode() & 0o077 == 0 {
        return Ok(());
    }
    permissions.set_mode(0o700);
    // not ours to change, as some mounts are: what we make in it is closed all the same
    if let Err(error) = std::fs::set_permissions(directory, permissions) {
        tracing::warn!(directory = %directory.display(), %error, "others may see the names in the data directory");
    }
    Ok(())
}

/// A power cut must not take the directory with all that was synced in it. A parent that this user may not read is one
/// that the directory was not made in just now.
fn sync_parent(directory: &Path) -> std::io::Result<()> {
    let parent = match directory.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => return Ok(()),
    };
    match File::open(parent) {
        Ok(parent) => parent.sync_all(),
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => Ok(()),
        Err(error) => Err(error),
    }
}
