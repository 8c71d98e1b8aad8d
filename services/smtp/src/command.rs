//! Command lines become [`Command`]s here and nowhere else (RFC 5321 section 4.1.1).
//!
//! ```text
//! command   = verb [ SP argument ]                    ; verbs and keywords in any case, trailing white space ignored
//! ehlo/helo = ( "EHLO" / "HELO" ) SP ( host-name / address-literal )
//! mail      = "MAIL FROM:" *SP Reverse-path *( SP parameter )
//! rcpt      = "RCPT TO:" *SP Forward-path *( SP parameter )
//! bdat      = "BDAT" SP 1*20DIGIT [ SP "LAST" ]                           ; RFC 3030
//! vrfy      = "VRFY" SP text [ SP "SMTPUTF8" ]                            ; RFC 6531 section 3.7.4
//! ```
//! The parameters are in [`crate::parameters`].
//! The space after the colon is not in the RFC; too many clients send it to refuse it. A host-name is looser than RFC
//! 5321's Domain, see [`ClientName`], because the machines that get theirs wrong are many and
//! nothing is decided by it, but it can never break out of a Received field. An ENVID or ORCPT that
//! breaks its syntax is left out, for it serves reports only. [`Command::tolerated`] says what was
//! put up with.
//!
//! Not offered, and refused with 502: AUTH, EXPN, ETRN, TURN and the X commands. A parameter of an extension that was not
//! offered is refused with 555. After a malformed BDAT nobody knows where the next command begins: the session is closed.

use std::fmt;
use std::net::Ipv6Addr;

use hikyaku_mail::path::{self, ForwardPath, ReversePath};
use hikyaku_mail::reply::Reply;

use crate::parameters::{self, BodyType, Notify, Return};

/// RFC 5321 section 4.5.3.1.4: a command line with its CRLF.
const COMMAND_BYTES_MAX: usize = 512;
/// RFC 1870 adds 26 to MAIL for SIZE, RFC 6152 17 for BODY, RFC 3461 107 for RET and ENVID, RFC 6531 10 for SMTPUTF8.
const MAIL_BYTES_MAX: usize = COMMAND_BYTES_MAX + 26 + 17 + 107 + 10;
/// RFC 3461 adds 500 to RCPT for NOTIFY and ORCPT.
const RCPT_BYTES_MAX: usize = COMMAND_BYTES_MAX + 500;
/// RFC 6531 adds 10 to VRFY for SMTPUTF8.
const VRFY_BYTES_MAX: usize = COMMAND_BYTES_MAX + 10;
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
    Rcpt(RcptParameters),
    /// Announces the content.
    Data,
    /// Announces a chunk of the content, which follows at once.
    Bdat(Chunk),
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

    /// What in it breaks the grammar and was put up with, for the log.
    pub fn tolerated(&self) -> Option<&'static str> {
        match self {
            Command::Ehlo(name) | Command::Helo(name) if name.is_odd() => {
                Some("the client's name is no host name")
            }
            Command::Mail(mail) if mail.envelope_id_lost => Some("ENVID is malformed, left out"),
            Command::Rcpt(rcpt) if rcpt.original_recipient_lost => {
                Some("ORCPT is malformed, left out")
            }
            _ => None,
        }
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
    /// Addresses and header may have characters outside ASCII (RFC 6531).
    pub smtputf8: bool,
    /// How much a report should return (RFC 3461).
    pub ret: Option<Return>,
    /// The sender's name for the mail, for reports (RFC 3461): decoded, printable ASCII.
    pub envelope_id: Option<String>,
    /// There was one, and it broke the syntax.
    pub envelope_id_lost: bool,
}

/// The arguments of RCPT.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RcptParameters {
    /// Who the mail is for.
    pub forward_path: ForwardPath,
    /// What the sender wants to hear about this recipient (RFC 3461).
    pub notify: Option<Notify>,
    /// The address the sender wrote, with its type in front (RFC 3461): decoded, printable ASCII, e.g. `rfc822;a@b`.
    pub original_recipient: Option<String>,
    /// There was one, and it broke the syntax.
    pub original_recipient_lost: bool,
    /// The path was written with characters outside ASCII, which only a mail with SMTPUTF8 may
    /// have.
    pub utf8: bool,
}

