//! How long blobs have been named by no mail. It is kept in a file, so that a node that restarts often deletes them too.
//!
//! Time counts from look to look: monotonic time within a process. From the last look of one process to the first of the next one
//! the wall clock counts, but no more than one interval between looks. So neither a clock that jumps nor a long downtime makes a
//! blob old at once.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use hikyaku_mail::id::MessageId;
use tokio::time::Instant;

/// The first word of the file, and its format.
const HEAD: &str = "unnamed-blobs-1";
/// Octets of a file that is read: a million blobs.
const FILE_BYTES_MAX: u64 = 64 << 20;

/// When somebody last looked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Looked {
    /// Nobody has.
    Never,
    /// An earlier process, by the wall clock, Unix milliseconds.
    Before(u64),
    /// This one.
    At(Instant),
}

/// Blobs that no mail named at the last look, and for how long they have been so.
#[derive(Debug)]
pub struct Unnamed {
    ages: BTreeMap<MessageId, Duration>,
    looked: Looked,
}

impl Unnamed {
    /// What an earlier process has left in the file `path`. Without one, or with one that cannot be read, all ages begin anew.
    pub fn load(path: &Path) -> Unnamed {
        let nothing = || Unnamed {
            ages: BTreeMap::new(),
            looked: Looked::Never,
        };
        let unnamed = match read(path) {
            Ok(text) => parse(&text),
            Err(error) if error.kind() == ErrorKind::NotFound => return nothing(),
            Err(error) => {
                tracing::warn!(file = %path.display(), %error, "ages of unnamed blobs cannot be read; they begin anew");
                return nothing();
            }
        };
        unnamed.unwrap_or_else(|| {
            tracing::warn!(file = %path.display(), "ages of unnamed blobs are malformed; they begin anew");
            nothing()
        })
    }

    /// No mail names `unnamed`, and one names every other blob. Looks are `interval` apart.
    pub fn look(
        &mut self,
        unnamed: &BTreeSet<MessageId>,
        now: Instant,
        now_ms: u64,
        interval: Duration,
    ) {
        let passed = match self.looked {
            Looked::Never => Duration::ZERO,
            Looked::Before(ms) => Duration::from_millis(now_ms.saturating_sub(ms)).min(interval),
            Looked::At(then) => now.duration_since(then),
        };
        self.looked = Looked::At(now);
        let aged = |id: &MessageId| {
            let age = self.ages.get(id).map(|age| age.saturating_add(passed));
            (*id, age.unwrap_or_default())
        };
        self.ages = unnamed.iter().map(aged).collect();
    }

    /// Those that have been unnamed for `age`.
    pub fn older_than(&self, age: Duration) -> Vec<MessageId> {
        let old = self.ages.iter().filter(|(_, unnamed)| **unnamed >= age);
        old.map(|(id, _)| *id).collect()
    }

    /// A blob is there no longer.
    pub fn forget(&mut self, id: MessageId) {
        self.ages.remove(&id);
    }

    /// The file's text after a look at `now_ms`.
    pub fn to_text(&self, now_ms: u64) -> String {
        let mut text = format!("{HEAD} {now_ms}\n");
        for (id, age) in &self.ages {
            text.push_str(&format!("{id} {}\n", age.as_millis()));
        }
        text
    }
}

fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    let file = File::open(path)?;
    file.take(FILE_BYTES_MAX).read_to_string(&mut text)?;
    Ok(text)
}

/// Replaces the file `path` as a whole.
///
/// # Errors
/// When it cannot be written; the one before stays.
pub fn save(path: &Path, text: &str) -> io::Result<()> {
    let beside: PathBuf = path.with_extension("new");
    let mut file = File::create(&beside)?;
    file.write_all(text.as_bytes())?;
    // the name must not come to a file without its content
    file.sync_all()?;
    std::fs::rename(&beside, path)
}

