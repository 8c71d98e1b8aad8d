//! Rebuilds a directory as a power cut could have left it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use crate::record::{Event, Ino, Op, Record};

/// Chance: a number below the one given, which is not 0.
pub type Below<'a> = &'a mut dyn FnMut(usize) -> usize;

/// What a disk loses at once.
const PAGE: usize = 4096;

/// What a disk remembers of what was not synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Model {
    /// Nothing: only synced bytes, and names in synced directories (POSIX to the letter).
    Strict,
    /// Any sync commits all earlier names, later names in order up to some moment; only synced bytes (a journalled
    /// file system with delayed allocation).
    Ordered,
    /// Each unsynced name and page by chance.
    Random,
    /// Everything but one page.
    LosePage,
    /// Everything but the names in directories that were not synced.
    LoseNames,
    /// Everything: only the process was killed.
    Kill,
}

impl Model {
    /// All of them.
    pub const ALL: [Model; 6] = [
        Model::Strict,
        Model::Ordered,
        Model::Random,
        Model::LosePage,
        Model::LoseNames,
        Model::Kill,
    ];
}

/// Writes the image of a cut at line `cut` into the empty directory `target`; says how much was lost: names and pages.
///
/// # Panics
/// When it cannot be written.
pub fn write(record: &Record, cut: usize, model: Model, below: Below<'_>, target: &Path) -> usize {
    let happened = || record.events.iter().take_while(|event| event.end <= cut);
    let synced = synced(happened());
    let committed = committed(&synced, cut, model, below);
    let victim = (model == Model::LosePage)
        .then(|| victim(happened(), &synced, below))
        .flatten();
    let mut image = Image::default();
    let mut lost = 0;
    for (at, event) in happened().enumerate() {
        let name_kept = |dir: Ino, below: Below<'_>| {
            is_durable(event, dir, &synced)
                || match model {
                    Model::Strict | Model::LoseNames => false,
                    Model::LosePage | Model::Kill => true,
                    Model::Ordered => event.end < committed,
                    Model::Random => below(2) == 0,
                }
        };
        let bytes_kept = |ino: Ino| {
            is_durable(event, ino, &synced)
                || matches!(model, Model::LosePage | Model::LoseNames | Model::Kill)
        };
        if let Op::Mkdir { ino, .. } = &event.op {
            image.directories.insert(*ino);
        }
        let kept = match &event.op {
            Op::Sync { .. } | Op::Acknowledged(_) | Op::Mark(_) => continue,
            Op::Create { dir, .. }
            | Op::Mkdir { dir, .. }
            | Op::Unlink { dir, .. }
            | Op::Exchange { dir, .. } => name_kept(*dir, below),
            Op::Rename {
                from_dir,
                from,
                to_dir,
                to,
                ino,
            } => {
                let moved = (name_kept(*to_dir, below), name_kept(*from_dir, below));
                // within one directory a rename is one entry's change
                let (appears, vanishes) = if from_dir == to_dir {
                    (moved.0, moved.0)
                } else {
                    moved
                };
                image.rename((*from_dir, from, vanishes), (*to_dir, to, appears), *ino);
                lost += usize::from(!appears) + usize::from(!vanishes);
                continue;
            }
            Op::Write { ino, offset, data } => {
                let whole = bytes_kept(*ino);
                for (page, begin, bytes) in pages(*offset, data) {
                    let keep = if whole {
                        victim != Some((at, page))
                    } else {
                        model == Model::Random && below(2) == 0
                    };
                    if keep {
                        image.put(*ino, begin, bytes);
                    } else {
                        lost += 1;
                        if whole {
                            image.extend(*ino, begin + bytes.len());
                        }
                    }
                }
                continue;
            }
            Op::Truncate { ino, .. } | Op::Allocate { ino, .. } => {
                bytes_kept(*ino) || (model == Model::Random && below(2) == 0)
            }
        };
        if kept {
            image.apply(&event.op);
        } else {
            lost += 1;
        }
    }
    image.write_dir(0, target);
    lost
}

fn is_durable(event: &Event, ino: Ino, synced: &BTreeMap<Ino, usize>) -> bool {
    synced.get(&ino).is_some_and(|began| event.end < *began)
}

/// When the last finished sync of each file and directory began: all that ended before is durable.
fn synced<'a>(events: impl Iterator<Item = &'a Event>) -> BTreeMap<Ino, usize> {
    let mut synced = BTreeMap::new();
    for event in events {
        if let Op::Sync { ino } = event.op {
            let began = synced.entry(ino).or_insert(event.start);
            *began = event.start.max(*began);
        }
    }
    synced
}

