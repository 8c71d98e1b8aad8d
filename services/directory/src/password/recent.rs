//! Costly passwords that were right a moment ago, so that a program that asks for mail every few minutes costs one hash in five.
//!
//! What is kept is a digest keyed by a random number of this process, over the stored passwords and the one that was given; it
//! leaves with the process. Only right answers are kept: a wrong password is hashed each time and takes as long as any other.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::time::Instant;

/// How long an answer counts.
const AGE_MAX: Duration = Duration::from_secs(300);
/// Answers in one generation; there are two. About 64 octets each.
const GENERATION_ENTRIES_MAX: usize = 16 << 10;

/// Half a SHA-256.
pub(super) type Tag = [u8; 16];

/// See the module.
pub(super) struct Recent {
    key: [u8; 32],
    generations: Mutex<Generations>,
}

/// The younger one takes what is new; when it is full the older one goes.
#[derive(Default)]
struct Generations {
    younger: BTreeMap<Tag, Instant>,
    older: BTreeMap<Tag, Instant>,
}

impl Recent {
    pub(super) fn new(key: [u8; 32]) -> Recent {
        Recent {
            key,
            generations: Mutex::default(),
        }
    }

    /// What stands for this question.
    pub(super) fn tag(&self, stored: &[Box<str>], password: &[u8]) -> Tag {
        let mut digest = Sha256::new_with_prefix(self.key);
        for part in stored
            .iter()
            .map(|stored| stored.as_bytes())
            .chain([password])
        {
            digest.update((part.len() as u64).to_le_bytes());
            digest.update(part);
        }
        let whole: [u8; 32] = digest.finalize().into();
        whole.first_chunk().copied().unwrap_or_default()
    }

    /// Whether it was right lately.
    pub(super) fn knows(&self, tag: &Tag, now: Instant) -> bool {
        let generations = self
            .generations
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let since = generations
            .younger
            .get(tag)
            .or_else(|| generations.older.get(tag));
        since.is_some_and(|since| now.saturating_duration_since(*since) < AGE_MAX)
    }

    /// It was right.
    pub(super) fn remember(&self, tag: Tag, now: Instant) {
        let mut generations = self
            .generations
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if generations.younger.len() >= GENERATION_ENTRIES_MAX {
            generations.older = std::mem::take(&mut generations.younger);
        }
        generations.younger.insert(tag, now);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::Instant;

    use super::{AGE_MAX, GENERATION_ENTRIES_MAX, Recent};

    #[test]
    fn parts_do_not_run_together() {
        let recent = Recent::new([1; 32]);
        let tag = |stored: &[&str], password: &[u8]| {
            recent.tag(
                &stored
                    .iter()
                    .map(|&stored| stored.into())
                    .collect::<Vec<Box<str>>>(),
                password,
            )
        };
        assert_ne!(tag(&["ab"], b"c"), tag(&["a"], b"bc"));
        assert_ne!(tag(&["a", "b"], b"c"), tag(&["ab"], b"c"));
        assert_eq!(tag(&["a", "b"], b"c"), tag(&["a", "b"], b"c"));
        assert_ne!(
            tag(&["a"], b"b"),
            Recent::new([2; 32]).tag(&["a".into()], b"b")
        );
    }

    #[test]
    fn it_forgets_by_age_and_never_grows_over_two_generations() {
        let recent = Recent::new([1; 32]);
        let begin = Instant::now();
        let tag = |number: usize| recent.tag(&[], &number.to_le_bytes());
        for number in 0..3 * GENERATION_ENTRIES_MAX {
            recent.remember(tag(number), begin);
        }
        let last = tag(3 * GENERATION_ENTRIES_MAX - 1);
        assert!(recent.knows(&last, begin) && !recent.knows(&tag(0), begin));
        assert!(recent.knows(&last, begin + AGE_MAX - Duration::from_millis(1)));
        assert!(!recent.knows(&last, begin + AGE_MAX));
        let generations = recent.generations.lock().unwrap();
        assert!(generations.younger.len() + generations.older.len() <= 2 * GENERATION_ENTRIES_MAX);
    }
}
