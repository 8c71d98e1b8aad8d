//! What an operator must look at, as long as it is so: `hikyaku status` lists it, `/metrics` counts it, the log says when it
//! begins and when it is over.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hikyaku_control::admin::NodeAlarms;
use hikyaku_serve::tasks::Tasks;

/// How often the log is told.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

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
        self.alarms().insert(about, text);
    }

    /// It is over.
    pub fn clear(&self, about: About) {
        self.alarms().remove(&about);
    }

    /// One line each.
    pub fn list(&self) -> Vec<String> {
        self.alarms().values().cloned().collect()
    }

    fn alarms(&self) -> MutexGuard<'_, BTreeMap<About, String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Tells the log of `alarms` until the node drains.
pub fn watch(tasks: &Tasks, alarms: NodeAlarms) {
    let draining = tasks.draining();
    tasks.spawn("alarms", async move {
        tokio::select! {
            biased;
            () = draining.cancelled() => {}
            () = look_again(&alarms) => {}
        }
    });
}

async fn look_again(alarms: &NodeAlarms) {
    let mut told = BTreeMap::new();
    loop {
        tell(&mut told, alarms());
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

/// Logs what of `now` is new and what of `told` is over, each as it was first said.
fn tell(told: &mut BTreeMap<String, String>, now: Vec<String>) {
    let now: BTreeMap<String, String> = now
        .into_iter()
        .map(|line| (without_counts(&line), line))
        .collect();
    told.retain(|about, line| {
        let goes_on = now.contains_key(about);
        if !goes_on {
            tracing::info!(alarm = line, "alarm is over");
        }
        goes_on
    });
    for (about, line) in now {
        told.entry(about).or_insert_with(|| {
            tracing::error!(alarm = line, "alarm");
            line
        });
    }
}

/// What an alarm is about: its line without the words that are numbers, which change as long as it goes on.
fn without_counts(line: &str) -> String {
    let words = line
        .split(' ')
        .filter(|word| !word.bytes().all(|octet| octet.is_ascii_digit()));
    words.collect::<Vec<&str>>().join(" ")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::tell;

    #[test]
    fn an_alarm_is_the_same_while_only_its_counts_change() {
        let mut told = BTreeMap::new();
        let said = |told: &BTreeMap<String, String>| told.values().cloned().collect::<Vec<_>>();
        let lines = |lines: &[&str]| lines.iter().map(|line| (*line).to_owned()).collect();
        tell(&mut told, lines(&["the log has 91 of 100 octets"]));
        tell(
            &mut told,
            lines(&["the log has 95 of 100 octets", "mbox-1 has not answered"]),
        );
        assert_eq!(
            said(&told),
            ["mbox-1 has not answered", "the log has 91 of 100 octets"]
        );
        tell(
            &mut told,
            lines(&["mbox-1 has not answered", "mbox-2 has not answered"]),
        );
        assert_eq!(
            said(&told),
            ["mbox-1 has not answered", "mbox-2 has not answered"]
        );
        tell(&mut told, Vec::new());
        assert!(told.is_empty());
    }
}
