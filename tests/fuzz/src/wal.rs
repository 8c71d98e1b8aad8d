//! The segments of the write-ahead log: of any octets no panic and no big allocation, of an intact log every record, of one that a
//! crash has torn a prefix, of one that was damaged after it had been durable a refusal and never less mail.
//!
//! The frames are written here by `services/log/src/wal/frame.rs`'s description, not by its code.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hikyaku_log::wal::disk::{Disk, DiskFile};
use hikyaku_log::wal::{OpenError, Wal, WalOptions};
use hikyaku_log::{Bounds, Class, Log, LogRecord, ShardId};

use crate::input::Script;
use crate::memory::bounded;

const HEADER_BYTES: usize = 64;
const INCARNATION: u64 = 9;
const SHARDS: u16 = 3;

/// The first octet says whether the rest is the octets of a segment, or how one is written and spoilt.
pub fn run(data: &[u8]) {
    let [which, rest @ ..] = data else { return };
    match which % 3 {
        0 => raw(rest.to_vec()),
        1 => {
            let mut segment = header().0;
            segment.extend_from_slice(rest);
            raw(segment);
        }
        _ => written(rest),
    }
}

/// Any octets: opened or refused, and what was opened is opened again with the same records.
fn raw(segment: Vec<u8>) {
    let disk = MemoryDisk::with("0000000001.wal", segment);
    if let Ok(records) = open(&disk) {
        let again = open(&disk);
        assert_eq!(again.ok(), Some(records));
    }
}

/// Records by shard, with the shard's bounds.
type Content = Vec<(Bounds, Vec<LogRecord>)>;

fn open(disk: &MemoryDisk) -> Result<Content, OpenError> {
    let options = WalOptions {
        segment_bytes: 4096,
        wal_bytes_max: 64 << 10,
        record_bytes_max: 256,
        pending_bytes_max: 4096,
        recent_bytes_max: 0,
        shards_max: 4,
        ..WalOptions::new(INCARNATION)
    };
    // the segment in memory, as rewritten, and on the disk, which is in memory here: old, new, spare
    let wal = bounded(disk.bytes() + 8192, 10, || {
        Wal::open_on(Arc::new(disk.clone()), options)
    })?;
    let content = RUNTIME.with(|runtime| {
        let shards = (0..SHARDS).map(|index| ShardId::new(Class::Incoming, index));
        let content = shards.map(|shard| {
            let bounds = wal.bounds(shard);
            runtime.block_on(async {
                let mut records = Vec::new();
                if bounds.start < bounds.end {
                    let mut tail = wal
                        .tail(shard, bounds.start)
                        .unwrap_or_else(|e| panic!("{e}"));
                    while (records.len() as u64) < bounds.end.0 - bounds.start.0 {
                        records.extend(tail.next().await.unwrap_or_else(|e| panic!("{e}")));
                    }
                }
                (bounds, records)
            })
        });
        content.collect()
    });
    Ok(content)
}

thread_local! {
    static RUNTIME: tokio::runtime::Runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap_or_else(|error| panic!("{error}"));
}

// ---- a log written by the description ----------------------------------------------------------------------------------

/// The header of segment 1 and the seed of its frames.
fn header() -> (Vec<u8>, u32) {
    let mut bytes = vec![0; HEADER_BYTES];
    bytes[..8].copy_from_slice(b"hkykwal1");
    bytes[8..12].copy_from_slice(&1_u32.to_le_bytes());
    bytes[16..24].copy_from_slice(&INCARNATION.to_le_bytes());
    bytes[24..32].copy_from_slice(&1_u64.to_le_bytes());
    bytes[32..40].copy_from_slice(&1_u64.to_le_bytes());
    let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes[..12]), &bytes[16..]);
    bytes[12..16].copy_from_slice(&crc.to_le_bytes());
    (bytes, crc)
}

/// A frame that was written: where it lies, and what the log holds once it is read.
struct Written {
    from: usize,
    to: usize,
    /// Before this offset everything is durable, it says.
    synced: usize,
    /// The last octet that its checksums cover.
    covered: usize,
    /// Start, end and payloads of each shard after it.
    after: Vec<(u64, u64, Vec<Vec<u8>>)>,
}

