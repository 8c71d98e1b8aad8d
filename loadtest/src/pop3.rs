//! Reads a maildrop by POP3 (RFC 1939) over a blocking socket, in the clear, under TLS or after STLS (RFC 2595): USER,
//! PASS, STAT, UIDL, RETR, DELE, QUIT.
//!
//! Mail streams through line by line, so its size costs no memory; RETR and DELE are pipelined when the server says
//! that it may be done (RFC 2449 section 6.8).

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};

use crate::net::{Endpoint, Protection, Stream};
use crate::users::User;

/// The longest line read; mail has at most 998 characters in one, servers may be looser.
const LINE_MAX: u64 = 1 << 20;
/// The most mails of one maildrop.
const MAILS_MAX: usize = 10_000_000;
/// How many commands are under way at once.
const WINDOW: usize = 64;
/// Bytes read at once.
const BUFFER: usize = 64 << 10;

/// One line of UIDL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Message number, of this session only.
    pub number: u32,
    /// Unique id, for all sessions.
    pub uid: String,
}

/// An open maildrop.
#[derive(Debug)]
pub struct Maildrop {
    stream: BufReader<Stream>,
    window: usize,
    line: Vec<u8>,
}

impl Maildrop {
    /// Connects in the clear and logs in.
    pub fn open(
        server: SocketAddr,
        login: &str,
        password: &str,
        timeout: Duration,
    ) -> anyhow::Result<Maildrop> {
        let mut drop = Maildrop::connect(&server.into(), timeout)?;
        drop.authenticate(login, password)?;
        Ok(drop)
    }

    /// Connects as the endpoint says and logs in.
    pub fn of(server: &Endpoint, user: &User, timeout: Duration) -> anyhow::Result<Maildrop> {
        let mut drop = Maildrop::connect(server, timeout)?;
        drop.authenticate(&user.login, &user.password)?;
        Ok(drop)
    }

    fn connect(server: &Endpoint, timeout: Duration) -> anyhow::Result<Maildrop> {
        let stream = server.connect(timeout).context("POP3")?;
        let mut drop = Maildrop {
            stream: BufReader::with_capacity(BUFFER, stream),
            window: 1,
            line: Vec::new(),
        };
        drop.ok("banner")?;
        if let Protection::Upgrade(tls) = &server.protection {
            drop.command("STLS")?;
            drop.ok("STLS")?;
            ensure!(
                drop.stream.buffer().is_empty(),
                "STLS: more than a response"
            );
            let stream = drop.stream.into_inner().secure(tls)?;
            drop.stream = BufReader::with_capacity(BUFFER, stream);
        }
        drop.command("CAPA")?;
        if drop.status()?.is_ok() {
            let mut pipelining = false;
            drop.lines(|line| pipelining |= line.eq_ignore_ascii_case(b"PIPELINING"))?;
            drop.window = if pipelining { WINDOW } else { 1 };
        }
        Ok(drop)
    }

    fn authenticate(&mut self, login: &str, password: &str) -> anyhow::Result<()> {
        self.command(&format!("USER {login}"))?;
        self.ok("USER")?;
        self.command(&format!("PASS {password}"))?;
        self.ok("PASS").map(|_| ())
    }

    /// Whether the server lets commands be sent before the last one was answered.
    pub fn pipelines(&self) -> bool {
        self.window > 1
    }

    /// Sends one command at a time, whatever the server offers.
    pub fn in_lockstep(&mut self) {
        self.window = 1;
    }

    /// How many mails there are.
    pub fn count(&mut self) -> anyhow::Result<u64> {
        self.command("STAT")?;
        let line = self.ok("STAT")?;
        let count = line
            .split_ascii_whitespace()
            .next()
            .and_then(|n| n.parse().ok());
        count.with_context(|| format!("STAT answered {line:?}"))
    }

    /// All mails with their unique ids, in the order the server gives.
    pub fn uidl(&mut self) -> anyhow::Result<Vec<Listed>> {
        self.command("UIDL")?;
        self.ok("UIDL")?;
        let mut list = Vec::new();
        let mut bad = None;
        self.lines(|line| {
            let text = String::from_utf8_lossy(line);
            let parsed = text
                .split_once(' ')
                .and_then(|(n, uid)| Some((n.parse().ok()?, uid)));
            match parsed {
                Some((number, uid)) if list.len() < MAILS_MAX => list.push(Listed {
                    number,
                    uid: uid.to_owned(),
                }),
                _ => bad = Some(text.into_owned()),
            }
        })?;
        ensure!(bad.is_none(), "UIDL answered {bad:?}");
        Ok(list)
    }

    /// What LIST says: the octets of each mail, by message number.
    pub fn sizes(&mut self) -> anyhow::Result<BTreeMap<u32, u64>> {
        self.command("LIST")?;
        self.ok("LIST")?;
        let mut sizes = BTreeMap::new();
        let mut bad = None;
        self.lines(|line| {
            let text = String::from_utf8_lossy(line);
            let mut words = text.split(' ').map_while(|word| word.parse::<u64>().ok());
            match (words.next(), words.next()) {
                (Some(number), Some(size)) if sizes.len() < MAILS_MAX => {
                    sizes.insert(u32::try_from(number).unwrap_or(u32::MAX), size);
                }
                _ => bad = Some(text.into_owned()),
            }
        })?;
        ensure!(bad.is_none(), "LIST answered {bad:?}");
        Ok(sizes)
    }

