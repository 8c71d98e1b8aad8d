//! The content between 354 and the final dot, and in BDAT's chunks, against RFC 5321 by the letter: look at the whole stream,
//! octet by octet, line by line. Same outcome, same octets out, same octets taken, in whatever pieces they come.

use hikyaku_smtp::content::{Event, Fault, Scanner};
use hikyaku_smtp::options::Options;

use crate::input::pieces;

/// What became of a stream.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    /// It has not ended.
    Open,
    /// It does not end within twice the size limit.
    Endless,
    /// The content or its fault, and how many octets of the stream it took.
    Ended(Result<Vec<u8>, Fault>, usize),
}

/// The first octet chooses the options, the second the pieces; the rest is the stream.
pub fn run(data: &[u8]) {
    let [which, how, stream @ ..] = data else {
        return;
    };
    let options = options(*which);
    if which & 1 == 0 {
        let expected = reference(stream, &options);
        assert_eq!(scan(&pieces(0, stream), &options), expected);
        assert_eq!(scan(&pieces(*how, stream), &options), expected);
    } else {
        let expected = reference_counted(stream, &options);
        assert_eq!(scan_counted(&pieces(0, stream), &options), expected);
        assert_eq!(scan_counted(&pieces(*how, stream), &options), expected);
    }
}

/// With limits so low that a short stream meets each of them, or with those of the product.
fn options(which: u8) -> Options {
    let product = Options {
        bare_lf_normalized: which & 2 != 0,
        chunk_bare_lf_normalized: which & 2 != 0,
        ..Options::new("mx.example.jp")
    };
    if which & 4 == 0 {
        return product;
    }
    Options {
        content_bytes_max: 120,
        content_line_bytes_max: 40,
        hops_max: 2,
        header_bytes_max: 60,
        header_field_bytes_max: 30,
        header_fields_max: 4,
        ..product
    }
}

fn scan(pieces: &[&[u8]], options: &Options) -> Outcome {
    let (mut scanner, mut content, mut taken) = (Scanner::new(options), Vec::new(), 0);
    for piece in pieces {
        let mut input = *piece;
        loop {
            match scanner.next(&mut input) {
                Event::Content(run) => content.extend_from_slice(run),
                Event::More => break,
                Event::Endless => return Outcome::Endless,
                Event::End => {
                    let outcome = scanner.fault().map_or(Ok(content), Err);
                    return Outcome::Ended(outcome, taken + piece.len() - input.len());
                }
            }
        }
        assert!(input.is_empty(), "more is asked for while there is some");
        taken += piece.len();
    }
    Outcome::Open
}

fn reference(stream: &[u8], options: &Options) -> Outcome {
    let raw_max = 2 * options.content_bytes_max as usize + options.content_line_bytes_max;
    let end = match stream.windows(5).position(|five| five == b"\r\n.\r\n") {
        _ if stream.starts_with(b".\r\n") => Some(0),
        found => found.map(|at| at + 2),
    };
    // up to the LF that ends it
    let looked_at = end.map_or(stream.len(), |end| end + 2);
    match end {
        _ if looked_at > raw_max => Outcome::Endless,
        None => Outcome::Open,
        Some(end) => Outcome::Ended(judged(&stream[..end], true, options), end + 3),
    }
}

fn scan_counted(pieces: &[&[u8]], options: &Options) -> Outcome {
    let (mut scanner, mut content) = (Scanner::counted(options), Vec::new());
    let mut taken = 0;
    for piece in pieces {
        let mut input = *piece;
        loop {
            match scanner.next(&mut input) {
                Event::Content(run) => content.extend_from_slice(run),
                Event::More => break,
                Event::Endless => return Outcome::Endless,
                Event::End => panic!("only the client says where chunks end"),
            }
        }
        taken += piece.len();
    }
    content.extend_from_slice(scanner.end());
    Outcome::Ended(scanner.fault().map_or(Ok(content), Err), taken)
}

