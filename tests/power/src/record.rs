//! Reads strace's output into what happened to one directory, in order, and what was said to clients, or written to a file of
//! marks, meanwhile.
//!
//! Files are followed by identity, not by name, so that a rename keeps what was written. Anything done to the directory
//! that the rebuild would not understand is a panic, never skipped. A record can go on over crashes:
//! each life's trace is read on top of what the lives before had done, so that what none of them has
//! synced is still unsynced.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Every call that can change a file or make it durable, and the one that answers clients.
pub const SYSCALLS: &str = "open,openat,openat2,creat,close,dup,dup2,dup3,fcntl,lseek,write,pwrite64,writev,pwritev,\
    pwritev2,truncate,ftruncate,fallocate,copy_file_range,sendfile,splice,fsync,fdatasync,sync,syncfs,sync_file_range,\
    msync,rename,renameat,renameat2,unlink,unlinkat,link,linkat,symlink,symlinkat,mkdir,mkdirat,rmdir,sendto,sendmsg";

/// A file or directory; 0 is the recorded directory.
pub type Ino = usize;

/// Where relative names would start; none are used.
const CWD: &str = "AT_FDCWD";
/// What an acknowledgement says before the queue id.
const QUEUED: &str = "queued as ";

/// What happened.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub enum Op {
    Create {
        dir: Ino,
        name: String,
        ino: Ino,
    },
    Mkdir {
        dir: Ino,
        name: String,
        ino: Ino,
    },
    /// A name appears in place of another; the two directories may be different ones.
    Rename {
        from_dir: Ino,
        from: String,
        to_dir: Ino,
        to: String,
        ino: Ino,
    },
    /// Two names of one directory change places.
    Exchange {
        dir: Ino,
        one: String,
        other: String,
    },
    Unlink {
        dir: Ino,
        name: String,
    },
    Write {
        ino: Ino,
        offset: usize,
        data: Vec<u8>,
    },
    /// Cut, or extended with zeros.
    Truncate {
        ino: Ino,
        len: usize,
    },
    /// Extended with zeros where it was shorter.
    Allocate {
        ino: Ino,
        len: usize,
    },
    Sync {
        ino: Ino,
    },
    /// A 250 that names a queue id went out to a client.
    Acknowledged(String),
    /// A workload says something in its file of marks.
    Mark(String),
}

/// When it began and ended, in lines of the trace.
#[derive(Clone, Debug)]
pub struct Event {
    /// The thread.
    pub pid: u32,
    /// The line it began at.
    pub start: usize,
    /// The line it was done by.
    pub end: usize,
    /// What it was.
    pub op: Op,
}

/// All that happened to a directory, by the time it was done.
#[derive(Clone, Debug)]
pub struct Record {
    /// In the order in which they were done.
    pub events: Vec<Event>,
    /// Unix seconds of each line.
    times: Vec<f64>,
}

impl Record {
    /// Reads the trace of a process that used the empty directory `root`.
    ///
    /// # Panics
    /// On anything it does not understand.
    pub fn parse(trace: &str, root: &Path) -> Record {
        Record::parse_lives(&[Life {
            trace,
            root,
            marks: None,
            killed_at: None,
        }])
    }

    /// Reads the traces of processes that used one directory, one after the other; all but the last
    /// were killed.
    ///
    /// # Panics
    /// On anything it does not understand.
    pub fn parse_lives(lives: &[Life<'_>]) -> Record {
        let mut reader = Reader::default();
        for life in lives {
            reader.open.clear();
            reader.marks_open.clear();
            reader.marks = life
                .marks
                .map(|marks| marks.to_str().expect("UTF-8").to_owned());
            reader.run(life.trace, life.root, life.killed_at.unwrap_or(usize::MAX));
        }
        reader.record()
    }

    /// The number of lines, and so the last moment there is.
    pub fn lines(&self) -> usize {
        self.times.len()
    }

    /// When the line was written, Unix seconds.
    pub fn time(&self, line: usize) -> f64 {
        self.times
            .get(line)
            .or(self.times.last())
            .copied()
            .unwrap_or_default()
    }

    /// The first line written after `time`, Unix seconds.
    pub fn line_after(&self, time: f64) -> usize {
        self.times.partition_point(|line| *line <= time)
    }

    /// Whether a file or directory was created under this name.
    pub fn is_named(&self, wanted: Ino, as_name: &str) -> bool {
        self.events.iter().any(|event| match &event.op {
            Op::Create { name, ino, .. } | Op::Mkdir { name, ino, .. } => {
                *ino == wanted && name == as_name
            }
            _ => false,
        })
    }

    /// Queue ids whose 250 had begun to go out by the line `cut`.
    pub fn acknowledged(&self, cut: usize) -> impl Iterator<Item = &str> {
        self.events
            .iter()
            .filter(move |event| event.start <= cut)
            .filter_map(|event| match &event.op {
                Op::Acknowledged(id) => Some(id.as_str()),
                _ => None,
            })
    }
}

/// What one process did to the directory.
#[derive(Clone, Copy, Debug)]
pub struct Life<'a> {
    /// Its trace.
    pub trace: &'a str,
    /// Where the directory was: empty at first, then a copy of what the process before had left.
    pub root: &'a Path,
    /// The file outside of it to which the process wrote what it knew.
    pub marks: Option<&'a Path>,
    /// The last line before it was killed, counted from the first line of the first life.
    pub killed_at: Option<usize>,
}

