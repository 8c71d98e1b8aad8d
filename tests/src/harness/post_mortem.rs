//! What the log of a dead process says about every mail, read from a copy with the product's own log and queue.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use hikyaku_log::wal::{Wal, WalOptions};
use hikyaku_log::{Class, Log, Position, ShardId};
use hikyaku_mail::id::MessageId;
use hikyaku_proto::v1::Record;
use hikyaku_proto::v1::record::Command;
use hikyaku_queue::machine::{QueueMachine, QueueOptions};
use hikyaku_shard::machine::Machine;
use prost::Message as _;

use super::site::Site;
use super::strace::Written;

/// Free bytes of a file system in memory that is worth using.
const SCRATCH_MIN: u64 = 2 << 30;
/// Bytes of a frame before its payload.
const FRAME_HEADER: usize = 32;

/// The moments after which something is true for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum CommitPoint {
    /// The site has taken responsibility: `Accept`.
    A,
    /// The mail is in a mailbox: `Deliver`.
    B,
    /// The queue knows: `Attempted`, `Bounce`, `Routed`.
    C,
}

/// The state of all mail at the moment of death.
#[derive(Debug, Default)]
pub struct PostMortem {
    /// Queue ids of messages with a recipient that is not settled.
    pub unsettled: BTreeSet<String>,
    /// Queue ids of all messages whose `Accept` the log still holds.
    pub accepted: BTreeSet<String>,
    /// Deliveries that a mailbox has and the queue does not know of.
    pub delivered_unknown: usize,
}

/// Reads the log of `site`, whose process is dead.
///
/// # Panics
/// When it cannot be read: then the product could not either.
pub fn examine(site: &Site) -> PostMortem {
    let copy = tempfile::tempdir_in(scratch()).expect("a directory");
    for entry in std::fs::read_dir(site.data().join("log")).expect("the log") {
        let entry = entry.expect("a segment");
        std::fs::copy(entry.path(), copy.path().join(entry.file_name())).expect("a copy");
    }
    let options = WalOptions {
        segment_bytes: site.mib("log", "segment_bytes"),
        wal_bytes_max: site.mib("log", "bytes_max"),
        ..WalOptions::new(0)
    };
    let wal = Wal::open(copy.path(), options).expect("the dead process's log opens");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .expect("a runtime");
    runtime.block_on(judge(&wal))
}

async fn judge(wal: &Wal) -> PostMortem {
    let incoming = ShardId::new(Class::Incoming, 0);
    let mut queue = QueueMachine::new(QueueOptions::default());
    let bounds = wal.bounds(incoming);
    let mut post_mortem = PostMortem::default();
    let mut next = queue
        .resume(wal.incarnation(), bounds)
        .expect("the queue replays");
    while next < bounds.end {
        let record = wal.read_at(incoming, next).await.expect("a record");
        let decoded = Record::decode(record.payload.clone()).expect("a record of this version");
        if let Some(Command::Accept(accept)) = &decoded.command {
            let id = MessageId::from_bytes(&accept.message_id).expect("a queue id");
            post_mortem.accepted.insert(id.to_string());
        }
        queue.apply(record.stamp, decoded).expect("it applies");
        next = next.next();
    }
    let mut waiting = BTreeSet::new();
    for (id, message) in queue.index().messages().iter() {
        for (number, slot) in message.slots.iter().enumerate() {
            if !slot.is_terminal() {
                let number = u32::try_from(number).expect("few recipients");
                waiting.insert([&id.to_bytes()[..], &number.to_be_bytes()].concat());
                post_mortem.unsettled.insert(id.to_string());
            }
        }
    }
    for index in 0..16 {
        let shard = ShardId::new(Class::Mbox, index);
        let bounds = wal.bounds(shard);
        let mut next = bounds.start;
        while next < bounds.end {
            if let Some(Command::Deliver(deliver)) = command_at(wal, shard, next).await
                && waiting.contains(&deliver.delivery_id[..])
            {
                post_mortem.delivered_unknown += 1;
            }
            next = next.next();
        }
    }
    post_mortem
}

