//! Which command is legal when (RFC 5321 section 4.1.4), and what it leads to. No I/O: the server carries out the
//! [`Action`]s and asks the backend. `state` has the states and the commands in them; here are the session around them, what it
//! asks of the server, and how much nonsense it stands.
//!
//! ```text
//!              EHLO/HELO              MAIL accepted         RCPT accepted
//! Connected ---------------> Greeted ---------------> Mail ---------------> Rcpt --- DATA ---> (content) ---> Greeted
//!                               ^---- RSET, EHLO -------+---------------------+
//!                               +---- BDAT LAST, RSET, EHLO, a refusal ---- Chunks <--- BDAT
//! ```
//! Whatever BDAT (RFC 3030) leads to, its octets are received: an [`Action::Discard`] throws them away.
//!
//! STARTTLS is no transition: the server begins a new session over TLS, so nothing can be carried across (RFC 3207
//! section 4.2); only the counts of misdeeds are.

mod state;

use std::collections::BTreeSet;
use std::time::Duration;

use hikyaku_mail::path::ForwardPath;
use hikyaku_mail::reply::Reply;

use crate::backend::{Client, End};
use crate::command::{Chunk, Command, MailParameters, RcptParameters, Refusal};
use crate::content::Scanner;
use crate::options::Options;
use crate::pace::Pace;
use crate::session::state::State;

/// Whether STARTTLS can be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Security {
    /// In the clear, and there is no TLS to go to.
    Clear,
    /// In the clear, STARTTLS is offered.
    Upgradable,
    /// Under TLS.
    Tls,
}

/// A mail whose content comes in chunks.
#[derive(Debug)]
pub struct Chunked<T> {
    /// The mail.
    pub transaction: T,
    /// The content so far.
    pub scanner: Scanner,
    /// How fast it comes.
    pub pace: Pace,
    chunks: u32,
}

impl<T> Chunked<T> {
    fn new(transaction: T, options: &Options) -> Box<Chunked<T>> {
        Box::new(Chunked {
            transaction,
            scanner: Scanner::counted(options),
            pace: Pace::new(options),
            chunks: 0,
        })
    }

    /// True in the first chunk.
    pub fn begins(&self) -> bool {
        self.chunks == 1
    }
}

/// What the server has to do. A transaction handed out in `abandoned` must be aborted.
#[derive(Debug)]
pub enum Action<T> {
    /// Answer.
    Reply {
        /// The answer.
        reply: Reply,
        /// The transaction it ended.
        abandoned: Option<T>,
    },
    /// Answer EHLO or HELO.
    Greet {
        /// How the client introduced itself.
        client: Client,
        /// The transaction it ended.
        abandoned: Option<T>,
    },
    /// Ask the backend; then [`Session::began`] if it agrees.
    Mail(MailParameters),
    /// Ask the transaction; then [`Session::accepted`] if it agrees.
    Rcpt(RcptParameters),
    /// Receive the content and finish.
    Data(T),
    /// Receive a chunk; then finish if it is the last, or [`Session::continues`].
    Chunk {
        /// How much of it.
        chunk: Chunk,
        /// What it belongs to.
        content: Box<Chunked<T>>,
    },
    /// Receive a chunk that nobody wants, then answer.
    Discard {
        /// How much of it.
        chunk: Chunk,
        /// The answer.
        reply: Reply,
        /// The transaction it ended.
        abandoned: Option<T>,
    },
    /// Answer 220 and begin TLS.
    StartTls,
    /// Answer and close.
    Close {
        /// The answer.
        reply: Reply,
        /// How the session ended.
        end: End,
        /// The transaction it ended.
        abandoned: Option<T>,
    },
}

impl<T> Action<T> {
    /// True if the client is refused what it asked for, without the backend having been asked.
    pub fn is_refusal(&self) -> bool {
        match self {
            Action::Reply { reply, .. }
            | Action::Discard { reply, .. }
            | Action::Close { reply, .. } => !reply.is_positive(),
            _ => false,
        }
    }

    fn reply(reply: Reply) -> Action<T> {
        Action::Reply {
            reply,
            abandoned: None,
        }
    }

