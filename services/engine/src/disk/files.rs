//! The directory of a store: its lock, leftovers of a crash, checkpoint and replacement.

use std::collections::BTreeSet;
use std::fs::{self, File, TryLockError};
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The library's folder of tables.
pub(super) const TABLES: &str = "tables";
/// The library's folder of blob files.
pub(super) const BLOBS: &str = "blobs";
/// The library's file that names the version: `v` and the first eight bytes, little endian.
const CURRENT: &str = "current";

const LOCK_RETRIES_MAX: u32 = 500;
/// An engine dropped just now may still finish a compaction; after that there is a line in the log.
const LOCK_TRIES_SILENT: u32 = 50;
const LOCK_RETRY: Duration = Duration::from_millis(10);

/// Makes the names in a directory durable.
pub(super) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Creates `dir` and what it lies in, where missing, durably.
pub(super) fn create_dir(dir: &Path) -> io::Result<()> {
    let parent = parent(dir)?;
    if dir.try_exists()? {
        // whoever made it may have been killed before this
        return sync_dir(&parent);
    }
    create_dir(&parent)?;
    match fs::create_dir(dir) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(error),
        _ => sync_dir(&parent),
    }
}

/// The directory's lock, held while the file is open. The library has none of its own.
pub(super) fn lock_dir(dir: &Path) -> io::Result<File> {
    for tries in 0..LOCK_RETRIES_MAX {
        let file = File::open(dir)?;
        match file.try_lock() {
            // a replacement may have put another directory here since the name was looked up
            Ok(()) if file.metadata()?.ino() == fs::metadata(dir)?.ino() => return Ok(file),
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                if tries == LOCK_TRIES_SILENT {
                    tracing::warn!(dir = %dir.display(), "waiting for who holds the store");
                }
                std::thread::sleep(LOCK_RETRY);
            }
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
    Err(io::Error::new(
        ErrorKind::ResourceBusy,
        format!("{} is in use", dir.display()),
    ))
}

/// Removes what a crash can leave beside the library's own files, which it cleans up itself.
pub(super) fn remove_leftovers(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_name().as_encoded_bytes().starts_with(b".tmp") {
            fs::remove_file(entry.path())?;
        }
    }
    remove_tree(&fresh_name(dir)?)
}

/// The version that would be opened now.
pub(super) fn current_version(dir: &Path) -> io::Result<u64> {
    let content = fs::read(dir.join(CURRENT))?;
    let Some(id) = content.first_chunk::<8>() else {
        return Err(io::Error::new(
            ErrorKind::InvalidData,
            "short version pointer",
        ));
    };
    Ok(u64::from_le_bytes(*id))
}

