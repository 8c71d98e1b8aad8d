//! SMTP commands (RFC 5321 section 4.1.1): what was understood, written out again, is understood the same.

use hikyaku_smtp::command::{Command, Refusal, parse};

use crate::memory::bounded;
use crate::smtp_parameters::xtext;

/// RFC 3461 section 4.2.
const ORIGINAL_RECIPIENT_BYTES_MAX: usize = 500;

/// `data` is a command line without its CRLF.
pub fn run(data: &[u8]) {
    match bounded(data.len(), 64, || parse(data)) {
        Ok(command) => round_trip(data, command),
        Err(refusal) => {
            let reply = refusal.reply();
            assert!(reply.code >= 500, "a parser refuses for good");
            assert!(
                reply
                    .text
                    .bytes()
                    .all(|octet| (b' '..=b'~').contains(&octet))
            );
        }
    }
}

/// Writes `command` by the RFCs' grammar.
fn written(command: &Command) -> String {
    let mut text = match command {
        Command::Ehlo(name) => format!("EHLO {name}"),
        Command::Helo(name) => format!("HELO {name}"),
        Command::Mail(mail) => format!("MAIL FROM:{}", mail.reverse_path),
        Command::Rcpt(rcpt) => format!("RCPT TO:{}", rcpt.forward_path),
        Command::Data => "DATA".to_owned(),
        Command::Bdat(chunk) => format!("BDAT {}", chunk.size),
        Command::Rset => "RSET".to_owned(),
        Command::Noop => "NOOP".to_owned(),
        Command::Quit => "QUIT".to_owned(),
        Command::StartTls => "STARTTLS".to_owned(),
        Command::Vrfy => "VRFY x".to_owned(),
        Command::Help => "HELP".to_owned(),
    };
    match command {
        Command::Bdat(chunk) if chunk.last => text.push_str(" LAST"),
        Command::Mail(mail) => {
            if let Some(size) = mail.size {
                text.push_str(&format!(" SIZE={size}"));
            }
            if let Some(body) = mail.body {
                text.push_str(match body {
                    hikyaku_smtp::parameters::BodyType::SevenBit => " BODY=7BIT",
                    hikyaku_smtp::parameters::BodyType::EightBitMime => " BODY=8BITMIME",
                });
            }
            if mail.smtputf8 {
                text.push_str(" SMTPUTF8");
            }
            if let Some(ret) = mail.ret {
                text.push_str(&format!(" RET={}", ret.as_str()));
            }
            if let Some(id) = &mail.envelope_id {
                text.push_str(&format!(" ENVID={}", xtext(id)));
            }
        }
        Command::Rcpt(rcpt) => {
            if let Some(notify) = rcpt.notify {
                text.push_str(&format!(" NOTIFY={notify}"));
            }
            if let Some(original) = &rcpt.original_recipient {
                text.push_str(&format!(" ORCPT={}", xtext(original)));
            }
        }
        _ => {}
    }
    text
}

/// An ORCPT may be longer in its normal form than any may be, and is lost when it comes again: `\x{HEX}` has more octets than the
/// character.
fn forget_long(again: &mut Command, command: &mut Command) {
    if let (Command::Rcpt(again), Command::Rcpt(rcpt)) = (again, command)
        && again.original_recipient_lost
        && let Some(original) = &rcpt.original_recipient
        && xtext(original).len() > ORIGINAL_RECIPIENT_BYTES_MAX
    {
        again.original_recipient_lost = false;
        rcpt.original_recipient = None;
    }
}

fn round_trip(data: &[u8], mut command: Command) {
    let text = written(&command);
    // whatever a command holds goes into log lines, headers and other servers' commands
    assert!(!text.chars().any(char::is_control), "{text:?}");
    match &mut command {
        Command::Mail(mail) => mail.envelope_id_lost = false,
        Command::Rcpt(rcpt) => {
            rcpt.original_recipient_lost = false;
            // a domain is kept in A-labels, whatever it was written in
            rcpt.utf8 = !text.is_ascii();
        }
        _ => {}
    }
    match parse(text.as_bytes()) {
        Ok(mut again) => {
            forget_long(&mut again, &mut command);
            assert_eq!(again, command, "{text}");
        }
        // its normal form may be longer: A-labels, xtext, what was left out
        Err(refusal) => assert!(
            text.len() > 512 - 2 && matches!(refusal, Refusal::TooLong | Refusal::Argument),
            "{refusal:?}: {text}"
        ),
    }
    assert!(data.len() <= 512 + 500, "longer than any command may be");
}
