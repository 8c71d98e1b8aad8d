//! The file behind an [`LdifDirectory`], and a copy of the last one that was good.
//!
//! The copy lies where the node keeps its data, and the node starts from it when the file itself is missing, cannot be used, or
//! has lost more than a tenth of the copy's entries: a restart takes nothing that a running node would refuse. Until the file is
//! mended, or [`DirectoryFile::accept`] takes it as it is, [`DirectoryFile::alarm`] says what is
//! wrong. Everything here but that blocks: call it from a blocking thread.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use crate::finding::{Finding, Severity};
use crate::ldif_directory::{LdifDirectory, Loss, Prepared, Reload};
use crate::password::PoolLimits;
use crate::settings::Settings;

/// See the module.
pub struct DirectoryFile {
    directory: Arc<LdifDirectory>,
    path: PathBuf,
    last_good: PathBuf,
    bytes_max: usize,
    /// One reading at a time: the copy must be of the file that answers.
    taking: Mutex<()>,
    /// Locked for a moment only, so that asking for it never waits for a reading.
    alarm: Mutex<Option<String>>,
}

/// The file, read with settings of its own and not answering yet.
pub struct PreparedFile {
    prepared: Prepared,
    input: Vec<u8>,
}

impl PreparedFile {
    /// What is wrong with single entries.
    pub fn findings(&self) -> &[Finding] {
        self.prepared.findings()
    }
}

/// Why there is nothing to start from.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The file cannot be read, and there is no copy that can be used.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The file as a whole cannot be used, and there is no copy that can.
    #[error("the file cannot be used")]
    Refused(Vec<Finding>),
}

impl DirectoryFile {
    /// Starts from the file at `path`, or from the copy at `last_good`; `recent_key` is for
    /// [`LdifDirectory::with_recent_logins`].
    ///
    /// # Errors
    /// When neither can be used.
    pub fn open(
        path: &Path,
        last_good: &Path,
        settings: Settings,
        pool: PoolLimits,
        recent_key: [u8; 32],
    ) -> Result<DirectoryFile, OpenError> {
        let load = |input: &[u8]| LdifDirectory::load(input, settings.clone(), pool);
        let bytes_max = settings.limits.file_bytes_max;
        let configured = read(path, bytes_max);
        // a copy that is not there is no trouble, and one that cannot be used is of no use
        let copy = read(last_good, bytes_max).ok();
        // most starts: nothing has changed, one file is read into memory once
        let is_same =
            matches!((&configured, &copy), (Ok(configured), Some(copy)) if configured == copy);
        let from_copy = if is_same {
            None
        } else {
            copy.as_deref().and_then(|copy| load(copy).ok())
        };
        let is_from_copy = from_copy.is_some();
        let directory = match (from_copy, &configured) {
            (Some(directory), _) => directory,
            (None, Ok(configured)) => load(configured).map_err(OpenError::Refused)?,
            (None, Err(_)) => {
                return Err(OpenError::Io(configured.err().unwrap_or_else(unreadable)));
            }
        };
        let file = DirectoryFile {
            directory: Arc::new(directory.with_recent_logins(recent_key)),
            path: path.to_owned(),
            last_good: last_good.to_owned(),
            bytes_max,
            taking: Mutex::new(()),
            alarm: Mutex::new(None),
        };
        match configured {
            _ if is_same => {}
            Ok(configured) if !is_from_copy => file.raise(file.keep(&configured)),
            configured => drop(file.take(configured, Loss::Few)),
        }
        Ok(file)
    }

    /// What answers.
    pub fn directory(&self) -> &Arc<LdifDirectory> {
        &self.directory
    }

