//! The content between 354 and the final dot (RFC 5321 sections 4.1.1.4 and 4.5.2), or in the chunks of BDAT (RFC 3030),
//! octet-exact and without I/O.
//!
//! Only CRLF.CRLF ends the first; the second is counted, dots mean nothing in it, and it gets a
//! CRLF if it ends without. A CR without LF, an LF without CR or a NUL anywhere makes the whole
//! message refused, for no two servers agree on what such bytes mean and a forged message could
//! hide behind them. In chunks nothing hides behind an LF: there it is written as CRLF, unless
//! [`Options::chunk_bare_lf_normalized`] says otherwise. What is handed out is clean: lines ending
//! in CRLF, dots unstuffed. It is cut from the input in as large pieces as there are, without
//! copying.

use hikyaku_mail::reply::Reply;

use crate::options::Options;
use crate::session::too_big;

/// Why a content is refused. Of several the gravest counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A CR not followed by LF.
    BareCr,
    /// An LF not after CR.
    BareLf,
    /// A NUL.
    Nul,
    /// A line over [`Options::content_line_bytes_max`].
    LineTooLong,
    /// Over [`Options::content_bytes_max`].
    TooBig,
    /// Over [`Options::header_bytes_max`] or [`Options::header_field_bytes_max`].
    HeaderTooBig,
    /// Over [`Options::header_fields_max`].
    TooManyFields,
    /// More than [`Options::hops_max`] Received fields.
    Looping,
}

impl Fault {
    /// What the client is told at the end of data.
    pub fn reply(self) -> Reply {
        match self {
            Fault::BareCr => Reply::new(550, (5, 5, 2), "bare CR in message"),
            Fault::BareLf => Reply::new(550, (5, 5, 2), "bare LF in message"),
            Fault::Nul => Reply::new(550, (5, 6, 0), "NUL in message"),
            Fault::LineTooLong => Reply::new(554, (5, 6, 0), "line too long"),
            Fault::TooBig => too_big(),
            Fault::HeaderTooBig => Reply::new(552, (5, 3, 4), "message header too big"),
            Fault::TooManyFields => Reply::new(554, (5, 6, 0), "too many header fields"),
            Fault::Looping => Reply::new(554, (5, 4, 6), "too many hops"),
        }
    }

    fn rank(self) -> u8 {
        match self {
            Fault::BareCr | Fault::BareLf | Fault::Nul => 0,
            Fault::TooBig => 1,
            Fault::LineTooLong => 2,
            Fault::HeaderTooBig => 3,
            Fault::TooManyFields => 4,
            Fault::Looping => 5,
        }
    }

    /// True if the client frames messages in a way that must not be trusted for another one.
    pub fn closes(self) -> bool {
        matches!(self, Fault::BareCr | Fault::BareLf | Fault::Nul)
    }
}

/// What [`Scanner::next`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// The next octets of the content.
    Content(&'a [u8]),
    /// The input is used up.
    More,
    /// The content has ended; what is left of the input comes after it.
    End,
    /// It does not end within twice the size limit.
    Endless,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    LineStart,
    /// After a dot at the start of a line.
    Dot,
    /// After a dot and a CR at the start of a line.
    DotCr,
    /// After a CR.
    Cr,
    /// After a bare LF that is to become CRLF.
    Lf,
    Line,
}

const RECEIVED: &[u8] = b"received:";

/// Which part of the header the line at hand may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Header {
    /// So many octets of it are those of [`RECEIVED`].
    Matching(usize),
    /// A line of the header that begins otherwise.
    Other,
    /// The header is over.
    Over,
}

/// What the limits of the header make of the line at hand. For them the header ends at the first line that is no field,
/// because a mail may have no header at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Field {
    /// In what may be the name of a field.
    Name,
    /// In white space after that.
    Space,
    /// In the body of a field.
    Value,
    /// The header is over.
    Over,
}