/// The arguments of BDAT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Octets that follow.
    pub size: u64,
    /// They end the content.
    pub last: bool,
}

/// The argument of EHLO or HELO: an address literal, or 1 to 255 octets of atom characters, dots,
/// colons, spaces and visible characters outside ASCII. Clients send bare IPv6 addresses, names
/// with spaces, and names of their own language.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientName(String);

impl ClientName {
    /// The name as given.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// True if it is neither a host name nor an address literal.
    pub fn is_odd(&self) -> bool {
        !self.0.is_ascii() || path::normal_domain(&self.0).is_err()
    }

    fn parse(text: &str) -> Option<ClientName> {
        let is_name = |letter: char| {
            letter.is_ascii_alphanumeric()
                || "!#$%&'*+-/=?^_`{|}~.: ".contains(letter)
                || path::is_visible(letter)
        };
        let fits = match text.strip_prefix('[') {
            Some(rest) => rest.strip_suffix(']').is_some_and(|inside| {
                // also an IPv6 address without its tag
                path::normal_domain(text).is_ok() || inside.parse::<Ipv6Addr>().is_ok()
            }),
            None => text.chars().all(is_name),
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
    /// A malformed BDAT: what follows it would be taken for commands.
    Chunk,
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
    /// Characters outside ASCII without SMTPUTF8, or not in UTF-8.
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
            Refusal::NotOffered => Reply::new(502, (5, 5, 1), "command not implemented"),
            Refusal::Http => Reply::new(521, (5, 5, 1), "this is a mail server"),
            Refusal::Argument | Refusal::Chunk => {
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
        matches!(self, Refusal::Http | Refusal::Chunk)
    }
}

/// The command in `line`, which has no CRLF.
pub fn parse(line: &[u8]) -> Result<Command, Refusal> {
    let verb_end = memchr::memchr(b' ', line).unwrap_or(line.len());
    let (verb, argument) = line.split_at(verb_end);
    let verb = trim_end(verb).to_ascii_uppercase();
    let bytes_max = match verb.as_slice() {
        b"MAIL" => MAIL_BYTES_MAX,
        b"RCPT" => RCPT_BYTES_MAX,
        b"VRFY" => VRFY_BYTES_MAX,
        _ => COMMAND_BYTES_MAX,
    };
    if line.len() + 2 > bytes_max {
        return Err(if verb == b"BDAT" {
            Refusal::Chunk
        } else {
            Refusal::TooLong
        });
    }
    let argument = trim_end(argument);
    match verb.as_slice() {
        b"EHLO" => Ok(Command::Ehlo(client_name(argument)?)),
        b"HELO" => Ok(Command::Helo(client_name(argument)?)),
        b"MAIL" => mail(utf8(argument)?),
        b"RCPT" => rcpt(utf8(argument)?),
        b"DATA" => bare(argument, Command::Data),
        b"RSET" => bare(argument, Command::Rset),
        b"QUIT" => bare(argument, Command::Quit),
        b"STARTTLS" => bare(argument, Command::StartTls),
        b"NOOP" => printable(argument, Command::Noop),
        b"VRFY" => vrfy(argument),
        b"HELP" => printable(argument, Command::Help),
        b"BDAT" => bdat(argument),
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

fn utf8(bytes: &[u8]) -> Result<&str, Refusal> {
    std::str::from_utf8(bytes).map_err(|_| Refusal::NotAscii)
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
    let text = std::str::from_utf8(argument).map_err(|_| Refusal::ClientName)?;
    ClientName::parse(text.trim_start_matches(' ')).ok_or(Refusal::ClientName)
}

fn mail(argument: &str) -> Result<Command, Refusal> {
    let (inside, parameters) = cut_path(argument, " FROM:", Refusal::ReversePath)?;
    let (mut size, mut body, mut ret, mut envelope_id) = (None, None, None, None);
    let mut smtputf8 = false;
    for parameter in parameters::cut(parameters) {
        let (keyword, value) = parameter?;
        match keyword.as_str() {
            "SIZE" => parameters::once(&mut size, value, parameters::size)?,
            "BODY" => parameters::once(&mut body, value, parameters::body_type)?,
            "RET" => parameters::once(&mut ret, value, parameters::ret)?,
            "ENVID" => parameters::once_or_lost(&mut envelope_id, value, parameters::envelope_id)?,
            "SMTPUTF8" if value.is_none() && !smtputf8 => smtputf8 = true,
            "SMTPUTF8" => return Err(Refusal::Argument),
            _ => return Err(Refusal::Parameter),
        }
    }
    if !smtputf8 && !before(argument, parameters).is_ascii() {
        return Err(Refusal::NotAscii);
    }
    let reverse_path = ReversePath::parse(inside).map_err(|_| Refusal::ReversePath)?;
    Ok(Command::Mail(MailParameters {
        reverse_path,
        size,
        body,
        smtputf8,
        ret,
        envelope_id_lost: envelope_id == Some(None),
        envelope_id: envelope_id.flatten(),
    }))
}

fn rcpt(argument: &str) -> Result<Command, Refusal> {
    let (inside, parameters) = cut_path(argument, " TO:", Refusal::ForwardPath)?;
    let forward_path = if inside.eq_ignore_ascii_case("postmaster") {
        ForwardPath::Postmaster
    } else {
        ForwardPath::Path(inside.parse().map_err(|_| Refusal::ForwardPath)?)
    };
    let (mut notify, mut original_recipient) = (None, None);
    for parameter in parameters::cut(parameters) {
        let (keyword, value) = parameter?;
        match keyword.as_str() {
            "NOTIFY" => parameters::once(&mut notify, value, parameters::notify)?,
            "ORCPT" => parameters::once_or_lost(
                &mut original_recipient,
                value,
                parameters::original_recipient,
            )?,
            _ => return Err(Refusal::Parameter),
        }
    }
    Ok(Command::Rcpt(RcptParameters {
        forward_path,
        notify,
        original_recipient_lost: original_recipient == Some(None),
        original_recipient: original_recipient.flatten(),
        utf8: !before(argument, parameters).is_ascii(),
    }))
}

fn bdat(argument: &[u8]) -> Result<Command, Refusal> {
    let text = ascii(argument, Refusal::Chunk)?;
    let mut words = text.split(' ').filter(|word| !word.is_empty());
    let digits = words.next().ok_or(Refusal::Chunk)?;
    let last = match words.next() {
        None => false,
        Some(word) if word.eq_ignore_ascii_case("LAST") => true,
        Some(_) => return Err(Refusal::Chunk),
    };
    // parse alone would take a plus sign
    let is_number = digits.bytes().all(|byte| byte.is_ascii_digit());
    match digits.parse() {
        Ok(size) if is_number && words.next().is_none() => Ok(Command::Bdat(Chunk { size, last })),
        _ => Err(Refusal::Chunk),
    }
}

/// Text in UTF-8 needs SMTPUTF8 behind it.
fn vrfy(argument: &[u8]) -> Result<Command, Refusal> {
    if !argument.is_ascii() {
        let text = utf8(argument)?.to_ascii_uppercase();
        if !text.ends_with(" SMTPUTF8") {
            return Err(Refusal::NotAscii);
        }
    }
    printable(argument, Command::Vrfy)
}

/// `argument` without the parameters that end it.
fn before<'a>(argument: &'a str, parameters: &str) -> &'a str {
    argument.strip_suffix(parameters).unwrap_or(argument)
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
    let (inside, parameters) = path::cut_path(rest.trim_start_matches(' ')).map_err(|_| refusal)?;
    if !parameters.is_empty() && !parameters.starts_with(' ') {
        return Err(Refusal::Argument);
    }
    Ok((inside, parameters))
}
