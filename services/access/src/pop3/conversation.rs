//! What is said in one POP3 connection: lines in, and what the session's [`Action`]s ask for.
//!
//! It refuses lines without CRLF, commands that travelled with STLS (CVE-2011-0411), and passwords in the clear unless the
//! listener allows them. Memory is bounded whatever the size of a mail: content goes through in pieces. When content fails in
//! the middle the connection ends without the closing dot, so that half a mail is never taken for a whole one. Passwords never
//! reach a log.

use std::collections::VecDeque;
use std::io::Write as _;
use std::time::Duration;

use bytes::Bytes;
use hikyaku_blob::BlobError;
use hikyaku_blob::body::BodyReader;
use hikyaku_directory::throttle::Admission;
use hikyaku_directory::{Account, LoginError, Unavailable};
use hikyaku_serve::line::Line;
use hikyaku_serve::metrics;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, sleep, timeout};

use crate::mailboxes::{self, Fetched, OpenError};
use crate::pop3::command::{Command, LINE_BYTES_MAX, Password};
use crate::pop3::maildrop::{MailboxRef, Maildrop};
use crate::pop3::multiline::Multiline;
use crate::pop3::reply::{Reply, ResponseCode};
use crate::pop3::sasl::RESPONSE_BYTES_MAX;
use crate::pop3::server::{Ending, Visit};
use crate::pop3::session::{Action, Channel, Listing, Retrieve, Session};
use crate::pop3::wire::{Closed, Wire};

/// Messages asked for at once, when the client has sent the commands for them.
const AHEAD_MAX: usize = 32;
/// Content encoded before the output is looked at: bounds by how much it overshoots.
const CONTENT_BYTES_STEP: usize = 16 << 10;

/// One connection, or one side of STLS of it.
pub(super) struct Conversation<'a, S> {
    visit: &'a mut Visit,
    wire: Wire<S>,
    session: Session,
    channel: Channel,
    /// Messages that the commands which have come already retrieve next, by UID. Nothing is kept
    /// while a command is waited for.
    ahead: VecDeque<(u32, Fetched)>,
}

/// Why a login did not end in an open maildrop.
enum Refused {
    /// No such login, or not its password.
    Wrong,
    /// Its password was not looked at.
    Throttled,
    /// It may not log in.
    Closed,
    /// Not known now; the reason is for the log.
    Unavailable(String),
}

