//! The seam between the protocol and whoever takes the mail: the edge implements [`Backend`] and [`Transaction`].
//!
//! A backend's futures carry their own deadlines; this room only bounds the network. A reply given by a backend is sent
//! as it is, and every refusal, whoever made it, passes [`Backend::rejected`] once, so it is logged in one place.

use std::net::SocketAddr;
use std::sync::Arc;

use hikyaku_mail::path::ForwardPath;
use hikyaku_mail::reply::{Rejection, Reply};

use crate::command::{ClientName, MailParameters, RcptParameters};

/// The other end of a connection, as far as it has made itself known.
#[derive(Clone, Debug)]
pub struct Peer {
    /// The session's number, for log lines.
    pub session: u64,
    /// Where it connects from.
    pub address: SocketAddr,
    /// The name of the listener it came in by.
    pub listener: Arc<str>,
    /// What it said in EHLO or HELO; forgotten by STARTTLS.
    pub client: Option<Client>,
    /// The TLS session, once there is one.
    pub tls: Option<TlsSession>,
}

impl Peer {
    /// A peer that has just connected.
    pub fn new(session: u64, address: SocketAddr, listener: Arc<str>) -> Peer {
        Peer {
            session,
            address,
            listener,
            client: None,
            tls: None,
        }
    }

    /// The `with` protocol of a Received field for a mail with or without SMTPUTF8 (RFC 3848, RFC 6531 section 4.3).
    pub fn protocol(&self, smtputf8: bool) -> &'static str {
        let extended = self.client.as_ref().is_some_and(|client| client.extended);
        match (self.tls.is_some(), smtputf8, extended) {
            (true, true, _) => "UTF8SMTPS",
            (true, false, _) => "ESMTPS",
            (false, true, _) => "UTF8SMTP",
            (false, false, true) => "ESMTP",
            (false, false, false) => "SMTP",
        }
    }
}

/// How a client introduced itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Client {
    /// The name it gave: no proof of anything.
    pub name: ClientName,
    /// True after EHLO, false after HELO.
    pub extended: bool,
}

/// What the TLS handshake agreed on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsSession {
    /// E.g. `TLS1.3`.
    pub version: String,
    /// The cipher suite by its registered name, e.g. `TLS_AES_256_GCM_SHA384`.
    pub cipher: String,
}

/// Where in the dialogue a refusal was given.
#[derive(Clone, Copy, Debug)]
pub enum Phase<'a> {
    /// Instead of the banner.
    Connect,
    /// A command out of order, unknown, malformed or over a limit.
    Command,
    /// MAIL, refused by the backend.
    Mail(&'a MailParameters),
    /// RCPT, refused by the backend.
    Rcpt(&'a ForwardPath),
    /// DATA or BDAT, or the content it announced.
    Data,
}

/// Why a transaction ends without having been finished.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Abort {
    /// The client dropped it: RSET, EHLO or QUIT.
    Reset,
    /// We refused it; the reply went through [`Backend::rejected`].
    Refused,
    /// The connection is gone or is being closed.
    Disconnected,
}

/// How a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// QUIT.
    Quit,
    /// The peer went away without QUIT.
    Disconnected,
    /// We gave up waiting for the peer.
    TimedOut,
    /// We closed it after a refusal.
    Refused,
    /// We are shutting down.
    Drained,
    /// No TLS session came about.
    HandshakeFailed,
}

/// Whoever takes mail from SMTP sessions.
pub trait Backend: Send + Sync + 'static {
    /// One mail on its way in.
    type Transaction: Transaction;

    /// A peer has connected. `None` greets it; a reply (421 when no mail could be made durable) is sent instead of the
    /// banner and the connection closed.
    fn greet(&self, peer: &Peer) -> impl Future<Output = Option<Rejection>> + Send;

    /// MAIL: reserves what the transaction needs, or refuses it.
    fn mail(
        &self,
        peer: &Peer,
        mail: &MailParameters,
    ) -> impl Future<Output = Result<Self::Transaction, Rejection>> + Send;

    /// A refusal has been given, by the protocol or by the backend.
    fn rejected(&self, peer: &Peer, phase: Phase<'_>, rejection: &Rejection);

    /// `what` in the `line` of the peer breaks the grammar and was put up with. The line is fit for
    /// a log.
    fn tolerated(&self, peer: &Peer, what: &str, line: &str);

    /// No TLS session came about, because of `cause`, which may be in words of the peer's making. [`Backend::ended`] follows.
    fn handshake_failed(&self, peer: &Peer, cause: &str);

    /// The session is over. Called once for each connection, also for one that failed before [`Backend::greet`].
    fn ended(&self, peer: &Peer, end: End);
}

/// One mail on its way in. Dropping it without a call must lose nothing but the mail, as [`Transaction::abort`] does.
pub trait Transaction: Send {
    /// RCPT. `Ok` accepts the recipient; the reply is sent as it is. Not called again for an accepted path: what a
    /// repetition asks for by parameters is not heard.
    fn rcpt(
        &mut self,
        rcpt: &RcptParameters,
    ) -> impl Future<Output = Result<Reply, Rejection>> + Send;

    /// DATA before 354, or the first BDAT. An error refuses the mail.
    fn data(&mut self) -> impl Future<Output = Result<(), Rejection>> + Send;

    /// The next octets of the content, in order. An error is remembered, the rest of the content is skipped and the
    /// error answered at the end of data.
    fn chunk(&mut self, chunk: &[u8]) -> impl Future<Output = Result<(), Rejection>> + Send;

    /// Adds to a refusal of the content what the log should say of the mail.
    fn about(&self, rejection: Rejection) -> Rejection {
        rejection
    }

    /// The content is complete. `Ok` says that the mail is durable; an error says what [`Transaction::about`] would add.
    fn finish(self) -> impl Future<Output = Result<Reply, Rejection>> + Send;

    /// The mail is not to be: drop everything.
    fn abort(self, reason: Abort);
}
