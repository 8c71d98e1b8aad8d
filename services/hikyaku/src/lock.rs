//! One process uses a data directory at a time.

use std::fs::File;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use anyhow::{Context, Result, bail};
use rustix::fs::{FlockOperation, flock};

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
