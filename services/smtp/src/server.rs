//! The loop that serves one connection: bytes in, lines, commands, actions, replies out.
//!
//! Replies to pipelined commands (RFC 2920) are gathered and written before the loop blocks on input. A client may not
//! speak before the banner (if [`Options::greet_delay`] asks for silence) nor send anything after EHLO, DATA or STARTTLS
//! before it has our reply: what it sends there was written by somebody who does not listen, or put there by an attacker
//! (CVE-2011-0411), so the session is closed. STARTTLS ends one `Conversation` and begins another over TLS; input and
//! state of the first cannot reach the second. A chunk of BDAT may follow its command at once, and more commands that.
//!
//! Memory: see `docs/LIMITS.md`. Every wait for the peer has a deadline. Contents come in by `receive`.

mod receive;

use hikyaku_mail::reply::{Rejection, Reply};
use hikyaku_serve::line::Line;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConnection;
use tokio_util::sync::CancellationToken;

use crate::backend::{Abort, Backend, End, Peer, Phase, TlsSession, Transaction};
use crate::command::{self, Refusal};
use crate::options::Options;
use crate::quoted::quoted;
use crate::session::{
    Action, Misdeeds, Patience, Security, Session, bad_sequence, greeting_lines, too_many_errors,
};
use crate::wire::{COMMAND_BYTES, Wire};

/// How a listener does TLS.
#[derive(Clone)]
pub enum Tls {
    /// Not at all.
    Off,
    /// STARTTLS is offered (RFC 3207).
    StartTls(TlsAcceptor),
    /// From the first byte (RFC 8314).
    Implicit(TlsAcceptor),
}

/// Serves one connection to its end. A cancelled `drain` ends it at the next moment no content is coming in.
///
/// A panic inside unwinds to the caller's task and concerns no other connection.
pub async fn serve_connection<S, B>(
    stream: S,
    mut peer: Peer,
    backend: &B,
    options: &Options,
    tls: Tls,
    drain: &CancellationToken,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send,
    B: Backend,
{
    let surroundings = Surroundings {
        backend,
        options,
        drain,
    };
    let end = match tls {
        Tls::Off => {
            surroundings
                .converse(stream, &mut peer, Security::Clear)
                .await
        }
        Tls::StartTls(acceptor) => {
            let mut conversation = Conversation::new(
                stream,
                &mut peer,
                surroundings,
                Session::new(Security::Upgradable, Misdeeds::default()),
            );
            match conversation.run(true).await {
                Outcome::Ended(end) => end,
                Outcome::Upgrade => {
                    let (stream, misdeeds) = conversation.into_parts();
                    peer.client = None;
                    Box::pin(surroundings.handshake(stream, &mut peer, acceptor, Some(misdeeds)))
                        .await
                }
            }
        }
        Tls::Implicit(acceptor) => {
            Box::pin(surroundings.handshake(stream, &mut peer, acceptor, None)).await
        }
    };
    backend.ended(&peer, end);
}

/// What a connection is served with.
struct Surroundings<'a, B> {
    backend: &'a B,
    options: &'a Options,
    drain: &'a CancellationToken,
}

impl<B> Clone for Surroundings<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B> Copy for Surroundings<'_, B> {}

impl<B: Backend> Surroundings<'_, B> {
    async fn converse<S>(self, stream: S, peer: &mut Peer, security: Security) -> End
    where
        S: AsyncRead + AsyncWrite + Unpin + Send,
    {
        let mut conversation = Conversation::new(
            stream,
            peer,
            self,
            Session::new(security, Misdeeds::default()),
        );
        conversation.run(true).await.end()
    }

    /// TLS, then the conversation over it; `misdeeds` are those of the one before STARTTLS.
    async fn handshake<S>(
        self,
        stream: S,
        peer: &mut Peer,
        acceptor: TlsAcceptor,
        misdeeds: Option<Misdeeds>,
    ) -> End
    where
        S: AsyncRead + AsyncWrite + Unpin + Send,
    {
        let handshake = timeout(self.options.handshake_timeout, acceptor.accept(stream));
        let stream = tokio::select! {
            biased;
            () = self.drain.cancelled() => return End::Drained,
            shaken = handshake => match shaken {
                Ok(Ok(stream)) => stream,
                Ok(Err(error)) => return self.no_tls(peer, &error.to_string()),
                Err(_) => return self.no_tls(peer, "timed out waiting for the client"),
            },
        };
        peer.tls = Some(tls_session(stream.get_ref().1));
        let session = Session::new(Security::Tls, misdeeds.unwrap_or_default());
        let mut conversation = Conversation::new(stream, peer, self, session);
        conversation.run(misdeeds.is_none()).await.end()
    }

    fn no_tls(self, peer: &Peer, cause: &str) -> End {
        self.backend.handshake_failed(peer, cause);
        End::HandshakeFailed
    }
}

