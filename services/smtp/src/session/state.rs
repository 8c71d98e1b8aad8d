//! The states of the dialogue, and what each command means in each of them. A state owns only what is legal in it.

use std::collections::BTreeSet;

use hikyaku_mail::path::ForwardPath;
use hikyaku_mail::reply::Reply;

use crate::backend::{Client, End};
use crate::command::{Chunk, Command, MailParameters, RcptParameters, Refusal};
use crate::options::Options;
use crate::session::{
    Action, Chunked, Security, bad_sequence, no_recipients, too_big, too_many_errors,
};

/// Where the dialogue stands.
#[derive(Debug)]
pub(super) enum State<T> {
    /// Nobody has said EHLO or HELO yet.
    Connected,
    /// No mail is under way.
    Greeted,
    /// MAIL was accepted, no recipient yet.
    Mail {
        transaction: T,
        smtputf8: bool,
        asked: u32,
    },
    /// At least one recipient was accepted.
    Rcpt {
        transaction: T,
        smtputf8: bool,
        asked: u32,
        recipients: BTreeSet<ForwardPath>,
    },
    /// A content in chunks is under way.
    Chunks(Box<Chunked<T>>),
}

impl<T> State<T> {
    /// What a command leads to here, and where that leaves the dialogue.
    pub(super) fn on_command(
        self,
        command: Command,
        security: Security,
        extended: bool,
        options: &Options,
    ) -> (State<T>, Action<T>) {
        match command {
            Command::Ehlo(name) => self.greeted(Client {
                name,
                extended: true,
            }),
            Command::Helo(name) => self.greeted(Client {
                name,
                extended: false,
            }),
            Command::Mail(mail) => self.mail(mail, options),
            Command::Rcpt(rcpt) => self.rcpt(rcpt, options),
            Command::Data => self.data(),
            Command::Bdat(chunk) => self.bdat(chunk, extended, options),
            Command::Rset => self.reset(),
            Command::StartTls => self.start_tls(security, extended),
            Command::Noop => (self, Action::reply(Reply::new(250, (2, 0, 0), "OK"))),
            // RFC 5321 section 7.3: the same for everybody, so that nobody learns who exists
            Command::Vrfy => (
                self,
                Action::reply(Reply::new(
                    252,
                    (2, 0, 0),
                    "send some mail, I will try my best",
                )),
            ),
            Command::Help => (
                self,
                Action::reply(Reply::new(214, (2, 0, 0), "see RFC 5321")),
            ),
            Command::Quit => {
                let reply = Reply::new(221, (2, 0, 0), "goodbye");
                (
                    State::Connected,
                    Action::Close {
                        reply,
                        end: End::Quit,
                        abandoned: self.into_transaction(),
                    },
                )
            }
        }
    }

    fn greeted(self, client: Client) -> (State<T>, Action<T>) {
        (
            State::Greeted,
            Action::Greet {
                client,
                abandoned: self.into_transaction(),
            },
        )
    }

    fn mail(self, mail: MailParameters, options: &Options) -> (State<T>, Action<T>) {
        if !matches!(self, State::Greeted) {
            return (self, Action::reply(bad_sequence()));
        }
        // RFC 1870 section 6.1
        if mail
            .size
            .is_some_and(|size| size > options.content_bytes_max)
        {
            return (self, Action::reply(too_big()));
        }
        (self, Action::Mail(mail))
    }

    fn rcpt(mut self, rcpt: RcptParameters, options: &Options) -> (State<T>, Action<T>) {
        let (asked, smtputf8, known) = match &mut self {
            State::Connected | State::Greeted | State::Chunks(_) => {
                return (self, Action::reply(bad_sequence()));
            }
            State::Mail {
                asked, smtputf8, ..
            } => (asked, *smtputf8, false),
            State::Rcpt {
                asked,
                smtputf8,
                recipients,
                ..
            } => (asked, *smtputf8, recipients.contains(&rcpt.forward_path)),
        };
        if rcpt.utf8 && !smtputf8 {
            return (self, Action::reply(Refusal::NotAscii.reply()));
        }
        *asked = asked.saturating_add(1);
        // RFC 5321 section 4.5.3.1.10: the recipients heard so far stay good
        if *asked > options.recipients_max {
            // a client that does not take the hint is not counting
            if *asked > options.recipients_max.saturating_mul(2) {
                return (
                    State::Connected,
                    Action::refuse_and_close(too_many_errors(), self.into_transaction()),
                );
            }
            return (
                self,
                Action::reply(Reply::new(452, (4, 5, 3), "too many recipients")),
            );
        }
        if known {
            return (
                self,
                Action::reply(Reply::new(250, (2, 1, 5), "recipient OK")),
            );
        }
        (self, Action::Rcpt(rcpt))
    }

    fn data(self) -> (State<T>, Action<T>) {
        match self {
            State::Rcpt { transaction, .. } => (State::Greeted, Action::Data(transaction)),
            State::Mail { asked: 1.., .. } => (self, Action::reply(no_recipients())),
            State::Connected | State::Greeted | State::Mail { .. } | State::Chunks(_) => {
                (self, Action::reply(bad_sequence()))
            }
        }
    }

    fn bdat(self, chunk: Chunk, extended: bool, options: &Options) -> (State<T>, Action<T>) {
        let discard = |reply| Action::Discard {
            chunk,
            reply,
            abandoned: None,
        };
        let mut content = match self {
            State::Rcpt { transaction, .. } if extended => Chunked::new(transaction, options),
            State::Chunks(content) => content,
            State::Mail { asked: 1.., .. } if extended => return (self, discard(no_recipients())),
            _ => return (self, discard(bad_sequence())),
        };
        content.chunks = content.chunks.saturating_add(1);
        if content.chunks > options.chunks_max {
            let abandoned = Some(content.transaction);
            return (
                State::Connected,
                Action::refuse_and_close(too_many_errors(), abandoned),
            );
        }
        let size = content.scanner.content_bytes().saturating_add(chunk.size);
        if size > options.content_bytes_max {
            let abandoned = Some(content.transaction);
            let reply = too_big();
            return (
                State::Greeted,
                Action::Discard {
                    chunk,
                    reply,
                    abandoned,
                },
            );
        }
        (State::Greeted, Action::Chunk { chunk, content })
    }

    fn reset(self) -> (State<T>, Action<T>) {
        let state = if matches!(self, State::Connected) {
            State::Connected
        } else {
            State::Greeted
        };
        let reply = Reply::new(250, (2, 0, 0), "OK");
        (
            state,
            Action::Reply {
                reply,
                abandoned: self.into_transaction(),
            },
        )
    }

    fn start_tls(self, security: Security, extended: bool) -> (State<T>, Action<T>) {
        match (&self, security) {
            (_, Security::Clear) => (self, Action::reply(Refusal::NotOffered.reply())),
            (_, Security::Tls) => (
                self,
                Action::reply(Reply::new(554, (5, 5, 1), "TLS already active")),
            ),
            (State::Greeted, Security::Upgradable) if extended => {
                (State::Connected, Action::StartTls)
            }
            (_, Security::Upgradable) => (self, Action::reply(bad_sequence())),
        }
    }

    /// The transaction that was open, to be aborted.
    pub(super) fn into_transaction(self) -> Option<T> {
        match self {
            State::Connected | State::Greeted => None,
            State::Mail { transaction, .. } | State::Rcpt { transaction, .. } => Some(transaction),
            State::Chunks(content) => Some(content.transaction),
        }
    }
}
