//! What the log says of a line that was refused: the line itself, cut and escaped, without what may
//! be a secret or a body.
//!
//! A line is shown whole if it begins with a command of SMTP, else up to its first blank: it may be
//! `PASS secret`. A client that does not listen sends its password although AUTH was refused, and
//! its mail although DATA was. After either only lines are shown that are commands by their look;
//! of the others the log says how long they were.

use hikyaku_mail::maillog;

/// Octets of a line that are shown.
const SHOWN_BYTES_MAX: usize = 300;
/// Verbs whose arguments are no secrets.
const VERBS: [&str; 14] = [
    "EHLO", "HELO", "MAIL", "RCPT", "DATA", "BDAT", "RSET", "NOOP", "QUIT", "STARTTLS", "VRFY",
    "HELP", "EXPN", "ETRN",
];
/// How lines begin that no password and hardly any mail has.
const COMMANDS: [&str; 5] = ["EHLO ", "HELO ", "MAIL FROM:", "RCPT TO:", "BDAT "];

/// What may be logged of `line`, which ends at its first CR or LF; `guarded` after AUTH or DATA was
/// refused.
pub(crate) fn quoted(line: &[u8], guarded: bool) -> String {
    let line = match memchr::memchr2(b'\r', b'\n', line) {
        Some(end) => line.get(..=end).unwrap_or(line),
        None => line,
    };
    let is_command = COMMANDS.iter().any(|command| {
        let begin = line.get(..command.len());
        begin.is_some_and(|begin| begin.eq_ignore_ascii_case(command.as_bytes()))
    });
    if guarded && !is_command {
        return format!("a line of {} octets", line.len());
    }
    let word_end = memchr::memchr2(b' ', b'\t', line).unwrap_or(line.len());
    let (word, _) = line.split_at(word_end);
    let is_verb = VERBS
        .iter()
        .any(|verb| word.eq_ignore_ascii_case(verb.as_bytes()));
    let shown = if is_verb { line.len() } else { word_end };
    maillog::escaped(line, shown.min(SHOWN_BYTES_MAX))
}

#[cfg(test)]
mod tests {
    use super::quoted;

    #[test]
    fn neither_passwords_nor_bodies_are_shown() {
        for (line, free, guarded) in [
            (
                "auth plain AGEAYg==",
                "auth... of 19 octets",
                "a line of 19 octets",
            ),
            (
                " AUTH PLAIN AG==",
                "... of 16 octets",
                "a line of 16 octets",
            ),
            ("PASS secret", "PASS... of 11 octets", "a line of 11 octets"),
            ("AGEAYg==", "AGEAYg==", "a line of 8 octets"),
            ("Dear Bob,", "Dear... of 9 octets", "a line of 9 octets"),
            ("mail from home", "mail from home", "a line of 14 octets"),
            ("mail from:<a", "mail from:<a", "mail from:<a"),
            ("RCPT TO:a@b", "RCPT TO:a@b", "RCPT TO:a@b"),
            ("noop \\b\x07", "noop \\\\b\\x07", "a line of 8 octets"),
            ("EHLO x\rMAIL", "EHLO x\\x0d", "EHLO x\\x0d"),
            ("", "", "a line of 0 octets"),
        ] {
            assert_eq!(quoted(line.as_bytes(), false), free, "{line:?}");
            assert_eq!(quoted(line.as_bytes(), true), guarded, "{line:?}");
        }
        let long = quoted(&[b"NOOP ", &[b'x'; 1000][..]].concat(), false);
        assert_eq!(long, format!("NOOP {}... of 1005 octets", "x".repeat(295)));
    }
}
