//! Return-Path out of the content that comes in (RFC 5321 section 4.4): final delivery puts the only true one in front, and
//! whatever a sender wrote there would pass for it. All other fields, Delivered-To among them, stay as they are.
//!
//! It works on octets as they come and holds back at most [`HELD_BYTES_MAX`] of them. The header ends at the empty line or
//! at the first line that is no field. Next: the body.

use std::borrow::Cow;

const NAME: &[u8] = b"return-path";
/// The name, and white space that RFC 5322 section 4.5 allows before the colon; with more of that it is no Return-Path.
const HELD_BYTES_MAX: usize = NAME.len() + 32;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    LineStart,
    /// In what may become the name sought; these octets are held back.
    Sought,
    /// Behind the whole name, in white space; held back too.
    SoughtSpace,
    /// In the name of another field.
    Name,
    /// In white space behind that.
    NameSpace,
    /// In the body of a field that stays.
    Kept,
    /// In the body of a field that goes.
    Dropped,
    Over,
}

/// Takes Return-Path fields out of a content that comes in pieces.
#[derive(Debug)]
pub struct ReturnPathFilter {
    place: Place,
    /// The last line belonged to a field, which this one may go on with: one that stays, or one that goes.
    field: Option<Place>,
    held: Vec<u8>,
}

impl Default for ReturnPathFilter {
    fn default() -> ReturnPathFilter {
        ReturnPathFilter {
            place: Place::LineStart,
            field: None,
            held: Vec::new(),
        }
    }
}

impl ReturnPathFilter {
    /// True once everything stays as it comes.
    pub fn is_over(&self) -> bool {
        self.place == Place::Over && self.held.is_empty()
    }

    /// What stays of `chunk` and of what was held back, in order.
    pub fn push<'a>(&mut self, chunk: &'a [u8]) -> Vec<Cow<'a, [u8]>> {
        let mut pieces = Vec::new();
        // where what is to stay begins, and the line at hand
        let (mut from, mut line) = (0, 0);
        for (at, &byte) in chunk.iter().enumerate() {
            let before = self.place;
            if before == Place::LineStart {
                line = at;
                if self.field == Some(Place::Dropped) && !is_space(byte) {
                    from = at;
                }
            }
            self.place = self.after(byte, at + self.held.len() - line);
            match (before, self.place) {
                (Place::Over, _) => break,
                (Place::Sought | Place::SoughtSpace, Place::Dropped) => {
                    keep(&mut pieces, chunk, from, line);
                    self.held.clear();
                }
                (_, Place::Sought | Place::SoughtSpace) => {}
                // it was another field, and what was held back of it stays
                (Place::Sought | Place::SoughtSpace, _) if !self.held.is_empty() => {
                    pieces.push(Cow::Owned(std::mem::take(&mut self.held)));
                }
                _ => {}
            }
        }
        match self.place {
            Place::Sought | Place::SoughtSpace => {
                keep(&mut pieces, chunk, from, line);
                self.held
                    .extend_from_slice(chunk.get(line..).unwrap_or_default());
            }
            Place::Dropped => {}
            Place::LineStart if self.field == Some(Place::Dropped) => {}
            _ => keep(&mut pieces, chunk, from, chunk.len()),
        }
        pieces
    }

    /// The content has ended: what was held back stays.
    pub fn end(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.held)
    }

    /// The place after `byte`, the one with this index in its line.
    fn after(&mut self, byte: u8, index: usize) -> Place {
        match self.place {
            Place::LineStart => match (byte, self.field) {
                (b' ' | b'\t', Some(field)) => field,
                (b' ' | b'\t' | b'\r', _) => Place::Over,
                (byte, _) if byte.eq_ignore_ascii_case(&b'r') => Place::Sought,
                _ => name(byte),
            },
            Place::Sought if index >= NAME.len() => self.behind_name(byte, index),
            Place::Sought
                if NAME
                    .get(index)
                    .is_some_and(|c| byte.eq_ignore_ascii_case(c)) =>
            {
                Place::Sought
            }
            Place::SoughtSpace => self.behind_name(byte, index),
            Place::Sought | Place::Name | Place::NameSpace => match (self.place, byte) {
                (_, b':') => {
                    self.field = Some(Place::Kept);
                    Place::Kept
                }
                (_, b' ' | b'\t') => Place::NameSpace,
                (Place::NameSpace, _) => Place::Over,
                _ => name(byte),
            },
            place @ (Place::Kept | Place::Dropped) if byte != b'\n' => place,
            Place::Kept | Place::Dropped => Place::LineStart,
            Place::Over => Place::Over,
        }
    }

    fn behind_name(&mut self, byte: u8, index: usize) -> Place {
        match byte {
            b':' => {
                self.field = Some(Place::Dropped);
                Place::Dropped
            }
            b' ' | b'\t' if index < HELD_BYTES_MAX => Place::SoughtSpace,
            b' ' | b'\t' => Place::NameSpace,
            _ if self.place == Place::SoughtSpace => Place::Over,
            _ => name(byte),
        }
    }
}

