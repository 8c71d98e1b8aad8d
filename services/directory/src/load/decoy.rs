//! The password that an unknown login is compared with.

use std::collections::BTreeMap;

use crate::password;

/// Classes of stored passwords that are counted; the rest is rare.
const CLASSES_MAX: usize = 64;

/// Finds a stored password of the class that most entries have: an unknown login should take as long as a usual one.
#[derive(Default)]
pub(super) struct Decoys(BTreeMap<String, (usize, Box<str>)>);

impl Decoys {
    /// Counts the stored passwords of one entry.
    pub(super) fn count(&mut self, passwords: &[Box<str>]) {
        for stored in passwords {
            let Some(class) = password::class(stored) else {
                continue;
            };
            let is_room = self.0.len() < CLASSES_MAX;
            match self.0.get_mut(&class) {
                Some((count, _)) => *count += 1,
                None if is_room => drop(self.0.insert(class, (1, stored.clone()))),
                None => {}
            }
        }
    }

    /// One of the commonest class; `None` without passwords.
    pub(super) fn most_common(self) -> Option<Box<str>> {
        self.0
            .into_values()
            .max_by_key(|(count, _)| *count)
            .map(|(_, stored)| stored)
    }
}
