//! The grammar of POP3 commands (RFC 1939 section 3 and 9, RFC 2449 section 4, RFC 2595 section 4, RFC 5034 section 4,
//! RFC 6856 section 2).
//!
//! A keyword of any case, then arguments after a single space; spaces at the end of other arguments than a password are
//! forgiven. A name or password with a control character is refused. From here a command goes to [`crate::pop3::session`].

use std::fmt;

use crate::pop3::reply::Reply;

/// The longest line with a command, octets with its CRLF (RFC 2449 section 4).
pub const LINE_BYTES_MAX: usize = 255;

/// One command. Numbers too large for their type are the largest of it, which no message has and every message is shorter than.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// `CAPA`
    Capa,
    /// `USER name`
    User(String),
    /// `PASS string`
    Pass(Password),
    /// `AUTH`, which asks for the mechanisms; not in RFC 5034, and asked by many all the same
    Mechanisms,
    /// `AUTH PLAIN [initial-response]`, the response still in base64
    AuthPlain(Option<Password>),
    /// `UTF8`
    Utf8,
    /// `STLS`
    Stls,
    /// `STAT`
    Stat,
    /// `LIST [msg]`
    List(Option<u32>),
    /// `UIDL [msg]`
    Uidl(Option<u32>),
    /// `RETR msg`
    Retr(u32),
    /// `TOP msg n`
    Top {
        /// Which message.
        message: u32,
        /// How many lines of its body.
        lines: u32,
    },
    /// `DELE msg`
    Dele(u32),
    /// `RSET`
    Rset,
    /// `NOOP`
    Noop,
    /// `QUIT`
    Quit,
}

/// A password as the client sent it. It is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Password(Vec<u8>);

impl Password {
    /// What a client sent as, or with, its password.
    pub fn new(octets: Vec<u8>) -> Password {
        Password(octets)
    }

    /// The octets, for the directory only.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(..)")
    }
}

/// Why a line is no command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommandError {
    /// The keyword is none of ours.
    Unknown,
    /// Arguments are missing, too many or not what they should be.
    Arguments,
    /// AUTH with a mechanism that is not offered.
    Mechanism,
}

impl From<CommandError> for Reply {
    fn from(error: CommandError) -> Reply {
        Reply::err(match error {
            CommandError::Unknown => "unknown command",
            CommandError::Arguments => "these arguments are not understood",
            CommandError::Mechanism => "only PLAIN is offered",
        })
    }
}

impl Command {
    /// The command in `line`, which comes without its CRLF.
    ///
    /// # Errors
    /// When it is none, and why.
    pub fn parse(line: &[u8]) -> Result<Command, CommandError> {
        let (keyword, arguments) = match memchr::memchr(b' ', line) {
            Some(space) => (&line[..space], &line[space + 1..]),
            None => (line, &[][..]),
        };
        let mut upper = [0; 4];
        let upper = upper
            .get_mut(..keyword.len())
            .ok_or(CommandError::Unknown)?;
        upper.copy_from_slice(keyword);
        upper.make_ascii_uppercase();
        match &*upper {
            b"CAPA" => none(arguments, Command::Capa),
            b"USER" => Ok(Command::User(name(arguments)?)),
            b"PASS" => Ok(Command::Pass(password(arguments)?)),
            b"AUTH" => auth(arguments),
            b"UTF8" => none(arguments, Command::Utf8),
            b"STLS" => none(arguments, Command::Stls),
            b"STAT" => none(arguments, Command::Stat),
            b"LIST" => Ok(Command::List(optional_number(arguments)?)),
            b"UIDL" => Ok(Command::Uidl(optional_number(arguments)?)),
            b"RETR" => Ok(Command::Retr(number(arguments)?)),
            b"TOP" => {
                let space = memchr::memchr(b' ', arguments).ok_or(CommandError::Arguments)?;
                let (message, lines) = (
                    number(&arguments[..space])?,
                    number(&arguments[space + 1..])?,
                );
                Ok(Command::Top { message, lines })
            }
            b"DELE" => Ok(Command::Dele(number(arguments)?)),
            b"RSET" => none(arguments, Command::Rset),
            b"NOOP" => none(arguments, Command::Noop),
            b"QUIT" => none(arguments, Command::Quit),
            _ => Err(CommandError::Unknown),
        }
    }
}

