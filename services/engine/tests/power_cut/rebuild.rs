//! Rebuilds a directory as a power cut could have left it.

use std::collections::BTreeMap;
use std::path::Path;

use hikyaku_engine::contract::Dice;

use crate::record::{Event, Ino, Op, Record};

/// What a disk remembers of what was not synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Model {
    /// Nothing: only synced bytes, and names in synced directories (POSIX to the letter).
    Strict,
    /// Any sync commits all earlier names, later names in order up to some moment; only synced bytes (a journalled
    /// filesystem with delayed allocation).
    Ordered,
    /// Each unsynced name and write by chance.
    Random,
    /// Everything: only the process was killed.
    Kill,
}

/// Writes the image of a cut at line `cut` into the empty directory `target`.
pub fn write(record: &Record, cut: usize, model: Model, dice: &mut Dice, target: &Path) {
    let happened = || record.events.iter().take_while(|event| event.end <= cut);
    let synced = synced(happened());
    let committed = match model {
        Model::Strict | Model::Random | Model::Kill => 0,
        Model::Ordered => {
            let barrier = synced.values().copied().max().unwrap_or(0);
            let later = cut.saturating_sub(barrier) as u64;
            // half the time the journal went on a little by itself
            barrier
                + if dice.below(2) == 0 {
                    0
                } else {
                    dice.below(later + 1) as usize
                }
        }
    };
    let mut image = Image::default();
    for event in happened() {
        let (ino, is_name) = match &event.op {
            Op::Create { dir, .. }
            | Op::Mkdir { dir, .. }
            | Op::Rename { dir, .. }
            | Op::Exchange { dir, .. }
            | Op::Unlink { dir, .. } => (*dir, true),
            Op::Write { ino, .. } | Op::Truncate { ino, .. } => (*ino, false),
            Op::Sync { .. } | Op::Mark(_) => continue,
        };
        let durable = synced.get(&ino).is_some_and(|began| event.end < *began);
        let kept = durable
            || match model {
                Model::Strict => false,
                Model::Kill => true,
                Model::Ordered => is_name && event.end < committed,
                Model::Random => dice.below(2) == 0,
            };
        if kept {
            image.apply(&event.op);
        }
    }
    image.write_dir(0, target);
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

#[derive(Default)]
struct Image {
    names: BTreeMap<Ino, BTreeMap<String, Entry>>,
    contents: BTreeMap<Ino, Vec<u8>>,
}

#[derive(Clone, Copy)]
enum Entry {
    Dir(Ino),
    File(Ino),
}

impl Image {
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
            Op::Rename { dir, from, to, ino } => {
                let names = self.names.entry(*dir).or_default();
                names.remove(from);
                names.insert(to.clone(), Entry::File(*ino));
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
            Op::Write { ino, offset, data } => {
                let content = self.contents.entry(*ino).or_default();
                if content.len() < offset + data.len() {
                    content.resize(offset + data.len(), 0);
                }
                content[*offset..offset + data.len()].copy_from_slice(data);
            }
            Op::Truncate { ino, len } => self.contents.entry(*ino).or_default().resize(*len, 0),
            Op::Sync { .. } | Op::Mark(_) => {}
        }
    }

    fn write_dir(&self, dir: Ino, target: &Path) {
        for (name, entry) in self.names.get(&dir).into_iter().flatten() {
            let path = target.join(name);
            match entry {
                Entry::Dir(ino) => {
                    std::fs::create_dir(&path).unwrap();
                    self.write_dir(*ino, &path);
                }
                Entry::File(ino) => {
                    std::fs::write(&path, self.contents.get(ino).map_or(&[][..], Vec::as_slice))
                        .unwrap();
                }
            }
        }
    }
}