/// Up to where a journal has committed names.
fn committed(synced: &BTreeMap<Ino, usize>, cut: usize, model: Model, below: Below<'_>) -> usize {
    if model != Model::Ordered {
        return 0;
    }
    let barrier = synced.values().copied().max().unwrap_or(0);
    // half the time the journal went on a little by itself
    let further = if below(2) == 0 {
        0
    } else {
        below(cut.saturating_sub(barrier) + 1)
    };
    barrier + further
}

/// One unsynced page of all there are, by event and page.
fn victim<'a>(
    events: impl Iterator<Item = &'a Event>,
    synced: &BTreeMap<Ino, usize>,
    below: Below<'_>,
) -> Option<(usize, usize)> {
    let mut candidates = Vec::new();
    for (at, event) in events.enumerate() {
        if let Op::Write { ino, offset, data } = &event.op
            && !is_durable(event, *ino, synced)
        {
            candidates.extend(pages(*offset, data).map(|(page, _, _)| (at, page)));
        }
    }
    (!candidates.is_empty()).then(|| candidates[below(candidates.len())])
}

/// Page number, offset and bytes of each page that a write touches.
fn pages(offset: usize, data: &[u8]) -> impl Iterator<Item = (usize, usize, &[u8])> {
    let mut begin = offset;
    let end = offset + data.len();
    std::iter::from_fn(move || {
        if begin >= end {
            return None;
        }
        let page = begin / PAGE;
        let stop = end.min((page + 1) * PAGE);
        let piece = (page, begin, &data[begin - offset..stop - offset]);
        begin = stop;
        Some(piece)
    })
}

#[derive(Default)]
struct Image {
    names: BTreeMap<Ino, BTreeMap<String, Entry>>,
    contents: BTreeMap<Ino, Vec<u8>>,
    /// Directories by identity, so that a rename knows what it moves.
    directories: BTreeSet<Ino>,
}

#[derive(Clone, Copy)]
enum Entry {
    Dir(Ino),
    File(Ino),
}

impl Image {
    fn entry(&self, ino: Ino) -> Entry {
        if self.directories.contains(&ino) {
            Entry::Dir(ino)
        } else {
            Entry::File(ino)
        }
    }

    fn rename(&mut self, from: (Ino, &String, bool), to: (Ino, &String, bool), ino: Ino) {
        let entry = self.entry(ino);
        if from.2 {
            self.names.entry(from.0).or_default().remove(from.1);
        }
        if to.2 {
            self.names
                .entry(to.0)
                .or_default()
                .insert(to.1.clone(), entry);
        }
    }

    fn put(&mut self, ino: Ino, offset: usize, data: &[u8]) {
        self.extend(ino, offset + data.len());
        if let Some(content) = self.contents.get_mut(&ino) {
            content[offset..offset + data.len()].copy_from_slice(data);
        }
    }

    fn extend(&mut self, ino: Ino, len: usize) {
        let content = self.contents.entry(ino).or_default();
        if content.len() < len {
            content.resize(len, 0);
        }
    }

    fn apply(&mut self, op: &Op) {
        match op {
            Op::Create { dir, name, ino } => {
                self.names
                    .entry(*dir)
                    .or_default()
                    .insert(name.clone(), Entry::File(*ino));
            }
            Op::Mkdir { dir, name, ino } => {
                self.names
                    .entry(*dir)
                    .or_default()
                    .insert(name.clone(), Entry::Dir(*ino));
            }
            Op::Exchange { dir, one, other } => {
                let names = self.names.entry(*dir).or_default();
                let (a, b) = (names.remove(one), names.remove(other));
                names.extend(a.map(|a| (other.clone(), a)));
                names.extend(b.map(|b| (one.clone(), b)));
            }
            Op::Unlink { dir, name } => {
                self.names.entry(*dir).or_default().remove(name);
            }
            Op::Truncate { ino, len } => self.contents.entry(*ino).or_default().resize(*len, 0),
            Op::Allocate { ino, len } => self.extend(*ino, *len),
            Op::Rename { .. }
            | Op::Write { .. }
            | Op::Sync { .. }
            | Op::Acknowledged(_)
            | Op::Mark(_) => {}
        }
    }

    fn write_dir(&self, dir: Ino, target: &Path) {
        for (name, entry) in self.names.get(&dir).into_iter().flatten() {
            let path = target.join(name);
            match entry {
                Entry::Dir(ino) => {
                    std::fs::create_dir(&path).expect("a directory of the image");
                    self.write_dir(*ino, &path);
                }
                Entry::File(ino) => {
                    let content = self.contents.get(ino).map_or(&[][..], Vec::as_slice);
                    std::fs::write(&path, content).expect("a file of the image");
                }
            }
        }
    }
}