/// Finds the end of the content in an input that comes in pieces, and cleans it.
#[derive(Debug)]
pub struct Scanner {
    /// Dots at the start of a line are stuffing or the end; not so in chunks.
    dotted: bool,
    place: Place,
    /// The last line ended in a bare LF: a dot on this one ends nothing.
    loose: bool,
    line_bytes: usize,
    header: Header,
    field: Field,
    header_bytes: u64,
    field_bytes: u64,
    fields: u32,
    hops: u32,
    content_bytes: u64,
    raw_bytes: u64,
    /// A bare LF has become CRLF.
    normalized: bool,
    fault: Option<Fault>,
    content_bytes_max: u64,
    raw_bytes_max: u64,
    line_bytes_max: usize,
    bare_lf_normalized: bool,
    header_bytes_max: u64,
    field_bytes_max: u64,
    fields_max: u32,
    hops_max: u32,
}

impl Scanner {
    /// A scanner at the start of a content that ends at a dot.
    pub fn new(options: &Options) -> Scanner {
        Scanner {
            dotted: true,
            place: Place::LineStart,
            loose: false,
            line_bytes: 0,
            header: Header::Matching(0),
            field: Field::Name,
            header_bytes: 0,
            field_bytes: 0,
            fields: 0,
            hops: 0,
            content_bytes: 0,
            raw_bytes: 0,
            normalized: false,
            fault: None,
            content_bytes_max: options.content_bytes_max,
            // a dot for each octet, and one line more to end on
            raw_bytes_max: options
                .content_bytes_max
                .saturating_mul(2)
                .saturating_add(options.content_line_bytes_max as u64),
            line_bytes_max: options.content_line_bytes_max,
            bare_lf_normalized: options.bare_lf_normalized,
            header_bytes_max: options.header_bytes_max,
            field_bytes_max: options.header_field_bytes_max,
            fields_max: options.header_fields_max,
            hops_max: options.hops_max,
        }
    }

    /// A scanner at the start of a content that comes in chunks: the client says where it ends, see [`Scanner::end`].
    pub fn counted(options: &Options) -> Scanner {
        Scanner {
            dotted: false,
            bare_lf_normalized: options.chunk_bare_lf_normalized,
            ..Scanner::new(options)
        }
    }