    /// Reads the file again, because it has changed. What cannot be used changes nothing but the alarm.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn reload(&self) -> io::Result<Reload> {
        self.take(read(&self.path, self.bytes_max), Loss::Few)
    }

    /// Takes the file as it is now, however many entries it loses: the operator says so. One that cannot be used at all is refused
    /// all the same.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn accept(&self) -> io::Result<Reload> {
        self.take(read(&self.path, self.bytes_max), Loss::Accepted)
    }

    /// Reads the file with other settings; nothing changes before [`DirectoryFile::adopt`].
    ///
    /// # Errors
    /// Why it cannot be used with them.
    pub fn prepare(&self, settings: Settings) -> Result<PreparedFile, String> {
        let name = self.path.display();
        let input = read(&self.path, settings.limits.file_bytes_max)
            .map_err(|error| format!("{name}: {error}"))?;
        match self.directory.prepare(&input, settings, Loss::Few) {
            Ok(prepared) => Ok(PreparedFile { prepared, input }),
            Err(refused) => Err(why(&self.path, &refused)),
        }
    }

    /// From now on `file` answers.
    pub fn adopt(&self, file: PreparedFile) {
        let _taking = self.taking.lock().unwrap_or_else(PoisonError::into_inner);
        self.directory.adopt(file.prepared);
        self.raise(self.keep(&file.input));
    }

    /// What an operator must look at; `None` when the file itself answers and its copy is kept.
    pub fn alarm(&self) -> Option<String> {
        self.alarm
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn take(&self, input: io::Result<Vec<u8>>, loss: Loss) -> io::Result<Reload> {
        let _taking = self.taking.lock().unwrap_or_else(PoisonError::into_inner);
        let file = self.path.display();
        let input = match input {
            Ok(input) => input,
            Err(error) => {
                self.raise(Some(format!(
                    "{file}: {error}; the last good directory answers"
                )));
                return Err(error);
            }
        };
        let reload = self.directory.reload(&input, loss);
        self.raise(match &reload {
            Reload::Replaced { .. } => self.keep(&input),
            refused => Some(why(&self.path, refused)),
        });
        Ok(reload)
    }

    fn raise(&self, alarm: Option<String>) {
        *self.alarm.lock().unwrap_or_else(PoisonError::into_inner) = alarm;
    }

    /// Makes `input` the copy; answers what went wrong.
    fn keep(&self, input: &[u8]) -> Option<String> {
        let error = write_whole(&self.last_good, input).err()?;
        Some(format!(
            "{}: {error}; a restart would not have the last good directory",
            self.last_good.display()
        ))
    }
}

/// What an operator hears of a file that was not taken.
fn why(path: &Path, reload: &Reload) -> String {
    let file = path.display();
    match reload {
        Reload::Replaced { .. } => format!("{file}: read again"),
        Reload::Refused { findings } => {
            let error = findings
                .iter()
                .find(|finding| finding.severity == Severity::Error);
            let why = error
                .map(|finding| format!(" ({finding})"))
                .unwrap_or_default();
            format!("{file}: cannot be used{why}; the last good directory answers")
        }
        Reload::TooMuchLost { lost, of } => format!(
            "{file}: has lost {lost} of {of} entries (an entry with another entryUUID is another one); the last good directory answers until `hikyaku directory accept`"
        ),
    }
}

/// The content of the file at `path`, if it is a regular one of at most `bytes_max` octets. What is
/// longer is refused by its size, and what has none, a pipe or a device, is not waited for.
///
/// # Errors
/// When it is neither, or cannot be read.
pub fn read(path: &Path, bytes_max: usize) -> io::Result<Vec<u8>> {
    // before it is opened: a pipe would wait for somebody who writes
    admit(&fs::metadata(path)?, bytes_max)?;
    let file = File::open(path)?;
    // it may be another one by now
    let size = admit(&file.metadata()?, bytes_max)?;
    let mut content = Vec::with_capacity(size);
    let limit = u64::try_from(bytes_max).unwrap_or(u64::MAX);
    file.take(limit.saturating_add(1))
        .read_to_end(&mut content)?;
    if content.len() > bytes_max {
        return Err(too_long(content.len(), bytes_max));
    }
    Ok(content)
}

/// The size of a file that may be read.
fn admit(metadata: &Metadata, bytes_max: usize) -> io::Result<usize> {
    if !metadata.is_file() {
        let what = "is no regular file, so it is not read";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
    }
    let size = usize::try_from(metadata.len()).unwrap_or(usize::MAX);
    if size > bytes_max {
        return Err(too_long(size, bytes_max));
    }
    Ok(size)
}

fn too_long(size: usize, bytes_max: usize) -> io::Error {
    let what = format!("has {size} octets, and at most {bytes_max} are read");
    io::Error::new(io::ErrorKind::FileTooLarge, what)
}

fn unreadable() -> io::Error {
    io::Error::other("cannot be read")
}

/// Replaces the file at `path` by `input`, or changes nothing: after a crash it is the old one or the new one.
fn write_whole(path: &Path, input: &[u8]) -> io::Result<()> {
    let new = path.with_extension("new");
    // it holds password hashes
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&new)?;
    file.write_all(input)?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    match path.parent() {
        Some(folder) => File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}