fn tls_session(connection: &ServerConnection) -> TlsSession {
    let version = connection
        .protocol_version()
        .and_then(|version| version.as_str())
        .unwrap_or("TLS");
    let cipher = connection
        .negotiated_cipher_suite()
        .and_then(|suite| suite.suite().as_str())
        .unwrap_or_default();
    // rustls writes TLSv1_3 and TLS13_AES_128_GCM_SHA256; the registries TLS1.3 and TLS_AES_128_GCM_SHA256
    TlsSession {
        version: version.replace('v', "").replace('_', "."),
        cipher: cipher.replacen("TLS13_", "TLS_", 1),
    }
}

/// How a conversation ended.
enum Outcome {
    Ended(End),
    /// 220 has been sent, the next byte is TLS.
    Upgrade,
}

impl Outcome {
    fn end(self) -> End {
        match self {
            Outcome::Ended(end) => end,
            // not offered twice
            Outcome::Upgrade => End::HandshakeFailed,
        }
    }
}

/// One dialogue over one stream, in the clear or under TLS.
struct Conversation<'a, S, B: Backend> {
    wire: Wire<S>,
    peer: &'a mut Peer,
    surroundings: Surroundings<'a, B>,
    session: Session<Held<B>>,
}

/// A mail under way: boxed, for a session that has none must not have room for one.
type Held<B> = Box<<B as Backend>::Transaction>;

/// Ends the conversation from any depth.
type Flow<T> = Result<T, Outcome>;

