//! A disk in memory that knows what was synced, keeps a record of every operation, and can lose the rest at any of them.
//!
//! A write is pending until its file is synced, a name until the directory is. [`MemoryDisk::kill`] ends a process (what
//! is pending stays visible and stays pending); [`MemoryDisk::power_loss`] decides what of the pending survives.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use hikyaku_log::wal::disk::{Disk, DiskFile};

/// The unit a disk writes at once.
pub const SECTOR: usize = 512;
/// The unit the page cache loses.
const PAGE: usize = 4096;

/// One change.
#[derive(Clone, Debug)]
pub enum Op {
    Create {
        name: String,
    },
    Rename {
        from: String,
        to: String,
    },
    Remove {
        name: String,
    },
    SyncNames,
    Write {
        file: usize,
        offset: u64,
        bytes: Arc<[u8]>,
    },
    Length {
        file: usize,
        length: u64,
    },
    Sync {
        file: usize,
    },
}

/// What of the pending survives a power loss.
#[derive(Clone, Copy, Debug)]
pub enum Survives {
    Nothing,
    /// Everything but the last write, of which so many sectors.
    TornAt(usize),
    /// Each sector, length and name by chance.
    Some(u64),
    /// Everything but one page.
    AllButOnePage(u64),
}

#[derive(Clone, Default)]
struct Inode {
    visible: Vec<u8>,
    durable: Vec<u8>,
    pending: Vec<Op>,
}

#[derive(Clone, Default)]
struct State {
    inodes: Vec<Inode>,
    visible_names: BTreeMap<String, usize>,
    durable_names: BTreeMap<String, usize>,
    pending_names: Vec<(Op, usize)>,
    log: Vec<Op>,
    /// After so many more changes everything fails, as for a process that is dead.
    changes_left: Option<usize>,
    /// Bytes all files may have.
    capacity: Option<u64>,
    sync_fails: bool,
    length_fails: bool,
}

/// See the file's header.
#[derive(Clone, Default)]
pub struct MemoryDisk {
    state: Arc<Mutex<State>>,
    gate: Arc<(Mutex<Gate>, Condvar)>,
}

/// Where syncs of files can be held up.
#[derive(Default)]
struct Gate {
    is_closed: bool,
    waiting: usize,
}

fn dead() -> io::Error {
    io::Error::other("the process is dead")
}

/// A number below `bound`.
pub fn draw(random: &mut u64, bound: usize) -> usize {
    *random = random
        .wrapping_mul(6_364_136_223_846_793_005)
        .wrapping_add(1_442_695_040_888_963_407);
    (*random >> 33) as usize % bound.max(1)
}

impl MemoryDisk {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Every change so far.
    pub fn log(&self) -> Vec<Op> {
        self.state().log.clone()
    }

    /// How many changes there were.
    pub fn changes(&self) -> usize {
        self.state().log.len()
    }

    /// A disk of its own with the same content, visible and durable.
    pub fn copy(&self) -> MemoryDisk {
        MemoryDisk {
            state: Arc::new(Mutex::new(self.state().clone())),
            gate: Arc::default(),
        }
    }

    /// Does one recorded change.
    pub fn replay(&self, op: &Op) {
        self.state().change(op.clone()).unwrap();
    }

    /// Lets so many more changes happen, then none.
    pub fn dies_after(&self, changes: usize) {
        self.state().changes_left = Some(changes);
    }

    /// A process on it ends and another may begin; the page cache stays.
    pub fn kill(&self) {
        self.state().changes_left = None;
    }

    /// Bytes all files together may have.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.state().capacity = bytes;
    }

    /// Whether syncs of files fail.
    pub fn set_sync_fails(&self, fails: bool) {
        self.state().sync_fails = fails;
    }

    /// Whether changes of a file's length fail.
    pub fn set_length_fails(&self, fails: bool) {
        self.state().length_fails = fails;
    }

    /// The names and contents a process sees.
    pub fn files(&self) -> BTreeMap<String, Vec<u8>> {
        let state = self.state();
        state
            .visible_names
            .iter()
            .map(|(name, file)| (name.clone(), state.inodes[*file].visible.clone()))
            .collect()
    }

    /// Changes a byte, durably and behind everyone's back.
    pub fn damage(&self, name: &str, offset: usize) {
        let mut state = self.state();
        let file = state.visible_names[name];
        state.inodes[file].visible[offset] ^= 0x5a;
        state.inodes[file].durable[offset] ^= 0x5a;
    }

    /// Removes a file, durably and behind everyone's back.
    pub fn lose(&self, name: &str) {
        let mut state = self.state();
        state.visible_names.remove(name);
        state.durable_names.remove(name);
    }

    /// Holds syncs of files up, or lets them go.
    pub fn hold_syncs(&self, hold: bool) {
        self.gate.0.lock().unwrap().is_closed = hold;
        self.gate.1.notify_all();
    }

    /// Waits until a sync is held up.
    pub fn wait_for_held_sync(&self) {
        let gate = self.gate.0.lock().unwrap();
        let limit = Duration::from_secs(30);
        let (_gate, outcome) = self
            .gate
            .1
            .wait_timeout_while(gate, limit, |gate| gate.waiting == 0)
            .unwrap();
        assert!(!outcome.timed_out(), "nothing is being synced");
    }

    /// Takes the power away.
    pub fn power_loss(&self, survives: Survives) {
        self.state().power_loss(survives);
    }
}

