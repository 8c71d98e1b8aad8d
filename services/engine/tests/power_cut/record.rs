//! Reads strace's output into what happened to one directory, in order.
//!
//! Files are followed by identity, not by name, so that a rename keeps what was written. Anything done to the directory
//! that the rebuild would not understand is a panic, never skipped.

use std::collections::BTreeMap;
use std::path::Path;

/// Every call that can change a file or make it durable.
pub const SYSCALLS: &str = "open,openat,openat2,creat,close,dup,dup2,dup3,lseek,write,pwrite64,writev,pwritev,pwritev2,\
    truncate,ftruncate,fallocate,copy_file_range,sendfile,splice,fsync,fdatasync,sync,syncfs,sync_file_range,msync,\
    rename,renameat,renameat2,unlink,unlinkat,link,linkat,symlink,symlinkat,mkdir,mkdirat,rmdir";

/// A file or directory; 0 is the recorded directory.
pub type Ino = usize;

/// Where relative names would start; none are used.
const CWD: &str = "AT_FDCWD";

/// What happened.
#[derive(Debug)]
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
    Rename {
        dir: Ino,
        from: String,
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
    Truncate {
        ino: Ino,
        len: usize,
    },
    Sync {
        ino: Ino,
    },
    /// The workload says something.
    Mark(String),
}

/// When it began and ended, in lines of the trace.
#[derive(Debug)]
pub struct Event {
    pub pid: u32,
    pub start: usize,
    pub end: usize,
    pub op: Op,
}

/// All that happened to a directory, by the time it was done.
pub struct Record {
    pub events: Vec<Event>,
    names: Vec<String>,
}

impl Record {
    /// Whether a file or directory was created under this name.
    pub fn is_named(&self, ino: Ino, name: &str) -> bool {
        self.names[ino] == name
    }

    pub fn parse(trace: &str, disk: &Path, marks: &Path) -> Self {
        let mut reader = Reader {
            disk: disk.to_str().unwrap().to_owned(),
            marks: marks.to_str().unwrap().to_owned(),
            started: false,
            names: vec![String::new()],
            entries: BTreeMap::new(),
            lengths: BTreeMap::new(),
            open: BTreeMap::new(),
            events: Vec::new(),
        };
        let mut unfinished: BTreeMap<u32, (usize, String)> = BTreeMap::new();
        for (at, line) in trace.lines().enumerate() {
            let (pid, rest) = line.split_once(' ').unwrap();
            let (pid, rest) = (pid.parse().unwrap(), rest.trim_start());
            if rest.starts_with("+++") || rest.starts_with("---") {
                continue;
            }
            if let Some(begin) = rest.strip_suffix(" <unfinished ...>") {
                // the kernel may hand the number out again before the call is seen to end
                if let Some(fd) = begin.strip_prefix("close(") {
                    reader.open.remove(&number(fd.trim_end_matches(')')));
                }
                unfinished.insert(pid, (at, begin.to_owned()));
                continue;
            }
            if let Some(resumed) = rest.strip_prefix("<... ") {
                let (start, begin) = unfinished.remove(&pid).unwrap();
                let (_, tail) = resumed.split_once(" resumed>").unwrap();
                if !begin.starts_with("close(") {
                    reader.call(pid, start, at, &format!("{begin}{tail}"));
                }
                continue;
            }
            reader.call(pid, at, at, rest);
        }
        Self {
            events: reader.events,
            names: reader.names,
        }
    }
}

/// What an open file is.
#[derive(Clone, Copy)]
enum Opened {
    File { ino: Ino, offset: usize },
    Marks,
}

struct Reader {
    disk: String,
    marks: String,
    /// The recorded directory was created.
    started: bool,
    names: Vec<String>,
    entries: BTreeMap<(Ino, String), Ino>,
    lengths: BTreeMap<Ino, usize>,
    open: BTreeMap<i64, Opened>,
    events: Vec<Event>,
}

