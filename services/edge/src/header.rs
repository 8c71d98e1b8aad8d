//! What a content begins with, made fit to stand under our trace fields: our Received, and at final
//! delivery the only true Return-Path (RFC 5321 section 4.4).
//!
//! | the content has | what becomes of it |
//! |---|---|
//! | a Return-Path field before its first empty line | it is taken out: a sender's would pass for ours |
//! | an mbox `From ` line first | it becomes the field `X-Mailbox-Line`, as Postfix has it |
//! | anything else first that is no field: text, white space, nothing but blanks | an empty line comes before it |
//! | an empty line first | it stays: there is no header |
//!
//! So nothing continues our Received, and no reader that passes over odd lines finds a second
//! Return-Path behind them. All else stays as it is, Received and Delivered-To among them: what
//! earlier hosts wrote stands below ours.
//!
//! It works on octets as they come, and holds back at most [`HELD_BYTES_MAX`] of them. Next: the
//! body.

use std::borrow::Cow;
use std::ops::Range;

const RETURN_PATH: &[u8] = b"return-path";
const MAILBOX_LINE: &[u8] = b"X-Mailbox-Line: ";
const EMPTY_LINE: &[u8] = b"\r\n";
/// Octets of a line that are looked at to see what it is; one that does not show it by then is no
/// field.
const HELD_BYTES_MAX: usize = 128;

/// What a line of a header is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Empty,
    /// It goes on with the line before it (RFC 5322 section 2.2.3).
    Folded,
    ReturnPath,
    Field,
    /// `From ` as it stands between the mails of an mbox (RFC 4155), or `>From `.
    Mailbox,
    Other,
}

/// What becomes of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Kept,
    Dropped,
}

/// Takes a content that comes in pieces, and gives it back as it may stand under our fields.
#[derive(Debug, Default)]
pub struct HeaderFilter {
    /// The header has ended: everything stays as it comes.
    over: bool,
    /// Something has been given back.
    begun: bool,
    /// The line at hand, once it is known what it is.
    fate: Option<Fate>,
    /// The line before it.
    before: Option<Fate>,
    /// The beginning of a line of which nothing is known yet.
    held: Vec<u8>,
}

impl HeaderFilter {
    /// True once everything stays as it comes.
    pub fn is_over(&self) -> bool {
        self.over
    }

    /// What stays of `chunk` and of what was held back, in order.
    pub fn push<'a>(&mut self, chunk: &'a [u8]) -> Vec<Cow<'a, [u8]>> {
        let mut output = Output::of(chunk);
        let mut from = 0;
        while from < chunk.len() && !self.over {
            let rest = chunk.get(from..).unwrap_or_default();
            let line_end = rest.iter().position(|byte| *byte == b'\n');
            let to = line_end.map_or(chunk.len(), |at| from + at + 1);
            self.part(from..to, &mut output);
            from = to;
        }
        output.keep(from..chunk.len());
        output.end()
    }

    /// The content has ended: what was held back stays.
    pub fn end(&mut self) -> Vec<u8> {
        let mut output = Output::of(&[]);
        let held = std::mem::take(&mut self.held);
        if !held.is_empty() {
            self.decide(Kind::Other, &mut output);
            output.put(Cow::Owned(held));
        }
        output.end().concat()
    }

    /// Part of one line, which ends with the line or with the chunk.
    fn part(&mut self, part: Range<usize>, output: &mut Output<'_>) {
        let octets = output.chunk.get(part.clone()).unwrap_or_default();
        let known = match self.fate {
            Some(fate) => Some((fate, 0)),
            None => self.look(octets, output),
        };
        let Some((fate, taken)) = known else {
            return;
        };
        if fate == Fate::Kept {
            output.keep(part.start + taken..part.end);
        }
        match octets.ends_with(b"\n") {
            true => (self.before, self.fate) = (Some(fate), None),
            false => self.fate = Some(fate),
        }
    }

    /// Looks at the beginning of a line: what becomes of it, and how many of `octets` are done
    /// with. `None` holds all of them back.
    fn look(&mut self, octets: &[u8], output: &mut Output<'_>) -> Option<(Fate, usize)> {
        let room = HELD_BYTES_MAX.saturating_sub(self.held.len());
        let begin = octets.get(..room).unwrap_or(octets);
        if self.held.is_empty()
            && let Some(kind) = kind(begin)
        {
            return Some((self.decide(kind, output), 0));
        }
        self.held.extend_from_slice(begin);
        let fate = self.decide(kind(&self.held)?, output);
        let held = std::mem::take(&mut self.held);
        if fate == Fate::Kept {
            output.put(Cow::Owned(held));
        }
        Some((fate, begin.len()))
    }

    /// What becomes of the line at hand, which is a `kind`; adds what must come before it.
    fn decide(&mut self, kind: Kind, output: &mut Output<'_>) -> Fate {
        match kind {
            Kind::ReturnPath => return Fate::Dropped,
            Kind::Folded if self.before == Some(Fate::Dropped) => return Fate::Dropped,
            Kind::Empty => self.over = true,
            Kind::Field => {}
            Kind::Mailbox if !self.begun => output.put(Cow::Borrowed(MAILBOX_LINE)),
            Kind::Folded | Kind::Mailbox | Kind::Other if !self.begun => {
                output.put(Cow::Borrowed(EMPTY_LINE));
                self.over = true;
            }
            Kind::Folded | Kind::Mailbox | Kind::Other => {}
        }
        self.begun = true;
        Fate::Kept
    }
}