impl State {
    /// Counts a change and does it.
    fn change(&mut self, op: Op) -> io::Result<()> {
        if let Some(left) = &mut self.changes_left {
            *left = left.checked_sub(1).ok_or_else(dead)?;
        }
        match &op {
            Op::Create { name } => {
                let file = self.inodes.len();
                self.inodes.push(Inode::default());
                self.visible_names.insert(name.clone(), file);
                self.pending_names.push((op.clone(), file));
            }
            Op::Rename { from, to } => {
                let file = self
                    .visible_names
                    .remove(from)
                    .ok_or(io::ErrorKind::NotFound)?;
                self.visible_names.insert(to.clone(), file);
                self.pending_names.push((op.clone(), file));
            }
            Op::Remove { name } => {
                let file = self
                    .visible_names
                    .remove(name)
                    .ok_or(io::ErrorKind::NotFound)?;
                self.pending_names.push((op.clone(), file));
            }
            Op::SyncNames => {
                self.durable_names = self.visible_names.clone();
                self.pending_names.clear();
            }
            Op::Write {
                file,
                offset,
                bytes,
            } => {
                write(&mut self.inodes[*file].visible, *offset as usize, bytes);
                self.inodes[*file].pending.push(op.clone());
            }
            Op::Length { file, length } => {
                self.inodes[*file].visible.resize(*length as usize, 0);
                self.inodes[*file].pending.push(op.clone());
            }
            Op::Sync { file } => {
                let inode = &mut self.inodes[*file];
                inode.durable = inode.visible.clone();
                inode.pending.clear();
            }
        }
        self.log.push(op);
        Ok(())
    }

    /// Says that there is no space when a file were to become so long.
    fn reserve(&self, file: usize, length: u64) -> io::Result<()> {
        let others: usize = self
            .visible_names
            .values()
            .filter(|other| **other != file)
            .map(|other| self.inodes[*other].visible.len())
            .sum();
        match self.capacity {
            Some(capacity) if others as u64 + length > capacity => {
                Err(io::ErrorKind::StorageFull.into())
            }
            _ => Ok(()),
        }
    }

    fn power_loss(&mut self, survives: Survives) {
        self.changes_left = None;
        let last_write = self
            .log
            .iter()
            .rposition(|op| matches!(op, Op::Write { .. }));
        let last_write = last_write.filter(|at| *at + 1 == self.log.len());
        let mut random = match survives {
            Survives::Some(seed) | Survives::AllButOnePage(seed) => seed,
            Survives::Nothing | Survives::TornAt(_) => 0,
        };
        for inode in &mut self.inodes {
            let pending = std::mem::take(&mut inode.pending);
            match survives {
                Survives::Nothing => inode.visible = inode.durable.clone(),
                Survives::TornAt(sectors) => {
                    if last_write.is_some() && pending.len() == 1 {
                        inode.visible = inode.durable.clone();
                        for op in &pending {
                            keep(&mut inode.visible, op, |sector| sector < sectors);
                        }
                    }
                }
                Survives::Some(_) => {
                    inode.visible = inode.durable.clone();
                    for op in &pending {
                        keep(&mut inode.visible, op, |_| draw(&mut random, 2) == 0);
                    }
                }
                Survives::AllButOnePage(_) if pending.is_empty() => {}
                Survives::AllButOnePage(_) => {
                    let pages = inode.visible.len().div_ceil(PAGE);
                    let page = draw(&mut random, pages) * PAGE;
                    let before = inode.durable.clone();
                    for (at, byte) in inode.visible.iter_mut().enumerate().skip(page).take(PAGE) {
                        *byte = before.get(at).copied().unwrap_or(0);
                    }
                }
            }
            inode.durable = inode.visible.clone();
        }
        match survives {
            Survives::Nothing => self.visible_names = self.durable_names.clone(),
            Survives::TornAt(_) | Survives::AllButOnePage(_) => {}
            Survives::Some(_) => {
                // Directories are journalled: a prefix of the changes survives.
                let count = draw(&mut random, self.pending_names.len() + 1);
                self.visible_names = self.durable_names.clone();
                for (op, file) in &self.pending_names[..count] {
                    match op {
                        Op::Create { name } => drop(self.visible_names.insert(name.clone(), *file)),
                        Op::Rename { from, to } => {
                            self.visible_names.remove(from);
                            self.visible_names.insert(to.clone(), *file);
                        }
                        Op::Remove { name } => drop(self.visible_names.remove(name)),
                        _ => {}
                    }
                }
            }
        }
        self.durable_names = self.visible_names.clone();
        self.pending_names.clear();
    }
}