/// What an open file is.
#[derive(Clone, Copy, Debug)]
struct Opened {
    ino: Ino,
    offset: usize,
}

#[derive(Debug)]
struct Reader {
    root: String,
    /// The file of marks, and the numbers under which it is open.
    marks: Option<String>,
    marks_open: BTreeSet<i64>,
    /// How many files there are; 0 is the root.
    inos: usize,
    entries: BTreeMap<(Ino, String), Ino>,
    lengths: BTreeMap<Ino, usize>,
    open: BTreeMap<i64, Opened>,
    events: Vec<Event>,
    times: Vec<f64>,
}

impl Default for Reader {
    fn default() -> Reader {
        Reader {
            root: String::new(),
            marks: None,
            marks_open: BTreeSet::new(),
            inos: 1,
            entries: BTreeMap::new(),
            lengths: BTreeMap::new(),
            open: BTreeMap::new(),
            events: Vec::new(),
            times: Vec::new(),
        }
    }
}

impl Reader {
    fn record(self) -> Record {
        Record {
            events: self.events,
            times: self.times,
        }
    }

    fn run(&mut self, trace: &str, root: &Path, until: usize) {
        root.to_str().expect("UTF-8").clone_into(&mut self.root);
        let before = self.times.len();
        let mut unfinished: BTreeMap<u32, (usize, String)> = BTreeMap::new();
        for (at, line) in trace.lines().enumerate() {
            let at = before + at;
            if at > until {
                return;
            }
            let (pid, rest) = line.split_once(' ').expect("a thread");
            let (time, rest) = rest.trim_start().split_once(' ').expect("a time");
            self.times.push(time.parse().expect("a time"));
            let pid = pid.parse().expect("a thread");
            if rest.starts_with("+++") || rest.starts_with("---") {
                continue;
            }
            if let Some(begin) = rest.strip_suffix(" <unfinished ...>") {
                // the kernel may hand the number out again before the call is seen to end
                if let Some(fd) = begin.strip_prefix("close(") {
                    self.closed(number(fd.trim_end_matches(')')));
                }
                unfinished.insert(pid, (at, begin.to_owned()));
                continue;
            }
            if let Some(resumed) = rest.strip_prefix("<... ") {
                let (start, begin) = unfinished.remove(&pid).expect("a call that had begun");
                let (_, tail) = resumed.split_once(" resumed>").expect("the end of a call");
                if !begin.starts_with("close(") {
                    self.call(pid, start, at, &format!("{begin}{tail}"));
                }
                continue;
            }
            self.call(pid, at, at, rest);
        }
    }

    fn call(&mut self, pid: u32, start: usize, end: usize, text: &str) {
        let (name, rest) = text.split_once('(').expect("a call");
        // the last line of a process that was killed may be cut: that call was not seen to end
        let Some((args, result)) = rest.rsplit_once(" = ") else {
            return;
        };
        let Some(result) = result
            .split(' ')
            .next()
            .and_then(|result| result.parse::<i64>().ok())
        else {
            return;
        };
        if result < 0 {
            return;
        }
        let args = args
            .trim_end()
            .strip_suffix(')')
            .expect("the end of the arguments");
        let args: Vec<&str> = if args.is_empty() {
            Vec::new()
        } else {
            args.split(", ").collect()
        };
        if let Some(op) = self.op(name, &args, result) {
            self.events.push(Event {
                pid,
                start,
                end,
                op,
            });
        }
    }

