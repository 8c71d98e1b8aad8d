//! Command lines out of a byte stream, for SMTP and POP3.
//!
//! Only CRLF ends a line (RFC 5321 section 2.3.8, RFC 1939 section 3). A lone CR or LF is reported the moment it is seen, so that
//! two parsers never disagree about where a command ended.

use bytes::{Buf, Bytes, BytesMut};

/// So much of one line is discarded before the peer is given up.
const LINE_BYTES_DISCARDED_MAX: usize = 64 << 10;

/// What the input begins with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Line {
    /// A line, without its CRLF.
    Complete(Bytes),
    /// A line over its limit; it has ended, and what it said is gone.
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
    /// Cuts the first line of at most `bytes_max` octets, its CRLF included, off `input`; `None` when more input must come first,
    /// and then no more than that is kept.
    pub fn cut(&mut self, input: &mut BytesMut, bytes_max: usize) -> Option<Line> {
        let unseen = input.get(self.scanned..).unwrap_or_default();
        let Some(found) = memchr::memchr2(b'\r', b'\n', unseen) else {
            self.scanned = input.len();
            return self.keep_bounded(input, bytes_max);
        };
        let end = self.scanned + found;
        match input.get(end..) {
            Some([b'\r', b'\n', ..]) => Some(self.complete(input, end, bytes_max)),
            Some([b'\r']) => {
                // the next octet will explain it
                self.scanned = end;
                self.keep_bounded(input, bytes_max)
            }
            _ => Some(Line::Malformed),
        }
    }

    fn keep_bounded(&mut self, input: &mut BytesMut, bytes_max: usize) -> Option<Line> {
        if input.len() > bytes_max {
            input.advance(self.scanned);
            self.discarded += self.scanned;
            self.scanned = 0;
        }
        (self.discarded > LINE_BYTES_DISCARDED_MAX).then_some(Line::Endless)
    }

    fn complete(&mut self, input: &mut BytesMut, end: usize, bytes_max: usize) -> Line {
        let fits = self.discarded == 0 && end + 2 <= bytes_max;
        *self = LineCutter::default();
        let line = input.split_to(end).freeze();
        input.advance(2);
        if fits {
            Line::Complete(line)
        } else {
            Line::TooLong
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::{Bytes, BytesMut};

    use super::{Line, LineCutter};

    /// RFC 2449 section 4
    const LINE_BYTES_MAX: usize = 255;

    fn lines(pieces: &[&[u8]]) -> (Vec<Line>, usize) {
        let (mut cutter, mut input, mut lines) =
            (LineCutter::default(), BytesMut::new(), Vec::new());
        let mut kept = 0;
        for piece in pieces {
            input.extend_from_slice(piece);
            while let Some(line) = cutter.cut(&mut input, LINE_BYTES_MAX) {
                let last = matches!(line, Line::Malformed | Line::Endless);
                lines.push(line);
                if last {
                    return (lines, kept);
                }
            }
            kept = kept.max(input.len());
        }
        (lines, kept)
    }

    fn complete(text: &str) -> Line {
        Line::Complete(Bytes::copy_from_slice(text.as_bytes()))
    }

    #[test]
    fn where_the_input_is_split_never_matters() {
        for (text, expected) in [
            ("NOOP\r\nQUIT\r\n", vec![complete("NOOP"), complete("QUIT")]),
            ("\r\n\r\n", vec![complete(""), complete("")]),
            ("USER x\nPASS y\r\n", vec![Line::Malformed]),
            ("USER x\rPASS y\r\n", vec![Line::Malformed]),
            ("NOOP\r\r\n", vec![Line::Malformed]),
            (
                "NOOP\r\n\nQUIT\r\n",
                vec![complete("NOOP"), Line::Malformed],
            ),
        ] {
            let bytes = text.as_bytes();
            for a in 0..=text.len() {
                for b in a..=text.len() {
                    assert_eq!(
                        lines(&[&bytes[..a], &bytes[a..b], &bytes[b..]]).0,
                        expected,
                        "{text:?} {a} {b}"
                    );
                }
            }
        }
    }

    // B-223: 255 octets with CRLF are a line, 256 are not
    #[test]
    fn the_longest_line() {
        let fits = "x".repeat(LINE_BYTES_MAX - 2);
        assert_eq!(
            lines(&[format!("{fits}\r\n").as_bytes()]).0,
            [complete(&fits)]
        );
        assert_eq!(
            lines(&[format!("{fits}x\r\nNOOP\r\n").as_bytes()]).0,
            [Line::TooLong, complete("NOOP")]
        );
        assert_eq!(
            lines(&[fits.as_bytes(), b"x\r", b"\nNOOP\r\n"]).0,
            [Line::TooLong, complete("NOOP")]
        );
    }

    #[test]
    fn long_lines_are_discarded_and_endless_ones_given_up() {
        let long = vec![b'x'; 1000];
        let mut pieces: Vec<&[u8]> = vec![&long; 60];
        pieces.push(b"\r\nNOOP\r\n");
        assert_eq!(lines(&pieces).0, [Line::TooLong, complete("NOOP")]);
        assert_eq!(lines(&[&long, &long, b"x\ny\r\n"]).0, [Line::Malformed]);
        let (lines, kept) = lines(&vec![&long[..]; 1000]);
        assert_eq!(lines, [Line::Endless]);
        assert!(kept <= LINE_BYTES_MAX, "{kept}");
    }
}
