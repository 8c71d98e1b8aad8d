//! Message content as a multi-line reply (RFC 1939 section 3): dot-stuffed, ended by a lone dot, cut for TOP.
//!
//! Octets are never changed, only dots are added. Stored mail has CRLF line ends; should a lone LF have come in below the edge
//! (an import), a dot after it is stuffed as well, so that a client that takes LF for a line end cannot be made to see the end
//! of the reply inside a message.

/// Encodes the content of one message, piece by piece.
#[derive(Debug)]
pub struct Multiline {
    part: Part,
    /// Octets of the line so far.
    line_bytes: u64,
    last: u8,
    ended_by_crlf: bool,
}

/// How far the encoding is, for TOP.
#[derive(Debug, PartialEq, Eq)]
enum Part {
    /// All of the message is wanted.
    Whole,
    /// In the header; so many lines of the body are wanted after it.
    Header { body_lines: u32 },
    /// In the body; so many lines are still wanted.
    Body { lines_left: u32 },
    /// Everything wanted is encoded.
    Done,
}

impl Multiline {
    /// For RETR: the whole message.
    pub fn whole() -> Multiline {
        Multiline::new(Part::Whole)
    }

    /// For TOP: the header, the empty line, and `body_lines` lines of the body.
    pub fn top(body_lines: u32) -> Multiline {
        Multiline::new(Part::Header { body_lines })
    }

    fn new(part: Part) -> Multiline {
        Multiline {
            part,
            line_bytes: 0,
            last: b'\n',
            ended_by_crlf: true,
        }
    }

    /// Whether nothing more is wanted.
    pub fn is_done(&self) -> bool {
        self.part == Part::Done
    }

    /// Encodes the next `piece` of the message onto `out`, which grows by at most twice its length.
    pub fn push(&mut self, piece: &[u8], out: &mut Vec<u8>) {
        let mut rest = piece;
        while !rest.is_empty() && !self.is_done() {
            let end = memchr::memchr(b'\n', rest).map_or(rest.len(), |feed| feed + 1);
            let (line, after) = rest.split_at(end);
            if self.line_bytes == 0 && line.first() == Some(&b'.') {
                out.push(b'.');
            }
            out.extend_from_slice(line);
            self.advance(line);
            rest = after;
        }
    }

    /// Notes that `line`, which is not empty and holds LF at most at its end, was written.
    fn advance(&mut self, line: &[u8]) {
        let before = match line {
            [.., before, _] => *before,
            _ => self.last,
        };
        self.line_bytes += line.len() as u64;
        self.last = line.last().copied().unwrap_or(self.last);
        self.ended_by_crlf = before == b'\r' && self.last == b'\n';
        if self.last != b'\n' {
            return;
        }
        let empty = self.line_bytes == 1 || (self.line_bytes == 2 && self.ended_by_crlf);
        self.line_bytes = 0;
        self.part = match self.part {
            Part::Header { body_lines: 0 } if empty => Part::Done,
            Part::Header { body_lines } if empty => Part::Body {
                lines_left: body_lines,
            },
            Part::Header { body_lines } => Part::Header { body_lines },
            Part::Body { lines_left } if lines_left <= 1 => Part::Done,
            Part::Body { lines_left } => Part::Body {
                lines_left: lines_left - 1,
            },
            Part::Whole => Part::Whole,
            Part::Done => Part::Done,
        };
    }

    /// Ends the reply: CRLF if the content did not end with one, and the lone dot.
    pub fn finish(self, out: &mut Vec<u8>) {
        if !self.ended_by_crlf {
            out.extend_from_slice(b"\r\n");
        }
        out.extend_from_slice(b".\r\n");
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop, prop_oneof, proptest};
    use proptest::strategy::{Just, Strategy};

    use super::Multiline;

    fn encode(mut encoder: Multiline, pieces: &[&[u8]]) -> Vec<u8> {
        let mut out = Vec::new();
        for piece in pieces {
            let before = out.len();
            encoder.push(piece, &mut out);
            assert!(out.len() - before <= 2 * piece.len());
        }
        encoder.finish(&mut out);
        out
    }

    /// What a client makes of a multi-line reply whose lines end with `end`: `None` unless it ends exactly at the end.
    fn decode(wire: &[u8], end: &str) -> Option<Vec<u8>> {
        let (mut rest, mut content) = (wire, Vec::new());
        loop {
            let at = rest
                .windows(end.len())
                .position(|window| window == end.as_bytes())?
                + end.len();
            let (line, after) = rest.split_at(at);
            match line {
                b".\r\n" => return after.is_empty().then_some(content),
                [b'.', unstuffed @ ..] => content.extend_from_slice(unstuffed),
                _ => content.extend_from_slice(line),
            }
            rest = after;
        }
    }