    fn op(&mut self, name: &str, args: &[&str], result: i64) -> Option<Op> {
        match name {
            // of some other file, by a library
            "open" | "creat" if !path(args[0]).starts_with(&self.root) => {
                self.open.remove(&result);
                None
            }
            "open" | "creat" | "openat2" => panic!("{name} is not understood: {args:?}"),
            "openat" => self.opened(args, result),
            "close" => {
                self.closed(number(args[0]));
                None
            }
            "write" if self.marks_open.contains(&number(args[0])) => {
                let said = unescape(args[1].trim_matches('"'));
                Some(Op::Mark(String::from_utf8(said).expect("UTF-8")))
            }
            "write" => self.written(args, result, None),
            "pwrite64" => self.written(args, result, Some(number(args[3]) as usize)),
            "sendto" => acknowledged(args[1]),
            "sendmsg" => None,
            "fcntl" if !args[1].starts_with("F_DUPFD") => None,
            "fcntl" => {
                self.open.remove(&result);
                let opened = *self.open.get(&number(args[0]))?;
                self.open.insert(result, opened);
                None
            }
            "lseek" => {
                self.open.get_mut(&number(args[0]))?.offset = result as usize;
                None
            }
            "ftruncate" => {
                let ino = self.open.get(&number(args[0]))?.ino;
                self.truncated(ino, number(args[1]) as usize)
            }
            "fallocate" => {
                let ino = self.open.get(&number(args[0]))?.ino;
                assert_eq!(
                    (args[1], args[2]),
                    ("0", "0"),
                    "fallocate is not understood: {args:?}"
                );
                let len = number(args[3]) as usize;
                let length = self.lengths.entry(ino).or_default();
                *length = len.max(*length);
                Some(Op::Allocate { ino, len })
            }
            "fsync" | "fdatasync" => Some(Op::Sync {
                ino: self.open.get(&number(args[0]))?.ino,
            }),
            "mkdir" => self.made(CWD, args[0]),
            "mkdirat" => self.made(args[0], args[1]),
            "rename" => self.renamed((CWD, args[0]), (CWD, args[1])),
            "renameat" => self.renamed((args[0], args[1]), (args[2], args[3])),
            "renameat2" if args[4] == "RENAME_EXCHANGE" => {
                self.exchanged((args[0], args[1]), (args[2], args[3]))
            }
            "renameat2" => self.renamed((args[0], args[1]), (args[2], args[3])),
            "unlink" | "rmdir" => self.unlinked(CWD, args[0]),
            "unlinkat" => self.unlinked(args[0], args[1]),
            _ => {
                let ours = args.iter().any(|arg| match arg.strip_prefix('"') {
                    Some(_) => path(arg).starts_with(&self.root),
                    None => arg.parse().is_ok_and(|fd| self.open.contains_key(&fd)),
                });
                assert!(
                    !ours,
                    "{name} of the recorded directory is not understood: {args:?}"
                );
                None
            }
        }
    }

    fn closed(&mut self, fd: i64) {
        self.open.remove(&fd);
        self.marks_open.remove(&fd);
    }

    fn opened(&mut self, args: &[&str], fd: i64) -> Option<Op> {
        self.closed(fd);
        let flags = args[2];
        let path = path(args[1]);
        if self.marks.as_ref() == Some(&path) {
            self.marks_open.insert(fd);
            return None;
        }
        if path.trim_end_matches('/') == self.root {
            self.open.insert(fd, Opened { ino: 0, offset: 0 });
            return None;
        }
        let (dir, name) = self.place(args[0], args[1])?;
        assert!(
            !flags.contains("O_APPEND") && !flags.contains("O_TMPFILE"),
            "{flags} of {path} is not understood"
        );
        let found = self.entries.get(&(dir, name.clone())).copied();
        let ino = found.unwrap_or(self.inos);
        self.open.insert(fd, Opened { ino, offset: 0 });
        match found {
            Some(ino) if flags.contains("O_TRUNC") => self.truncated(ino, 0),
            Some(_) => None,
            None => {
                assert!(
                    flags.contains("O_CREAT"),
                    "{path} was opened but never created"
                );
                self.enter(dir, &name);
                Some(Op::Create { dir, name, ino })
            }
        }
    }

    fn written(&mut self, args: &[&str], result: i64, at: Option<usize>) -> Option<Op> {
        let opened = self.open.get_mut(&number(args[0]))?;
        assert!(!args[1].ends_with("..."), "the record was cut short");
        let mut data = unescape(args[1].trim_matches('"'));
        data.truncate(result as usize);
        let offset = at.unwrap_or(opened.offset);
        if at.is_none() {
            opened.offset += data.len();
        }
        let ino = opened.ino;
        let length = self.lengths.entry(ino).or_default();
        *length = (*length).max(offset + data.len());
        Some(Op::Write { ino, offset, data })
    }

    fn truncated(&mut self, ino: Ino, len: usize) -> Option<Op> {
        let before = self.lengths.insert(ino, len).unwrap_or(0);
        (before != len).then_some(Op::Truncate { ino, len })
    }

