//! Command lines become [`Command`]s here and nowhere else (RFC 5321 section 4.1.1).
//!
//! ```text
//! command   = verb [ SP argument ]                    ; verbs and keywords in any case, trailing white space ignored
//! ehlo/helo = ( "EHLO" / "HELO" ) SP ( host-name / address-literal )
//! mail      = "MAIL FROM:" *SP Reverse-path [ SP "SIZE=" 1*20DIGIT ] [ SP "BODY=" ( "7BIT" / "8BITMIME" ) ]
//! rcpt      = "RCPT TO:" *SP Forward-path
//! ```
//! The space after the colon is not in the RFC; too many clients send it to refuse it. A host-name is looser than RFC
//! 5321's Domain (any atom characters), because the machines that get theirs wrong are many and nothing is decided by it,
//! but it can never break out of a Received field.
//!
//! Not offered, and refused with 502: AUTH, BDAT, EXPN, ETRN, TURN and the X commands. A parameter of an extension that
//! was not offered is refused with 555.

use std::fmt;

use hikyaku_mail::path::{self, ForwardPath, PathError, ReversePath};
use hikyaku_mail::reply::Reply;

/// RFC 5321 section 4.5.3.1.4: a command line with its CRLF.
const COMMAND_BYTES_MAX: usize = 512;
/// RFC 1870 adds 26 to MAIL for SIZE, RFC 6152 adds 17 for BODY.
const MAIL_BYTES_MAX: usize = COMMAND_BYTES_MAX + 26 + 17;
const CLIENT_NAME_BYTES_MAX: usize = 255;

/// What a client asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Introduces the client and asks for extensions.
    Ehlo(ClientName),
    /// Introduces the client.
    Helo(ClientName),
    /// Begins a transaction.
    Mail(MailParameters),
    /// Adds a recipient.
    Rcpt(ForwardPath),
    /// Announces the content.
    Data,
    /// Drops the transaction.
    Rset,
    /// Nothing.
    Noop,
    /// Ends the session.
    Quit,
    /// Asks for TLS (RFC 3207).
    StartTls,
    /// Asks whether a user exists; we never say.
    Vrfy,
    /// Asks for help.
    Help,
}

impl Command {
    /// RFC 2920 section 3.1: after these a client must wait for the reply before it sends more.
    pub fn ends_group(&self) -> bool {
        matches!(
            self,
            Command::Ehlo(_) | Command::Helo(_) | Command::Data | Command::StartTls
        )
    }
}

/// The arguments of MAIL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MailParameters {
    /// Where bounces go.
    pub reverse_path: ReversePath,
    /// The size the client declares (RFC 1870), no promise.
    pub size: Option<u64>,
    /// The body type the client declares (RFC 6152).
    pub body: Option<BodyType>,
}

/// The BODY parameter of MAIL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyType {
    /// Octets up to 127.
    SevenBit,
    /// Any octets, in lines.
    EightBitMime,
}

/// The argument of EHLO or HELO: an address literal, or 1 to 255 atom characters and dots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientName(String);