/// RFC 5322 section 3.6.8: a name is of printable ASCII.
fn name(byte: u8) -> Place {
    if byte.is_ascii_graphic() {
        Place::Name
    } else {
        Place::Over
    }
}

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t')
}

fn keep<'a>(pieces: &mut Vec<Cow<'a, [u8]>>, chunk: &'a [u8], from: usize, to: usize) {
    match chunk.get(from..to) {
        Some(run) if !run.is_empty() => pieces.push(Cow::Borrowed(run)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::{HELD_BYTES_MAX, ReturnPathFilter};

    fn filtered(pieces: &[&[u8]]) -> String {
        let (mut filter, mut kept) = (ReturnPathFilter::default(), Vec::new());
        for piece in pieces {
            for part in filter.push(piece) {
                kept.extend_from_slice(&part);
            }
            assert!(filter.held.len() <= HELD_BYTES_MAX);
        }
        kept.extend_from_slice(&filter.end());
        String::from_utf8(kept).unwrap()
    }

    #[test]
    fn return_path_goes_and_all_else_stays_at_every_split() {
        let spaces = " ".repeat(40);
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
            ("Return-Pat", "Return-Pat"),
            ("Return-Path", "Return-Path"),
            (
                "Return-Pathology: x\r\nReturn-Path2: y\r\nRe: z\r\nReturn: q\r\n\r\n",
                "Return-Pathology: x\r\nReturn-Path2: y\r\nRe: z\r\nReturn: q\r\n\r\n",
            ),
            (
                "X-Return-Path: x\r\nDelivered-To: y\r\n Return-Path: z\r\n\r\n",
                "X-Return-Path: x\r\nDelivered-To: y\r\n Return-Path: z\r\n\r\n",
            ),
            // the header is over
            (
                "hello world\r\nReturn-Path: x\r\n",
                "hello world\r\nReturn-Path: x\r\n",
            ),
            (
                " hello:\r\nReturn-Path: x\r\n",
                " hello:\r\nReturn-Path: x\r\n",
            ),
            (
                "Return-Path x\r\nReturn-Path: x\r\n",
                "Return-Path x\r\nReturn-Path: x\r\n",
            ),
            (
                "return\r\nReturn-Path: x\r\n",
                "return\r\nReturn-Path: x\r\n",
            ),
            (
                "\u{fc}: x\r\nReturn-Path: x\r\n",
                "\u{fc}: x\r\nReturn-Path: x\r\n",
            ),
            ("\r\nReturn-Path: x\r\n", "\r\nReturn-Path: x\r\n"),
            ("", ""),
            (
                &format!("Return-Path{spaces}: x\r\nTo: a\r\n"),
                &format!("Return-Path{spaces}: x\r\nTo: a\r\n"),
            ),
        ] {
            let bytes = text.as_bytes();
            for at in 0..=bytes.len() {
                for to in at..=bytes.len() {
                    assert_eq!(
                        filtered(&[&bytes[..at], &bytes[at..to], &bytes[to..]]),
                        kept,
                        "{text:?} {at} {to}"
                    );
                }
            }
            let each: Vec<&[u8]> = bytes.chunks(1).collect();
            assert_eq!(filtered(&each), kept, "{text:?} octet by octet");
        }
    }

    #[test]
    fn a_body_is_not_looked_at() {
        let mut filter = ReturnPathFilter::default();
        filter.push(b"From: a\r\n\r\n");
        assert!(filter.is_over());
    }
}
