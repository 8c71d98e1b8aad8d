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
    /// Only synced bytes and names, and all removals: what was removed too early is missed.
    Removals,
    /// Everything but one page.
    LosePage,
    /// Everything but the names in directories that were not synced.
    LoseNames,
    /// Everything: only the process was killed.
    Kill,
}

impl Model {
    /// All of them.
    pub const ALL: [Model; 7] = [
        Model::Strict,
        Model::Ordered,
        Model::Random,
        Model::Removals,
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
                    Model::Removals => matches!(event.op, Op::Unlink { .. }),
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

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{Model, write};
    use crate::record::{Life, Record};

    /// A trace of one thread, or of those whose number begins a line; in `'` stand paths and bytes.
    fn trace(calls: &[&str]) -> String {
        let quoted = |text: &str| {
            let bytes: String = text.bytes().map(|byte| format!("\\x{byte:02x}")).collect();
            format!("\"{bytes}\"")
        };
        let line = |call: &&str| {
            let pieces = call.split('\'').enumerate();
            let pieces = pieces.map(|(at, piece)| match at % 2 {
                0 => piece.to_owned(),
                _ => quoted(piece),
            });
            let line: String = pieces.collect();
            match call.as_bytes()[0].is_ascii_digit() {
                true => line,
                false => format!("1 {line}"),
            }
        };
        let lines = calls.iter().map(line);
        lines
            .map(|line| line.replacen(' ', " 0.0 ", 1) + "\n")
            .collect()
    }

    fn record(lives: &[(&[&str], Option<usize>)]) -> Record {
        let traces: Vec<_> = lives.iter().map(|(calls, _)| trace(calls)).collect();
        let lives = traces.iter().zip(lives);
        let lives = lives.map(|(trace, (_, killed_at))| Life {
            trace,
            root: Path::new("/d"),
            marks: None,
            killed_at: *killed_at,
        });
        Record::parse_lives(&lives.collect::<Vec<_>>())
    }

    /// Names and contents in the image of a cut at the end.
    fn image(record: &Record, model: Model) -> Vec<(String, String)> {
        let target = tempfile::tempdir().unwrap();
        write(record, record.lines(), model, &mut |_| 0, target.path());
        let entries = std::fs::read_dir(target.path()).unwrap();
        let mut found: Vec<_> = entries
            .map(|entry| {
                let path = entry.unwrap().path();
                let name = path.file_name().unwrap().to_str().unwrap().to_owned();
                (name, std::fs::read_to_string(path).unwrap())
            })
            .collect();
        found.sort();
        found
    }

    fn files(files: &[(&str, &str)]) -> Vec<(String, String)> {
        let owned = files
            .iter()
            .map(|(name, text)| ((*name).to_owned(), (*text).to_owned()));
        owned.collect()
    }

    /// Writes a file durably under a name beside and renames it; the last call is the rename.
    const SWITCH: [&str; 7] = [
        "openat(AT_FDCWD, '/d/one', O_WRONLY|O_CREAT, 0666) = 3",
        "openat(AT_FDCWD, '/d/new', O_WRONLY|O_CREAT, 0666) = 4",
        "write(4, 'two', 3) = 3",
        "fsync(4) = 0",
        "openat(AT_FDCWD, '/d', O_RDONLY) = 5",
        "fsync(5) = 0",
        "rename('/d/new', '/d/current') = 0",
    ];

    #[test]
    fn a_kill_leaves_names_unsynced_for_the_next_life() {
        let removal = ["unlink('/d/one') = 0"];
        let killed = record(&[(&SWITCH, Some(6)), (&removal, None)]);
        // both were done, and neither is durable
        assert_eq!(image(&killed, Model::Kill), files(&[("current", "two")]));
        let neither = files(&[("new", "two"), ("one", "")]);
        assert_eq!(image(&killed, Model::Strict), neither);
        assert_eq!(image(&killed, Model::Removals), files(&[("new", "two")]));

        let careful = [
            "openat(AT_FDCWD, '/d', O_RDONLY) = 3",
            "fsync(3) = 0",
            "unlink('/d/one') = 0",
        ];
        let mended = record(&[(&SWITCH, Some(6)), (&careful, None)]);
        for model in [Model::Removals, Model::Kill] {
            assert_eq!(image(&mended, model), files(&[("current", "two")]));
        }
        let kept = files(&[("current", "two"), ("one", "")]);
        assert_eq!(image(&mended, Model::Strict), kept);
    }

    #[test]
    fn a_life_ends_with_the_line_of_its_kill() {
        let killed = record(&[(&SWITCH, Some(5)), (&["unlink('/d/new') = 0"], None)]);
        assert_eq!(killed.lines(), 7);
        assert_eq!(image(&killed, Model::Kill), files(&[("one", "")]));
    }

    #[test]
    fn a_number_given_out_again_is_another_file() {
        let threads = [
            "1 openat(AT_FDCWD, '/d/one', O_WRONLY|O_CREAT, 0666) = 3",
            "1 close(3 <unfinished ...>",
            "2 openat(AT_FDCWD, '/d/two', O_WRONLY|O_CREAT, 0666) = 3",
            "1 <... close resumed>) = 0",
            "2 write(3, 'of two', 6 <unfinished ...>",
            "1 openat(AT_FDCWD, '/d/three', O_WRONLY|O_CREAT, 0666) = 4",
            "2 <... write resumed>) = 6",
        ];
        assert_eq!(
            image(&record(&[(&threads, None)]), Model::Kill),
            files(&[("one", ""), ("three", ""), ("two", "of two")])
        );
    }

    #[test]
    fn a_sync_covers_what_had_ended_when_it_began() {
        let threads = [
            "1 openat(AT_FDCWD, '/d', O_RDONLY) = 3",
            "1 openat(AT_FDCWD, '/d/one', O_WRONLY|O_CREAT, 0666) = 4",
            "1 fsync(3 <unfinished ...>",
            "2 openat(AT_FDCWD, '/d/two', O_WRONLY|O_CREAT, 0666) = 5",
            "1 <... fsync resumed>) = 0",
        ];
        let synced = record(&[(&threads, None)]);
        assert_eq!(image(&synced, Model::Strict), files(&[("one", "")]));
    }
}