fn written(data: &[u8]) {
    let (mut bytes, seed) = header();
    let mut script = Script::new(data);
    let (spoils, at) = (script.octet(), script.number() as usize);
    let mut shards = vec![(1_u64, 1_u64, Vec::<Vec<u8>>::new()); usize::from(SHARDS)];
    let (mut frames, mut synced) = (Vec::<Written>::new(), 0);
    while !script.is_over() && frames.len() < 64 {
        let what = script.octet();
        if what & 1 != 0 {
            synced = bytes.len();
        }
        let number = usize::from(what >> 1 & 3) % usize::from(SHARDS);
        let (start, end, payloads) = &mut shards[number];
        let (kind, position, payload) = if what & 8 == 0 {
            let payload = script.some().to_vec();
            payloads.push(payload.clone());
            *end += 1;
            (1_u8, *end - 1, payload)
        } else {
            let cut = (script.octet() as u64 % (*end - *start + 1)) as usize;
            payloads.drain(..cut);
            *start += cut as u64;
            (2, *end, start.to_le_bytes().to_vec())
        };
        let from = bytes.len();
        let mut head = [0; 32];
        head[4] = kind;
        head[8..12].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        head[12..16].copy_from_slice(&(number as u32).to_le_bytes());
        head[16..24].copy_from_slice(&position.to_le_bytes());
        head[24..28].copy_from_slice(&crc32c::crc32c(&payload).to_le_bytes());
        head[28..].copy_from_slice(&(synced as u32).to_le_bytes());
        let crc = crc32c::crc32c_append(seed, &head[4..]);
        head[..4].copy_from_slice(&crc.to_le_bytes());
        bytes.extend_from_slice(&head);
        bytes.extend_from_slice(&payload);
        let covered = bytes.len();
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        let (to, after) = (bytes.len(), shards.clone());
        frames.push(Written {
            from,
            to,
            synced,
            covered,
            after,
        });
    }
    let length = bytes.len() - HEADER_BYTES;
    let at = HEADER_BYTES + at % length.max(1);
    // frames before this one are whole, and whether one behind it proves that it had been durable
    let (whole, durable) = match spoils % 4 {
        // torn off
        0 if length > 0 => {
            bytes.truncate(at);
            (frames.iter().filter(|frame| frame.to <= at).count(), false)
        }
        // zeros from there on, as space that was made and not written
        1 if length > 0 => {
            let is_spoilt = |frame: &Written| {
                frame.covered > at && bytes[at..frame.covered].iter().any(|&octet| octet != 0)
            };
            let whole = frames.iter().position(is_spoilt).unwrap_or(frames.len());
            bytes[at..].fill(0);
            (whole, false)
        }
        // one octet is another
        2 if length > 0 => {
            bytes[at] ^= spoils | 1;
            let spoilt = frames
                .iter()
                .position(|frame| (frame.from..frame.covered).contains(&at));
            let whole = spoilt.unwrap_or(frames.len());
            let vouched = frames.iter().skip(whole + 1).any(|frame| {
                frames
                    .get(whole)
                    .is_some_and(|spoilt| frame.synced > spoilt.from)
            });
            (whole, vouched)
        }
        _ => (frames.len(), false),
    };
    let disk = MemoryDisk::with("0000000001.wal", bytes);
    let found = open(&disk);
    if durable {
        assert!(
            matches!(found, Err(OpenError::Corrupt { .. })),
            "damage was not noticed"
        );
        return;
    }
    let expected = match whole.checked_sub(1) {
        Some(last) => frames[last].after.clone(),
        None => vec![(1, 1, Vec::new()); usize::from(SHARDS)],
    };
    let found = found.unwrap_or_else(|error| panic!("{error}"));
    let found: Vec<_> = found.into_iter().map(plain).collect();
    assert_eq!(found, expected);
}

fn plain((bounds, records): (Bounds, Vec<LogRecord>)) -> (u64, u64, Vec<Vec<u8>>) {
    for (record, position) in records.iter().zip(bounds.start.0..) {
        assert_eq!(record.stamp.position.0, position);
        assert_eq!(record.stamp.crc, crc32c::crc32c(&record.payload));
    }
    let payloads = records
        .into_iter()
        .map(|record| record.payload.to_vec())
        .collect();
    (bounds.start.0, bounds.end.0, payloads)
}

// ---- a disk in memory --------------------------------------------------------------------------------------------------

#[derive(Clone, Default)]
struct MemoryDisk(Arc<Mutex<BTreeMap<String, MemoryFile>>>);

#[derive(Clone, Default)]
struct MemoryFile(Arc<Mutex<Vec<u8>>>);

impl MemoryDisk {
    fn with(name: &str, bytes: Vec<u8>) -> MemoryDisk {
        let disk = MemoryDisk::default();
        disk.files()
            .insert(name.to_owned(), MemoryFile(Arc::new(Mutex::new(bytes))));
        disk
    }

    fn files(&self) -> MutexGuard<'_, BTreeMap<String, MemoryFile>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn bytes(&self) -> usize {
        self.files().values().map(|file| file.lock().len()).sum()
    }
}

impl MemoryFile {
    fn lock(&self) -> MutexGuard<'_, Vec<u8>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Disk for MemoryDisk {
    fn place(&self) -> String {
        "memory".to_owned()
    }

    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.files().keys().cloned().collect())
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        match self.files().get(name) {
            Some(file) => Ok(Arc::new(file.clone())),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let file = MemoryFile::default();
        self.files().insert(name.to_owned(), file.clone());
        Ok(Arc::new(file))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut files = self.files();
        let file = files.remove(from).ok_or(io::ErrorKind::NotFound)?;
        files.insert(to.to_owned(), file);
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.files().remove(name).ok_or(io::ErrorKind::NotFound)?;
        Ok(())
    }

    fn sync_names(&self) -> io::Result<()> {
        Ok(())
    }
}

impl DiskFile for MemoryFile {
    fn length(&self) -> io::Result<u64> {
        Ok(self.lock().len() as u64)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let bytes = self.lock();
        let from = bytes.get(offset as usize..).unwrap_or_default();
        let count = from.len().min(buffer.len());
        buffer[..count].copy_from_slice(&from[..count]);
        Ok(count)
    }

    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut file = self.lock();
        let end = offset as usize + bytes.len();
        if file.len() < end {
            file.resize(end, 0);
        }
        file[offset as usize..end].copy_from_slice(bytes);
        Ok(())
    }

    fn allocate(&self, length: u64) -> io::Result<()> {
        self.set_length(length)
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        self.lock().resize(length as usize, 0);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}