    /// The last chunk is over: what is to be added to the content, a CRLF where its last line has none.
    pub fn end(&mut self) -> &'static [u8] {
        if self.place == Place::Cr {
            self.refuse(Fault::BareCr);
        }
        if self.place == Place::LineStart {
            return b"";
        }
        self.line_ended();
        match self.hand_out(b"\r\n") {
            Some(Event::Content(end)) => end,
            _ => b"",
        }
    }

    /// Why the content is refused, as far as it is known. After a fault no more content is handed out.
    pub fn fault(&self) -> Option<Fault> {
        self.fault
    }

    /// True if a bare LF has become CRLF.
    pub fn has_normalized(&self) -> bool {
        self.normalized
    }

    /// Octets of content seen; handed out, unless there is a fault.
    pub fn content_bytes(&self) -> u64 {
        self.content_bytes
    }

    /// The next event; takes what it covers off the front of `input`.
    pub fn next<'a>(&mut self, input: &mut &'a [u8]) -> Event<'a> {
        loop {
            if self.raw_bytes > self.raw_bytes_max {
                self.refuse(Fault::TooBig);
                return Event::Endless;
            }
            if self.place == Place::Lf {
                self.line_ended();
                self.loose = true;
                if let Some(content) = self.hand_out(b"\r\n") {
                    return content;
                }
            }
            let Some(&first) = input.first() else {
                return Event::More;
            };
            match (self.place, first) {
                (Place::LineStart, b'.') if self.dotted => {
                    self.skip(input, 1);
                    self.place = Place::Dot;
                }
                (Place::Dot, b'\r') if !self.loose => {
                    self.skip(input, 1);
                    self.place = Place::DotCr;
                }
                (Place::DotCr, b'\n') => {
                    self.skip(input, 1);
                    return Event::End;
                }
                // the CR came at the end of the last piece
                (Place::Cr, b'\n') => {
                    self.skip(input, 1);
                    self.line_ended();
                    if let Some(content) = self.hand_out(b"\r\n") {
                        return content;
                    }
                }
                (Place::DotCr | Place::Cr, _) => {
                    self.refuse(Fault::BareCr);
                    self.place = Place::Line;
                }
                (Place::LineStart | Place::Dot | Place::Line | Place::Lf, _) => {
                    let run = self.run(input);
                    if let Some(content) = self.hand_out(run) {
                        return content;
                    }
                }
            }
        }
    }

    fn skip(&mut self, input: &mut &[u8], count: usize) {
        self.raw_bytes += count as u64;
        *input = input.get(count..).unwrap_or_default();
    }

    /// Where the input was split must not matter, so faults outrank each other instead of only coming first.
    fn refuse(&mut self, fault: Fault) {
        if self.fault.is_none_or(|known| fault.rank() < known.rank()) {
            self.fault = Some(fault);
        }
    }

    /// `run` as content, unless the message is refused or that would exceed its size.
    fn hand_out<'a>(&mut self, run: &'a [u8]) -> Option<Event<'a>> {
        self.content_bytes += run.len() as u64;
        if self.content_bytes > self.content_bytes_max {
            self.refuse(Fault::TooBig);
        }
        (self.fault.is_none() && !run.is_empty()).then_some(Event::Content(run))
    }

    /// Takes the longest run off `input` that is content as it stands: up to a dot at the start of a line, to a CR whose
    /// LF has not come yet, or to the end. Faults on the way are noted, not skipped.
    fn run<'a>(&mut self, input: &mut &'a [u8]) -> &'a [u8] {
        let bytes = *input;
        let mut at = 0;
        self.place = Place::Line;
        while let Some(found) = bytes
            .get(at..)
            .and_then(|rest| memchr::memchr3(b'\r', b'\n', 0, rest))
        {
            let end = at + found;
            self.text(bytes.get(at..end).unwrap_or_default());
            match (bytes.get(end), bytes.get(end + 1)) {
                (Some(b'\r'), Some(b'\n')) => {
                    self.line_ended();
                    at = end + 2;
                    if self.dotted && bytes.get(at) == Some(&b'.') {
                        return self.take(input, at, at);
                    }
                }
                (Some(b'\r'), None) => {
                    self.place = Place::Cr;
                    return self.take(input, end, end + 1);
                }
                (Some(b'\r'), Some(_)) => self.bare(Fault::BareCr, end, &mut at),
                (Some(b'\n'), _) if self.bare_lf_normalized => {
                    self.normalized = true;
                    self.place = Place::Lf;
                    return self.take(input, end, end + 1);
                }
                (Some(b'\n'), _) => self.bare(Fault::BareLf, end, &mut at),
                _ => self.bare(Fault::Nul, end, &mut at),
            }
        }
        self.text(bytes.get(at..).unwrap_or_default());
        self.take(input, bytes.len(), bytes.len())
    }

    fn bare(&mut self, fault: Fault, end: usize, at: &mut usize) {
        self.refuse(fault);
        self.place = Place::Line;
        *at = end + 1;
    }

    /// Cuts `run_bytes` off the front as a run and `taken` off the input.
    fn take<'a>(&mut self, input: &mut &'a [u8], run_bytes: usize, taken: usize) -> &'a [u8] {
        let run = input.get(..run_bytes).unwrap_or_default();
        self.skip(input, taken);
        run
    }

    /// Part of a line, without its end.
    fn text(&mut self, part: &[u8]) {
        if part.is_empty() {
            return;
        }
        let starts = self.line_bytes == 0;
        self.place = Place::Line;
        self.line_bytes += part.len();
        if self.line_bytes > self.line_bytes_max {
            self.refuse(Fault::LineTooLong);
        }
        if self.field != Field::Over {
            self.count_field(starts, part);
        }
        self.match_received(part);
    }

    fn count_field(&mut self, starts: bool, part: &[u8]) {
        if starts {
            self.field = match part.first() {
                // RFC 5322 section 2.2.3: it goes on with the field
                Some(b' ' | b'\t') if self.fields > 0 => Field::Value,
                Some(b' ' | b'\t') => Field::Over,
                _ => Field::Name,
            };
        }
        let mut bytes = part.len();
        for &byte in part {
            self.field = match (self.field, byte) {
                (Field::Name, 33..=57 | 59..=126) => Field::Name,
                // RFC 5322 section 4.5: white space before the colon is obsolete, but is
                (Field::Name | Field::Space, b' ' | b'\t') => Field::Space,
                (Field::Name | Field::Space, b':') => {
                    self.fields = self.fields.saturating_add(1);
                    (self.field_bytes, bytes) = (0, self.line_bytes);
                    Field::Value
                }
                (Field::Name | Field::Space, _) => Field::Over,
                (Field::Value | Field::Over, _) => break,
            };
        }
        // until the colon has come it may be a line of the body
        if self.field == Field::Value {
            self.count_header(bytes);
        }
    }

    fn count_header(&mut self, bytes: usize) {
        self.header_bytes += bytes as u64;
        self.field_bytes += bytes as u64;
        if self.header_bytes > self.header_bytes_max || self.field_bytes > self.field_bytes_max {
            self.refuse(Fault::HeaderTooBig);
        }
        if self.fields > self.fields_max {
            self.refuse(Fault::TooManyFields);
        }
    }

    fn match_received(&mut self, part: &[u8]) {
        let Header::Matching(matched) = self.header else {
            return;
        };
        let expected = RECEIVED.get(matched..).unwrap_or_default();
        let compared = expected.len().min(part.len());
        let (begin, _) = part.split_at(compared);
        self.header = match expected.split_at(compared) {
            (head, _) if !begin.eq_ignore_ascii_case(head) => Header::Other,
            (_, []) => {
                self.hops += 1;
                Header::Other
            }
            _ => Header::Matching(matched + compared),
        };
        if self.hops > self.hops_max {
            self.refuse(Fault::Looping);
        }
    }

    fn line_ended(&mut self) {
        // an empty line ends the header
        if self.line_bytes == 0 || self.header == Header::Over {
            self.header = Header::Over;
        } else {
            self.header = Header::Matching(0);
        }
        match self.field {
            Field::Value if self.line_bytes > 0 => self.count_header(b"\r\n".len()),
            _ => self.field = Field::Over,
        }
        self.line_bytes = 0;
        self.place = Place::LineStart;
        self.loose = false;
    }
}

