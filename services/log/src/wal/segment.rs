//! Making segment files: whole and synced under a temporary name, then renamed; and the spare.
//!
//! The spare is a file of a segment's size that holds nothing but space, so that a log on a full disk can still be
//! opened and truncated: it is given up when a segment cannot be made otherwise, and made again when there is room.

use std::io;
use std::sync::Arc;

use super::disk::{Disk, DiskFile};
use super::frame::SegmentHeader;
use super::index::Segment;

/// How a segment being made is named until it is whole.
pub const TEMPORARY: &str = "segment.new";
/// The spare's name.
pub const SPARE: &str = "segment.spare";
/// Ending of a segment's name.
const SUFFIX: &str = ".wal";

/// The file name of a segment.
pub fn segment_name(sequence: u32) -> String {
    format!("{sequence:010}{SUFFIX}")
}

/// The number of the segment with this file name.
pub fn sequence_of(name: &str) -> Option<u32> {
    let digits = name
        .strip_suffix(SUFFIX)
        .filter(|digits| digits.len() == 10)?;
    digits
        .bytes()
        .all(|byte| byte.is_ascii_digit())
        .then(|| digits.parse().ok())?
}

/// Makes the spare when there is none and there is room.
pub fn keep_spare(disk: &dyn Disk, segment_bytes: u64) -> io::Result<()> {
    let exists = disk.list()?.iter().any(|name| name == SPARE);
    let file = if exists {
        disk.open(SPARE)?
    } else {
        disk.create(SPARE)?
    };
    // A crash may have left one without its space.
    if file.length()? >= segment_bytes {
        return Ok(());
    }
    match file.allocate(segment_bytes) {
        Err(error) if is_full(&error) => disk.remove(SPARE),
        done => done,
    }
}

/// Whether an error says that there is no space.
pub fn is_full(error: &io::Error) -> bool {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge)
}

/// The segment that is appended to.
pub struct Active {
    /// Its number.
    pub sequence: u32,
    /// Its file.
    pub file: Arc<dyn DiskFile>,
    /// Seed of its frames.
    pub seed: u32,
    /// Durable bytes; the next frame goes here.
    pub filled: u64,
}

/// Where the room for a new segment may come from when the disk is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// Nowhere.
    Free,
    /// The spare, and less room than usual.
    Spare,
}

/// Makes the segment `header` describes; `head` adds its first frames, given the seed, and may be called again.
///
/// # Errors
/// What the disk says; nothing is left behind.
pub fn prepare(
    disk: &dyn Disk,
    header: &SegmentHeader,
    segment_bytes: u64,
    room: Room,
    mut head: impl FnMut(u32, &mut Vec<u8>),
) -> io::Result<Prepared> {
    match try_prepare(disk, header, segment_bytes, &mut head) {
        Err(error) if is_full(&error) && room == Room::Spare => {}
        prepared => return prepared,
    }
    if disk.list()?.iter().any(|name| name == SPARE) {
        disk.remove(SPARE)?;
        disk.sync_names()?;
        match try_prepare(disk, header, segment_bytes, &mut head) {
            Err(error) if is_full(&error) => {}
            prepared => return prepared,
        }
    }
    try_prepare(disk, header, 0, &mut head)
}

/// A segment that is whole and synced, under its temporary name.
pub struct Prepared {
    active: Active,
    physical: u64,
}

/// Makes the segment `header` describes; `head` adds its first frames, given the seed.
///
/// # Errors
/// What the disk says; nothing is left behind.
fn try_prepare(
    disk: &dyn Disk,
    header: &SegmentHeader,
    segment_bytes: u64,
    head: &mut dyn FnMut(u32, &mut Vec<u8>),
) -> io::Result<Prepared> {
    let sequence = u32::try_from(header.sequence)
        .map_err(|_| io::Error::other("segment numbers are used up"))?;
    let (start, seed) = header.encode();
    let mut bytes = start.to_vec();
    head(seed, &mut bytes);
    let filled = bytes.len() as u64;
    let physical = segment_bytes.max(filled);
    let file = disk.create(TEMPORARY)?;
    let written = file
        .allocate(physical)
        .and_then(|()| file.write_all_at(&bytes, 0))
        .and_then(|()| file.sync());
    if let Err(error) = written {
        drop(file);
        disk.remove(TEMPORARY)?;
        return Err(error);
    }
    Ok(Prepared {
        active: Active {
            sequence,
            file,
            seed,
            filled,
        },
        physical,
    })
}

impl Prepared {
    /// Gives the segment its name, durably.
    ///
    /// # Errors
    /// What the disk says; whether it has its name is then unknown.
    pub fn install(self, disk: &dyn Disk) -> io::Result<(Active, Segment)> {
        disk.rename(TEMPORARY, &segment_name(self.active.sequence))?;
        disk.sync_names()?;
        let Active {
            ref file,
            seed,
            filled,
            ..
        } = self.active;
        let segment = Segment {
            file: file.clone(),
            seed,
            filled,
            physical: self.physical,
            holders: 0,
        };
        Ok((self.active, segment))
    }

    /// Gives the segment up.
    ///
    /// # Errors
    /// What the disk says.
    pub fn discard(self, disk: &dyn Disk) -> io::Result<()> {
        disk.remove(TEMPORARY)
    }
}