    fn made(&mut self, dirfd: &str, quoted: &str) -> Option<Op> {
        if path(quoted) == self.root {
            return None;
        }
        let (dir, name) = self.place(dirfd, quoted)?;
        let ino = self.enter(dir, &name);
        Some(Op::Mkdir { dir, name, ino })
    }

    fn renamed(&mut self, from: (&str, &str), to: (&str, &str)) -> Option<Op> {
        let (from_dir, from) = self.place(from.0, from.1)?;
        let (to_dir, to) = self.place(to.0, to.1)?;
        let ino = self
            .entries
            .remove(&(from_dir, from.clone()))
            .expect("a file to rename");
        self.entries.insert((to_dir, to.clone()), ino);
        Some(Op::Rename {
            from_dir,
            from,
            to_dir,
            to,
            ino,
        })
    }

    fn exchanged(&mut self, one: (&str, &str), other: (&str, &str)) -> Option<Op> {
        let (dir, one) = self.place(one.0, one.1)?;
        let (other_dir, other) = self.place(other.0, other.1)?;
        assert_eq!(
            dir, other_dir,
            "an exchange across directories is not understood"
        );
        let (a, b) = (
            self.entries[&(dir, one.clone())],
            self.entries[&(dir, other.clone())],
        );
        self.entries.insert((dir, one.clone()), b);
        self.entries.insert((dir, other.clone()), a);
        Some(Op::Exchange { dir, one, other })
    }

    fn unlinked(&mut self, dirfd: &str, quoted: &str) -> Option<Op> {
        let (dir, name) = self.place(dirfd, quoted)?;
        let known = self.entries.remove(&(dir, name.clone()));
        if known.is_none() {
            // made by bind(), not by open(); no image has one
            assert!(
                name.ends_with(".sock"),
                "{name} was removed but never created"
            );
            return None;
        }
        Some(Op::Unlink { dir, name })
    }

    fn enter(&mut self, dir: Ino, name: &str) -> Ino {
        let ino = self.inos;
        self.inos += 1;
        self.entries.insert((dir, name.to_owned()), ino);
        ino
    }

    /// Directory and name of a path, absolute or relative to an open directory, in the recorded directory.
    fn place(&self, dirfd: &str, quoted: &str) -> Option<(Ino, String)> {
        let path = path(quoted);
        if let Ok(dirfd) = dirfd.parse::<i64>()
            && !path.starts_with('/')
        {
            let dir = self.open.get(&dirfd)?.ino;
            assert!(
                !path.contains('/'),
                "{path} relative to a directory is not understood"
            );
            return Some((dir, path));
        }
        let inside = path
            .strip_prefix(&self.root)?
            .strip_prefix('/')?
            .trim_end_matches('/');
        let mut dir = 0;
        let (parents, name) = inside.rsplit_once('/').unwrap_or(("", inside));
        for parent in parents.split('/').filter(|parent| !parent.is_empty()) {
            dir = *self
                .entries
                .get(&(dir, parent.to_owned()))
                .unwrap_or_else(|| panic!("no {parent} in {path}"));
        }
        Some((dir, name.to_owned()))
    }
}

fn acknowledged(quoted: &str) -> Option<Op> {
    let data = unescape(quoted.trim_end_matches("...").trim_matches('"'));
    let text = String::from_utf8_lossy(&data);
    let mut ids = text
        .split(QUEUED)
        .skip(1)
        .filter_map(|rest| rest.split_whitespace().next());
    let id = ids.next()?.to_owned();
    assert!(
        ids.next().is_none(),
        "two acknowledgements at once are not understood"
    );
    Some(Op::Acknowledged(id))
}

fn number(text: &str) -> i64 {
    text.parse()
        .unwrap_or_else(|_| panic!("{text} is no number"))
}

fn path(quoted: &str) -> String {
    unescape_path(quoted.trim_matches('"'))
}

/// A path as strace -xx prints it, without quotes.
///
/// # Panics
/// When it is none.
pub fn unescape_path(text: &str) -> String {
    String::from_utf8(unescape(text)).expect("a UTF-8 path")
}

/// Bytes as strace -xx prints them, without quotes: `\x68\x69`.
///
/// # Panics
/// When they are not.
pub fn unescape(text: &str) -> Vec<u8> {
    let digit = |c: u8| {
        (c as char)
            .to_digit(16)
            .unwrap_or_else(|| panic!("{text} is not -xx")) as u8
    };
    text.as_bytes()
        .chunks_exact(4)
        .map(|escape| digit(escape[2]) << 4 | digit(escape[3]))
        .collect()
}