    fn refuse_and_close(reply: Reply, abandoned: Option<T>) -> Action<T> {
        Action::Close {
            reply,
            end: End::Refused,
            abandoned,
        }
    }
}

/// How much nonsense a connection has sent.
#[derive(Clone, Copy, Debug, Default)]
pub struct Misdeeds {
    errors: u32,
    junk: u32,
}

/// One session: the state of its dialogue and the patience left.
#[derive(Debug)]
pub struct Session<T> {
    state: State<T>,
    security: Security,
    /// Greeted with EHLO, so that extensions may be used.
    extended: bool,
    misdeeds: Misdeeds,
    /// How long the client has been waited for since MAIL.
    waited: Duration,
    /// DATA, AUTH or a line nobody has read was refused: what follows may be a body or a password,
    /// sent by a client that does not listen.
    guarded: bool,
}

impl<T> Session<T> {
    /// A session that has heard nothing yet, on a connection that has committed `misdeeds` so far.
    pub fn new(security: Security, misdeeds: Misdeeds) -> Session<T> {
        Session {
            state: State::Connected,
            security,
            extended: false,
            misdeeds,
            waited: Duration::ZERO,
            guarded: false,
        }
    }

    /// What a command leads to.
    pub fn on_command(&mut self, command: Command, options: &Options) -> Action<T> {
        let greeted = !matches!(self.state, State::Connected);
        match command {
            Command::Noop | Command::Rset | Command::Vrfy | Command::Help => {
                self.misdeeds.junk += 1
            }
            Command::Ehlo(_) | Command::Helo(_) if greeted => self.misdeeds.junk += 1,
            Command::Bdat(Chunk {
                size: 0,
                last: false,
            }) => self.misdeeds.junk += 1,
            _ => {}
        }
        if self.misdeeds.junk > options.junk_commands_max {
            return Action::refuse_and_close(too_many_errors(), self.take_transaction());
        }
        let is_data = command == Command::Data;
        let state = std::mem::replace(&mut self.state, State::Connected);
        let (state, action) = state.on_command(command, self.security, self.extended, options);
        if let Action::Greet { client, .. } = &action {
            self.extended = client.extended;
        }
        self.guarded |= is_data && action.is_refusal();
        self.state = state;
        action
    }

    /// What a line that is no command leads to.
    pub fn on_refusal(&mut self, refusal: Refusal) -> Action<T> {
        self.guarded |= matches!(refusal, Refusal::NotOffered | Refusal::TooLong);
        if refusal.closes() {
            return Action::refuse_and_close(refusal.reply(), self.take_transaction());
        }
        Action::reply(refusal.reply())
    }

    /// The backend has refused DATA.
    pub fn data_refused(&mut self) {
        self.guarded = true;
    }

    /// Whether the next line may be a body or a password, which the log must not have.
    pub fn is_guarded(&self) -> bool {
        self.guarded
    }

    /// The backend has accepted MAIL, which said SMTPUTF8 or not.
    pub fn began(&mut self, transaction: T, smtputf8: bool) {
        self.waited = Duration::ZERO;
        self.state = State::Mail {
            transaction,
            smtputf8,
            asked: 0,
        };
    }

    /// A chunk has been received, and more must come.
    pub fn continues(&mut self, content: Box<Chunked<T>>) {
        self.state = State::Chunks(content);
    }

    /// How long to wait for the next command. An envelope has its time in all, a content in chunks its pace between them too.
    pub fn command_patience(&self, options: &Options) -> Duration {
        let left = match &self.state {
            State::Connected | State::Greeted => return options.command_timeout,
            State::Mail { .. } | State::Rcpt { .. } => {
                options.envelope_timeout.saturating_sub(self.waited)
            }
            State::Chunks(content) => content.pace.patience(),
        };
        left.min(options.command_timeout)
    }

    /// A command has come after `waited`.
    pub fn waited(&mut self, waited: Duration) {
        match &mut self.state {
            State::Connected | State::Greeted => {}
            State::Mail { .. } | State::Rcpt { .. } => self.waited += waited,
            State::Chunks(content) => content.pace.count(waited, 0),
        }
    }

