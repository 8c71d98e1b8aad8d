//! Why the leader holds recipients, and how many it holds for each reason. Derived from the messages.

use crate::recipient::Stand;

/// A recipient is elsewhere, and nothing sends mail out.
pub const NO_OUTBOUND: &str = "no-outbound";
/// A group, or the recipients of a mail together, are more than a mail can have.
pub const GROUP_TOO_LARGE: &str = "group-too-large";
/// The recipient in the log is none that this program knows.
pub const MALFORMED: &str = "malformed";
/// Delivering the mail panicked several times.
pub const POISON: &str = "poison";
/// The record of how the recipient ended fits no log.
pub const RECORD_TOO_LARGE: &str = "record-too-large";
/// No mbox of this configuration is the account's.
pub const UNKNOWN_MBOX: &str = "unknown-mbox";

/// Every reason that the leader holds a recipient for.
pub const REASONS: [&str; 6] = [
    NO_OUTBOUND,
    GROUP_TOO_LARGE,
    MALFORMED,
    POISON,
    RECORD_TOO_LARGE,
    UNKNOWN_MBOX,
];

/// Recipients held by the leader, by reason. Those that an operator holds are not counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HeldFor([u64; REASONS.len()]);

impl HeldFor {
    /// A recipient that stood as `before` stands as `now`.
    pub(crate) fn moved(&mut self, before: Option<&Stand>, now: &Stand) {
        if let Some(count) = before.and_then(|stand| self.of(stand)) {
            *count = count.saturating_sub(1);
        }
        if let Some(count) = self.of(now) {
            *count += 1;
        }
    }

    /// Each reason and how many recipients are held for it.
    pub fn counts(&self) -> impl Iterator<Item = (&'static str, u64)> {
        REASONS.into_iter().zip(self.0)
    }

    fn of(&mut self, stand: &Stand) -> Option<&mut u64> {
        let Stand::Held(held) = stand else {
            return None;
        };
        let place = REASONS.iter().position(|reason| *reason == held.reason)?;
        self.0.get_mut(place)
    }
}
