//! The states of a POP3 session and what each command means in them (RFC 1939 sections 4 to 6, RFC 5034, RFC 6856). No I/O: the server does what
//! the [`Action`] says, and only it can open the maildrop that makes a [`Session::Transaction`].

use crate::pop3::command::{Command, Password};
use crate::pop3::maildrop::{Absent, MailboxRef, Maildrop};
use crate::pop3::reply::{Reply, ResponseCode};
use crate::pop3::sasl;

/// What the connection is like, apart from what the client said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Channel {
    /// TLS is on.
    pub tls: bool,
    /// STLS may be asked for, as long as TLS is not on.
    pub stls: bool,
    /// Passwords are taken without TLS.
    pub cleartext_login: bool,
}

impl Channel {
    /// Whether USER and PASS are heard now.
    pub fn login_allowed(self) -> bool {
        self.tls || self.cleartext_login
    }

    /// Whether STLS is possible now.
    pub fn stls_possible(self) -> bool {
        self.stls && !self.tls
    }
}

/// One session. Each state owns what is legal in it and nothing else.
#[derive(Debug)]
pub enum Session {
    /// Nobody is logged in; a name may have been given.
    Authorization {
        /// From USER, for the PASS that follows at once.
        user: Option<String>,
    },
    /// AUTH was said, and the next line is no command but the answer to our challenge.
    Challenged,
    /// Logged in, with a maildrop open.
    Transaction(Box<Maildrop>),
    /// QUIT was said: nothing but the end follows.
    Update,
}

/// What the server does next.
#[derive(Debug, PartialEq, Eq)]
pub enum Action {
    /// Say this.
    Reply(Reply),
    /// List what is possible now.
    Capabilities,
    /// List the SASL mechanisms.
    Mechanisms,
    /// Send an empty challenge.
    Challenge,
    /// Say yes, forget everything, speak TLS.
    StartTls,
    /// Ask the directory, and on success go on in [`Session::Transaction`].
    Login {
        /// Who.
        user: String,
        /// Never logged.
        password: Password,
    },
    /// List all messages that are not marked.
    List(Listing),
    /// Send a message.
    Retrieve(Retrieve),
    /// Say goodbye and close.
    Goodbye,
    /// Expunge, say how it went, close.
    Expunge {
        /// Where.
        mailbox: MailboxRef,
        /// Which: at least one.
        uids: Vec<u32>,
    },
}

/// What is listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listing {
    /// LIST.
    Sizes,
    /// UIDL.
    UniqueIds,
}

/// A message to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retrieve {
    /// Where it is.
    pub mailbox: MailboxRef,
    /// Which one.
    pub uid: u32,
    /// As LIST announces it.
    pub size: u64,
    /// For TOP: how many lines of the body.
    pub body_lines: Option<u32>,
}

impl Default for Session {
    fn default() -> Session {
        Session::Authorization { user: None }
    }
}

impl Session {
    /// What `command` does: the next state and what is to be done.
    #[must_use]
    pub fn on_command(self, command: Command, channel: Channel) -> (Session, Action) {
        match self {
            Session::Authorization { user } => authorization(user, command, channel),
            Session::Transaction(maildrop) => transaction(maildrop, command),
            // a command is a response that is not one
            Session::Challenged => (Session::default(), reply(sasl::SaslError::Malformed.into())),
            Session::Update => (Session::Update, reply(Reply::err("session has ended"))),
        }
    }

    /// What `response`, the line after a challenge, does. It is `None` if it was too long to be one.
    #[must_use]
    pub fn on_response(self, response: Option<&[u8]>) -> (Session, Action) {
        match (self, response) {
            (Session::Challenged, Some(response)) => (Session::default(), plain(response)),
            (Session::Challenged, None) => {
                (Session::default(), reply(sasl::SaslError::Malformed.into()))
            }
            (other, _) => (other, reply(Reply::err("there was no challenge"))),
        }
    }
}

fn plain(response: &[u8]) -> Action {
    match sasl::plain(response) {
        Ok((user, password)) => Action::Login { user, password },
        Err(error) => reply(error.into()),
    }
}

