//! One SMTP client session over a blocking socket (RFC 5321), which knows exactly how far a transaction came.
//!
//! Under TLS from the first byte or after STARTTLS (RFC 3207) when asked so; never in the clear instead.
//! It pipelines MAIL, RCPT and DATA when the server offers PIPELINING (RFC 2920). The dot counts as sent only when the
//! kernel has taken the last byte of it: a connection that breaks before that leaves nothing to doubt.

use std::io::{BufRead, BufReader, Read};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};

use crate::ledger::Phase;
use crate::net::{Endpoint, Protection, Stream};

/// The longest reply line read (RFC 5321 section 4.5.3.1.5 asks for 512).
const REPLY_LINE_MAX: u64 = 4096;
/// The most lines of one reply.
const REPLY_LINES_MAX: usize = 100;

/// A whole reply, lines joined by CRLF.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// Three digits.
    pub code: u16,
    /// All of it, without the last CRLF.
    pub text: String,
}

/// A connection that ended or timed out, and what had come of the reply.
#[derive(Debug)]
pub struct Broken {
    /// Bytes of an unfinished reply.
    pub partial: String,
    /// Why.
    pub error: String,
}

/// How one transaction ended.
#[derive(Debug)]
pub struct Transaction {
    /// How far it came.
    pub phase: Phase,
    /// The reply to each RCPT that was answered.
    pub rcpt_replies: Vec<Option<Reply>>,
    /// The reply that ended it.
    pub reply: Option<Reply>,
    /// Set when the session cannot be used any more.
    pub broken: Option<Broken>,
    /// From the first content byte to the final reply.
    pub content_to_reply: Option<Duration>,
}

/// An open session.
#[derive(Debug)]
pub struct Session {
    stream: BufReader<Stream>,
    pipelining: bool,
}

impl Session {
    /// Connects, reads the banner, says EHLO, and once more under TLS if the endpoint asks for STARTTLS.
    pub fn open(server: &Endpoint, timeout: Duration) -> anyhow::Result<Session> {
        let stream = server.connect(timeout)?;
        let mut session = Session {
            stream: BufReader::with_capacity(8192, stream),
            pipelining: false,
        };
        let banner = session
            .reply()
            .map_err(|b| anyhow::anyhow!("banner: {}", b.error))?;
        if banner.code != 220 {
            bail!("banner: {}", banner.text);
        }
        session.hello()?;
        if let Protection::Upgrade(tls) = &server.protection {
            let reply = session.ask("STARTTLS")?;
            if reply.code != 220 {
                bail!("STARTTLS: {}", reply.text);
            }
            // RFC 3207 section 6: nothing said in the clear may be taken for something said under TLS
            ensure!(
                session.stream.buffer().is_empty(),
                "STARTTLS: more than a reply"
            );
            let stream = session.stream.into_inner().secure(tls)?;
            session.stream = BufReader::with_capacity(8192, stream);
            session.hello()?;
        }
        Ok(session)
    }

    /// Whether MAIL, RCPT and DATA go out at once.
    pub fn pipelines(&self) -> bool {
        self.pipelining
    }

    /// What TLS was agreed on, if it is under TLS.
    pub fn agreed(&self) -> Option<String> {
        self.stream.get_ref().agreed()
    }

    fn hello(&mut self) -> anyhow::Result<()> {
        let hello = self.ask("EHLO [127.0.0.1]")?;
        if hello.code != 250 {
            bail!("EHLO: {}", hello.text);
        }
        self.pipelining = hello
            .text
            .lines()
            .skip(1)
            .any(|l| l.get(4..).is_some_and(|w| w.trim() == "PIPELINING"));
        Ok(())
    }

    fn ask(&mut self, command: &str) -> anyhow::Result<Reply> {
        self.send(format!("{command}\r\n").as_bytes())
            .with_context(|| command.to_owned())?;
        self.reply()
            .map_err(|b| anyhow::anyhow!("{command}: {}", b.error))
    }

    /// Sends one message. `wire` is dot-stuffed and ends with the dot line. `before_dot` is called with the replies to
    /// the RCPTs after 354 and before any content; its error ends everything, because what is not in the ledger must
    /// not be sent.
    pub fn transact(
        &mut self,
        reverse_path: &str,
        rcpts: &[&str],
        wire: &[u8],
        before_dot: impl FnOnce(&[Option<Reply>]) -> anyhow::Result<()>,
    ) -> anyhow::Result<Transaction> {
        let mut done = Transaction {
            phase: Phase::Mail,
            rcpt_replies: vec![None; rcpts.len()],
            reply: None,
            broken: None,
            content_to_reply: None,
        };
        match self.envelope(reverse_path, rcpts, &mut done) {
            Ok(true) => {}
            Ok(false) => return Ok(done),
            Err(broken) => {
                done.broken = Some(broken);
                return Ok(done);
            }
        }
        before_dot(&done.rcpt_replies)?;
        done.phase = Phase::Content;
        let began = Instant::now();
        if let Err(broken) = self.content(wire) {
            // The server may have said why before it hung up.
            done.reply = self.reply().ok();
            done.broken = Some(broken);
            return Ok(done);
        }
        done.phase = Phase::Dot;
        match self.reply() {
            Ok(reply) => {
                done.content_to_reply = Some(began.elapsed());
                if reply.code == 421 {
                    done.broken = Some(Broken {
                        partial: String::new(),
                        error: "421".into(),
                    });
                }
                done.reply = Some(reply);
            }
            Err(broken) => done.broken = Some(broken),
        }
        Ok(done)
    }

