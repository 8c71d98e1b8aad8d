//! Command lines out of a byte stream. Only CRLF ends a line (RFC 5321 section 2.3.8): a lone CR or LF is reported the
//! moment it is seen, so that two parsers never disagree about where a command ended.

use bytes::{Buf, Bytes, BytesMut};

/// A line this long is kept whole so that the command grammar can judge it; more is discarded as it comes.
const LINE_BYTES_KEPT_MAX: usize = 1024;
/// So much of one line is discarded before the peer is given up.
const LINE_BYTES_DISCARDED_MAX: usize = 64 << 10;

/// What the input begins with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Line {
    /// A line, without its CRLF.
    Complete(Bytes),
    /// A line that was too long to keep; it has ended.
    TooLong,
    /// A CR without LF or an LF without CR.
    Malformed,
    /// A line that does not end.
    Endless,
}

/// Cuts lines off an input that grows at its end.
#[derive(Debug, Default)]
pub struct LineCutter {
    scanned: usize,
    discarded: usize,
}

impl LineCutter {
    /// Cuts the first line off `input`; `None` when more input must come first.
    pub fn cut(&mut self, input: &mut BytesMut) -> Option<Line> {
        let found = memchr::memchr2(b'\r', b'\n', input.get(self.scanned..)?)
            .map(|index| self.scanned + index);
        match (found, found.and_then(|end| input.get(end..end + 2))) {
            (Some(end), Some(b"\r\n")) => return Some(self.complete(input, end)),
            // a CR that the next octet will explain
            (Some(end), None) if input.get(end) == Some(&b'\r') => self.scanned = end,
            (Some(_), _) => return Some(Line::Malformed),
            (None, _) => self.scanned = input.len(),
        }
        if input.len() > LINE_BYTES_KEPT_MAX {
            input.advance(self.scanned);
            self.discarded += self.scanned;
            self.scanned = 0;
        }
        (self.discarded > LINE_BYTES_DISCARDED_MAX).then_some(Line::Endless)
    }

    fn complete(&mut self, input: &mut BytesMut, end: usize) -> Line {
        let whole = self.discarded == 0 && end <= LINE_BYTES_KEPT_MAX;
        *self = LineCutter::default();
        let line = input.split_to(end).freeze();
        input.advance(2);
        if whole {
            Line::Complete(line)
        } else {
            Line::TooLong
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Line, LineCutter};
    use bytes::{Bytes, BytesMut};

    fn lines(pieces: &[&[u8]]) -> (Vec<Line>, usize) {
        let (mut cutter, mut input, mut lines) =
            (LineCutter::default(), BytesMut::new(), Vec::new());
        let mut kept_max = 0;
        for piece in pieces {
            input.extend_from_slice(piece);
            while let Some(line) = cutter.cut(&mut input) {
                let last = matches!(line, Line::Malformed | Line::Endless);
                lines.push(line);
                if last {
                    return (lines, kept_max);
                }
            }
            kept_max = kept_max.max(input.len());
        }
        (lines, kept_max)
    }

    fn complete(text: &'static str) -> Line {
        Line::Complete(Bytes::from_static(text.as_bytes()))
    }

    #[test]
    fn the_split_never_matters() {
        for (text, expected) in [
            ("NOOP\r\nQUIT\r\n", vec![complete("NOOP"), complete("QUIT")]),
            ("\r\n\r\n", vec![complete(""), complete("")]),
            ("EHLO x\nMAIL\r\n", vec![Line::Malformed]),
            ("EHLO x\rMAIL\r\n", vec![Line::Malformed]),
            ("NOOP\r\r\n", vec![Line::Malformed]),
            (
                "NOOP\r\n\nQUIT\r\n",
                vec![complete("NOOP"), Line::Malformed],
            ),
        ] {
            for a in 0..=text.len() {
                for b in a..=text.len() {
                    let bytes = text.as_bytes();
                    assert_eq!(
                        lines(&[&bytes[..a], &bytes[a..b], &bytes[b..]]).0,
                        expected,
                        "{text:?} {a} {b}"
                    );
                }
            }
        }
    }

    #[test]
    fn long_lines_are_discarded_and_endless_ones_given_up() {
        let long = vec![b'x'; 1000];
        let mut pieces: Vec<&[u8]> = vec![&long; 60];
        pieces.push(b"\r\nNOOP\r\n");
        assert_eq!(lines(&pieces).0, [Line::TooLong, complete("NOOP")]);
        assert_eq!(lines(&[&long, &long, b"x\ny\r\n"]).0, [Line::Malformed]);
        let (lines, kept_max) = lines(&vec![&long[..]; 1000]);
        assert_eq!(lines, [Line::Endless]);
        assert!(kept_max <= 1024, "{kept_max}");
    }
}