fn reference_counted(stream: &[u8], options: &Options) -> Outcome {
    let raw_max = 2 * options.content_bytes_max as usize + options.content_line_bytes_max;
    if stream.len() > raw_max {
        return Outcome::Endless;
    }
    Outcome::Ended(judged(stream, false, options), stream.len())
}

/// What `raw` is as a content: clean, or its gravest fault.
pub(crate) fn judged(raw: &[u8], dotted: bool, options: &Options) -> Result<Vec<u8>, Fault> {
    let bare_lf_normalized = match dotted {
        true => options.bare_lf_normalized,
        false => options.chunk_bare_lf_normalized,
    };
    let mut clean = Vec::new();
    for (at, &octet) in raw.iter().enumerate() {
        let before = at.checked_sub(1).map(|before| raw[before]);
        match octet {
            b'\r' if raw.get(at + 1) != Some(&b'\n') => return Err(Fault::BareCr),
            b'\n' if before != Some(b'\r') && !bare_lf_normalized => {
                return Err(Fault::BareLf);
            }
            0 => return Err(Fault::Nul),
            b'\r' => {}
            octet => clean.push(octet),
        }
    }
    let mut lines: Vec<&[u8]> = clean.split(|&octet| octet == b'\n').collect();
    // what follows the last line end is a line only if it is not empty
    if lines.last().is_some_and(|line| line.is_empty()) {
        lines.pop();
    }
    let lines: Vec<&[u8]> = lines
        .into_iter()
        .map(|line| line.strip_prefix(b".").filter(|_| dotted).unwrap_or(line))
        .collect();
    let content: Vec<u8> = lines
        .iter()
        .flat_map(|line| [line, &b"\r\n"[..]].concat())
        .collect();
    let fault = |holds: bool, fault| if holds { Err(fault) } else { Ok(()) };
    fault(
        content.len() as u64 > options.content_bytes_max,
        Fault::TooBig,
    )?;
    let longest = lines
        .iter()
        .map(|line| line.len())
        .max()
        .unwrap_or_default();
    fault(longest > options.content_line_bytes_max, Fault::LineTooLong)?;
    let fields = fields(&lines);
    let header_bytes = fields.iter().sum::<usize>() as u64;
    let field_bytes = fields.iter().copied().max().unwrap_or_default() as u64;
    fault(
        header_bytes > options.header_bytes_max || field_bytes > options.header_field_bytes_max,
        Fault::HeaderTooBig,
    )?;
    fault(
        fields.len() > options.header_fields_max as usize,
        Fault::TooManyFields,
    )?;
    let hops = lines
        .iter()
        .take_while(|line| !line.is_empty())
        .filter(|line| line.to_ascii_lowercase().starts_with(b"received:"))
        .count();
    fault(hops > options.hops_max as usize, Fault::Looping)?;
    Ok(content)
}

/// Octets of each header field with its line ends, up to the first line that is of none.
fn fields(lines: &[&[u8]]) -> Vec<usize> {
    let mut fields: Vec<usize> = Vec::new();
    for line in lines {
        let folded = line.starts_with(b" ") || line.starts_with(b"\t");
        let colon = line.iter().position(|&octet| octet == b':');
        // RFC 5322 section 4.5.3: blanks may stand before the colon, and no other white space
        let is_blank = |octet: &u8| matches!(octet, b' ' | b'\t');
        let name = colon.map(|colon| {
            let blanks = line[..colon]
                .iter()
                .rev()
                .take_while(|octet| is_blank(octet));
            &line[..colon - blanks.count()]
        });
        let is_field = name.is_some_and(|name| name.iter().all(|octet| (33..=126).contains(octet)));
        match fields.last_mut() {
            Some(field) if folded => *field += line.len() + 2,
            _ if is_field && !folded => fields.push(line.len() + 2),
            _ => break,
        }
    }
    fields
}