impl ClientName {
    /// The name as given.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn parse(text: &str) -> Option<ClientName> {
        let is_name =
            |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-/=?^_`{|}~.".contains(&byte);
        let fits = match text.strip_prefix('[') {
            Some(_) => text.ends_with(']') && path::normal_domain(text).is_ok(),
            None => text.bytes().all(is_name),
        };
        (fits && (1..=CLIENT_NAME_BYTES_MAX).contains(&text.len()))
            .then(|| ClientName(text.to_owned()))
    }
}

impl fmt::Display for ClientName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a line is not a command we carry out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Not even a verb, or control characters in it.
    Syntax,
    /// Over the length limit.
    TooLong,
    /// A verb nobody has heard of.
    Unknown,
    /// A verb of SMTP that is not offered.
    NotOffered,
    /// BDAT, not offered: what follows it would be taken for commands.
    Chunking,
    /// The client speaks HTTP.
    Http,
    /// An argument where none belongs, none where one belongs, or a malformed one.
    Argument,
    /// No name after EHLO or HELO, or a malformed one.
    ClientName,
    /// Not a reverse-path.
    ReversePath,
    /// Not a forward-path.
    ForwardPath,
    /// A path outside ASCII without SMTPUTF8.
    NotAscii,
    /// A parameter of an extension that was not offered.
    Parameter,
}

impl Refusal {
    /// What the client is told.
    pub fn reply(self) -> Reply {
        match self {
            Refusal::Syntax => Reply::new(500, (5, 5, 2), "syntax error"),
            Refusal::TooLong => Reply::new(500, (5, 5, 2), "line too long"),
            Refusal::Unknown => Reply::new(500, (5, 5, 1), "command unrecognized"),
            Refusal::NotOffered | Refusal::Chunking => {
                Reply::new(502, (5, 5, 1), "command not implemented")
            }
            Refusal::Http => Reply::new(521, (5, 5, 1), "this is a mail server"),
            Refusal::Argument => {
                Reply::new(501, (5, 5, 4), "syntax error in parameters or arguments")
            }
            Refusal::ClientName => {
                Reply::new(501, (5, 5, 2), "a host name or address literal is required")
            }
            Refusal::ReversePath => Reply::new(501, (5, 1, 7), "bad reverse-path syntax"),
            Refusal::ForwardPath => Reply::new(501, (5, 1, 3), "bad forward-path syntax"),
            Refusal::NotAscii => Reply::new(553, (5, 6, 7), "address must be ASCII"),
            Refusal::Parameter => Reply::new(555, (5, 5, 4), "parameter not recognized"),
        }
    }

    /// True if the connection cannot go on: what follows could not be told from commands.
    pub fn closes(self) -> bool {
        matches!(self, Refusal::Http | Refusal::Chunking)
    }
}

/// The command in `line`, which has no CRLF.
pub fn parse(line: &[u8]) -> Result<Command, Refusal> {
    let verb_end = memchr::memchr(b' ', line).unwrap_or(line.len());
    let (verb, argument) = line.split_at(verb_end);
    let verb = trim_end(verb).to_ascii_uppercase();
    let bytes_max = if verb == b"MAIL" {
        MAIL_BYTES_MAX
    } else {
        COMMAND_BYTES_MAX
    };
    if line.len() + 2 > bytes_max {
        return Err(Refusal::TooLong);
    }
    let argument = trim_end(argument);
    match verb.as_slice() {
        b"EHLO" => Ok(Command::Ehlo(client_name(argument)?)),
        b"HELO" => Ok(Command::Helo(client_name(argument)?)),
        b"MAIL" => mail(ascii(argument, Refusal::NotAscii)?),
        b"RCPT" => rcpt(ascii(argument, Refusal::NotAscii)?),
        b"DATA" => bare(argument, Command::Data),
        b"RSET" => bare(argument, Command::Rset),
        b"QUIT" => bare(argument, Command::Quit),
        b"STARTTLS" => bare(argument, Command::StartTls),
        b"NOOP" => printable(argument, Command::Noop),
        b"VRFY" => printable(argument, Command::Vrfy),
        b"HELP" => printable(argument, Command::Help),
        b"BDAT" => Err(Refusal::Chunking),
        b"AUTH" | b"EXPN" | b"ETRN" | b"ATRN" | b"TURN" | b"SEND" | b"SOML" | b"SAML"
        | b"XCLIENT" | b"XFORWARD" => Err(Refusal::NotOffered),
        b"GET" | b"POST" | b"CONNECT" | b"PUT" | b"HEAD" | b"OPTIONS" | b"DELETE" | b"PATCH"
        | b"TRACE" => Err(Refusal::Http),
        other if !other.is_empty() && other.iter().all(u8::is_ascii_alphanumeric) => {
            Err(Refusal::Unknown)
        }
        _ => Err(Refusal::Syntax),
    }
}

/// RFC 5321 section 4.1.1: trailing white space is tolerated.
fn trim_end(bytes: &[u8]) -> &[u8] {
    let end = bytes
        .iter()
        .rposition(|byte| !b" \t".contains(byte))
        .map_or(0, |last| last + 1);
    bytes.split_at(end).0
}

fn ascii(bytes: &[u8], refusal: Refusal) -> Result<&str, Refusal> {
    std::str::from_utf8(bytes)
        .ok()
        .filter(|text| text.is_ascii())
        .ok_or(refusal)
}

fn bare(argument: &[u8], command: Command) -> Result<Command, Refusal> {
    if argument.is_empty() {
        Ok(command)
    } else {
        Err(Refusal::Argument)
    }
}

/// NOOP, VRFY and HELP take any argument, as long as it is text.
fn printable(argument: &[u8], command: Command) -> Result<Command, Refusal> {
    let fits = argument
        .iter()
        .all(|&byte| byte == b'\t' || (b' '..=b'~').contains(&byte) || byte >= 0x80);
    if fits {
        Ok(command)
    } else {
        Err(Refusal::Syntax)
    }
}

fn client_name(argument: &[u8]) -> Result<ClientName, Refusal> {
    let text = ascii(argument, Refusal::ClientName)?;
    ClientName::parse(text.trim_start_matches(' ')).ok_or(Refusal::ClientName)
}

fn mail(argument: &str) -> Result<Command, Refusal> {
    let (inside, parameters) = cut_path(argument, " FROM:", Refusal::ReversePath)?;
    let reverse_path =
        ReversePath::parse(inside).map_err(|error| refuse_path(error, Refusal::ReversePath))?;
    let mut mail = MailParameters {
        reverse_path,
        size: None,
        body: None,
    };
    for parameter in parameters
        .split(' ')
        .filter(|parameter| !parameter.is_empty())
    {
        let (keyword, value) = keyword_and_value(parameter)?;
        match keyword.to_ascii_uppercase().as_str() {
            "SIZE" if mail.size.is_none() => {
                mail.size = Some(size(value.ok_or(Refusal::Argument)?)?)
            }
            "BODY" if mail.body.is_none() => {
                mail.body = Some(body_type(value.ok_or(Refusal::Argument)?)?)
            }
            "SIZE" | "BODY" => return Err(Refusal::Argument),
            _ => return Err(Refusal::Parameter),
        }
    }
    Ok(Command::Mail(mail))
}

fn rcpt(argument: &str) -> Result<Command, Refusal> {
    let (inside, parameters) = cut_path(argument, " TO:", Refusal::ForwardPath)?;
    let path = if inside.eq_ignore_ascii_case("postmaster") {
        ForwardPath::Postmaster
    } else {
        ForwardPath::Path(
            inside
                .parse()
                .map_err(|error| refuse_path(error, Refusal::ForwardPath))?,
        )
    };
    match parameters
        .split(' ')
        .find(|parameter| !parameter.is_empty())
    {
        Some(parameter) => {
            Err(keyword_and_value(parameter).map_or_else(|refusal| refusal, |_| Refusal::Parameter))
        }
        None => Ok(Command::Rcpt(path)),
    }
}

/// Cuts ` FROM:<...>` or ` TO:<...>` into the path's inside and the parameters, which begin with a space if there are any.
fn cut_path<'a>(
    argument: &'a str,
    label: &str,
    refusal: Refusal,
) -> Result<(&'a str, &'a str), Refusal> {
    let (head, rest) = argument
        .split_at_checked(label.len())
        .ok_or(Refusal::Argument)?;
    if !head.eq_ignore_ascii_case(label) {
        return Err(Refusal::Argument);
    }
    let (inside, parameters) = path::cut_path(rest.trim_start_matches(' '))
        .map_err(|error| refuse_path(error, refusal))?;
    if !parameters.is_empty() && !parameters.starts_with(' ') {
        return Err(Refusal::Argument);
    }
    Ok((inside, parameters))
}

fn refuse_path(_: PathError, refusal: Refusal) -> Refusal {
    refusal
}

/// RFC 5321 section 4.1.2: esmtp-keyword ["=" esmtp-value]
fn keyword_and_value(parameter: &str) -> Result<(&str, Option<&str>), Refusal> {
    let (keyword, value) = match parameter.split_once('=') {
        Some((keyword, value)) => (keyword, Some(value)),
        None => (parameter, None),
    };
    let is_keyword = keyword.starts_with(|first: char| first.is_ascii_alphanumeric())
        && keyword
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    let is_value = |value: &str| {
        !value.is_empty() && value.bytes().all(|byte| matches!(byte, 33..=60 | 62..=126))
    };
    if is_keyword && value.is_none_or(is_value) {
        Ok((keyword, value))
    } else {
        Err(Refusal::Argument)
    }
}

/// RFC 1870 section 3: 1*20DIGIT. What exceeds 64 bits exceeds every limit too.
fn size(value: &str) -> Result<u64, Refusal> {
    let fits = (1..=20).contains(&value.len()) && value.bytes().all(|byte| byte.is_ascii_digit());
    if fits {
        Ok(value.parse().unwrap_or(u64::MAX))
    } else {
        Err(Refusal::Argument)
    }
}

fn body_type(value: &str) -> Result<BodyType, Refusal> {
    match value.to_ascii_uppercase().as_str() {
        "7BIT" => Ok(BodyType::SevenBit),
        "8BITMIME" => Ok(BodyType::EightBitMime),
        // RFC 3030's, not offered
        "BINARYMIME" => Err(Refusal::Parameter),
        _ => Err(Refusal::Argument),
    }
}
