//! The bytes of a segment file: one header, then frames, then zeros.
//!
//! All numbers are little endian. Frames start on multiples of 8.
//!
//! ```text
//! segment header, 64 bytes          frame header, 32 bytes
//!  0  magic "hkykwal1"               0  CRC-32C of bytes 4..32, seeded with the segment header's own CRC
//!  8  version (1)                    4  kind: 1 record, 2 bounds, 3 seal; then three zero bytes
//! 12  CRC-32C of the other 60        8  length of the payload
//! 16  incarnation                   12  shard number
//! 24  sequence of the segment       16  position: the record's; the shard's end (bounds); 0 (seal)
//! 32  replaces from this sequence   24  CRC-32C of the payload
//! 40  zeros                         28  synced: everything before this offset was durable when this was written
//! ```
//!
//! The payload of a bounds frame is the shard's start, 8 bytes. The seed ties a frame to its file, so that old bytes of
//! another file can never pass for frames. `synced` tells damage from a torn tail: a good frame that vouches for an
//! offset behind which a bad one lies proves that the bad one had been durable.

/// First bytes of every segment.
const MAGIC: &[u8; 8] = b"hkykwal1";
/// The only version there is.
pub const VERSION: u32 = 1;
/// Bytes of the segment header.
pub const SEGMENT_HEADER: usize = 64;
/// Bytes of a frame header.
pub const FRAME_HEADER: usize = 32;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// One record of a shard.
    Record = 1,
    /// Where a shard starts and ends: a truncation, or restated at the head of a segment.
    Bounds = 2,
    /// The last frame of a segment that has a successor.
    Seal = 3,
}

/// The header of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    /// The log's incarnation.
    pub incarnation: u64,
    /// The segment's number, as in its name.
    pub sequence: u64,
    /// Segments from this number up to this one are superseded by it; equal to `sequence` when there are none.
    pub replaces_from: u64,
}

/// Why a segment header was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadHeader {
    /// Not a segment header, or a damaged one.
    Damaged,
    /// Written by another version.
    Version(u32),
}

impl SegmentHeader {
    /// The header as it stands in the file, and the seed of its frames.
    pub fn encode(&self) -> ([u8; SEGMENT_HEADER], u32) {
        let mut bytes = [0; SEGMENT_HEADER];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.incarnation.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.sequence.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.replaces_from.to_le_bytes());
        let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes[..12]), &bytes[16..]);
        bytes[12..16].copy_from_slice(&crc.to_le_bytes());
        (bytes, crc)
    }

    /// Reads a header and the seed of its frames.
    pub fn decode(bytes: &[u8]) -> Result<(SegmentHeader, u32), BadHeader> {
        let bytes = bytes.get(..SEGMENT_HEADER).ok_or(BadHeader::Damaged)?;
        if &bytes[..8] != MAGIC {
            return Err(BadHeader::Damaged);
        }
        let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes[..12]), &bytes[16..]);
        if crc != u32_at(bytes, 12) {
            return Err(BadHeader::Damaged);
        }
        match u32_at(bytes, 8) {
            VERSION => {}
            version => return Err(BadHeader::Version(version)),
        }
        let header = SegmentHeader {
            incarnation: u64_at(bytes, 16),
            sequence: u64_at(bytes, 24),
            replaces_from: u64_at(bytes, 32),
        };
        Ok((header, crc))
    }
}

/// The header of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// What it is.
    pub kind: Kind,
    /// Bytes of payload.
    pub length: u32,
    /// Shard number.
    pub shard: u32,
    /// Position of the record, or the shard's end.
    pub position: u64,
    /// CRC-32C of the payload.
    pub crc: u32,
    /// The offset up to which the segment was durable when the frame was written.
    pub synced: u32,
}

impl Frame {
    /// Appends the frame header and `payload`, padded, to `buffer`.
    pub fn encode(&self, seed: u32, payload: &[u8], buffer: &mut Vec<u8>) {
        let mut head = [0; FRAME_HEADER];
        head[4] = self.kind as u8;
        head[8..12].copy_from_slice(&self.length.to_le_bytes());
        head[12..16].copy_from_slice(&self.shard.to_le_bytes());
        head[16..24].copy_from_slice(&self.position.to_le_bytes());
        head[24..28].copy_from_slice(&self.crc.to_le_bytes());
        head[28..32].copy_from_slice(&self.synced.to_le_bytes());
        let crc = crc32c::crc32c_append(seed, &head[4..]);
        head[..4].copy_from_slice(&crc.to_le_bytes());
        buffer.extend_from_slice(&head);
        buffer.extend_from_slice(payload);
        buffer.resize(buffer.len().next_multiple_of(8), 0);
    }