fn write(content: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
    if content.len() < offset + bytes.len() {
        content.resize(offset + bytes.len(), 0);
    }
    content[offset..offset + bytes.len()].copy_from_slice(bytes);
}

/// Does the sectors of a pending change that survive.
fn keep(content: &mut Vec<u8>, op: &Op, mut survives: impl FnMut(usize) -> bool) {
    match op {
        Op::Length { length, .. } if survives(0) => content.resize(*length as usize, 0),
        Op::Write { offset, bytes, .. } => {
            let mut at = 0;
            let mut sector = 0;
            while at < bytes.len() {
                let offset = *offset as usize + at;
                let length = (SECTOR - offset % SECTOR).min(bytes.len() - at);
                if survives(sector) {
                    write(content, offset, &bytes[at..at + length]);
                }
                at += length;
                sector += 1;
            }
        }
        _ => {}
    }
}

impl Disk for MemoryDisk {
    fn place(&self) -> String {
        "memory".to_owned()
    }

    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.state().visible_names.keys().cloned().collect())
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let file = *self
            .state()
            .visible_names
            .get(name)
            .ok_or(io::ErrorKind::NotFound)?;
        Ok(Arc::new(MemoryFile {
            disk: self.clone(),
            file,
        }))
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        self.state().change(Op::Create {
            name: name.to_owned(),
        })?;
        self.open(name)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.state().change(Op::Rename {
            from: from.to_owned(),
            to: to.to_owned(),
        })
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.state().change(Op::Remove {
            name: name.to_owned(),
        })
    }

    fn sync_names(&self) -> io::Result<()> {
        self.state().change(Op::SyncNames)
    }
}

struct MemoryFile {
    disk: MemoryDisk,
    file: usize,
}

impl DiskFile for MemoryFile {
    fn length(&self) -> io::Result<u64> {
        Ok(self.disk.state().inodes[self.file].visible.len() as u64)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let state = self.disk.state();
        let content = state.inodes[self.file]
            .visible
            .get(offset as usize..)
            .unwrap_or_default();
        let length = content.len().min(buffer.len());
        buffer[..length].copy_from_slice(&content[..length]);
        Ok(length)
    }

    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut state = self.disk.state();
        let length = state.inodes[self.file].visible.len() as u64;
        let full = state.reserve(self.file, length.max(offset + bytes.len() as u64));
        // A full disk takes a part.
        let taken = if full.is_ok() {
            bytes.len()
        } else {
            bytes.len() / 2
        };
        state.change(Op::Write {
            file: self.file,
            offset,
            bytes: bytes[..taken].into(),
        })?;
        full
    }

    fn allocate(&self, length: u64) -> io::Result<()> {
        let mut state = self.disk.state();
        state.reserve(self.file, length)?;
        state.change(Op::Length {
            file: self.file,
            length,
        })
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        let mut state = self.disk.state();
        if state.length_fails {
            return Err(io::Error::other("the length cannot be changed"));
        }
        state.change(Op::Length {
            file: self.file,
            length,
        })
    }

    fn sync(&self) -> io::Result<()> {
        let (gate, changed) = &*self.disk.gate;
        let mut held = gate.lock().unwrap();
        held.waiting += 1;
        changed.notify_all();
        held = changed.wait_while(held, |gate| gate.is_closed).unwrap();
        held.waiting -= 1;
        drop(held);
        let mut state = self.disk.state();
        if state.sync_fails {
            return Err(io::Error::other("the disk has failed"));
        }
        state.change(Op::Sync { file: self.file })
    }
}