impl Reader {
    fn call(&mut self, pid: u32, start: usize, end: usize, text: &str) {
        let (name, rest) = text.split_once('(').unwrap();
        let (args, result) = rest.rsplit_once(" = ").unwrap();
        let args = args.trim_end().strip_suffix(')').unwrap();
        let args: Vec<&str> = if args.is_empty() {
            Vec::new()
        } else {
            args.split(", ").collect()
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
        for op in self.ops(name, &args, result) {
            self.events.push(Event {
                pid,
                start,
                end,
                op,
            });
        }
    }

    fn ops(&mut self, name: &str, args: &[&str], result: i64) -> Vec<Op> {
        match name {
            "open" | "creat" | "openat2" => panic!("{name} is not understood"),
            "openat" => self.opened(args, result),
            "close" => {
                self.open.remove(&number(args[0]));
                Vec::new()
            }
            "write" => self.written(args, result, None),
            "pwrite64" => self.written(args, result, Some(number(args[3]) as usize)),
            "lseek" => {
                if let Some(Opened::File { offset, .. }) = self.open.get_mut(&number(args[0])) {
                    *offset = result as usize;
                }
                Vec::new()
            }
            "ftruncate" => match self.open.get(&number(args[0])).copied() {
                Some(Opened::File { ino, .. }) => self.truncated(ino, number(args[1]) as usize),
                _ => Vec::new(),
            },
            "fsync" | "fdatasync" => match self.open.get(&number(args[0])) {
                Some(Opened::File { ino, .. }) => vec![Op::Sync { ino: *ino }],
                _ => Vec::new(),
            },
            "mkdir" => self.made(args[0]),
            "rename" => self.renamed((CWD, args[0]), (CWD, args[1])),
            "renameat" => self.renamed((args[0], args[1]), (args[2], args[3])),
            "renameat2" if args[4] == "RENAME_EXCHANGE" => {
                self.exchanged((args[0], args[1]), (args[2], args[3]))
            }
            "unlink" => self.unlinked(CWD, args[0]),
            "rmdir" => self.unlinked(CWD, args[0]),
            "unlinkat" => self.unlinked(args[0], args[1]),
            _ => {
                let ours = args.iter().any(|arg| match arg.strip_prefix('"') {
                    Some(_) => path(arg).starts_with(&self.disk),
                    None => arg.parse().is_ok_and(|fd| self.open.contains_key(&fd)),
                });
                assert!(
                    !ours,
                    "{name} of the recorded directory is not understood: {args:?}"
                );
                Vec::new()
            }
        }
    }

    fn opened(&mut self, args: &[&str], fd: i64) -> Vec<Op> {
        self.open.remove(&fd);
        let flags = args[2];
        let path = path(args[1]);
        if path == self.marks {
            self.open.insert(fd, Opened::Marks);
            return Vec::new();
        }
        if path == self.disk {
            self.open.insert(fd, Opened::File { ino: 0, offset: 0 });
            return Vec::new();
        }
        let Some((dir, name)) = self.place(args[0], args[1]) else {
            return Vec::new();
        };
        assert!(
            !flags.contains("O_APPEND") && !flags.contains("O_TMPFILE"),
            "{flags} not understood"
        );
        let found = self.entries.get(&(dir, name.clone())).copied();
        let ino = found.unwrap_or(self.names.len());
        self.open.insert(fd, Opened::File { ino, offset: 0 });
        match found {
            Some(ino) if flags.contains("O_TRUNC") => self.truncated(ino, 0),
            Some(_) => Vec::new(),
            None => {
                assert!(
                    flags.contains("O_CREAT"),
                    "{path} was opened but never created"
                );
                self.enter(dir, &name);
                vec![Op::Create { dir, name, ino }]
            }
        }
    }

    fn written(&mut self, args: &[&str], result: i64, at: Option<usize>) -> Vec<Op> {
        let Some(opened) = self.open.get_mut(&number(args[0])) else {
            return Vec::new();
        };
        assert!(!args[1].ends_with("..."), "the record was cut short");
        let mut data = unescape(args[1]);
        data.truncate(result as usize);
        match opened {
            Opened::Marks => vec![Op::Mark(String::from_utf8(data).unwrap())],
            Opened::File { ino, offset } => {
                let start = at.unwrap_or(*offset);
                if at.is_none() {
                    *offset += data.len();
                }
                let length = self.lengths.entry(*ino).or_default();
                *length = (*length).max(start + data.len());
                vec![Op::Write {
                    ino: *ino,
                    offset: start,
                    data,
                }]
            }
        }
    }

    fn truncated(&mut self, ino: Ino, len: usize) -> Vec<Op> {
        if self.lengths.insert(ino, len).unwrap_or(0) == len {
            return Vec::new();
        }
        vec![Op::Truncate { ino, len }]
    }

    fn made(&mut self, quoted: &str) -> Vec<Op> {
        if path(quoted) == self.disk {
            self.started = true;
            return Vec::new();
        }
        let Some((dir, name)) = self.place(CWD, quoted) else {
            return Vec::new();
        };
        let ino = self.enter(dir, &name);
        vec![Op::Mkdir { dir, name, ino }]
    }

    fn renamed(&mut self, from: (&str, &str), to: (&str, &str)) -> Vec<Op> {
        let (Some((dir, from)), Some((to_dir, to))) =
            (self.place(from.0, from.1), self.place(to.0, to.1))
        else {
            return Vec::new();
        };
        assert_eq!(dir, to_dir, "a rename across directories is not understood");
        let ino = self.entries.remove(&(dir, from.clone())).unwrap();
        self.entries.insert((dir, to.clone()), ino);
        vec![Op::Rename { dir, from, to, ino }]
    }

    fn exchanged(&mut self, one: (&str, &str), other: (&str, &str)) -> Vec<Op> {
        let (Some((dir, one)), Some((other_dir, other))) =
            (self.place(one.0, one.1), self.place(other.0, other.1))
        else {
            return Vec::new();
        };
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
        vec![Op::Exchange { dir, one, other }]
    }

    fn unlinked(&mut self, dirfd: &str, quoted: &str) -> Vec<Op> {
        let Some((dir, name)) = self.place(dirfd, quoted) else {
            return Vec::new();
        };
        self.entries.remove(&(dir, name.clone())).unwrap();
        vec![Op::Unlink { dir, name }]
    }

    fn enter(&mut self, dir: Ino, name: &str) -> Ino {
        let ino = self.names.len();
        self.names.push(name.to_owned());
        self.entries.insert((dir, name.to_owned()), ino);
        ino
    }

    /// Directory and name of a path, absolute or relative to an open directory, in the recorded directory.
    fn place(&self, dirfd: &str, quoted: &str) -> Option<(Ino, String)> {
        let path = path(quoted);
        if let Ok(dirfd) = dirfd.parse::<i64>()
            && !path.starts_with('/')
        {
            assert!(
                !path.contains('/'),
                "{path} relative to a directory is not understood"
            );
            return match self.open.get(&dirfd)? {
                Opened::File { ino, .. } => Some((*ino, path)),
                Opened::Marks => None,
            };
        }
        let inside = path.strip_prefix(&self.disk)?.strip_prefix('/')?;
        assert!(self.started, "{path} before the directory was created");
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

fn number(text: &str) -> i64 {
    text.parse().unwrap()
}

fn path(quoted: &str) -> String {
    String::from_utf8(unescape(quoted)).unwrap()
}

/// A string as strace -xx prints it: `"\x68\x69"`.
fn unescape(quoted: &str) -> Vec<u8> {
    let inside = quoted
        .strip_prefix('"')
        .and_then(|rest| rest.strip_suffix('"'))
        .unwrap();
    let digit = |c: u8| (c as char).to_digit(16).unwrap() as u8;
    inside
        .as_bytes()
        .chunks(4)
        .map(|escape| digit(escape[2]) << 4 | digit(escape[3]))
        .collect()
}
