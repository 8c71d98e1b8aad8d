//! One message from an attempt id and a size: headers, a body that compresses about two to one, lines of at most 78
//! characters, some of them beginning with dots or looking like an mbox separator, because that is where servers err.
//!
//! The same draft always makes the same bytes, so the ledger needs their hash only.

use crate::ledger::AttemptId;
use crate::random::Random;

/// The header that names the attempt.
pub const LEDGER_HEADER: &str = "X-Ledger";
/// The first body line names it again, for when headers are rewritten.
pub const LEDGER_LINE: &str = "Ledger-Id: ";

const SYLLABLES: [&str; 32] = [
    "ka", "ri", "to", "men", "sho", "ku", "ra", "na", "hi", "kya", "ku", "te", "ga", "mi", "dai",
    "so", "ne", "ji", "ro", "ha", "yo", "wa", "shi", "tsu", "bo", "den", "ki", "re", "ma", "chi",
    "fu", "en",
];
const BASE64: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
/// The widest line the generator writes, without CRLF.
const LINE_MAX: usize = 76;

/// What a message is made of.
#[derive(Debug, Clone, Copy)]
pub struct Draft<'a> {
    /// Names the attempt, and seeds the body.
    pub id: AttemptId,
    /// Bytes of the whole message, headers and CRLFs included. Never made smaller than the headers need.
    pub size: usize,
    /// For From:; empty for the null reverse-path.
    pub reverse_path: &'a str,
    /// For To:.
    pub rcpt: &'a str,
    /// For Date:.
    pub at_ms: u64,
}

/// Writes the message into `content` (emptied first), as it is before dot-stuffing.
pub fn compose(draft: &Draft<'_>, content: &mut Vec<u8>) {
    content.clear();
    content.reserve(draft.size);
    let Draft { id, rcpt, .. } = draft;
    let author = if draft.reverse_path.is_empty() {
        "loadtest@loadtest.invalid"
    } else {
        draft.reverse_path
    };
    let head = format!(
        "{LEDGER_HEADER}: {id}\r\nDate: {date}\r\nFrom: <{author}>\r\nTo: <{rcpt}>\r\nSubject: {id}\r\n\
         Message-ID: <{id}@loadtest.invalid>\r\nMIME-Version: 1.0\r\nContent-Type: text/plain; charset=us-ascii\r\n\
         \r\n{LEDGER_LINE}{id}\r\n",
        date = rfc5322(draft.at_ms),
    );
    content.extend_from_slice(head.as_bytes());
    let mut random = Random::new(id.seed());
    // The last lines are cut so that the size comes out exactly: 160 bytes are always two legal lines.
    while content.len() + 160 < draft.size {
        line(&mut random, content);
    }
    let rest = draft.size.saturating_sub(content.len());
    for width in [rest / 2, rest - rest / 2] {
        if width >= 2 {
            content.extend(std::iter::repeat_n(b'=', width - 2));
            content.extend_from_slice(b"\r\n");
        }
    }
}

/// Appends one natural line: words, base64 or one of the troublemakers.
fn line(random: &mut Random, content: &mut Vec<u8>) {
    let kind = random.below(64);
    match kind {
        0 => content.push(b'.'),
        1 => content.extend_from_slice(b".."),
        2 => {}
        3 => content.extend_from_slice(b"From loadtest Tue Nov 24 05:33:10 2026"),
        4..=27 => base64(random, content),
        _ => {
            if kind < 32 {
                content.push(b'.');
            }
            words(random, content);
        }
    }
    content.extend_from_slice(b"\r\n");
}

fn base64(random: &mut Random, content: &mut Vec<u8>) {
    for _ in 0..8 {
        let mut bits = random.bits();
        // 8 numbers of 9 characters are 72, below LINE_MAX
        for _ in 0..9 {
            content.push(BASE64[(bits & 63) as usize]);
            bits >>= 6;
        }
    }
}