    /// Reads the frame header at the head of `bytes`, if a whole one is there. The payload is not looked at.
    pub fn decode(seed: u32, bytes: &[u8]) -> Option<Frame> {
        let head = bytes.get(..FRAME_HEADER)?;
        let kind = match head[4] {
            1 => Kind::Record,
            2 => Kind::Bounds,
            3 => Kind::Seal,
            _ => return None,
        };
        if crc32c::crc32c_append(seed, &head[4..]) != u32_at(head, 0) {
            return None;
        }
        Some(Frame {
            kind,
            length: u32_at(head, 8),
            shard: u32_at(head, 12),
            position: u64_at(head, 16),
            crc: u32_at(head, 24),
            synced: u32_at(head, 28),
        })
    }

    /// Bytes the frame takes in the file.
    pub fn bytes(&self) -> usize {
        frame_bytes(self.length as usize)
    }

    /// The payload of the frame at the head of `bytes`, if it is whole and as written.
    pub fn payload<'a>(&self, bytes: &'a [u8]) -> Option<&'a [u8]> {
        let payload = bytes
            .get(FRAME_HEADER..self.bytes())?
            .get(..self.length as usize)?;
        (crc32c::crc32c(payload) == self.crc).then_some(payload)
    }
}

/// Bytes a frame with `length` bytes of payload takes in the file.
pub fn frame_bytes(length: usize) -> usize {
    (FRAME_HEADER + length).next_multiple_of(8)
}

/// Appends a bounds frame: `shard` starts at `start` and ends before `end`.
pub fn encode_bounds(
    seed: u32,
    shard: u32,
    start: u64,
    end: u64,
    synced: u32,
    buffer: &mut Vec<u8>,
) {
    let payload = start.to_le_bytes();
    let crc = crc32c::crc32c(&payload);
    let frame = Frame {
        kind: Kind::Bounds,
        length: 8,
        shard,
        position: end,
        crc,
        synced,
    };
    frame.encode(seed, &payload, buffer);
}

/// Appends a seal.
pub fn encode_seal(seed: u32, synced: u32, buffer: &mut Vec<u8>) {
    let frame = Frame {
        kind: Kind::Seal,
        length: 0,
        shard: 0,
        position: 0,
        crc: 0,
        synced,
    };
    frame.encode(seed, &[], buffer);
}

/// True when a good frame after `bad` shows that the bytes at `bad` had been durable: not a torn tail but damage.
pub fn was_durable(seed: u32, bytes: &[u8], bad: usize) -> bool {
    let mut offset = bad + 8;
    while offset + FRAME_HEADER <= bytes.len() {
        if let Some(frame) = Frame::decode(seed, &bytes[offset..])
            && frame.synced as usize > bad
        {
            return true;
        }
        offset += 8;
    }
    false
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut number = [0; 4];
    number.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(number)
}

/// The number at the head of the payload of a bounds frame.
pub fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut number = [0; 8];
    number.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(number)
}

#[cfg(test)]
mod tests {
    use super::{
        BadHeader, Frame, Kind, SegmentHeader, encode_bounds, encode_seal, frame_bytes, was_durable,
    };

    #[test]
    fn a_header_reads_back_and_a_changed_one_does_not() {
        let header = SegmentHeader {
            incarnation: 7,
            sequence: 3,
            replaces_from: 2,
        };
        let (bytes, seed) = header.encode();
        assert_eq!(SegmentHeader::decode(&bytes), Ok((header, seed)));
        for at in 0..bytes.len() {
            let mut changed = bytes;
            changed[at] ^= 0x40;
            assert!(SegmentHeader::decode(&changed).is_err(), "byte {at}");
        }
        assert_eq!(SegmentHeader::decode(&bytes[..63]), Err(BadHeader::Damaged));
    }

    #[test]
    fn a_frame_reads_back_and_a_changed_one_does_not() {
        let payload = b"one mail";
        let crc = crc32c::crc32c(payload);
        let frame = Frame {
            kind: Kind::Record,
            length: 8,
            shard: 0x4_0001,
            position: 9,
            crc,
            synced: 64,
        };
        let mut bytes = Vec::new();
        frame.encode(5, payload, &mut bytes);
        assert_eq!(bytes.len(), frame_bytes(8));
        assert_eq!(Frame::decode(5, &bytes), Some(frame));
        assert_eq!(frame.payload(&bytes), Some(&payload[..]));
        assert_eq!(Frame::decode(6, &bytes), None, "another segment's seed");
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            let whole = Frame::decode(5, &changed)
                .and_then(|frame| frame.payload(&changed).map(<[u8]>::to_vec));
            assert_eq!(whole, None, "byte {at}");
        }
    }

    #[test]
    fn only_a_frame_that_vouches_for_the_bad_one_makes_it_damage() {
        let mut bytes = vec![0; 64];
        encode_bounds(1, 0, 1, 1, 0, &mut bytes);
        let torn = bytes.len();
        bytes.resize(torn + 40, 0xee);
        encode_seal(1, torn as u32, &mut bytes);
        assert!(!was_durable(1, &bytes, torn), "the same batch was torn");
        let synced = torn as u32 + 1;
        encode_seal(1, synced, &mut bytes);
        assert!(was_durable(1, &bytes, torn));
    }
}