impl<'a, S, B> Conversation<'a, S, B>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
    B: Backend,
{
    fn new(
        stream: S,
        peer: &'a mut Peer,
        surroundings: Surroundings<'a, B>,
        session: Session<Held<B>>,
    ) -> Self {
        let wire = Wire::new(stream, surroundings.options.write_timeout);
        Conversation {
            wire,
            peer,
            surroundings,
            session,
        }
    }

    fn into_parts(self) -> (S, Misdeeds) {
        (self.wire.into_stream(), self.session.misdeeds())
    }

    /// The whole dialogue; `banner` unless it goes on after STARTTLS.
    async fn run(&mut self, banner: bool) -> Outcome {
        let outcome = match self.dialogue(banner).await {
            Ok(never) => match never {},
            Err(outcome) => outcome,
        };
        if let Some(transaction) = self.session.take_transaction() {
            transaction.abort(Abort::Disconnected);
        }
        if let Outcome::Ended(end) = outcome
            && end != End::Disconnected
        {
            self.wire.close().await;
        }
        outcome
    }

    async fn dialogue(&mut self, banner: bool) -> Flow<std::convert::Infallible> {
        if banner {
            self.greet().await?;
        }
        loop {
            let (action, reason) = match self.line().await? {
                Line::Complete(line) => self.heard(&line).await?,
                Line::TooLong => (
                    self.session.on_refusal(Refusal::TooLong),
                    "a line of over 1 KiB".to_owned(),
                ),
                Line::Malformed => {
                    let reason = quoted(&self.wire.input, self.session.is_guarded());
                    let rejection = Rejection::new(Refusal::Syntax.reply(), reason);
                    return self.refuse_and_close(Phase::Command, rejection);
                }
                Line::Endless => {
                    let reply = Reply::new(421, (4, 7, 0), "line too long");
                    let rejection = Rejection::new(reply, "a line without an end");
                    return self.refuse_and_close(Phase::Command, rejection);
                }
            };
            self.act(action, reason).await?;
        }
    }

    /// What a line leads to; if to a refusal, with what the log says of the line.
    async fn heard(&mut self, line: &[u8]) -> Flow<(Action<Held<B>>, String)> {
        let guarded = self.session.is_guarded();
        let (action, tolerated) = match command::parse(line) {
            Ok(command) => {
                if command.ends_group() {
                    self.must_be_last().await?;
                }
                let tolerated = command.tolerated();
                let options = self.surroundings.options;
                (self.session.on_command(command, options), tolerated)
            }
            Err(refusal) => (self.session.on_refusal(refusal), None),
        };
        if action.is_refusal() {
            return Ok((action, quoted(line, guarded)));
        }
        if let Some(what) = tolerated {
            let line = quoted(line, guarded);
            self.surroundings.backend.tolerated(self.peer, what, &line);
        }
        Ok((action, String::new()))
    }

    async fn greet(&mut self) -> Flow<()> {
        let Surroundings {
            backend,
            options,
            drain,
        } = self.surroundings;
        if drain.is_cancelled() {
            return self.drained();
        }
        if let Some(rejection) = backend.greet(self.peer).await {
            return self.refuse_and_close(Phase::Connect, rejection);
        }
        if !options.greet_delay.is_zero() {
            let silence = timeout(options.greet_delay, self.wire.fill(COMMAND_BYTES));
            let spoken = tokio::select! {
                biased;
                () = drain.cancelled() => return self.drained(),
                spoken = silence => spoken,
            };
            match spoken {
                Ok(Ok(0) | Err(_)) => return Err(Outcome::Ended(End::Disconnected)),
                Ok(Ok(_)) => return self.refuse_and_close(Phase::Connect, early()),
                Err(_) => {}
            }
        }
        self.push(&Reply::bare(220, format!("{} ESMTP", options.host_name)))
            .await
    }

    /// Carries out what a command leads to; `reason` is for the log, if that is a refusal.
    async fn act(&mut self, action: Action<Held<B>>, reason: String) -> Flow<()> {
        match action {
            Action::Reply { reply, abandoned } => {
                abort(abandoned, Abort::Reset);
                if reply.is_positive() {
                    return self.push(&reply).await;
                }
                self.reject(Phase::Command, Rejection::new(reply, reason))
                    .await
            }
            Action::Greet { client, abandoned } => {
                abort(abandoned, Abort::Reset);
                let extended = client.extended;
                self.peer.client = Some(client);
                let lines =
                    greeting_lines(extended, self.session.security(), self.surroundings.options);
                self.wire.gather_lines(lines);
                Ok(())
            }
            Action::Mail(mail) => {
                match Box::pin(self.surroundings.backend.mail(self.peer, &mail)).await {
                    Ok(transaction) => {
                        self.session.began(Box::new(transaction), mail.smtputf8);
                        self.push(&Reply::new(250, (2, 1, 0), "sender OK")).await
                    }
                    Err(rejection) => self.reject(Phase::Mail(&mail), rejection).await,
                }
            }
            Action::Rcpt(rcpt) => {
                let decided = match self.session.transaction() {
                    Some(transaction) => Box::pin(transaction.rcpt(&rcpt)).await,
                    None => Err(bad_sequence().into()),
                };
                match decided {
                    Ok(reply) => {
                        self.session.accepted(rcpt.forward_path);
                        self.push(&reply).await
                    }
                    Err(rejection) => {
                        self.reject(Phase::Rcpt(&rcpt.forward_path), rejection)
                            .await
                    }
                }
            }
            // boxed, as everything that an idle connection must not have room for
            Action::Data(transaction) => Box::pin(self.data(transaction)).await,
            Action::Chunk { chunk, content } => Box::pin(self.chunk(chunk, content)).await,
            Action::Discard {
                chunk,
                reply,
                abandoned,
            } => {
                let phase = if abandoned.is_some() {
                    Phase::Data
                } else {
                    Phase::Command
                };
                abort(abandoned, Abort::Refused);
                let rejection = Rejection::new(reply, reason);
                Box::pin(self.discard(chunk, phase, rejection)).await
            }
            Action::StartTls => {
                self.push(&Reply::new(220, (2, 0, 0), "ready to start TLS"))
                    .await?;
                self.flush().await?;
                Err(Outcome::Upgrade)
            }
            Action::Close {
                reply,
                end,
                abandoned,
            } => {
                abort(
                    abandoned,
                    if end == End::Quit {
                        Abort::Reset
                    } else {
                        Abort::Disconnected
                    },
                );
                if !reply.is_positive() {
                    self.surroundings.backend.rejected(
                        self.peer,
                        Phase::Command,
                        &Rejection::new(reply.clone(), reason),
                    );
                }
                self.push(&reply).await?;
                Err(Outcome::Ended(end))
            }
        }
    }

    /// The next line of the client. Before blocking, all replies are on their way.
    async fn line(&mut self) -> Flow<Line> {
        let Surroundings { options, drain, .. } = self.surroundings;
        let mut began: Option<Instant> = None;
        let patience = self.session.command_patience(options);
        loop {
            if drain.is_cancelled() {
                return self.drained();
            }
            if let Some(line) = self.wire.cut_line() {
                if let Some(began) = began {
                    self.session.waited(began.elapsed());
                }
                return Ok(line);
            }
            self.flush().await?;
            let deadline = *began.get_or_insert_with(Instant::now) + patience;
            let filled = tokio::select! {
                biased;
                () = drain.cancelled() => return self.drained(),
                filled = timeout_at(deadline, self.wire.fill(COMMAND_BYTES)) => filled,
            };
            match filled {
                Ok(Ok(0) | Err(_)) => return Err(Outcome::Ended(End::Disconnected)),
                Ok(Ok(_)) => {}
                Err(_) => return self.timed_out(Phase::Command).await,
            }
        }
    }

    /// Closes if the client has not waited for the reply to a command that ends its group.
    async fn must_be_last(&mut self) -> Flow<()> {
        if self.wire.has_input().await {
            return self.refuse_and_close(Phase::Command, early());
        }
        Ok(())
    }

    /// Counts a refusal, has it logged and sends it.
    async fn reject(&mut self, phase: Phase<'_>, rejection: Rejection) -> Flow<()> {
        let Surroundings {
            backend, options, ..
        } = self.surroundings;
        let reply = &rejection.reply;
        self.session.count(reply, matches!(phase, Phase::Mail(_)));
        match self.session.patience(options) {
            Patience::Whole => {}
            Patience::Thin => sleep(options.error_delay).await,
            Patience::Ended => return self.refuse_and_close(phase, too_many_errors()),
        }
        backend.rejected(self.peer, phase, &rejection);
        self.push(reply).await?;
        // 421 says that we are closing, whoever said it
        if reply.code == 421 {
            return Err(Outcome::Ended(End::Refused));
        }
        Ok(())
    }

    fn refuse_and_close<T>(
        &mut self,
        phase: Phase<'_>,
        rejection: impl Into<Rejection>,
    ) -> Flow<T> {
        let rejection = rejection.into();
        self.surroundings
            .backend
            .rejected(self.peer, phase, &rejection);
        self.wire.gather(&rejection.reply);
        Err(Outcome::Ended(End::Refused))
    }

    async fn timed_out<T>(&mut self, phase: Phase<'_>) -> Flow<T> {
        let reply = Reply::new(421, (4, 4, 2), "timed out waiting for you");
        self.surroundings
            .backend
            .rejected(self.peer, phase, &reply.clone().into());
        self.push(&reply).await?;
        Err(Outcome::Ended(End::TimedOut))
    }

    /// Ends the session because we are shutting down.
    fn drained<T>(&mut self) -> Flow<T> {
        self.wire
            .gather(&Reply::new(421, (4, 3, 2), "shutting down, come back soon"));
        Err(Outcome::Ended(End::Drained))
    }

    async fn push(&mut self, reply: &Reply) -> Flow<()> {
        self.wire.gather(reply);
        if self.wire.is_full() {
            self.flush().await
        } else {
            Ok(())
        }
    }

    async fn flush(&mut self) -> Flow<()> {
        self.wire.flush().await.map_err(Outcome::Ended)
    }
}

fn abort<T: Transaction>(transaction: Option<Box<T>>, reason: Abort) {
    if let Some(transaction) = transaction {
        transaction.abort(reason);
    }
}

fn early() -> Reply {
    Reply::new(554, (5, 5, 0), "you talk too soon")
}