impl<'a, S: AsyncRead + AsyncWrite + Unpin + Send> Conversation<'a, S> {
    /// Over `stream`.
    pub(super) fn new(visit: &'a mut Visit, stream: S, channel: Channel) -> Conversation<'a, S> {
        let wire = Wire::new(stream, visit.options.write_timeout);
        Conversation {
            visit,
            wire,
            session: Session::default(),
            channel,
            ahead: VecDeque::new(),
        }
    }

    /// The stream with what is still to be sent.
    pub(super) fn into_wire(self) -> Wire<S> {
        self.wire
    }

    /// Talks until there is an end.
    pub(super) async fn run(&mut self, banner: bool) -> Ending {
        if banner {
            self.wire.reply(&Reply::ok("POP3 server ready"));
        }
        loop {
            if let Err(ending) = self.turn().await {
                return ending;
            }
        }
    }

    async fn turn(&mut self) -> Result<(), Ending> {
        let options = &self.visit.options;
        let (idle, drain_patience) = match self.session {
            Session::Transaction(_) => (options.idle_timeout, options.drain_patience),
            Session::Authorization { .. } | Session::Challenged | Session::Update => {
                let left = self
                    .visit
                    .login_deadline
                    .saturating_duration_since(Instant::now());
                (left.min(options.idle_timeout), Duration::ZERO)
            }
        };
        // what was read ahead must not outlive it
        if idle.is_zero() {
            return Err(Closed::Idle.into());
        }
        if !self.wire.has_line() {
            self.ahead = VecDeque::new();
        }
        let is_response = matches!(self.session, Session::Challenged);
        let bytes_max = if is_response {
            RESPONSE_BYTES_MAX
        } else {
            LINE_BYTES_MAX
        };
        match self
            .wire
            .line(bytes_max, idle, self.visit.drain.clone(), drain_patience)
            .await?
        {
            Line::Complete(response) if is_response => self.response(Some(&response)).await,
            Line::TooLong if is_response => self.response(None).await,
            Line::Complete(line) => match Command::parse(&line) {
                Ok(command) => self.command(command).await,
                Err(error) => self.error(error.into()),
            },
            Line::TooLong => self.error(Reply::err("line is too long")),
            Line::Malformed | Line::Endless => {
                self.wire.reply(&Reply::err("this is no line of POP3"));
                Err(Ending::Nonsense)
            }
        }
    }

    fn error(&mut self, reply: Reply) -> Result<(), Ending> {
        self.wire.reply(&reply);
        self.visit.errors += 1;
        if self.visit.errors >= self.visit.options.errors_max {
            return Err(Ending::Nonsense);
        }
        Ok(())
    }

    async fn command(&mut self, command: Command) -> Result<(), Ending> {
        let session = std::mem::replace(&mut self.session, Session::Update);
        let (session, action) = session.on_command(command, self.channel);
        self.session = session;
        self.act(action).await
    }

    async fn response(&mut self, response: Option<&[u8]>) -> Result<(), Ending> {
        let session = std::mem::replace(&mut self.session, Session::Update);
        let (session, action) = session.on_response(response);
        self.session = session;
        self.act(action).await
    }

    async fn act(&mut self, action: Action) -> Result<(), Ending> {
        match action {
            Action::Reply(reply) => self.wire.reply(&reply),
            Action::Capabilities => self.capabilities(),
            Action::Mechanisms => self.mechanisms(),
            // RFC 5034 section 4: `+`, space, and nothing
            Action::Challenge => self.wire.output().extend_from_slice(b"+ \r\n"),
            Action::StartTls => return Err(self.start_tls().await),
            Action::Login { user, password } => self.login(&user, &password).await?,
            Action::List(listing) => self.list(listing).await?,
            Action::Retrieve(retrieve) => self.retrieve(&retrieve).await?,
            Action::Goodbye => {
                self.wire.reply(&Reply::ok("goodbye"));
                return Err(Ending::Quit);
            }
            Action::Expunge { mailbox, uids } => return Err(self.expunge(&mailbox, uids).await),
        }
        Ok(self.wire.flush_full().await?)
    }

    fn capabilities(&mut self) {
        self.wire.reply(&Reply::ok("capabilities follow"));
        let out = self.wire.output();
        // RFC 2449 section 6, RFC 3206 section 4, RFC 6856 section 2
        out.extend_from_slice(b"TOP\r\nUIDL\r\nRESP-CODES\r\nAUTH-RESP-CODE\r\nPIPELINING\r\n");
        out.extend_from_slice(b"EXPIRE NEVER\r\nUTF8 USER\r\n");
        // RFC 2449 section 5: what is possible before the login is announced after it, too
        if self.channel.login_allowed() {
            out.extend_from_slice(b"USER\r\nSASL PLAIN\r\n");
        }
        if self.channel.stls_possible() {
            out.extend_from_slice(b"STLS\r\n");
        }
        out.extend_from_slice(b"IMPLEMENTATION Hikyaku\r\n.\r\n");
    }

    fn mechanisms(&mut self) {
        self.wire.reply(&Reply::ok("mechanisms follow"));
        let offered: &[u8] = if self.channel.login_allowed() {
            b"PLAIN\r\n.\r\n"
        } else {
            b".\r\n"
        };
        self.wire.output().extend_from_slice(offered);
    }

    /// The reply is the last thing in the clear, and the command must have been the last thing too: whatever came with it was
    /// not protected, and must not be answered as if it had been.
    async fn start_tls(&mut self) -> Ending {
        if self.wire.has_input() {
            self.wire.reply(&Reply::err("STLS must come alone"));
            return Ending::Injection;
        }
        self.wire.reply(&Reply::ok("begin TLS"));
        match self.wire.flush().await {
            Ok(()) => Ending::StartTls,
            Err(closed) => closed.into(),
        }
    }

    async fn login(&mut self, user: &str, password: &Password) -> Result<(), Ending> {
        self.wire.flush().await?;
        let (peer, tls) = (self.visit.peer, self.channel.tls);
        let refused = match self.visit.open(user, password).await {
            Ok((account, maildrop)) => {
                let messages = maildrop.count();
                tracing::info!(target: "access", account = %account.id, login = user, %peer, tls, messages, "login ok");
                self.wire.reply(&Reply::ok(format!(
                    "maildrop has {messages} messages ({} octets)",
                    maildrop.octets()
                )));
                metrics::POP3_LOGINS.count_value("ok");
                self.visit.account = Some(account.id);
                self.session = Session::Transaction(Box::new(maildrop));
                return Ok(());
            }
            Err(refused) => refused,
        };
        let (reason, reply) = match &refused {
            Refused::Wrong => (
                "wrong",
                Reply::Err(Some(ResponseCode::Auth), "wrong login or password"),
            ),
            Refused::Closed => (
                "closed",
                Reply::Err(Some(ResponseCode::Auth), "this account may not log in"),
            ),
            Refused::Throttled => (
                "throttled",
                Reply::Err(
                    Some(ResponseCode::LoginDelay),
                    "too many wrong passwords, try again later",
                ),
            ),
            Refused::Unavailable(reason) => {
                let text = "not available now, try again later";
                (
                    reason.as_str(),
                    Reply::Err(Some(ResponseCode::SysTemp), text),
                )
            }
        };
        metrics::POP3_LOGINS.count_value(match refused {
            Refused::Unavailable(_) => "unavailable",
            Refused::Wrong | Refused::Closed | Refused::Throttled => reason,
        });
        tracing::info!(target: "access", login = user, %peer, tls, reason, "login failed");
        if !matches!(refused, Refused::Unavailable(_)) {
            self.visit.delay_failure().await;
        }
        self.wire.reply(&reply);
        if self.visit.failures >= self.visit.options.login_failures_max {
            return Err(Ending::LoginFailures);
        }
        Ok(())
    }

    async fn list(&mut self, listing: Listing) -> Result<(), Ending> {
        let Session::Transaction(maildrop) = &self.session else {
            return Ok(());
        };
        let (count, octets) = (maildrop.count(), maildrop.octets());
        self.wire
            .reply(&Reply::ok(format!("{count} messages ({octets} octets)")));
        for message in maildrop.messages() {
            let (number, out) = (message.number, self.wire.output());
            // writing to memory does not fail
            let _ = match listing {
                Listing::Sizes => write!(out, "{number} {}\r\n", message.size),
                Listing::UniqueIds => write!(out, "{number} {}\r\n", message.unique_id),
            };
            self.wire.flush_full().await?;
        }
        self.wire.output().extend_from_slice(b".\r\n");
        Ok(())
    }

    async fn retrieve(&mut self, retrieve: &Retrieve) -> Result<(), Ending> {
        let account = &retrieve.mailbox.account;
        let unavailable = Reply::Err(
            Some(ResponseCode::SysTemp),
            "not available now, try again later",
        );
        let fetched = match self.fetch(retrieve).await {
            Ok(Some(fetched)) => fetched,
            Ok(None) => {
                self.wire
                    .reply(&Reply::err("message was deleted meanwhile"));
                return Ok(());
            }
            Err(error) => {
                tracing::warn!(target: "access", %account, uid = retrieve.uid, %error, "message is not available");
                self.wire.reply(&unavailable);
                return Ok(());
            }
        };
        let size = (fetched.prefix.len() as u64).saturating_add(fetched.body.size);
        if size != retrieve.size {
            tracing::error!(target: "access", %account, uid = retrieve.uid, listed = retrieve.size, size, "sizes differ");
        }
        match self.visit.begin_content(&fetched).await {
            Ok((reader, first)) => {
                let sent = self.content(retrieve, &fetched, reader, first).await?;
                if retrieve.body_lines.is_none() {
                    self.visit.tally.retrieved += 1;
                    self.visit.tally.octets += sent;
                }
            }
            Err(error) => {
                tracing::error!(target: "access", %account, uid = retrieve.uid, %error, "content is not readable");
                self.wire.reply(&match error {
                    BlobError::Missing => Reply::Err(
                        Some(ResponseCode::SysPerm),
                        "content is missing, tell your postmaster",
                    ),
                    BlobError::Full | BlobError::Unavailable(_) => unavailable,
                });
            }
        }
        Ok(())
    }

    /// The message, from what was fetched with the one before or with what is wanted after it.
    async fn fetch(
        &mut self,
        retrieve: &Retrieve,
    ) -> Result<Option<Fetched>, mailboxes::Unavailable> {
        while let Some((uid, fetched)) = self.ahead.pop_front() {
            if uid == retrieve.uid {
                return Ok(Some(fetched));
            }
        }
        let wanted = self.wanted_next();
        let mailboxes = &self.visit.deps.mailboxes;
        let fetched = mailboxes
            .fetch_with(&retrieve.mailbox, retrieve.uid, wanted)
            .await?;
        self.ahead = fetched.ahead;
        Ok(fetched.message)
    }

    /// UIDs of the messages that the commands which have come already retrieve next.
    fn wanted_next(&self) -> Vec<u32> {
        let Session::Transaction(maildrop) = &self.session else {
            return Vec::new();
        };
        let mut wanted = Vec::new();
        for line in self.wire.lines_ahead() {
            let message = match Command::parse(line) {
                Ok(Command::Retr(message) | Command::Top { message, .. }) => message,
                Ok(Command::Dele(_) | Command::Noop) => continue,
                _ => break,
            };
            wanted.extend(maildrop.message(message).ok().map(|message| message.uid));
            if wanted.len() >= AHEAD_MAX {
                break;
            }
        }
        wanted
    }

    /// Sends the message; answers its octets as far as they were wanted.
    async fn content(
        &mut self,
        retrieve: &Retrieve,
        fetched: &Fetched,
        mut reader: BodyReader,
        first: Option<Bytes>,
    ) -> Result<u64, Ending> {
        let mut encoder = match retrieve.body_lines {
            Some(lines) => Multiline::top(lines),
            None => Multiline::whole(),
        };
        self.wire.reply(&Reply::ok(format!(
            "{} octets",
            fetched.prefix.len() as u64 + fetched.body.size
        )));
        encoder.push(&fetched.prefix, self.wire.output());
        let (mut piece, mut body_octets) = (first, 0);
        while let Some(octets) = piece {
            body_octets += octets.len() as u64;
            for step in octets.chunks(CONTENT_BYTES_STEP) {
                encoder.push(step, self.wire.output());
                self.wire.flush_full().await?;
            }
            drop(octets);
            if encoder.is_done() {
                break;
            }
            let next = timeout(self.visit.options.content_timeout, reader.read()).await;
            piece = next
                .unwrap_or_else(|_| Err(late()))
                .map_err(|error| broken(retrieve, &error))?;
        }
        if !encoder.is_done() && body_octets != fetched.body.size {
            return Err(broken(
                retrieve,
                &BlobError::Unavailable("content is not as long as it says".into()),
            ));
        }
        encoder.finish(self.wire.output());
        Ok(fetched.prefix.len() as u64 + body_octets)
    }

    /// QUIT with marks: says yes only when they are expunged.
    async fn expunge(&mut self, mailbox: &MailboxRef, uids: Vec<u32>) -> Ending {
        let marked = uids.len();
        match self.visit.deps.mailboxes.expunge(mailbox, uids).await {
            Ok(_) => {
                self.visit.tally.deleted = marked;
                self.wire
                    .reply(&Reply::ok(format!("{marked} messages deleted, goodbye")));
                Ending::Quit
            }
            Err(error) => {
                tracing::warn!(target: "access", account = %mailbox.account, marked, %error, "expunge is not confirmed");
                let text = "the marked messages may not be deleted, try again later";
                self.wire
                    .reply(&Reply::Err(Some(ResponseCode::SysTemp), text));
                Ending::NotExpunged
            }
        }
    }
}

/// The questions to others.
impl Visit {
    async fn open(&self, user: &str, password: &Password) -> Result<(Account, Maildrop), Refused> {
        let deps = &self.deps;
        let source = self.peer.ip();
        match deps.throttle.admit(source, user) {
            Admission::Throttled => return Err(Refused::Throttled),
            Admission::After(delay) => self.pause(delay).await,
        }
        let asked = deps.directory.authenticate(user, password.as_bytes());
        let answer = timeout(self.options.directory_timeout, asked).await;
        let account = match answer {
            Ok(Ok(account)) => account,
            Ok(Err(LoginError::Wrong)) => {
                deps.throttle.wrong(source, user);
                return Err(Refused::Wrong);
            }
            Ok(Err(LoginError::Disabled)) => return Err(Refused::Closed),
            Ok(Err(LoginError::Unavailable(Unavailable { reason, .. }))) => {
                return Err(Refused::Unavailable(reason));
            }
            Err(_) => {
                return Err(Refused::Unavailable(
                    "directory gave no answer in time".into(),
                ));
            }
        };
        deps.throttle.right(source, user);
        match deps.mailboxes.open(&account.id).await {
            Ok(maildrop) => Ok((account, maildrop)),
            Err(OpenError::Closed) => Err(Refused::Closed),
            Err(OpenError::Unavailable(unavailable)) => {
                Err(Refused::Unavailable(unavailable.to_string()))
            }
        }
    }