/// Words of a vocabulary of 256, some commoner than others, as in a language.
fn words(random: &mut Random, content: &mut Vec<u8>) {
    // the longest word has 9 letters and a space
    let end = content.len() + LINE_MAX - 10;
    while content.len() < end {
        let bits = random.bits() as usize;
        let word = (bits & 255).min(bits >> 8 & 255);
        for syllable in [word & 31, word >> 3, (word * 7 + 3) & 31] {
            content.extend_from_slice(SYLLABLES[syllable].as_bytes());
        }
        content.push(b' ');
    }
    content.pop();
}

/// Writes `content` as it goes over the wire: a line that begins with a dot gets another one (RFC 5321 section 4.5.2),
/// and the dot line ends it. `wire` is emptied first; `content` must end with CRLF.
pub fn stuff(content: &[u8], wire: &mut Vec<u8>) {
    wire.clear();
    wire.reserve(content.len() + content.len() / 32 + 8);
    for line in content.split_inclusive(|byte| *byte == b'\n') {
        if line.first() == Some(&b'.') {
            wire.push(b'.');
        }
        wire.extend_from_slice(line);
    }
    wire.extend_from_slice(b".\r\n");
}

fn rfc5322(time_ms: u64) -> String {
    let seconds = i64::try_from(time_ms / 1000).unwrap_or(0);
    let time = jiff::Timestamp::from_second(seconds).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
    time.to_zoned(jiff::tz::TimeZone::UTC)
        .strftime("%a, %d %b %Y %H:%M:%S +0000")
        .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(size: usize, id: u128) -> Vec<u8> {
        let mut content = Vec::new();
        let id = AttemptId::from(id);
        let draft = Draft {
            id,
            size,
            reverse_path: "alice@example.jp",
            rcpt: "bob@example.jp",
            at_ms: 1_795_498_390_123,
        };
        compose(&draft, &mut content);
        content
    }

    #[test]
    fn sizes_come_out_exactly_and_lines_are_legal() {
        for size in (crate::size::SIZE_MIN..3000).chain([10240, 100_000, 2 << 20]) {
            let content = made(size, size as u128 * 77);
            assert_eq!(content.len(), size);
            assert!(content.ends_with(b"\r\n"));
            for line in content.split_inclusive(|b| *b == b'\n') {
                assert!(
                    line.ends_with(b"\r\n") && line.len() <= 80,
                    "{}",
                    String::from_utf8_lossy(line)
                );
                assert!(line[..line.len() - 2].iter().all(|b| (32..127).contains(b)));
            }
        }
    }

    #[test]
    fn the_same_draft_makes_the_same_bytes_and_another_id_others() {
        assert_eq!(made(10240, 5), made(10240, 5));
        assert_ne!(made(10240, 5)[700..], made(10240, 6)[700..]);
    }

    #[test]
    fn bodies_compress_about_two_to_one() {
        for id in 1..20u128 {
            let content = made(10240, id << 64);
            let packed = zstd::bulk::compress(&content, 3).unwrap();
            let ratio = content.len() as f64 / packed.len() as f64;
            assert!((1.6..2.5).contains(&ratio), "{ratio}");
        }
    }

    #[test]
    fn bodies_have_lines_that_begin_with_dots() {
        let content = made(100_000, 9);
        let text = String::from_utf8(content).unwrap();
        assert!(
            text.contains("\r\n.\r\n") && text.contains("\r\n..\r\n") && text.contains("\r\nFrom ")
        );
        assert!(text.lines().filter(|l| l.starts_with('.')).count() > 20);
    }

    #[test]
    fn a_dot_at_the_start_of_a_line_is_doubled_and_only_there() {
        let mut wire = Vec::new();
        stuff(b".a\r\nb.\r\n.\r\n..\r\nc\r\n", &mut wire);
        assert_eq!(wire, b"..a\r\nb.\r\n..\r\n...\r\nc\r\n.\r\n");
        stuff(b"x\r\n", &mut wire);
        assert_eq!(wire, b"x\r\n.\r\n");
        // no line of stuffed content is the dot line, except the last one
        let content = made(100_000, 9);
        stuff(&content, &mut wire);
        let dots = wire
            .split_inclusive(|b| *b == b'\n')
            .filter(|l| *l == b".\r\n")
            .count();
        assert_eq!(dots, 1);
    }
}