fn reply(reply: Reply) -> Action {
    Action::Reply(reply)
}

fn authorization(user: Option<String>, command: Command, channel: Channel) -> (Session, Action) {
    // only the PASS that follows USER at once may use its name (RFC 1939 section 7); CAPA and NOOP do no harm in between
    let kept = |user| Session::Authorization { user };
    match command {
        Command::Capa => (kept(user), Action::Capabilities),
        Command::Stls if channel.stls_possible() => (kept(None), Action::StartTls),
        Command::Stls if channel.tls => (kept(None), reply(Reply::err("TLS is on already"))),
        Command::Stls => (kept(None), reply(Reply::err("TLS is not offered here"))),
        Command::User(_) | Command::Pass(_) | Command::AuthPlain(_) if !channel.login_allowed() => {
            // RFC 2595 section 2.2
            (
                kept(None),
                reply(Reply::Err(
                    Some(ResponseCode::Auth),
                    "passwords are taken only under TLS",
                )),
            )
        }
        Command::User(name) => (kept(Some(name)), reply(Reply::ok("send PASS"))),
        Command::Pass(password) => match user {
            Some(user) => (kept(None), Action::Login { user, password }),
            None => (kept(None), reply(Reply::err("USER comes first"))),
        },
        Command::Mechanisms => (kept(None), Action::Mechanisms),
        Command::AuthPlain(None) => (Session::Challenged, Action::Challenge),
        Command::AuthPlain(Some(response)) => (kept(None), plain(response.as_bytes())),
        // RFC 6856 section 2: what we send is UTF-8 in any case
        Command::Utf8 => (kept(None), reply(Reply::ok("UTF-8 it is"))),
        Command::Quit => (Session::Update, Action::Goodbye),
        Command::Stat
        | Command::List(_)
        | Command::Uidl(_)
        | Command::Retr(_)
        | Command::Top { .. }
        | Command::Dele(_)
        | Command::Rset
        | Command::Noop => (kept(None), reply(Reply::err("log in first"))),
    }
}

fn transaction(mut maildrop: Box<Maildrop>, command: Command) -> (Session, Action) {
    let action = match command {
        Command::Capa => Action::Capabilities,
        Command::User(_)
        | Command::Pass(_)
        | Command::Mechanisms
        | Command::AuthPlain(_)
        | Command::Utf8
        | Command::Stls => reply(Reply::err("you are logged in already")),
        Command::Stat => reply(Reply::ok(format!(
            "{} {}",
            maildrop.count(),
            maildrop.octets()
        ))),
        Command::List(None) => Action::List(Listing::Sizes),
        Command::Uidl(None) => Action::List(Listing::UniqueIds),
        Command::List(Some(number)) => reply(match maildrop.message(number) {
            Ok(message) => Reply::ok(format!("{} {}", message.number, message.size)),
            Err(absent) => absent.into(),
        }),
        Command::Uidl(Some(number)) => reply(match maildrop.message(number) {
            Ok(message) => Reply::ok(format!("{} {}", message.number, message.unique_id)),
            Err(absent) => absent.into(),
        }),
        Command::Retr(number) => retrieve(&maildrop, number, None),
        Command::Top { message, lines } => retrieve(&maildrop, message, Some(lines)),
        Command::Dele(number) => reply(match maildrop.mark(number) {
            Ok(()) => Reply::ok(format!("message {number} is marked")),
            Err(absent) => absent.into(),
        }),
        Command::Rset => {
            maildrop.reset();
            reply(Reply::ok(format!(
                "{} messages ({} octets)",
                maildrop.count(),
                maildrop.octets()
            )))
        }
        Command::Noop => reply(Reply::ok("done")),
        Command::Quit => return (Session::Update, update(&maildrop)),
    };
    (Session::Transaction(maildrop), action)
}

fn retrieve(maildrop: &Maildrop, number: u32, body_lines: Option<u32>) -> Action {
    let message = match maildrop.message(number) {
        Ok(message) => message,
        Err(absent) => return reply(absent.into()),
    };
    match maildrop.mailbox() {
        Some(mailbox) => Action::Retrieve(Retrieve {
            mailbox: mailbox.clone(),
            uid: message.uid,
            size: message.size,
            body_lines,
        }),
        None => reply(Absent::NoSuch.into()),
    }
}