    /// TOP by the book: lines up to the empty one, then `n` more.
    fn reference_top(content: &[u8], n: u32) -> Vec<u8> {
        let lines: Vec<&[u8]> = content.split_inclusive(|octet| *octet == b'\n').collect();
        let header = lines
            .iter()
            .position(|line| matches!(*line, b"\r\n" | b"\n"))
            .map_or(lines.len(), |empty| empty + 1);
        lines
            .into_iter()
            .take(header.saturating_add(n as usize))
            .collect::<Vec<_>>()
            .concat()
    }

    #[test]
    fn whole_messages() {
        for (content, wire) in [
            ("", ".\r\n"),
            ("a\r\n", "a\r\n.\r\n"),
            ("a", "a\r\n.\r\n"),
            ("a\n", "a\n\r\n.\r\n"),
            ("a\r", "a\r\r\n.\r\n"),
            (".\r\n", "..\r\n.\r\n"),
            ("..\r\n.a\r\n", "...\r\n..a\r\n.\r\n"),
            ("a.b\r\n", "a.b\r\n.\r\n"),
            ("a\n.\r\nb\r\n", "a\n..\r\nb\r\n.\r\n"),
            ("\r\n\r\n", "\r\n\r\n.\r\n"),
        ] {
            assert_eq!(
                encode(Multiline::whole(), &[content.as_bytes()]),
                wire.as_bytes(),
                "{content:?}"
            );
        }
    }

    #[test]
    fn tops() {
        let mail = "A: 1\r\nB: 2\r\n\r\n.1\r\n2\r\n3";
        for (n, wire) in [
            (0, "A: 1\r\nB: 2\r\n\r\n.\r\n"),
            (1, "A: 1\r\nB: 2\r\n\r\n..1\r\n.\r\n"),
            (2, "A: 1\r\nB: 2\r\n\r\n..1\r\n2\r\n.\r\n"),
            (3, "A: 1\r\nB: 2\r\n\r\n..1\r\n2\r\n3\r\n.\r\n"),
            (u32::MAX, "A: 1\r\nB: 2\r\n\r\n..1\r\n2\r\n3\r\n.\r\n"),
        ] {
            assert_eq!(
                encode(Multiline::top(n), &[mail.as_bytes()]),
                wire.as_bytes(),
                "{n}"
            );
        }
        assert_eq!(encode(Multiline::top(0), &[b"A: 1\r\n"]), b"A: 1\r\n.\r\n");
    }

    /// Content rich in what matters here.
    fn content(lone: bool) -> impl Strategy<Value = Vec<u8>> {
        let piece = prop_oneof![
            4 => Just(&b"\r\n"[..]), 4 => Just(&b"."[..]), 2 => Just(&b"x"[..]), 1 => Just(&b"\r\n\r\n"[..]),
            1 => Just(if lone { &b"\n"[..] } else { &b"y"[..] }), 1 => Just(if lone { &b"\r"[..] } else { &b"z"[..] }),
        ];
        prop::collection::vec(piece, 0..40).prop_map(|pieces| pieces.concat())
    }

    fn ended(mut content: Vec<u8>) -> Vec<u8> {
        if !content.is_empty() && !content.ends_with(b"\r\n") {
            content.extend_from_slice(b"\r\n");
        }
        content
    }

    proptest! {
        #[test]
        fn what_a_client_decodes_is_the_content(content in content(false), n in prop_oneof![0u32..5, any::<u32>()],
            cut in prop::collection::vec(0usize..120, 2)) {
            let (a, b) = (cut[0].min(cut[1]).min(content.len()), cut[0].max(cut[1]).min(content.len()));
            let pieces = [&content[..a], &content[a..b], &content[b..]];
            for end in ["\r\n", "\n"] {
                assert_eq!(decode(&encode(Multiline::whole(), &pieces), end), Some(ended(content.clone())));
                assert_eq!(decode(&encode(Multiline::top(n), &pieces), end), Some(ended(reference_top(&content, n))));
            }
        }

        #[test]
        fn lone_line_ends_never_end_the_reply(content in content(true), n in any::<u32>()) {
            for encoder in [Multiline::whole(), Multiline::top(n)] {
                let wire = encode(encoder, &[&content]);
                assert!(decode(&wire, "\r\n").is_some() && decode(&wire, "\n").is_some(), "{wire:?}");
            }
            // a client that takes LF for a line end gets every octet
            assert_eq!(decode(&encode(Multiline::whole(), &[&content]), "\n"), Some(ended(content)));
        }
    }
}