    /// Counts a failed login and holds its answer back, longer each time.
    async fn delay_failure(&mut self) {
        let options = &self.options;
        let doubled = options
            .login_delay
            .saturating_mul(1 << self.failures.min(16));
        let delay = doubled.min(options.login_delay_max);
        self.failures += 1;
        self.pause(delay).await;
    }

    async fn pause(&self, delay: Duration) {
        if delay.is_zero() {
            return;
        }
        tokio::select! {
            biased;
            () = self.drain.cancelled() => {}
            () = sleep(delay) => {}
        }
    }

    /// Opens the content and reads its first piece, so that what is missing or broken is still answered in order.
    async fn begin_content(
        &self,
        fetched: &Fetched,
    ) -> Result<(BodyReader, Option<Bytes>), BlobError> {
        let begun = async {
            let mut reader = BodyReader::open(&*self.deps.blobs, &fetched.body).await?;
            let first = reader.read().await?;
            Ok((reader, first))
        };
        timeout(self.options.content_timeout, begun)
            .await
            .unwrap_or_else(|_| Err(late()))
    }
}

fn late() -> BlobError {
    BlobError::Unavailable("no content in time".into())
}

fn broken(retrieve: &Retrieve, error: &BlobError) -> Ending {
    let account = &retrieve.mailbox.account;
    tracing::error!(target: "access", %account, uid = retrieve.uid, %error, "content broke off");
    Ending::Content
}