fn parse(text: &str) -> Option<Unnamed> {
    let mut lines = text.strip_suffix('\n')?.split('\n');
    let (head, looked_ms) = lines.next()?.split_once(' ')?;
    let looked = Looked::Before(looked_ms.parse().ok()?);
    let ages = lines.map(|line| {
        let (id, age_ms) = line.split_once(' ')?;
        Some((
            id.parse().ok()?,
            Duration::from_millis(age_ms.parse().ok()?),
        ))
    });
    let ages = ages.collect::<Option<BTreeMap<MessageId, Duration>>>()?;
    (head == HEAD).then_some(Unnamed { ages, looked })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::time::Duration;

    use hikyaku_mail::id::{Class, MessageId, ShardId};
    use tokio::time::Instant;

    use super::{Unnamed, save};

    const HOUR: Duration = Duration::from_secs(3600);
    const HOUR_MS: u64 = 3_600_000;

    fn ids(numbers: &[u64]) -> BTreeSet<MessageId> {
        let id = |n: &u64| MessageId::new(ShardId::new(Class::Incoming, 0), 1_795_000_000_000, *n);
        numbers.iter().map(id).collect()
    }

    #[test]
    fn a_blob_ages_from_look_to_look_and_over_restarts_but_not_by_the_clock() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("unnamed-blobs");
        let began = Instant::now();
        let mut unnamed = Unnamed::load(&file);
        unnamed.look(&ids(&[1, 2]), began, 500, HOUR);
        assert_eq!(unnamed.older_than(Duration::from_millis(1)), []);
        // the wall clock says nothing within a process
        unnamed.look(&ids(&[1, 3]), began + 2 * HOUR, 90 * HOUR_MS, HOUR);
        let old = |unnamed: &Unnamed, hours: u32| {
            let old: BTreeSet<MessageId> = unnamed.older_than(hours * HOUR).into_iter().collect();
            old
        };
        assert_eq!(old(&unnamed, 2), ids(&[1]));
        // a restart half an hour later, and one after a clock has jumped or the machine was away
        let mut now_ms = 90 * HOUR_MS;
        for (passed_ms, third_ms) in [(HOUR_MS / 2, HOUR_MS / 2), (900 * HOUR_MS, HOUR_MS * 3 / 2)]
        {
            save(&file, &unnamed.to_text(now_ms)).unwrap();
            unnamed = Unnamed::load(&file);
            now_ms += passed_ms;
            unnamed.look(&ids(&[1, 2, 3]), began, now_ms, HOUR);
            let third = Duration::from_millis(third_ms);
            let all = unnamed.older_than(third);
            assert_eq!(all, Vec::from_iter(ids(&[1, 3])));
            let all = unnamed.older_than(third + Duration::from_millis(1));
            assert_eq!(all, Vec::from_iter(ids(&[1])));
        }
        // a clock that went back
        save(&file, &unnamed.to_text(now_ms)).unwrap();
        unnamed = Unnamed::load(&file);
        unnamed.look(&ids(&[1, 2, 3]), began, 0, HOUR);
        assert_eq!(old(&unnamed, 2), ids(&[1]));
        assert_eq!(unnamed.older_than(Duration::ZERO).len(), 3);
        // one that was named meanwhile is new, the other one is not
        unnamed.look(&ids(&[2]), began, 0, HOUR);
        unnamed.look(&ids(&[1, 2]), began, 0, HOUR);
        assert_eq!(old(&unnamed, 1), ids(&[2]));
        for id in ids(&[1, 2]) {
            unnamed.forget(id);
        }
        assert_eq!(unnamed.older_than(Duration::ZERO), []);
    }

    #[test]
    fn a_file_that_is_none_makes_nothing_old() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("unnamed-blobs");
        let good = "unnamed-blobs-1 500\n00000000000000000000000000000001 7000\n";
        for (text, count) in [
            (good, 1),
            ("unnamed-blobs-1 500\n", 0),
            ("", 0),
            (&good[..good.len() - 3], 0),
            (&good.replace("blobs-1", "blobs-2"), 0),
            (&good.replace(" 7000", " 7000 8"), 0),
            (&good.replace("00001 ", "0001 "), 0),
            (&good.replace(" 500", ""), 0),
        ] {
            std::fs::write(&file, text).unwrap();
            let mut unnamed = Unnamed::load(&file);
            let all: BTreeSet<MessageId> =
                ["00000000000000000000000000000001".parse().unwrap()].into();
            unnamed.look(&all, Instant::now(), 500, HOUR);
            let old = unnamed.older_than(Duration::from_secs(7));
            assert_eq!(old.len(), count, "{text:?}");
        }
    }
}