async fn command_at(wal: &Wal, shard: ShardId, position: Position) -> Option<Command> {
    let record = wal.read_at(shard, position).await.expect("a record");
    Record::decode(record.payload)
        .expect("a record of this version")
        .command
}

/// Which commit points the last writes of a dead thread were about, by the frames in them: whole writes from the file
/// where they were done, the shown beginning where not. Writes to other files than the log count for none.
pub fn commit_points(writes: &[Written]) -> BTreeMap<CommitPoint, usize> {
    let mut counts = BTreeMap::new();
    for write in writes {
        if write
            .path
            .extension()
            .is_none_or(|extension| extension != "wal")
        {
            continue;
        }
        let mut bytes = write.shown.clone();
        if write.done {
            bytes = vec![0; write.length as usize];
            let file = File::open(&write.path).expect("the segment written last");
            file.read_exact_at(&mut bytes, write.offset)
                .expect("the bytes written last");
        }
        for point in frames(&bytes) {
            *counts.entry(point).or_default() += 1;
        }
    }
    counts
}

fn frames(mut bytes: &[u8]) -> Vec<CommitPoint> {
    let mut found = Vec::new();
    while bytes.len() >= FRAME_HEADER {
        let length = u32::from_le_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]) as usize;
        let payload = &bytes[FRAME_HEADER..bytes.len().min(FRAME_HEADER + length)];
        if bytes[4] == 1 {
            found.extend(commit_point(payload));
        }
        let end = (FRAME_HEADER + length).next_multiple_of(8);
        bytes = bytes.get(end..).unwrap_or_default();
    }
    found
}

/// What a record commits; of one that is cut off the first field of the command says it.
fn commit_point(payload: &[u8]) -> Option<CommitPoint> {
    // version, cmd_id (tag 0x12, 16 bytes), time_ms (tag 0x19, 8 bytes), then the command
    let mut rest = payload;
    loop {
        let (tag, after) = varint(rest)?;
        rest = match (tag >> 3, tag & 7) {
            (1, 0) => varint(after)?.1,
            (2, 2) => {
                let (length, after) = varint(after)?;
                after.get(length as usize..)?
            }
            (3, 1) => after.get(8..)?,
            (20, 2) => return Some(CommitPoint::A),
            (51, 2) => return Some(CommitPoint::B),
            (22..=24, 2) => return Some(CommitPoint::C),
            _ => return None,
        };
    }
}

fn varint(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let mut value = 0;
    for (at, byte) in bytes.iter().enumerate().take(10) {
        value |= u64::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            return Some((value, &bytes[at + 1..]));
        }
    }
    None
}

/// Where files that need not survive anything are fastest, if there is room for those of several sites: containers often have
/// 64 MiB of memory for files.
pub fn scratch() -> std::path::PathBuf {
    let memory = Path::new("/dev/shm");
    match rustix::fs::statvfs(memory) {
        Ok(room) if room.f_bavail.saturating_mul(room.f_frsize) >= SCRATCH_MIN => memory.to_owned(),
        _ => std::env::temp_dir(),
    }
}

#[cfg(test)]
mod tests {
    use super::{CommitPoint, commit_point};
    use hikyaku_proto::v1::record::Command;
    use hikyaku_proto::v1::{Accept, Attempted, Barrier, Deliver, Record};
    use prost::Message as _;

    #[test]
    fn records_are_told_apart_even_when_cut_off() {
        let of = |command| {
            let record = Record {
                version: 1,
                cmd_id: vec![7; 16].into(),
                time_ms: 5,
                command: Some(command),
            };
            let bytes = record.encode_to_vec();
            commit_point(&bytes[..bytes.len().min(40)])
        };
        let accept = Accept {
            tenant: "x".repeat(100),
            ..Accept::default()
        };
        assert_eq!(of(Command::Accept(accept)), Some(CommitPoint::A));
        assert_eq!(
            of(Command::Deliver(Deliver::default())),
            Some(CommitPoint::B)
        );
        assert_eq!(
            of(Command::Attempted(Attempted::default())),
            Some(CommitPoint::C)
        );
        assert_eq!(of(Command::Barrier(Barrier {})), None);
    }
}
