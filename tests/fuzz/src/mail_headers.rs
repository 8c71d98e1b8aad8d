//! What we put in front of mail and into reports, made of what strangers say: nothing of it ends a line, adds a field or grows
//! without bound (CATALOGUE B-25).

use std::net::IpAddr;

use hikyaku_mail::dsn::{Action, HEADER_BYTES_MAX, Recipient, Report, Returned, header_of};
use hikyaku_mail::id::{Class, MessageId, ShardId};
use hikyaku_mail::path::ForwardPath;
use hikyaku_mail::reply::{EnhancedStatusCode, Reply};
use hikyaku_mail::trace::Received;

use crate::memory::bounded;

/// Words of strangers, with 0xff between them.
pub fn run(data: &[u8]) {
    // the boundary of a report has its id, of which 64 bits are random: a stranger cannot have written it before
    let digits = data.iter().filter(|octet| octet.is_ascii_hexdigit());
    let digits: String = digits.map(|octet| char::from(*octet)).collect();
    if digits.contains(&id(2).to_string()) {
        return;
    }
    let words: Vec<&[u8]> = data.split(|&octet| octet == 0xff).collect();
    let word = |index: usize| words.get(index).copied().unwrap_or_default();
    let text = |index: usize| String::from_utf8_lossy(word(index)).into_owned();
    received([text(0), text(1), text(2), text(3)], &text(4));
    let which = word(6).first().copied().unwrap_or_default();
    report(
        which,
        [text(0), text(1), text(2), text(3), text(4)],
        word(5),
    );
}

fn id(random: u64) -> MessageId {
    MessageId::new(ShardId::new(Class::Incoming, 0), 1_795_498_390_123, random)
}

fn received([name, by, version, cipher]: [String; 4], recipient: &str) {
    let recipient = recipient.parse().ok().map(ForwardPath::Path);
    let received = Received {
        client_name: &name,
        client_address: IpAddr::from([192, 0, 2, 1]),
        by: &by,
        protocol: "ESMTPS",
        tls: (!version.is_empty()).then_some((&version, &cipher)),
        id: id(1),
        recipient: recipient.as_ref(),
        time_ms: 1_795_498_390_123,
    };
    let field = bounded(1024, 8, || received.to_field());
    let lines = lines(field.as_bytes());
    assert_eq!(lines.len(), 4 + usize::from(recipient.is_some()), "{field}");
    assert!(lines[0].starts_with("Received: from "));
    for line in &lines[1..] {
        assert!(line.starts_with('\t'), "{field}");
    }
    let date = lines[lines.len() - 2].ends_with(';');
    assert!(date && !lines[lines.len() - 1].contains(';'), "{field}");
    assert_eq!(lines[0].matches(['(', ')']).count(), 2, "{field}");
}

fn report(which: u8, [to, envelope_id, address, original, reply]: [String; 5], returned: &[u8]) {
    let reply = Reply {
        code: 550,
        enhanced: EnhancedStatusCode::parse(&reply),
        text: reply,
    };
    let recipients = [Recipient {
        address: &address,
        original_recipient: &original,
        reply: (which & 4 != 0).then_some(&reply),
        last_attempt_ms: (which & 8 != 0).then_some(1),
    }];
    let report = Report {
        action: [
            Action::Failed,
            Action::Delayed,
            Action::Delivered,
            Action::Expanded,
        ][usize::from(which & 3)],
        reporting_mta: "mx.example.jp",
        to: &to,
        id: id(2),
        about: id(3),
        smtputf8: which & 16 != 0,
        envelope_id: &envelope_id,
        received_ms: 1,
        time_ms: 2,
        retry_until_ms: (which & 32 != 0).then_some(3),
        recipients: &recipients,
        returned: match which & 64 {
            0 => Returned::Header(returned),
            _ => Returned::Message(returned),
        },
    };
    let bytes = to.len() + envelope_id.len() + address.len() + original.len() + returned.len();
    let message = bounded((16 << 10) + bytes, 8, || report.to_message());
    let header = header_of(returned);
    assert!(returned.starts_with(header) && header.len() <= HEADER_BYTES_MAX);

    let whole = String::from_utf8_lossy(&message);
    let boundary = format!("--=_{}", id(2));
    let delimiter = format!("{boundary}\r\n");
    let parts: Vec<&str> = whole.split(&delimiter).collect();
    // the part that returns what a stranger wrote is the last, if any
    assert!((3..=4).contains(&parts.len()), "{whole}");
    assert!(whole.ends_with(&format!("\r\n{boundary}--\r\n")), "{whole}");
    let encoding = usize::from(!parts[1..].concat().is_ascii());
    assert_eq!(header_lines(parts[0]), 9 + encoding, "{whole}");
    let blocks = parts[2]
        .trim_end_matches(&format!("{boundary}--\r\n"))
        .split("\r\n\r\n");
    let fields: Vec<usize> = blocks
        .skip(1)
        .map(|block| block.trim().lines().count())
        .collect();
    let of_mail = 2 + usize::from(!envelope_id.is_empty());
    let of_recipient = 3
        + usize::from(!original.is_empty())
        + usize::from(which & 4 != 0)
        + usize::from(which & 8 != 0)
        + usize::from(which & 32 != 0);
    assert_eq!(fields[..2], [of_mail, of_recipient], "{whole}");
    let longest = 998.max(returned.len() + 2);
    lines(&message);
    // octets: what is no UTF-8 is longer as text
    for line in message.split(|&octet| octet == b'\n') {
        assert!(line.len() <= longest + 1, "{} octets", line.len());
    }
}

/// Lines of the header that begins `part`.
fn header_lines(part: &str) -> usize {
    part.split("\r\n")
        .take_while(|line| !line.is_empty())
        .count()
}

/// The lines of `text`; each ends in CRLF, and there is no other CR, LF or NUL.
fn lines(text: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(text);
    let body = text.strip_suffix("\r\n");
    let Some(body) = body else {
        panic!("no line end at the end of {text:?}");
    };
    let lines: Vec<String> = body.split("\r\n").map(str::to_owned).collect();
    for line in &lines {
        assert!(!line.contains(['\r', '\n', '\0']), "{line:?}");
    }
    lines
}