/// Hard-links the current version into the empty directory `target`, durably. The caller keeps versions from switching.
pub(super) fn link_current(dir: &Path, target: &Path) -> io::Result<()> {
    for folder in [TABLES, BLOBS] {
        let to = target.join(folder);
        fs::create_dir(&to)?;
        for entry in fs::read_dir(dir.join(folder))? {
            let entry = entry?;
            match fs::hard_link(entry.path(), to.join(entry.file_name())) {
                Ok(()) => {}
                // a file of an older version, deleted meanwhile
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        sync_dir(&to)?;
    }
    let version = format!("v{}", current_version(dir)?);
    fs::hard_link(dir.join(&version), target.join(&version))?;
    sync_dir(target)?;
    // last, so that a half-made copy is never taken for a store
    fs::write(target.join(CURRENT), fs::read(dir.join(CURRENT))?)?;
    File::open(target.join(CURRENT))?.sync_all()?;
    sync_dir(target)?;
    sync_dir(&parent(target)?)
}

/// Where a replacement of `dir` is built.
pub(super) fn fresh_name(dir: &Path) -> io::Result<PathBuf> {
    let Some(name) = dir.file_name() else {
        return Err(io::Error::new(
            ErrorKind::InvalidInput,
            "directory without a name",
        ));
    };
    let mut name = name.to_owned();
    name.push(".new");
    Ok(dir.with_file_name(name))
}

/// Puts the finished directory `fresh` in the place of `dir` at once and removes the old one.
pub(super) fn exchange(fresh: &Path, dir: &Path) -> io::Result<()> {
    for synced in [
        &fresh.join(TABLES),
        &fresh.join(BLOBS),
        fresh,
        &parent(dir)?,
    ] {
        sync_dir(synced)?;
    }
    let cwd = rustix::fs::CWD;
    rustix::fs::renameat_with(cwd, fresh, cwd, dir, rustix::fs::RenameFlags::EXCHANGE)?;
    sync_dir(&parent(dir)?)?;
    remove_tree(fresh)
}

/// Removes a directory with all it holds, if it is there.
pub(super) fn remove_tree(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn parent(dir: &Path) -> io::Result<PathBuf> {
    match dir.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Ok(PathBuf::from(".")),
        Some(parent) => Ok(parent.to_owned()),
        None => Err(io::Error::new(
            ErrorKind::InvalidInput,
            "directory without a parent",
        )),
    }
}

/// The numbers of all files that belonged to a version since the store was opened and may still be on the disk.
///
/// A flush or compaction that fails for want of space leaves files behind, which would keep the disk full.
#[derive(Default)]
pub(super) struct Known {
    tables: BTreeSet<u64>,
    blobs: BTreeSet<u64>,
    trimmed_at: usize,
}

impl Known {
    /// These files are, or are about to be, part of a version.
    pub(super) fn add(
        &mut self,
        tables: impl Iterator<Item = u64>,
        blobs: impl Iterator<Item = u64>,
    ) {
        self.tables.extend(tables);
        self.blobs.extend(blobs);
    }

    /// These files are not part of a version after all.
    pub(super) fn remove(
        &mut self,
        tables: impl Iterator<Item = u64>,
        blobs: impl Iterator<Item = u64>,
    ) {
        for id in tables {
            self.tables.remove(&id);
        }
        for id in blobs {
            self.blobs.remove(&id);
        }
    }

    /// Forgets files that are gone, now and then.
    pub(super) fn trim(&mut self, dir: &Path) {
        const SLACK: usize = 1024;
        if self.tables.len() + self.blobs.len() < self.trimmed_at + SLACK {
            return;
        }
        self.tables
            .retain(|id| dir.join(TABLES).join(id.to_string()).exists());
        self.blobs
            .retain(|id| dir.join(BLOBS).join(id.to_string()).exists());
        self.trimmed_at = self.tables.len() + self.blobs.len();
    }

    /// Deletes files that no version ever held. Nobody may be writing one.
    pub(super) fn sweep(&self, dir: &Path) -> io::Result<()> {
        for (folder, known) in [(TABLES, &self.tables), (BLOBS, &self.blobs)] {
            for entry in fs::read_dir(dir.join(folder))? {
                let entry = entry?;
                let id = entry
                    .file_name()
                    .to_str()
                    .and_then(|name| name.parse::<u64>().ok());
                if id.is_some_and(|id| !known.contains(&id)) {
                    fs::remove_file(entry.path())?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sweep_leaves_what_a_version_holds() {
        let dir = tempfile::tempdir().unwrap();
        for folder in [TABLES, BLOBS] {
            fs::create_dir(dir.path().join(folder)).unwrap();
            for id in 0..4 {
                fs::write(dir.path().join(folder).join(id.to_string()), "x").unwrap();
            }
        }
        let mut known = Known::default();
        known.add([0, 1, 2].into_iter(), [3].into_iter());
        known.remove([2].into_iter(), [].into_iter());
        known.sweep(dir.path()).unwrap();
        let left = |folder| {
            let mut names: Vec<_> = fs::read_dir(dir.path().join(folder))
                .unwrap()
                .map(|e| e.unwrap().file_name())
                .collect();
            names.sort();
            names
        };
        assert_eq!(left(TABLES), ["0", "1"]);
        assert_eq!(left(BLOBS), ["3"]);
    }

    #[test]
    fn the_lock_follows_the_name() {
        let dir = tempfile::tempdir().unwrap();
        let (here, fresh) = (dir.path().join("s"), dir.path().join("s.new"));
        for made in [&here, &fresh, &fresh.join(TABLES), &fresh.join(BLOBS)] {
            fs::create_dir(made).unwrap();
        }
        let old = lock_dir(&here).unwrap();
        exchange(&fresh, &here).unwrap();
        let new = lock_dir(&here).unwrap();
        assert_ne!(old.metadata().unwrap().ino(), new.metadata().unwrap().ino());
        assert!(!fresh.exists());
        assert!(matches!(
            File::open(&here).unwrap().try_lock(),
            Err(TryLockError::WouldBlock)
        ));
    }
}