    /// Says QUIT and waits for the answer, so that the server's side ends before ours does.
    pub fn quit(mut self) {
        if self.send(b"QUIT\r\n").is_ok() {
            let _ = self.reply();
        }
    }

    /// MAIL, RCPTs and DATA; true when 354 came and at least one recipient was accepted.
    fn envelope(
        &mut self,
        reverse_path: &str,
        rcpts: &[&str],
        done: &mut Transaction,
    ) -> Result<bool, Broken> {
        let mail = format!("MAIL FROM:<{reverse_path}>\r\n");
        let mut commands: Vec<String> = vec![mail];
        commands.extend(rcpts.iter().map(|rcpt| format!("RCPT TO:<{rcpt}>\r\n")));
        commands.push("DATA\r\n".to_owned());
        if self.pipelining {
            self.send(commands.concat().as_bytes()).map_err(broken)?;
        }
        let (mut mail_refused, mut accepted) = (false, 0);
        for (at, command) in commands.iter().enumerate() {
            let is_data = at == commands.len() - 1;
            if !self.pipelining {
                if mail_refused || (is_data && accepted == 0) {
                    break;
                }
                self.send(command.as_bytes()).map_err(broken)?;
            }
            if is_data && !mail_refused {
                done.phase = Phase::Data;
            }
            let reply = self.reply()?;
            let (good, hangup) = (reply.code / 100 == 2, reply.code == 421);
            if at == 0 {
                mail_refused = !good;
                if good {
                    done.phase = Phase::Rcpt;
                } else {
                    done.reply = Some(reply);
                }
            } else if is_data {
                if reply.code == 354 && accepted > 0 {
                    return Ok(true);
                }
                if reply.code == 354 {
                    // RFC 2920 section 3.1: with no recipient left, a lone dot. It carries no message.
                    self.send(b".\r\n").map_err(broken)?;
                    self.reply()?;
                } else if done.reply.is_none() {
                    done.reply = Some(reply);
                }
            } else if !mail_refused {
                accepted += usize::from(good);
                if let Some(place) = done.rcpt_replies.get_mut(at - 1) {
                    *place = Some(reply);
                }
            }
            if hangup {
                return Err(Broken {
                    partial: String::new(),
                    error: "421".into(),
                });
            }
        }
        self.send(b"RSET\r\n").map_err(broken)?;
        self.reply()?;
        Ok(false)
    }

    /// Writes the content. An error means that the end of the dot line never reached the kernel.
    fn content(&mut self, wire: &[u8]) -> Result<(), Broken> {
        self.send(wire).map_err(broken)
    }

    fn send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.stream.get_mut().send(bytes)
    }

    fn reply(&mut self) -> Result<Reply, Broken> {
        let mut text: Vec<u8> = Vec::new();
        for _ in 0..REPLY_LINES_MAX {
            let start = text.len();
            let read = self
                .stream
                .by_ref()
                .take(REPLY_LINE_MAX)
                .read_until(b'\n', &mut text);
            let error = match read {
                Ok(_) if text.ends_with(b"\r\n") => None,
                Ok(0) => Some("connection closed".to_owned()),
                Ok(_) => Some("reply line not ended by CRLF".to_owned()),
                Err(e) => Some(e.to_string()),
            };
            let partial = |error| Broken {
                partial: String::from_utf8_lossy(&text).into_owned(),
                error,
            };
            if let Some(error) = error {
                return Err(partial(error));
            }
            let line = &text[start..];
            let code = line
                .get(..3)
                .and_then(|d| std::str::from_utf8(d).ok())
                .and_then(|d| d.parse::<u16>().ok());
            match (code, line.get(3)) {
                (Some(code), Some(b' ' | b'\r')) if code >= 200 => {
                    let text = String::from_utf8_lossy(&text[..text.len() - 2]).into_owned();
                    return Ok(Reply { code, text });
                }
                (Some(_), Some(b'-')) => {}
                _ => return Err(partial("not a reply line".to_owned())),
            }
        }
        Err(Broken {
            partial: String::new(),
            error: format!("reply of more than {REPLY_LINES_MAX} lines"),
        })
    }
}

fn broken(error: std::io::Error) -> Broken {
    Broken {
        partial: String::new(),
        error: error.to_string(),
    }
}