    /// Retrieves each mail and deletes it right after. `each(number, octets, end)` is called with what was received
    /// (CRLFs counted, without the stuffing) and when its last line had come.
    pub fn retrieve_and_delete(
        &mut self,
        numbers: &[u32],
        mut each: impl FnMut(u32, u64, Instant) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let commands: Vec<(bool, u32)> = numbers
            .iter()
            .flat_map(|number| [(true, *number), (false, *number)])
            .collect();
        let mut octets = 0;
        let mut ended = Instant::now();
        let text = |(retrieves, number): &(bool, u32)| {
            format!("{} {number}", if *retrieves { "RETR" } else { "DELE" })
        };
        self.pipeline(&commands, text, |drop, at| {
            let Some((retrieves, number)) = commands.get(at).copied() else {
                return Ok(());
            };
            if !retrieves {
                return each(number, octets, ended);
            }
            octets = 0;
            drop.lines(|line| octets += line.len() as u64 + 2)?;
            ended = Instant::now();
            Ok(())
        })
    }

    /// Retrieves mails in the order given. `line(n, l)` gets each line of the n-th of them, without CRLF and with the
    /// stuffing taken away; `end(n)` follows.
    pub fn retrieve<T>(
        &mut self,
        numbers: &[u32],
        state: &mut T,
        line: impl Fn(&mut T, usize, &[u8]),
        end: impl Fn(&mut T, usize),
    ) -> anyhow::Result<()> {
        self.pipeline(
            numbers,
            |number| format!("RETR {number}"),
            |drop, at| {
                drop.lines(|bytes| line(state, at, bytes))?;
                end(state, at);
                Ok(())
            },
        )
    }

    /// Marks mails as deleted; [`Maildrop::quit`] makes it so.
    pub fn delete(&mut self, numbers: &[u32]) -> anyhow::Result<()> {
        self.pipeline(numbers, |number| format!("DELE {number}"), |_, _| Ok(()))
    }

    /// Ends the session in order; an error means that the deletions may not have happened.
    pub fn quit(mut self) -> anyhow::Result<()> {
        self.command("QUIT")?;
        self.ok("QUIT").map(|_| ())
    }

    /// Sends commands, as many ahead as the window allows; `answered` is called after each positive response.
    fn pipeline<C>(
        &mut self,
        commands: &[C],
        text: impl Fn(&C) -> String,
        mut answered: impl FnMut(&mut Maildrop, usize) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let mut sent = 0;
        for (at, command) in commands.iter().enumerate() {
            // Refill when half of the window is used up, so that commands travel in few packets.
            if sent - at <= self.window / 2 {
                let until = commands.len().min(at + self.window);
                let batch: String = commands[sent..until]
                    .iter()
                    .map(|command| text(command) + "\r\n")
                    .collect();
                self.stream.get_mut().send(batch.as_bytes())?;
                sent = until;
            }
            self.ok(&text(command))?;
            answered(self, at)?;
        }
        Ok(())
    }

    fn command(&mut self, text: &str) -> anyhow::Result<()> {
        ensure!(
            !text.bytes().any(|b| b < b' '),
            "control character in a POP3 command"
        );
        Ok(self
            .stream
            .get_mut()
            .send(format!("{text}\r\n").as_bytes())?)
    }

    fn ok(&mut self, verb: &str) -> anyhow::Result<String> {
        match self.status()? {
            Ok(text) => Ok(text),
            Err(text) => bail!("{verb} answered -ERR {text}"),
        }
    }

    /// The text behind +OK, or behind -ERR.
    fn status(&mut self) -> anyhow::Result<Result<String, String>> {
        self.read_line()?;
        let text = String::from_utf8_lossy(&self.line).into_owned();
        if let Some(rest) = text.strip_prefix("+OK") {
            return Ok(Ok(rest.trim_start().to_owned()));
        }
        match text.strip_prefix("-ERR") {
            Some(rest) => Ok(Err(rest.trim_start().to_owned())),
            None => bail!("neither +OK nor -ERR: {text:?}"),
        }
    }

    /// The lines of a multi-line response, up to the dot line.
    fn lines(&mut self, mut each: impl FnMut(&[u8])) -> anyhow::Result<()> {
        loop {
            self.read_line()?;
            match self.line.as_slice() {
                b"." => return Ok(()),
                [b'.', rest @ ..] => each(rest),
                line => each(line),
            }
        }
    }

    /// Reads one line into `self.line`, without its CRLF. A bare LF is an error: the bytes must be what was sent.
    fn read_line(&mut self) -> anyhow::Result<()> {
        self.line.clear();
        self.stream
            .by_ref()
            .take(LINE_MAX)
            .read_until(b'\n', &mut self.line)
            .context("reading POP3")?;
        if !self.line.ends_with(b"\r\n") {
            ensure!(!self.line.is_empty(), "POP3 connection closed");
            bail!("POP3 line of {} bytes not ended by CRLF", self.line.len());
        }
        self.line.truncate(self.line.len() - 2);
        Ok(())
    }
}
