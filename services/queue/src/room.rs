//! Does what a recipient is expanded to still fit into the record that carries its mail on? All recipients go into one record,
//! those that were expanded too, and a mail that cannot be carried pins the log until it ends.

use hikyaku_proto::v1::{Recipient, Routed};
use prost::Message as _;

use crate::recipient::Slot;

/// Octets of all recipients of a mail with their states: what a record of 1 MiB has room for beside 128 KiB of content, and the
/// same again for what the states grow by when they are held or end.
pub const CARRIED_BYTES_MAX: usize = 768 * 1024;
/// Packed, recipients take at least a third of what they take in a record; so less than this needs no closer look.
const SMALL_BYTES: usize = CARRIED_BYTES_MAX / 4;
/// Octets of a recipient's state beside the recipient itself.
const STATE_BYTES: usize = 32;

/// Octets that these children will take in a record.
pub fn bytes_of(children: &[Recipient], errors_to: Option<&str>) -> usize {
    let each = STATE_BYTES + errors_to.map_or(0, str::len);
    children
        .iter()
        .map(|child| child.encoded_len() + each)
        .sum()
}

/// Whether a mail with these recipients can have those children too.
pub fn fits(slots: &[Slot], routed: &Routed) -> bool {
    let more = bytes_of(&routed.children, routed.errors_to.as_deref());
    let packed: usize = slots.iter().map(Slot::packed_bytes).sum();
    if packed + more <= SMALL_BYTES {
        return true;
    }
    let there: usize = slots.iter().map(Slot::carried_bytes).sum();
    there + more <= CARRIED_BYTES_MAX
}