#[cfg(test)]
mod tests {
    use super::{Event, Fault, Scanner};
    use crate::options::Options;

    fn options() -> Options {
        Options {
            content_bytes_max: 40,
            content_line_bytes_max: 24,
            hops_max: 1,
            header_bytes_max: 30,
            header_field_bytes_max: 22,
            header_fields_max: 2,
            ..Options::new("mx.example.jp")
        }
    }

    /// What became of a stream: the content or its fault, and how many octets it took; `None` if it has not ended.
    type Outcome = Option<(Result<Vec<u8>, Fault>, usize)>;

    fn scan(pieces: &[&[u8]], options: &Options) -> Outcome {
        let (mut scanner, mut content, mut taken) = (Scanner::new(options), Vec::new(), 0);
        for piece in pieces {
            let mut input = *piece;
            loop {
                match scanner.next(&mut input) {
                    Event::Content(run) => content.extend_from_slice(run),
                    Event::More => break,
                    Event::Endless => return None,
                    Event::End => {
                        assert!(
                            scanner.fault().is_some()
                                || scanner.content_bytes() == content.len() as u64
                        );
                        let outcome = scanner.fault().map_or(Ok(content), Err);
                        return Some((outcome, taken + piece.len() - input.len()));
                    }
                }
            }
            assert!(input.is_empty());
            taken += piece.len();
        }
        None
    }

