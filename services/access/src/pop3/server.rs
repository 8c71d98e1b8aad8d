//! One POP3 connection: TLS around it, what is logged about it. What is said in it is the room of [`crate::pop3::conversation`].

use std::net::SocketAddr;
use std::sync::Arc;

use hikyaku_blob::Blobs;
use hikyaku_directory::Directory;
use hikyaku_directory::throttle::Throttle;
use hikyaku_mail::id::AccountId;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::mailboxes::Mailboxes;
use crate::pop3::conversation::Conversation;
use crate::pop3::options::{Login, Pop3Options, Tls};
use crate::pop3::reply::{Reply, ResponseCode};
use crate::pop3::session::Channel;
use crate::pop3::wire::Closed;

/// What sessions ask.
pub struct Pop3Deps {
    /// May this user log in.
    pub directory: Arc<dyn Directory>,
    /// Who has guessed too much; one for all listeners.
    pub throttle: Arc<Throttle>,
    /// Where the mail is.
    pub mailboxes: Mailboxes,
    /// Where large bodies are.
    pub blobs: Arc<dyn Blobs>,
}

/// How a conversation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    Quit,
    StartTls,
    Closed(Closed),
    /// Not POP3, or too many lines that are no commands.
    Nonsense,
    /// Something travelled with STLS.
    Injection,
    Handshake,
    LoginFailures,
    /// Content failed in the middle of a reply.
    Content,
    /// QUIT, and the expunge was not confirmed.
    NotExpunged,
}

impl Ending {
    fn word(self) -> &'static str {
        match self {
            Ending::Quit => "quit",
            Ending::StartTls => "stls",
            Ending::Closed(Closed::Lost) => "lost",
            Ending::Closed(Closed::Idle) => "idle",
            Ending::Closed(Closed::Stuck) => "stuck",
            Ending::Closed(Closed::Drained) => "drained",
            Ending::Nonsense => "nonsense",
            Ending::Injection => "injection",
            Ending::Handshake => "handshake",
            Ending::LoginFailures => "login-failures",
            Ending::Content => "content",
            Ending::NotExpunged => "not-expunged",
        }
    }

    /// Whether what is in the output may still be sent. RFC 1939 section 3: after the idle timer nothing is said.
    fn says_goodbye(self) -> bool {
        match self {
            Ending::Quit
            | Ending::Nonsense
            | Ending::Injection
            | Ending::LoginFailures
            | Ending::NotExpunged
            | Ending::Closed(Closed::Drained) => true,
            Ending::StartTls | Ending::Handshake | Ending::Content => false,
            Ending::Closed(Closed::Lost | Closed::Idle | Closed::Stuck) => false,
        }
    }
}

impl From<Closed> for Ending {
    fn from(closed: Closed) -> Ending {
        Ending::Closed(closed)
    }
}

/// Serves one connection until it ends.
pub async fn serve_pop3<S>(
    stream: S,
    peer: SocketAddr,
    deps: Arc<Pop3Deps>,
    options: Arc<Pop3Options>,
    tls: Tls,
    drain: CancellationToken,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (failures, errors, tls_on) = (0, 0, false);
    let login_deadline = Instant::now() + options.login_timeout;
    let mut visit = Visit {
        peer,
        deps,
        options,
        drain,
        login_deadline,
        failures,
        errors,
        tls: tls_on,
        account: None,
        tally: Tally::default(),
    };
    let ending = match tls {
        Tls::Off => visit.converse(stream, false, true).await.0,
        Tls::Implicit(acceptor) => Box::pin(visit.converse_tls(stream, acceptor, true)).await,
        Tls::StartTls(acceptor) => match visit.converse(stream, true, true).await {
            // RFC 2595 section 4: no second banner
            (Ending::StartTls, stream) => {
                Box::pin(visit.converse_tls(stream, acceptor, false)).await
            }
            (ending, _) => ending,
        },
    };
    visit.report(ending);
}

/// What outlives STLS: nothing that the client said.
pub(super) struct Visit {
    pub(super) peer: SocketAddr,
    pub(super) deps: Arc<Pop3Deps>,
    pub(super) options: Arc<Pop3Options>,
    pub(super) drain: CancellationToken,
    /// When it must have logged in.
    pub(super) login_deadline: Instant,
    /// Logins that failed.
    pub(super) failures: u32,
    /// Lines that were no commands.
    pub(super) errors: u32,
    pub(super) tls: bool,
    pub(super) account: Option<AccountId>,
    pub(super) tally: Tally,
}

/// For the log.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) retrieved: u32,
    pub(super) octets: u64,
    pub(super) deleted: usize,
}

impl Visit {
    async fn converse<S>(&mut self, stream: S, stls: bool, banner: bool) -> (Ending, S)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send,
    {
        let cleartext_login = self.options.login == Login::Cleartext;
        let channel = Channel {
            tls: self.tls,
            stls,
            cleartext_login,
        };
        let mut conversation = Conversation::new(self, stream, channel);
        let ending = conversation.run(banner).await;
        let mut wire = conversation.into_wire();
        if ending == Ending::Closed(Closed::Drained) {
            let text = "server is going down, come back in a moment";
            wire.reply(&Reply::Err(Some(ResponseCode::SysTemp), text));
        }
        if ending.says_goodbye() {
            wire.close().await;
        }
        (ending, wire.into_stream())
    }

    async fn converse_tls<S>(&mut self, stream: S, acceptor: TlsAcceptor, banner: bool) -> Ending
    where
        S: AsyncRead + AsyncWrite + Unpin + Send,
    {
        let handshake = timeout(self.options.handshake_timeout, acceptor.accept(stream)).await;
        let Ok(Ok(stream)) = handshake else {
            return Ending::Handshake;
        };
        self.tls = true;
        self.converse(stream, false, banner).await.0
    }

    fn report(&self, ending: Ending) {
        let (peer, tls, ending) = (self.peer, self.tls, ending.word());
        let Tally {
            retrieved,
            octets,
            deleted,
        } = self.tally;
        match &self.account {
            Some(account) => {
                tracing::info!(target: "access", %account, %peer, tls, ending, retrieved, octets, deleted, "session ended");
            }
            None => {
                tracing::debug!(target: "access", %peer, tls, ending, "connection ended without a login")
            }
        }
    }
}
