//! Command lines of SMTP and POP3 out of octets: the same lines for any pieces, and only CRLF ends one.

use bytes::BytesMut;
use hikyaku_access::pop3::{command, sasl};
use hikyaku_serve::line::{self, LineCutter};

use crate::input::pieces;

/// Lines as values that can be compared with the reference's.
#[derive(Debug, PartialEq, Eq)]
enum Line {
    Complete(Vec<u8>),
    TooLong,
    Malformed,
    Endless,
}

/// The first octet says which protocol's, the second in which pieces the rest comes. 0xff stands for many octets.
pub fn run(data: &[u8]) {
    let [which, how, rest @ ..] = data else {
        return;
    };
    let mut stream = Vec::new();
    for &octet in rest {
        match octet {
            // enough for a line that is given up
            0xff if stream.len() > 160 << 10 => {}
            0xff => stream.resize(stream.len() + 300, b'x'),
            octet => stream.push(octet),
        }
    }
    // how much of a line is kept, with its CRLF
    let bytes_max = match which % 3 {
        0 => 1024 + 2,
        1 => command::LINE_BYTES_MAX,
        _ => sasl::RESPONSE_BYTES_MAX,
    };
    let found = lines(&pieces(*how, &stream), bytes_max);
    let mut expected = reference(&stream, bytes_max);
    // where exactly patience ends depends on the pieces; a line below 64 KiB is heard out, one of twice that is not
    if found.last() == Some(&Line::Endless) {
        let end = expected.len().min(found.len() - 1);
        assert_eq!(found[..found.len() - 1], expected[..end]);
        assert!(stream.len() > 64 << 10);
        return;
    }
    if expected.last() == Some(&Line::Endless) {
        expected.pop();
    }
    assert_eq!(found, expected);
}

fn lines(pieces: &[&[u8]], bytes_max: usize) -> Vec<Line> {
    let (mut cutter, mut input, mut lines) = (LineCutter::default(), BytesMut::new(), Vec::new());
    for piece in pieces {
        input.extend_from_slice(piece);
        while let Some(line) = cutter.cut(&mut input, bytes_max) {
            lines.push(match line {
                line::Line::Complete(line) => Line::Complete(line.to_vec()),
                line::Line::TooLong => Line::TooLong,
                line::Line::Malformed => Line::Malformed,
                line::Line::Endless => Line::Endless,
            });
            if matches!(lines.last(), Some(Line::Malformed | Line::Endless)) {
                return lines;
            }
        }
        assert!(input.len() <= bytes_max, "{} octets are kept", input.len());
    }
    lines
}

/// Octet by octet over the whole stream.
fn reference(stream: &[u8], bytes_max: usize) -> Vec<Line> {
    let (mut lines, mut line) = (Vec::new(), Vec::new());
    let mut octets = stream.iter().copied().peekable();
    while let Some(octet) = octets.next() {
        match (octet, octets.peek()) {
            (b'\r', Some(b'\n')) => {
                octets.next();
                let whole = std::mem::take(&mut line);
                lines.push(if whole.len() + 2 > bytes_max {
                    Line::TooLong
                } else {
                    Line::Complete(whole)
                });
            }
            // not known yet
            (b'\r', None) => break,
            (b'\r' | b'\n', _) => {
                lines.push(Line::Malformed);
                return lines;
            }
            (octet, _) => line.push(octet),
        }
    }
    if line.len() > 128 << 10 {
        lines.push(Line::Endless);
    }
    lines
}