    /// The same by the letter of RFC 5321: look at the whole stream, octet by octet, line by line.
    fn reference(stream: &[u8], options: &Options) -> Outcome {
        let end = if stream.starts_with(b".\r\n") {
            0
        } else {
            stream
                .windows(5)
                .position(|window| window == b"\r\n.\r\n")?
                + 2
        };
        let raw = &stream[..end];
        for (index, &byte) in raw.iter().enumerate() {
            let before = index.checked_sub(1).map(|index| raw[index]);
            match byte {
                b'\r' if raw.get(index + 1) != Some(&b'\n') => {
                    return Some((Err(Fault::BareCr), end + 3));
                }
                b'\n' if before != Some(b'\r') && !options.bare_lf_normalized => {
                    return Some((Err(Fault::BareLf), end + 3));
                }
                0 => return Some((Err(Fault::Nul), end + 3)),
                _ => {}
            }
        }
        let text = String::from_utf8_lossy(raw)
            .replace("\r\n", "\n")
            .replace('\n', "\r\n");
        let lines: Vec<&str> = text
            .split_terminator("\r\n")
            .map(|line| line.strip_prefix('.').unwrap_or(line))
            .collect();
        let content: String = lines.iter().map(|line| format!("{line}\r\n")).collect();
        let header: Vec<&str> = lines
            .iter()
            .take_while(|line| !line.is_empty())
            .copied()
            .collect();
        let mut fields: Vec<usize> = Vec::new();
        for line in &header {
            let name = line.split(':').next().unwrap().trim_end_matches(' ');
            let is_field =
                line.contains(':') && name.bytes().all(|byte| (33..=126).contains(&byte));
            match fields.last_mut() {
                Some(field) if line.starts_with(' ') => *field += line.len() + 2,
                _ if is_field && !line.starts_with(' ') => fields.push(line.len() + 2),
                _ => break,
            }
        }
        let hops = header
            .iter()
            .filter(|line| line.to_lowercase().starts_with("received:"))
            .count();
        let outcome = if content.len() as u64 > options.content_bytes_max {
            Err(Fault::TooBig)
        } else if lines
            .iter()
            .any(|line| line.len() > options.content_line_bytes_max)
        {
            Err(Fault::LineTooLong)
        } else if fields.iter().sum::<usize>() as u64 > options.header_bytes_max
            || fields
                .iter()
                .any(|&field| field as u64 > options.header_field_bytes_max)
        {
            Err(Fault::HeaderTooBig)
        } else if fields.len() > options.header_fields_max as usize {
            Err(Fault::TooManyFields)
        } else if hops > options.hops_max as usize {
            Err(Fault::Looping)
        } else {
            Ok(content.into_bytes())
        };
        Some((outcome, end + 3))
    }

    struct Random(u64);

    impl Random {
        fn below(&mut self, bound: usize) -> usize {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            usize::try_from(self.0 >> 11).unwrap() % bound
        }
    }

    #[test]
    fn agrees_with_the_reference_at_every_split() {
        const WORDS: [&str; 15] = [
            "\r",
            "\n",
            ".",
            "\0",
            "a",
            "Received: x",
            "\r\n",
            "\r\n",
            "\r\n",
            "\r\n.",
            "\r\n.\r\n",
            "b c",
            ":",
            "rece",
            " ",
        ];
        let (mut options, mut random) = (options(), Random(0x9e37_79b9_7f4a_7c15));
        let (mut clean, mut faults) = (0, [0; 6]);
        for _ in 0..40_000 {
            // half of the streams have only whole line ends, or a fault would hide nearly everything else
            let from = if random.below(2) == 0 { 4 } else { 0 };
            let mut stream = String::new();
            for _ in 0..random.below(14) {
                stream.push_str(WORDS[from + random.below(WORDS.len() - from)]);
            }
            stream.push_str("\r\n.\r\nMAIL");
            let bytes = stream.as_bytes();
            options.bare_lf_normalized = random.below(4) == 0;
            let expected = reference(bytes, &options);
            match &expected {
                Some((Ok(_), _)) => clean += 1,
                Some((Err(fault), _)) => faults[usize::from(fault.rank())] += 1,
                None => panic!("{stream:?}"),
            }
            assert_eq!(scan(&[bytes], &options), expected, "{stream:?}");
            for at in 0..=bytes.len() {
                assert_eq!(
                    scan(&[&bytes[..at], &bytes[at..]], &options),
                    expected,
                    "{stream:?} at {at}"
                );
            }
            let each: Vec<&[u8]> = bytes.chunks(1).collect();
            assert_eq!(scan(&each, &options), expected, "{stream:?} octet by octet");
        }
        assert!(
            clean > 1000 && faults.iter().all(|&count| count > 20),
            "{clean} {faults:?}"
        );
    }

    /// What becomes of chunks, the last one at their end.
    fn scan_chunks(pieces: &[&[u8]], options: &Options) -> Result<Vec<u8>, Fault> {
        let (mut scanner, mut content) = (Scanner::counted(options), Vec::new());
        for piece in pieces {
            let mut input = *piece;
            while let Event::Content(run) = scanner.next(&mut input) {
                content.extend_from_slice(run);
            }
            assert!(input.is_empty());
        }
        content.extend_from_slice(scanner.end());
        scanner.fault().map_or(Ok(content), Err)
    }

