//! Single-line replies (RFC 1939 section 3) and their response codes (RFC 2449 section 8, RFC 3206).

use std::borrow::Cow;

/// What kind of trouble an `-ERR` is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResponseCode {
    /// The credentials, or what they may do.
    Auth,
    /// Not looked at: too many wrong passwords lately. RFC 2449 has it for who comes back too early; unlike AUTH it makes no
    /// program ask its user for another password.
    LoginDelay,
    /// Ours, and it will pass.
    SysTemp,
    /// Ours, and somebody must look at it.
    SysPerm,
}

impl ResponseCode {
    fn as_str(self) -> &'static str {
        match self {
            ResponseCode::Auth => "[AUTH] ",
            ResponseCode::LoginDelay => "[LOGIN-DELAY] ",
            ResponseCode::SysTemp => "[SYS/TEMP] ",
            ResponseCode::SysPerm => "[SYS/PERM] ",
        }
    }
}

/// One status line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// `+OK`.
    Ok(Cow<'static, str>),
    /// `-ERR`.
    Err(Option<ResponseCode>, &'static str),
}

impl Reply {
    /// `+OK` and `text`.
    pub fn ok(text: impl Into<Cow<'static, str>>) -> Reply {
        Reply::Ok(text.into())
    }

    /// `-ERR` and `text`, without a response code.
    pub fn err(text: &'static str) -> Reply {
        Reply::Err(None, text)
    }

    /// Appends the line to `out`.
    pub fn write(&self, out: &mut Vec<u8>) {
        let (status, code, text) = match self {
            Reply::Ok(text) => ("+OK ", "", text.as_ref()),
            Reply::Err(code, text) => ("-ERR ", code.map_or("", ResponseCode::as_str), *text),
        };
        for part in [status, code, text, "\r\n"] {
            out.extend_from_slice(part.as_bytes());
        }
    }
}