    /// The transaction open, if there is one.
    pub fn transaction(&mut self) -> Option<&mut T> {
        match &mut self.state {
            State::Connected | State::Greeted => None,
            State::Mail { transaction, .. } | State::Rcpt { transaction, .. } => Some(transaction),
            State::Chunks(content) => Some(&mut content.transaction),
        }
    }

    /// The transaction has accepted a recipient.
    pub fn accepted(&mut self, path: ForwardPath) {
        match std::mem::replace(&mut self.state, State::Connected) {
            State::Mail {
                transaction,
                smtputf8,
                asked,
            } => {
                self.state = State::Rcpt {
                    transaction,
                    smtputf8,
                    asked,
                    recipients: BTreeSet::from([path]),
                };
            }
            State::Rcpt {
                transaction,
                smtputf8,
                asked,
                mut recipients,
            } => {
                recipients.insert(path);
                self.state = State::Rcpt {
                    transaction,
                    smtputf8,
                    asked,
                    recipients,
                };
            }
            other => self.state = other,
        }
    }

    /// The connection ends: the transaction that was open, to be aborted.
    pub fn take_transaction(&mut self) -> Option<T> {
        std::mem::replace(&mut self.state, State::Connected).into_transaction()
    }

    /// A message has been taken: all is forgiven.
    pub fn delivered(&mut self) {
        self.misdeeds = Misdeeds::default();
    }

    /// Counts a refusal. A transient one is our trouble and counts only for a client that keeps opening transactions.
    pub fn count(&mut self, reply: &Reply, to_mail: bool) {
        if reply.is_permanent() {
            self.misdeeds.errors += 1;
        } else if to_mail {
            self.misdeeds.junk += 1;
        }
    }

    /// What the client's misdeeds have earned it.
    pub fn patience(&self, options: &Options) -> Patience {
        match self.misdeeds.errors {
            errors if errors > options.errors_max => Patience::Ended,
            errors if errors > options.errors_soft_max => Patience::Thin,
            _ => Patience::Whole,
        }
    }

    /// The count of misdeeds, for the session that follows over TLS.
    pub fn misdeeds(&self) -> Misdeeds {
        self.misdeeds
    }

    /// Whether STARTTLS can be had.
    pub fn security(&self) -> Security {
        self.security
    }
}

/// How much more a client may do wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patience {
    /// Answer at once.
    Whole,
    /// Answer errors late.
    Thin,
    /// Close.
    Ended,
}

/// 503: not now.
pub fn bad_sequence() -> Reply {
    Reply::new(503, (5, 5, 1), "bad sequence of commands")
}

/// 554: nobody the mail is for.
fn no_recipients() -> Reply {
    Reply::new(554, (5, 5, 1), "no valid recipients")
}

/// 552: over [`Options::content_bytes_max`].
pub fn too_big() -> Reply {
    Reply::new(552, (5, 3, 4), "message too big")
}

/// 421: over the limits of errors or of junk commands.
pub fn too_many_errors() -> Reply {
    Reply::new(421, (4, 7, 0), "too many errors")
}

/// The lines of the answer to EHLO, or to HELO if not `extended` (RFC 5321 section 4.1.1.1), without code and CRLF.
pub fn greeting_lines(extended: bool, security: Security, options: &Options) -> Vec<String> {
    let mut lines = vec![options.host_name.clone()];
    if !extended {
        return lines;
    }
    lines.push("PIPELINING".to_owned());
    lines.push(format!("SIZE {}", options.content_bytes_max));
    if security == Security::Upgradable {
        lines.push("STARTTLS".to_owned());
    }
    lines.push("ENHANCEDSTATUSCODES".to_owned());
    lines.push("8BITMIME".to_owned());
    lines.push("SMTPUTF8".to_owned());
    lines.push("CHUNKING".to_owned());
    lines.push("DSN".to_owned());
    lines.push(format!("LIMITS RCPTMAX={}", options.recipients_max));
    lines
}
