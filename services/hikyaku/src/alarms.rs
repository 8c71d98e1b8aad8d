//! What an operator must look at, as long as it is so: `hikyaku status` lists it, `/metrics` counts it, the log says it once.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What an alarm is about; one of each at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum About {
    /// The configuration was not taken.
    Configuration,
    /// Certificate or key were not taken.
    Certificate,
    /// The certificate that is served ends soon, or has ended.
    Expiry,
}

/// The alarms of this node. Clones share them.
#[derive(Clone, Default)]
pub struct Alarms(Arc<Mutex<BTreeMap<About, String>>>);

impl Alarms {
    /// Raises an alarm, or says something new about one.
    pub fn raise(&self, about: About, text: String) {
        let mut alarms = self.alarms();
        if alarms.get(&about) != Some(&text) {
            tracing::error!(alarm = text, "alarm");
            alarms.insert(about, text);
        }
    }

    /// It is over.
    pub fn clear(&self, about: About) {
        if let Some(text) = self.alarms().remove(&about) {
            tracing::info!(alarm = text, "alarm is over");
        }
    }

    /// One line each.
    pub fn list(&self) -> Vec<String> {
        self.alarms().values().cloned().collect()
    }

    fn alarms(&self) -> MutexGuard<'_, BTreeMap<About, String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