fn update(maildrop: &Maildrop) -> Action {
    match (maildrop.mailbox(), maildrop.marked()) {
        (Some(mailbox), uids) if !uids.is_empty() => Action::Expunge {
            mailbox: mailbox.clone(),
            uids,
        },
        _ => Action::Goodbye,
    }
}

impl From<Absent> for Reply {
    fn from(absent: Absent) -> Reply {
        Reply::err(match absent {
            Absent::NoSuch => "no such message",
            Absent::Deleted => "message is marked as deleted",
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop, prop_oneof, proptest};
    use proptest::strategy::{Just, Strategy};

    use super::{Action, Channel, Listing, Session};
    use crate::pop3::command::Command;
    use crate::pop3::maildrop::tests::maildrop;
    use crate::pop3::reply::Reply;

    const SIZES: [u64; 4] = [10, 20, 30, 40];

    fn logged_in() -> Session {
        Session::Transaction(Box::new(maildrop(&[
            (2, 10, "a"),
            (3, 20, "b"),
            (5, 30, "c"),
            (9, 40, "d"),
        ])))
    }

    fn commands() -> impl Strategy<Value = String> {
        let with_number = prop_oneof![
            Just("LIST"),
            Just("UIDL"),
            Just("RETR"),
            Just("TOP 1"),
            Just("DELE"),
            Just("DELE"),
            Just("DELE")
        ];
        prop_oneof![
            4 => (with_number, 0u32..7).prop_map(|(verb, number)| match verb {
                "TOP 1" => format!("TOP {number} 2"),
                verb => format!("{verb} {number}"),
            }),
            1 => prop_oneof![
                Just("STAT"), Just("LIST"), Just("UIDL"), Just("RSET"), Just("NOOP"), Just("CAPA"), Just("USER u"),
                Just("PASS p"), Just("STLS"), Just("QUIT"), Just("AUTH"), Just("UTF8"), Just("AUTH PLAIN"),
                Just("AUTH PLAIN AGEAYg=="), Just("AUTH PLAIN ="), Just("AGEAYg=="), Just("*"),
            ].prop_map(str::to_owned),
        ]
    }

    /// RFC 1939 in one screen: what a session may do, told apart from how ours does it.
    struct Model {
        logged_in: bool,
        named: bool,
        challenged: bool,
        ended: bool,
        marked: [bool; 4],
    }

    impl Model {
        fn check(&mut self, line: &str, channel: Channel, action: &Action) {
            if self.challenged {
                self.challenged = false;
                return match line {
                    "AGEAYg==" => assert!(matches!(action, Action::Login { .. })),
                    _ => assert!(matches!(action, Action::Reply(Reply::Err(..))), "{line}"),
                };
            }
            let (verb, number) = (
                &line[..4],
                line.split(' ')
                    .nth(1)
                    .and_then(|number| number.parse::<usize>().ok()),
            );
            let ok = matches!(action, Action::Reply(Reply::Ok(_)));
            let err = matches!(action, Action::Reply(Reply::Err(..)));
            if self.ended {
                return assert!(err, "{line} after QUIT");
            }
            if !self.logged_in {
                return self.check_authorization(line, channel, action, ok, err);
            }
            let live = number.map(|number| (1..=4).contains(&number) && !self.marked[number - 1]);
            match (verb, live) {
                ("CAPA", _) => assert_eq!(action, &Action::Capabilities),
                ("STAT", _) => assert_eq!(action, &Action::Reply(Reply::ok(self.stat()))),
                ("LIST", None) => assert_eq!(action, &Action::List(Listing::Sizes)),
                ("UIDL", None) => assert_eq!(action, &Action::List(Listing::UniqueIds)),
                ("LIST" | "UIDL", Some(live)) => assert!(if live { ok } else { err }, "{line}"),
                ("RETR" | "TOP ", Some(live)) => {
                    assert!(
                        if live {
                            matches!(action, Action::Retrieve(_))
                        } else {
                            err
                        },
                        "{line}"
                    );
                }
                ("DELE", Some(live)) => {
                    assert!(if live { ok } else { err }, "{line}");
                    if live {
                        self.marked[number.unwrap() - 1] = true;
                    }
                }
                ("RSET", _) => {
                    assert!(ok);
                    self.marked = [false; 4];
                }
                ("NOOP", _) => assert!(ok),
                ("QUIT", _) => {
                    self.ended = true;
                    let uids: Vec<u32> = [2, 3, 5, 9]
                        .into_iter()
                        .zip(self.marked)
                        .filter(|(_, m)| *m)
                        .map(|(u, _)| u)
                        .collect();
                    match action {
                        Action::Goodbye => assert!(uids.is_empty()),
                        Action::Expunge { uids: expunged, .. } => assert_eq!(expunged, &uids),
                        other => panic!("QUIT gave {other:?}"),
                    }
                }
                _ => assert!(err, "{line} while logged in gave {action:?}"),
            }
        }

        fn check_authorization(
            &mut self,
            line: &str,
            channel: Channel,
            action: &Action,
            ok: bool,
            err: bool,
        ) {
            let login = channel.tls || channel.cleartext_login;
            let verb = &line[..4];
            match verb {
                "CAPA" => return assert_eq!(action, &Action::Capabilities),
                "USER" => {
                    assert!(if login { ok } else { err });
                    self.named = login;
                    return;
                }
                "PASS" => assert!(if self.named {
                    matches!(action, Action::Login { .. })
                } else {
                    err
                }),
                "AUTH" if line == "AUTH" => assert_eq!(action, &Action::Mechanisms),
                "AUTH" if !login => assert!(err),
                "AUTH" if line == "AUTH PLAIN" => {
                    self.challenged = true;
                    assert_eq!(action, &Action::Challenge);
                }
                "AUTH" if line == "AUTH PLAIN =" => assert!(err),
                "AUTH" => assert!(matches!(action, Action::Login { .. })),
                "UTF8" => assert!(ok),
                "STLS" if channel.stls && !channel.tls => assert_eq!(action, &Action::StartTls),
                "QUIT" => {
                    self.ended = true;
                    assert_eq!(action, &Action::Goodbye);
                }
                _ => assert!(err, "{verb} before login gave {action:?}"),
            }
            self.named = false;
        }

        fn stat(&self) -> String {
            let live: Vec<u64> = SIZES
                .into_iter()
                .zip(self.marked)
                .filter(|(_, m)| !m)
                .map(|(s, _)| s)
                .collect();
            format!("{} {}", live.len(), live.iter().sum::<u64>())
        }
    }

    proptest! {
        #[test]
        fn every_sequence_of_commands_keeps_to_the_model(
            lines in prop::collection::vec(commands(), 0..60), logged_in_first in any::<bool>(),
            tls in any::<bool>(), stls in any::<bool>(), cleartext_login in any::<bool>(),
        ) {
            let channel = Channel { tls, stls, cleartext_login };
            let mut model = Model { logged_in: logged_in_first, named: false, challenged: false, ended: false, marked: [false; 4] };
            let mut session = if logged_in_first { logged_in() } else { Session::default() };
            for line in lines {
                let (next, action) = match (session, Command::parse(line.as_bytes())) {
                    (session @ Session::Challenged, _) => session.on_response(Some(line.as_bytes())),
                    (session, Ok(command)) => session.on_command(command, channel),
                    // what is no command the session never sees
                    (unchanged, Err(_)) => {
                        session = unchanged;
                        continue;
                    }
                };
                model.check(&line, channel, &action);
                session = next;
                if matches!(action, Action::Login { .. }) {
                    session = logged_in();
                    model.logged_in = true;
                }
                let state = match &session {
                    Session::Authorization { user } => (false, false, user.is_some()),
                    Session::Challenged => {
                        assert!(model.challenged);
                        (false, false, false)
                    }
                    Session::Transaction(_) => (true, false, false),
                    Session::Update => (model.logged_in, true, false),
                };
                assert_eq!(state, (model.logged_in, model.ended, model.named && !model.logged_in && !model.ended), "{line}");
            }
        }
    }
}