fn none(arguments: &[u8], command: Command) -> Result<Command, CommandError> {
    if arguments.trim_ascii_end().is_empty() {
        Ok(command)
    } else {
        Err(CommandError::Arguments)
    }
}

/// RFC 1939 section 3: digits. More of them than fit are saturated, not refused: "TOP 1 99999999999" has a clear meaning.
fn number(argument: &[u8]) -> Result<u32, CommandError> {
    let digits = argument.trim_ascii_end();
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return Err(CommandError::Arguments);
    }
    Ok(digits.iter().fold(0, |number: u32, digit| {
        number
            .saturating_mul(10)
            .saturating_add(u32::from(digit - b'0'))
    }))
}

fn optional_number(argument: &[u8]) -> Result<Option<u32>, CommandError> {
    if argument.trim_ascii_end().is_empty() {
        return Ok(None);
    }
    number(argument).map(Some)
}

fn name(argument: &[u8]) -> Result<String, CommandError> {
    let text =
        std::str::from_utf8(argument.trim_ascii_end()).map_err(|_| CommandError::Arguments)?;
    if text.is_empty() || text.chars().any(char::is_control) {
        return Err(CommandError::Arguments);
    }
    Ok(text.to_owned())
}

fn auth(arguments: &[u8]) -> Result<Command, CommandError> {
    let arguments = arguments.trim_ascii_end();
    if arguments.is_empty() {
        return Ok(Command::Mechanisms);
    }
    let (mechanism, response) = match memchr::memchr(b' ', arguments) {
        Some(space) => (&arguments[..space], Some(&arguments[space + 1..])),
        None => (arguments, None),
    };
    if !mechanism.eq_ignore_ascii_case(b"PLAIN") {
        return Err(CommandError::Mechanism);
    }
    let response = response.map(|response| match response {
        // RFC 5034 section 4: an empty one
        b"=" => Vec::new(),
        response => response.to_vec(),
    });
    Ok(Command::AuthPlain(response.map(Password)))
}