/// What the line that begins with `begin` is, if that can be seen.
fn kind(begin: &[u8]) -> Option<Kind> {
    match begin.first() {
        Some(b'\r') => return Some(Kind::Empty),
        Some(b' ' | b'\t') => return Some(Kind::Folded),
        _ => {}
    }
    // RFC 5322 section 3.6.8; white space before the colon is obsolete (section 4.5), but is
    let name_end = begin.iter().position(|byte| !is_name(*byte));
    let (name, behind) = begin.split_at(name_end.unwrap_or(begin.len()));
    let is_return_path = name.eq_ignore_ascii_case(RETURN_PATH);
    match behind.iter().find(|byte| !is_blank(**byte)) {
        Some(b':') if is_return_path => Some(Kind::ReturnPath),
        Some(b':') if !name.is_empty() => Some(Kind::Field),
        Some(_) if is_mailbox(name) && behind.first().is_some_and(|byte| is_blank(*byte)) => {
            Some(Kind::Mailbox)
        }
        Some(_) => Some(Kind::Other),
        None if begin.len() < HELD_BYTES_MAX => None,
        // so many blanks are nobody's, and what they hide may be a colon
        None if is_return_path => Some(Kind::ReturnPath),
        None => Some(Kind::Other),
    }
}

fn is_name(byte: u8) -> bool {
    byte.is_ascii_graphic() && byte != b':'
}

fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t')
}

fn is_mailbox(name: &[u8]) -> bool {
    let quotes = name.iter().take_while(|byte| **byte == b'>').count();
    name.get(quotes..) == Some(b"From")
}

/// What stays of a chunk, in pieces as large as they can be.
struct Output<'a> {
    chunk: &'a [u8],
    /// Stays and has not become a piece yet.
    run: Range<usize>,
    pieces: Vec<Cow<'a, [u8]>>,
}

impl<'a> Output<'a> {
    fn of(chunk: &'a [u8]) -> Output<'a> {
        Output {
            chunk,
            run: 0..0,
            pieces: Vec::new(),
        }
    }

    /// These octets of the chunk stay.
    fn keep(&mut self, octets: Range<usize>) {
        if self.run.end != octets.start {
            self.cut();
            self.run.start = octets.start;
        }
        self.run.end = octets.end;
    }

    /// Adds octets that are not the chunk's.
    fn put(&mut self, octets: Cow<'a, [u8]>) {
        if !octets.is_empty() {
            self.cut();
            self.pieces.push(octets);
        }
    }

    fn cut(&mut self) {
        match self.chunk.get(self.run.clone()) {
            Some(run) if !run.is_empty() => self.pieces.push(Cow::Borrowed(run)),
            _ => {}
        }
        self.run.start = self.run.end;
    }

    fn end(mut self) -> Vec<Cow<'a, [u8]>> {
        self.cut();
        self.pieces
    }
}

#[cfg(test)]
mod tests {
    use super::{HELD_BYTES_MAX, HeaderFilter};

    fn filtered(pieces: &[&[u8]]) -> String {
        let (mut filter, mut kept) = (HeaderFilter::default(), Vec::new());
        for piece in pieces {
            for part in filter.push(piece) {
                kept.extend_from_slice(&part);
            }
            assert!(filter.held.len() <= HELD_BYTES_MAX);
        }
        kept.extend_from_slice(&filter.end());
        String::from_utf8(kept).unwrap()
    }

    /// The same in every way to cut it.
    fn becomes(text: &str, expected: &str) {
        let bytes = text.as_bytes();
        for at in 0..=bytes.len() {
            for to in at..=bytes.len() {
                assert_eq!(
                    filtered(&[&bytes[..at], &bytes[at..to], &bytes[to..]]),
                    expected,
                    "{text:?} {at} {to}"
                );
            }
        }
        let each: Vec<&[u8]> = bytes.chunks(1).collect();
        assert_eq!(filtered(&each), expected, "{text:?} octet by octet");
    }