    #[test]
    fn chunks_are_the_same_content_without_dots() {
        // B-20, B-21: what the dot-stuffed form gives, wherever the chunks are cut
        let options = Options {
            chunk_bare_lf_normalized: false,
            ..Options::new("mx.example.jp")
        };
        for (text, expected) in [
            ("", Ok("")),
            ("a", Ok("a\r\n")),
            ("a\r\n", Ok("a\r\n")),
            ("\r\n", Ok("\r\n")),
            (
                "a\r\n.\r\nMAIL FROM:<x@y>\r\n..\r\n",
                Ok("a\r\n.\r\nMAIL FROM:<x@y>\r\n..\r\n"),
            ),
            (".", Ok(".\r\n")),
            (".\r\n", Ok(".\r\n")),
            ("a\r", Err(Fault::BareCr)),
            ("a\rb", Err(Fault::BareCr)),
            ("a\nb", Err(Fault::BareLf)),
            ("\n", Err(Fault::BareLf)),
            ("a\r\n.\n", Err(Fault::BareLf)),
            ("a\0", Err(Fault::Nul)),
        ] {
            let expected = expected.map(|content| content.as_bytes().to_vec());
            let bytes = text.as_bytes();
            for at in 0..=bytes.len() {
                for to in at..=bytes.len() {
                    let pieces = [&bytes[..at], &bytes[at..to], &bytes[to..]];
                    assert_eq!(
                        scan_chunks(&pieces, &options),
                        expected,
                        "{text:?} {at} {to}"
                    );
                }
            }
        }
    }

    #[test]
    fn headers_are_limited_in_linear_time() {
        // B-113, B-114
        let options = Options::new("mx.example.jp");
        let fault = |text: &str| scan_chunks(&[text.as_bytes()], &options).err();
        let fields = |count| format!("{}\r\nbody", "To: a@b\r\n".repeat(count));
        assert_eq!(fault(&fields(2000)), None);
        assert_eq!(fault(&fields(2001)), Some(Fault::TooManyFields));
        let folded = |count| format!("To: x\r\n{}\r\nbody", " yyyyyy\r\n".repeat(count));
        assert_eq!(fault(&folded(11_000)), None);
        assert_eq!(fault(&folded(12_000)), Some(Fault::HeaderTooBig));
        let big = |count| format!("X: {}\r\n", "x".repeat(1000)).repeat(count);
        assert_eq!(fault(&big(250)), None);
        assert_eq!(fault(&big(270)), Some(Fault::HeaderTooBig));
        // a mail without a header has no limits of one
        assert_eq!(fault(&format!("hello\r\n{}", folded(20_000))), None);
        assert_eq!(fault(&format!(" hello\r\n{}", fields(5000))), None);
        assert_eq!(
            fault(&"text: or not\r\n".repeat(2001)),
            Some(Fault::TooManyFields)
        );
        // in the body nothing of it holds
        let body = fields(1) + "\r\n" + &big(1000) + &fields(5000) + &folded(20_000);
        assert_eq!(fault(&body), None);
        let began = tokio::time::Instant::now();
        assert_eq!(fault(&fields(500_000)), Some(Fault::HeaderTooBig));
        assert!(began.elapsed() < std::time::Duration::from_millis(500));
    }

    #[test]
    fn is_handed_out_without_needless_cuts() {
        let text = b"From: a\r\n\r\nhello\r\n..\r\nworld\r\n.\r\n";
        let options = Options::new("mx.example.jp");
        let (mut scanner, mut input, mut runs) = (Scanner::new(&options), &text[..], Vec::new());
        while let Event::Content(run) = scanner.next(&mut input) {
            runs.push(run);
        }
        assert_eq!(runs, [&b"From: a\r\n\r\nhello\r\n"[..], b".\r\nworld\r\n"]);
    }

    #[test]
    fn does_not_read_on_forever() {
        let options = options();
        let (mut scanner, mut taken) = (Scanner::new(&options), 0);
        loop {
            let mut input = &b"0123456789\r\n"[..];
            taken += input.len();
            match scanner.next(&mut input) {
                Event::Endless => break,
                Event::Content(_) | Event::More => {}
                Event::End => panic!("no end was sent"),
            }
            assert!(taken < 1000);
        }
        assert_eq!(scanner.fault(), Some(Fault::TooBig));
        assert!(taken > 80);
    }
}
