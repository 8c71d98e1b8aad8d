//! The results of attempts that recipients remember: equal ones are one, for very many fail for the same reason. Not part of the
//! state hash; what nobody remembers any more is forgotten here too.

use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::sync::Arc;

use hikyaku_proto::v1::Status;

/// Results of attempts, each once: thousands of recipients fail for the same reason.
#[derive(Debug, Default)]
pub struct Statuses {
    shared: BTreeSet<Shared>,
    /// How many there were after those that nobody has any more were last forgotten.
    swept: usize,
}

#[derive(Debug)]
struct Shared(Arc<Status>);

impl Shared {
    fn key(&self) -> (u32, &str, &str) {
        (self.0.code, &self.0.enhanced, &self.0.text)
    }
}

impl PartialEq for Shared {
    fn eq(&self, other: &Shared) -> bool {
        self.key() == other.key()
    }
}

impl Eq for Shared {}

impl PartialOrd for Shared {
    fn partial_cmp(&self, other: &Shared) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Shared {
    fn cmp(&self, other: &Shared) -> Ordering {
        self.key().cmp(&other.key())
    }
}

impl Statuses {
    /// The one that is equal to `status`.
    pub fn share(&mut self, status: &Arc<Status>) -> Arc<Status> {
        let wanted = Shared(status.clone());
        if let Some(shared) = self.shared.get(&wanted) {
            return shared.0.clone();
        }
        // each is forgotten by the time that as many new ones have come
        if self.shared.len() >= 64 + 2 * self.swept {
            self.shared
                .retain(|shared| Arc::strong_count(&shared.0) > 1);
            self.swept = self.shared.len();
        }
        self.shared.insert(wanted);
        status.clone()
    }
}