    #[test]
    fn return_path_goes_from_every_place_before_the_empty_line() {
        let spaces = " ".repeat(140);
        for (text, kept) in [
            (
                "Return-Path: <a@b>\r\nFrom: a\r\n\r\nbody",
                "From: a\r\n\r\nbody",
            ),
            ("From: a\r\nRETURN-PATH:<a@b>\r\n\r\n", "From: a\r\n\r\n"),
            (
                "From: a\r\nreturn-path \t: x\r\n y\r\n\tz\r\nTo: b\r\n c\r\n\r\n",
                "From: a\r\nTo: b\r\n c\r\n\r\n",
            ),
            (
                "Return-Path: a\r\nReturn-Path: b\r\n\r\nReturn-Path: c\r\n",
                "\r\nReturn-Path: c\r\n",
            ),
            ("Return-Path:\r\n", ""),
            ("Return-Path: a\r\n", ""),
            ("Return-Path: a", ""),
            // folded before its value, over a line of nothing but blanks
            ("Return-Path:\r\n \r\n <a@b>\r\nTo: b\r\n", "To: b\r\n"),
            // behind lines that are no fields, which some readers pass over
            (
                "To: b\r\nodd\r\nReturn-Path: x\r\n y\r\n\u{fc}: x\r\nReturn-Path: z\r\n\r\n",
                "To: b\r\nodd\r\n\u{fc}: x\r\n\r\n",
            ),
            (
                "To: b\r\nFrom c Mon\r\n : \r\n: x\r\nReturn-Path: x\r\n\r\n",
                "To: b\r\nFrom c Mon\r\n : \r\n: x\r\n\r\n",
            ),
            // a colon behind more blanks than are looked at
            (
                &format!("To: a\r\nReturn-Path{spaces}: x\r\n y\r\n"),
                "To: a\r\n",
            ),
        ] {
            becomes(text, kept);
        }
    }

    #[test]
    fn all_other_fields_stay() {
        let name = "x".repeat(150);
        for text in [
            "Return-Pathology: x\r\nReturn-Path2: y\r\nRe: z\r\nReturn: q\r\n\r\n",
            "X-Return-Path: x\r\nDelivered-To: y\r\n Return-Path: z\r\n\r\n",
            "Received: x\r\nDelivered-To: y\r\nX-Mailbox-Line: z\r\n\r\n",
            "From : a\r\n>From: b\r\n\r\n",
            "To: a\r\nReturn-Path x\r\nreturn\r\n",
            &format!("To: a\r\n{name}: Return-Path: x\r\n"),
            "\r\nReturn-Path: x\r\n",
            "",
        ] {
            becomes(text, text);
        }
    }

    #[test]
    fn nothing_that_comes_first_goes_on_with_our_fields() {
        for text in [
            " hello:\r\nReturn-Path: x\r\n",
            "\t\r\nSubject: x\r\n",
            "hello world\r\nReturn-Path: x\r\n",
            "Return-Path x\r\nReturn-Path: x\r\n",
            "return\r\nReturn-Path: x\r\n",
            ": x\r\nReturn-Path: x\r\n",
            "\u{fc}: x\r\nReturn-Path: x\r\n",
            "\u{feff}Subject: x\r\nReturn-Path: x\r\n",
            "Return-Pat",
            "x",
        ] {
            becomes(text, &format!("\r\n{text}"));
            // nothing of a field that goes is left to go on with
            becomes(
                &format!("Return-Path: y\r\nReturn-Path: z\r\n{text}"),
                &match text {
                    text if text.starts_with([' ', '\t']) => {
                        let (_, rest) = text.split_once("\r\n").unwrap();
                        rest.replace("Return-Path: x\r\n", "")
                    }
                    text => format!("\r\n{text}"),
                },
            );
        }
    }

    #[test]
    fn the_line_of_an_mbox_becomes_a_field() {
        for line in [
            "From a@b Mon Jan  1 00:00:00 2026",
            ">From a@b",
            ">>From \tx",
            "From ",
        ] {
            becomes(
                &format!("{line}\r\nReturn-Path: x\r\nTo: a\r\n\r\nbody"),
                &format!("X-Mailbox-Line: {line}\r\nTo: a\r\n\r\nbody"),
            );
            // only the first one: another is a line like any other
            becomes(
                &format!("{line}\r\n{line}\r\nReturn-Path: x\r\n\r\n"),
                &format!("X-Mailbox-Line: {line}\r\n{line}\r\n\r\n"),
            );
        }
        becomes("From\r\n", "\r\nFrom\r\n");
        becomes("from a@b\r\n", "\r\nfrom a@b\r\n");
    }

    #[test]
    fn a_body_is_not_looked_at() {
        let mut filter = HeaderFilter::default();
        filter.push(b"From: a\r\n\r\n");
        assert!(filter.is_over());
    }

    #[test]
    fn lines_that_stay_are_one_piece() {
        let text = b"From: a\r\nTo: b\r\n c\r\n\r\nbody\r\n";
        assert_eq!(HeaderFilter::default().push(text).len(), 1);
    }
}
