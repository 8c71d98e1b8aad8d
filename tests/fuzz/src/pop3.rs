//! POP3: commands, logins of AUTH PLAIN, and mail as a multi-line reply that a client undoes.

use hikyaku_access::pop3::command::Command;
use hikyaku_access::pop3::multiline::Multiline;
use hikyaku_access::pop3::sasl;

use crate::input::pieces;
use crate::memory::bounded;

/// The first octet says which.
pub fn run(data: &[u8]) {
    let [which, rest @ ..] = data else { return };
    match which % 3 {
        0 => command(rest),
        1 => login(rest),
        _ => reply(which / 3, rest),
    }
}

fn command(line: &[u8]) {
    let Ok(command) = bounded(line.len(), 8, || Command::parse(line)) else {
        return;
    };
    let written = match &command {
        Command::Capa => b"CAPA".to_vec(),
        Command::User(name) => {
            assert!(!name.chars().any(char::is_control), "{name:?}");
            format!("USER {name}").into_bytes()
        }
        Command::Pass(password) => [b"PASS ", password.as_bytes()].concat(),
        Command::Mechanisms => b"AUTH".to_vec(),
        Command::AuthPlain(None) => b"AUTH PLAIN".to_vec(),
        Command::AuthPlain(Some(response)) if response.as_bytes().is_empty() => {
            b"AUTH PLAIN =".to_vec()
        }
        Command::AuthPlain(Some(response)) => [b"AUTH PLAIN ", response.as_bytes()].concat(),
        Command::Utf8 => b"UTF8".to_vec(),
        Command::Stls => b"STLS".to_vec(),
        Command::Stat => b"STAT".to_vec(),
        Command::List(None) => b"LIST".to_vec(),
        Command::List(Some(message)) => format!("LIST {message}").into_bytes(),
        Command::Uidl(None) => b"UIDL".to_vec(),
        Command::Uidl(Some(message)) => format!("UIDL {message}").into_bytes(),
        Command::Retr(message) => format!("RETR {message}").into_bytes(),
        Command::Top { message, lines } => format!("TOP {message} {lines}").into_bytes(),
        Command::Dele(message) => format!("DELE {message}").into_bytes(),
        Command::Rset => b"RSET".to_vec(),
        Command::Noop => b"NOOP".to_vec(),
        Command::Quit => b"QUIT".to_vec(),
    };
    assert_eq!(
        Command::parse(&written),
        Ok(command),
        "{}",
        written.escape_ascii()
    );
}

fn login(response: &[u8]) {
    if let Ok((name, password)) = bounded(response.len(), 8, || sasl::plain(response)) {
        assert!(!name.is_empty() && !name.chars().any(char::is_control));
        assert!(!password.as_bytes().is_empty() && !password.as_bytes().contains(&0));
        assert!(name.len() + password.as_bytes().len() < response.len());
    }
}

/// The content of a mail, here also with lone CR and LF, as RETR or TOP send it.
fn reply(which: u8, data: &[u8]) {
    let [how, content @ ..] = data else { return };
    let encoder = || match which {
        0 => Multiline::whole(),
        lines => Multiline::top(u32::from(lines) - 1),
    };
    let encode = |how| {
        let (mut encoder, mut out) = (encoder(), Vec::new());
        for piece in pieces(how, content) {
            let before = out.len();
            encoder.push(piece, &mut out);
            assert!(out.len() - before <= 2 * piece.len());
        }
        encoder.finish(&mut out);
        out
    };
    let sent = encode(0);
    assert_eq!(encode(*how), sent);
    let mut expected = match which {
        0 => content.to_vec(),
        lines => top(content, usize::from(lines) - 1),
    };
    if !expected.is_empty() && !expected.ends_with(b"\r\n") {
        expected.extend_from_slice(b"\r\n");
    }
    // a client that takes LF for a line end gets every octet, and the reply ends only at its end
    assert_eq!(undone(&sent), Some(expected), "{}", sent.escape_ascii());
    let end = sent.windows(5).position(|five| five == b"\r\n.\r\n");
    assert!(
        end.is_none_or(|at| at + 5 == sent.len()),
        "{}",
        sent.escape_ascii()
    );
}

/// Lines up to the empty one, and so many more.
fn top(content: &[u8], lines: usize) -> Vec<u8> {
    let all: Vec<&[u8]> = content.split_inclusive(|&octet| octet == b'\n').collect();
    let empty = all.iter().position(|line| matches!(*line, b"\r\n" | b"\n"));
    let header = empty.map_or(all.len(), |at| at + 1);
    all[..all.len().min(header + lines)].concat()
}

/// The content as a client has it; `None` unless the reply ends exactly at its end.
fn undone(sent: &[u8]) -> Option<Vec<u8>> {
    let lines: Vec<&[u8]> = sent.split_inclusive(|&octet| octet == b'\n').collect();
    let (last, lines) = lines.split_last()?;
    if *last != b".\r\n" || lines.contains(&&b".\r\n"[..]) {
        return None;
    }
    let unstuffed = lines
        .iter()
        .map(|line| line.strip_prefix(b".").unwrap_or(line));
    Some(unstuffed.collect::<Vec<_>>().concat())
}
