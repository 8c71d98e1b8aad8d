//! Who is to be told when a mail takes long: recipients that still wait, whose sender has asked for it (RFC 3461 section 4.1)
//! and has not been told. Derived from the messages, by the time they were received.

use std::collections::BTreeSet;
use std::ops::Bound;

use hikyaku_mail::id::MessageId;
use hikyaku_proto::v1::Envelope;

use crate::index::RecipientKey;
use crate::recipient::Slot;

/// Recipients whose delay is to be reported, oldest mail first. At most as many as recipients live.
#[derive(Debug, Default)]
pub struct Delays {
    waiting: BTreeSet<(u64, MessageId, u32)>,
}

/// A mail by its age: when it was received, Unix milliseconds, and which it is.
pub type Aged = (u64, MessageId);

impl Delays {
    /// Takes over what is true of a recipient now. `held`: its message waits for an operator as a whole.
    pub fn refresh(&mut self, key: RecipientKey, slot: &Slot, envelope: &Envelope, held: bool) {
        // nobody has asked, which is usual
        if !slot.has_notify() {
            return;
        }
        let notify = slot.recipient().map(|recipient| recipient.notify);
        let place = (envelope.received_ms, key.0, key.1);
        let wanted = notify.is_some_and(|notify| asks(&notify, "DELAY"))
            && slot.pending_due().is_some()
            && !slot.delay_reported()
            && !held
            && !envelope.reverse_path.is_empty();
        if wanted {
            self.waiting.insert(place);
        } else {
            self.waiting.remove(&place);
        }
    }

    /// The first mail after `after` that was received at `received_ms` or before, and those of its recipients.
    pub fn next(&self, received_ms: u64, after: Option<Aged>) -> Option<(Aged, Vec<u32>)> {
        let after = match after {
            Some((ms, id)) => Bound::Excluded((ms, id, u32::MAX)),
            None => Bound::Unbounded,
        };
        let &(ms, id, _) = self.waiting.range((after, Bound::Unbounded)).next()?;
        if ms > received_ms {
            return None;
        }
        let of_mail = self.waiting.range((ms, id, 0)..=(ms, id, u32::MAX));
        Some(((ms, id), of_mail.map(|place| place.2).collect()))
    }
}

/// Whether a NOTIFY value names `what` (RFC 3461 section 4.1).
pub fn asks(notify: &str, what: &str) -> bool {
    notify
        .split(',')
        .any(|word| word.trim().eq_ignore_ascii_case(what))
}

#[cfg(test)]
mod tests {
    use super::{Delays, asks};
    use crate::recipient::{Slot, fresh};
    use crate::testing::{id, local};
    use hikyaku_proto::v1::{Envelope, RecipientState};

    #[test]
    fn whoever_asked_waits_until_told_settled_or_held() {
        let mut asking = local("a");
        asking.notify = "FAILURE,DELAY".into();
        let mut other = local("b");
        other.notify = "SUCCESS".into();
        let mut slots = fresh(vec![asking, other, local("c")]);
        let envelope = Envelope {
            reverse_path: "s@example.jp".into(),
            received_ms: 1000,
            ..Envelope::default()
        };
        let mut delays = Delays::default();
        for (number, slot) in (0..).zip(&slots) {
            delays.refresh((id(1), number), slot, &envelope, false);
        }
        let first = ((1000, id(1)), vec![0]);
        assert_eq!(delays.next(999, None), None);
        assert_eq!(delays.next(1000, None), Some(first.clone()));
        assert_eq!(delays.next(1000, Some(first.0)), None);
        // whoever is found is found after any mail before it
        delays.refresh((id(2), 0), &slots[0], &envelope, false);
        delays.refresh((id(2), 7), &slots[0], &envelope, false);
        let second = ((1000, id(2)), vec![0, 7]);
        assert_eq!(delays.next(1000, Some(first.0)), Some(second.clone()));
        delays.refresh((id(1), 0), &slots[0], &envelope, true);
        assert_eq!(delays.next(1000, None), Some(second));
        delays.refresh((id(1), 0), &slots[0], &envelope, false);
        assert_eq!(delays.next(1000, None), Some(first));
        let told = RecipientState {
            delay_reported: true,
            ..slots[0].state()
        };
        slots[0] = Slot::new(told);
        for (id, number) in [(id(1), 0), (id(2), 0), (id(2), 7)] {
            delays.refresh((id, number), &slots[0], &envelope, false);
        }
        assert_eq!(delays.next(1000, None), None);
        assert!(asks("success, delay", "DELAY") && !asks("NEVER", "DELAY"));
    }
}