/// RFC 1939 section 7: the one argument of PASS may hold spaces, so all of the line belongs to it.
fn password(argument: &[u8]) -> Result<Password, CommandError> {
    if argument.is_empty() || argument.iter().any(u8::is_ascii_control) {
        return Err(CommandError::Arguments);
    }
    Ok(Password(argument.to_vec()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop, prop_oneof, proptest};
    use proptest::strategy::{Just, Strategy};

    use super::{Command, CommandError, Password};

    #[test]
    fn commands() {
        let top = |message, lines| Ok(Command::Top { message, lines });
        for (line, expected) in [
            ("CAPA", Ok(Command::Capa)),
            ("capa ", Ok(Command::Capa)),
            (
                "USER alice@example.jp",
                Ok(Command::User("alice@example.jp".into())),
            ),
            ("uSeR 飛脚 ", Ok(Command::User("飛脚".into()))),
            (
                "PASS  two spaces ",
                Ok(Command::Pass(Password(b" two spaces ".to_vec()))),
            ),
            ("STLS", Ok(Command::Stls)),
            ("STAT", Ok(Command::Stat)),
            ("LIST", Ok(Command::List(None))),
            ("LIST ", Ok(Command::List(None))),
            ("LIST 007", Ok(Command::List(Some(7)))),
            ("UIDL 4294967296", Ok(Command::Uidl(Some(u32::MAX)))),
            ("RETR 1", Ok(Command::Retr(1))),
            ("RETR 0", Ok(Command::Retr(0))),
            ("TOP 1 0", top(1, 0)),
            ("TOP 1 4294967295", top(1, u32::MAX)),
            ("TOP 1 99999999999999999999999999", top(1, u32::MAX)),
            ("DELE 3", Ok(Command::Dele(3))),
            ("RSET", Ok(Command::Rset)),
            ("NOOP", Ok(Command::Noop)),
            ("quit", Ok(Command::Quit)),
            ("", Err(CommandError::Unknown)),
            (" NOOP", Err(CommandError::Unknown)),
            ("NOOPS", Err(CommandError::Unknown)),
            ("TO", Err(CommandError::Unknown)),
            ("AUTH", Ok(Command::Mechanisms)),
            ("auth ", Ok(Command::Mechanisms)),
            ("AUTH PLAIN", Ok(Command::AuthPlain(None))),
            ("auth plain ", Ok(Command::AuthPlain(None))),
            (
                "AUTH PLAIN =",
                Ok(Command::AuthPlain(Some(Password(Vec::new())))),
            ),
            (
                "AUTH PLAIN AGE=",
                Ok(Command::AuthPlain(Some(Password(b"AGE=".to_vec())))),
            ),
            ("AUTH PLAINS", Err(CommandError::Mechanism)),
            ("AUTH LOGIN", Err(CommandError::Mechanism)),
            ("AUTH CRAM-MD5", Err(CommandError::Mechanism)),
            ("UTF8", Ok(Command::Utf8)),
            ("UTF8 x", Err(CommandError::Arguments)),
            ("APOP alice 0", Err(CommandError::Unknown)),
            ("NOOP x", Err(CommandError::Arguments)),
            ("USER", Err(CommandError::Arguments)),
            ("USER a\0b", Err(CommandError::Arguments)),
            ("PASS", Err(CommandError::Arguments)),
            ("PASS a\0b", Err(CommandError::Arguments)),
            ("RETR", Err(CommandError::Arguments)),
            ("RETR -1", Err(CommandError::Arguments)),
            ("RETR +1", Err(CommandError::Arguments)),
            ("RETR 1 2", Err(CommandError::Arguments)),
            ("RETR  1", Err(CommandError::Arguments)),
            ("TOP 1", Err(CommandError::Arguments)),
            ("TOP 1 ", Err(CommandError::Arguments)),
            ("TOP 1 -1", Err(CommandError::Arguments)),
            ("LIST x", Err(CommandError::Arguments)),
        ] {
            assert_eq!(Command::parse(line.as_bytes()), expected, "{line:?}");
        }
        assert_eq!(Command::parse(b"USER \xff"), Err(CommandError::Arguments));
        assert_eq!(
            Command::parse(b"PASS \xff"),
            Ok(Command::Pass(Password(vec![0xff])))
        );
    }

    #[test]
    fn a_password_is_not_printed() {
        assert_eq!(
            format!("{:?}", Command::parse(b"PASS secret").unwrap()),
            "Pass(Password(..))"
        );
        assert_eq!(
            format!("{:?}", Command::parse(b"AUTH PLAIN secret").unwrap()),
            "AuthPlain(Some(Password(..)))"
        );
    }

    /// Octets that come close to commands.
    fn nearly() -> impl Strategy<Value = Vec<u8>> {
        let word = prop_oneof![
            Just("TOP"),
            Just("list"),
            Just("USER"),
            Just("PASS"),
            Just("AUTH"),
            Just("PLAIN"),
            Just("RETR"),
            Just("UIDL"),
            Just(" "),
            Just("  "),
            Just("0"),
            Just("1"),
            Just("4294967296"),
            Just("-1"),
            Just("\0"),
            Just("é"),
            Just("\t"),
        ];
        prop::collection::vec(word, 0..8).prop_map(|words| words.concat().into_bytes())
    }

    proptest! {
        #[test]
        fn any_line_is_judged(line in prop_oneof![nearly(), prop::collection::vec(any::<u8>(), 0..253)]) {
            // what is accepted says the same when written again
            if let Ok(Command::Top { message, lines }) = Command::parse(&line) {
                let again = format!("TOP {message} {lines}");
                assert_eq!(Command::parse(again.as_bytes()), Ok(Command::Top { message, lines }));
            }
            if let Ok(Command::User(name)) = Command::parse(&line) {
                assert_eq!(Command::parse(format!("USER {name}").as_bytes()), Ok(Command::User(name)));
            }
        }
    }
}
