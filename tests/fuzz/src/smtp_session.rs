//! Whole SMTP sessions against a small server written by RFC 5321, 3030 and 2920 alone (CATALOGUE B-24): the same replies, the
//! same mails, whatever is sent and however it is cut. What a single command or content means has targets of its own; this one is
//! about where each begins and ends, which is what smuggling plays with.

use std::collections::VecDeque;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use hikyaku_mail::path::ForwardPath;
use hikyaku_mail::reply::{Rejection, Reply};
use hikyaku_smtp::backend::{Abort, Backend, End, Peer, Phase, Transaction};
use hikyaku_smtp::command::{Command, MailParameters, RcptParameters, parse};
use hikyaku_smtp::options::Options;
use hikyaku_smtp::server::{Tls, serve_connection};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::CancellationToken;

use crate::smtp_content::judged;

/// What a client sends, with 0xff where it waits until it has been answered.
pub fn run(data: &[u8]) {
    let pieces: Vec<&[u8]> = data.split(|&octet| octet == 0xff).collect();
    let options = Options {
        errors_soft_max: u32::MAX,
        errors_max: u32::MAX,
        junk_commands_max: u32::MAX,
        ..Options::new("mx.example.jp")
    };
    let (replies, mails) = serve(&pieces, &options);
    let mut reference = Reference::new(&options);
    for piece in &pieces {
        reference.hear(piece);
    }
    assert_eq!(mails, reference.mails);
    assert_eq!(codes(&replies), reference.codes);
}

/// A mail taken: reverse-path, forward-paths, content.
type Mail = (String, Vec<ForwardPath>, Vec<u8>);

/// The codes of all replies but the banner.
fn codes(replies: &[u8]) -> Vec<u16> {
    let Ok(replies) = std::str::from_utf8(replies) else {
        panic!("a reply that is no text");
    };
    let mut codes = Vec::new();
    for line in replies.split_terminator("\r\n").skip(1) {
        assert!(
            line.bytes().all(|octet| (b' '..=b'~').contains(&octet)),
            "{line:?}"
        );
        match (line.get(..3).map(str::parse), line.as_bytes().get(3)) {
            (Some(Ok(code)), Some(b' ')) => codes.push(code),
            (Some(Ok(250_u16)), Some(b'-')) => {}
            _ => panic!("not a reply: {line:?}"),
        }
    }
    codes
}

// ---- the product's server ----------------------------------------------------------------------------------------------

#[derive(Default)]
struct Line {
    pieces: VecDeque<Vec<u8>>,
    /// The client has sent the first of the pieces.
    sent: bool,
    replies: Vec<u8>,
}

/// The connection, held by both ends.
#[derive(Clone, Default)]
struct Wire(Arc<Mutex<Line>>);

impl Wire {
    fn lock(&self) -> MutexGuard<'_, Line> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let mut line = self.lock();
        if line.pieces.is_empty() {
            return Poll::Ready(Ok(()));
        }
        if !line.sent {
            return Poll::Pending;
        }
        let over = line.pieces.front_mut().is_none_or(|piece| {
            let rest = piece.split_off(piece.len().min(into.remaining()));
            into.put_slice(&std::mem::replace(piece, rest));
            piece.is_empty()
        });
        if over {
            line.pieces.pop_front();
            line.sent = false;
        }
        match into.filled().is_empty() && !line.pieces.is_empty() {
            true => Poll::Pending,
            false => Poll::Ready(Ok(())),
        }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        octets: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        self.lock().replies.extend_from_slice(octets);
        Poll::Ready(Ok(octets.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Takes every mail.
#[derive(Default)]
struct Edge(Arc<Mutex<Vec<Mail>>>);

struct Taking {
    edge: Arc<Mutex<Vec<Mail>>>,
    mail: Mail,
}

impl Backend for Edge {
    type Transaction = Taking;

    async fn greet(&self, _: &Peer) -> Option<Rejection> {
        None
    }

    async fn mail(&self, _: &Peer, mail: &MailParameters) -> Result<Taking, Rejection> {
        Ok(Taking {
            edge: self.0.clone(),
            mail: (mail.reverse_path.to_string(), Vec::new(), Vec::new()),
        })
    }

    fn rejected(&self, _: &Peer, _: Phase<'_>, _: &Rejection) {}

    fn tolerated(&self, _: &Peer, _: &str, _: &str) {}

    fn handshake_failed(&self, _: &Peer, _: &str) {}

    fn ended(&self, _: &Peer, _: End) {}
}

impl Transaction for Taking {
    async fn rcpt(&mut self, rcpt: &RcptParameters) -> Result<Reply, Rejection> {
        self.mail.1.push(rcpt.forward_path.clone());
        Ok(Reply::new(250, (2, 1, 5), "recipient OK"))
    }

    async fn data(&mut self) -> Result<(), Rejection> {
        Ok(())
    }

    async fn chunk(&mut self, chunk: &[u8]) -> Result<(), Rejection> {
        self.mail.2.extend_from_slice(chunk);
        Ok(())
    }

    async fn finish(self) -> Result<Reply, Rejection> {
        let mut mails = self.edge.lock().unwrap_or_else(PoisonError::into_inner);
        mails.push(self.mail);
        Ok(Reply::new(250, (2, 0, 0), "queued"))
    }

    fn abort(self, _: Abort) {}
}

thread_local! {
    /// For the clock of the deadlines, which never come.
    static RUNTIME: tokio::runtime::Runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap_or_else(|error| panic!("{error}"));
}

/// What the product answers, and which mails it takes.
fn serve(pieces: &[&[u8]], options: &Options) -> (Vec<u8>, Vec<Mail>) {
    let (wire, edge) = (Wire::default(), Edge::default());
    wire.lock().pieces = pieces.iter().map(|piece| piece.to_vec()).collect();
    let peer = Peer::new(1, ([192, 0, 2, 1], 40_000).into(), "smtp".into());
    let drain = CancellationToken::new();
    RUNTIME.with(|runtime| {
        let _entered = runtime.enter();
        let mut served = pin!(serve_connection(
            wire.clone(),
            peer,
            &edge,
            options,
            Tls::Off,
            &drain
        ));
        let mut context = Context::from_waker(Waker::noop());
        // it waits for nothing but its client, who sends only when it waits
        while served.as_mut().poll(&mut context).is_pending() {
            let mut line = wire.lock();
            assert!(!line.sent && !line.pieces.is_empty(), "it waits for nobody");
            line.sent = true;
        }
    });
    let mails = std::mem::take(&mut *edge.0.lock().unwrap_or_else(PoisonError::into_inner));
    (std::mem::take(&mut wire.lock().replies), mails)
}

// ---- the reference -----------------------------------------------------------------------------------------------------

/// What the next octets are.
enum Mode {
    Commands,
    Content,
    /// So many octets of a chunk.
    Chunk {
        left: u64,
        last: bool,
    },
    /// So many octets of a chunk that nobody wants, and then this code.
    Unwanted {
        left: u64,
        code: u16,
    },
    Closed,
}

struct Reference<'a> {
    options: &'a Options,
    heard: Vec<u8>,
    mode: Mode,
    greeted: bool,
    extended: bool,
    /// SMTPUTF8 and the mail so far.
    open: Option<(bool, Mail)>,
    /// The content comes in chunks.
    chunked: bool,
    codes: Vec<u16>,
    mails: Vec<Mail>,
}

impl<'a> Reference<'a> {
    fn new(options: &'a Options) -> Reference<'a> {
        Reference {
            options,
            heard: Vec::new(),
            mode: Mode::Commands,
            greeted: false,
            extended: false,
            open: None,
            chunked: false,
            codes: Vec::new(),
            mails: Vec::new(),
        }
    }

    /// The client sends `piece` and waits.
    fn hear(&mut self, piece: &[u8]) {
        self.heard.extend_from_slice(piece);
        while self.step() {}
    }

    /// Takes one thing off what was heard; false if it is not all there.
    fn step(&mut self) -> bool {
        match self.mode {
            Mode::Closed => false,
            Mode::Commands => self.line(),
            Mode::Content => self.content(),
            Mode::Chunk { left, last } => {
                let Some(left) = self.take_of_chunk(left) else {
                    return false;
                };
                self.mode = Mode::Chunk { left, last };
                if left > 0 {
                    return false;
                }
                self.chunk_ended(last);
                true
            }
            Mode::Unwanted { left, code } => {
                let here = left.min(self.heard.len() as u64);
                self.heard.drain(..here as usize);
                self.mode = Mode::Unwanted {
                    left: left - here,
                    code,
                };
                if here < left {
                    return false;
                }
                self.mode = Mode::Commands;
                self.codes.push(code);
                true
            }
        }
    }

    fn close(&mut self, code: u16) {
        self.codes.push(code);
        self.mode = Mode::Closed;
    }

    fn line(&mut self) -> bool {
        let Some(end) = self.heard.iter().position(|octet| b"\r\n".contains(octet)) else {
            return false;
        };
        match self.heard.get(end..end + 2) {
            None if self.heard[end] == b'\r' => return false,
            Some(b"\r\n") => {}
            _ => {
                self.close(500);
                return true;
            }
        }
        let line: Vec<u8> = self.heard.drain(..end + 2).take(end).collect();
        if end > 1024 {
            self.codes.push(500);
            return true;
        }
        match parse(&line) {
            Ok(command) => self.command(command),
            Err(refusal) if refusal.closes() => self.close(refusal.reply().code),
            Err(refusal) => self.codes.push(refusal.reply().code),
        }
        true
    }

    fn command(&mut self, command: Command) {
        let waits = matches!(
            command,
            Command::Ehlo(_) | Command::Helo(_) | Command::Data | Command::StartTls
        );
        // RFC 2920 section 3.1
        if waits && !self.heard.is_empty() {
            return self.close(554);
        }
        let in_chunks = self.chunked;
        let code = match command {
            Command::Ehlo(_) | Command::Helo(_) => {
                self.extended = matches!(command, Command::Ehlo(_));
                (self.greeted, self.open, self.chunked) = (true, None, false);
                250
            }
            Command::Rset => {
                (self.open, self.chunked) = (None, false);
                250
            }
            Command::Noop => 250,
            Command::Vrfy => 252,
            Command::Help => 214,
            Command::StartTls => 502,
            Command::Quit => return self.close(221),
            Command::Mail(_) if !self.greeted || self.open.is_some() => 503,
            Command::Mail(mail) => {
                if mail
                    .size
                    .is_some_and(|size| size > self.options.content_bytes_max)
                {
                    552
                } else {
                    let envelope = (mail.reverse_path.to_string(), Vec::new(), Vec::new());
                    self.open = Some((mail.smtputf8, envelope));
                    250
                }
            }
            Command::Rcpt(rcpt) => match &mut self.open {
                None => 503,
                Some(_) if in_chunks => 503,
                Some((false, _)) if rcpt.utf8 => 553,
                Some((_, (_, recipients, _))) => {
                    if !recipients.contains(&rcpt.forward_path) {
                        recipients.push(rcpt.forward_path);
                    }
                    250
                }
            },
            Command::Data if self.has_recipients() && !in_chunks => {
                self.mode = Mode::Content;
                354
            }
            Command::Data => 503,
            Command::Bdat(chunk) => return self.bdat(chunk.size, chunk.last),
        };
        self.codes.push(code);
    }

    fn has_recipients(&self) -> bool {
        self.open
            .as_ref()
            .is_some_and(|(_, (_, recipients, _))| !recipients.is_empty())
    }

    fn bdat(&mut self, size: u64, last: bool) {
        let so_far = self
            .open
            .as_ref()
            .map_or(0, |(_, (.., content))| content.len() as u64);
        let code = if !self.has_recipients() || !self.extended {
            503
        } else if so_far.saturating_add(size) > self.options.content_bytes_max {
            self.open = None;
            552
        } else {
            self.chunked = true;
            self.mode = Mode::Chunk { left: size, last };
            return;
        };
        if size > self.options.content_bytes_max {
            // answered at once, and nothing of the rest is heard
            return self.close(code);
        }
        self.chunked &= self.open.is_some();
        self.mode = Mode::Unwanted { left: size, code };
    }

    fn take_of_chunk(&mut self, left: u64) -> Option<u64> {
        let here = left.min(self.heard.len() as u64);
        let (_, (.., content)) = self.open.as_mut()?;
        content.extend(self.heard.drain(..here as usize));
        Some(left - here)
    }

    fn chunk_ended(&mut self, last: bool) {
        self.mode = Mode::Commands;
        let Some((_, (reverse_path, recipients, content))) = self.open.take() else {
            return;
        };
        // whether a CR at the end is bare will be seen in the next chunk
        let known = match content.strip_suffix(b"\r") {
            Some(known) if !last => known,
            _ => &content,
        };
        match judged(known, false, self.options) {
            Err(fault) => {
                self.chunked = false;
                let code = fault.reply().code;
                if fault.closes() {
                    self.close(code)
                } else {
                    self.codes.push(code)
                }
            }
            Ok(_) if !last => {
                self.open = Some((false, (reverse_path, recipients, content)));
                self.codes.push(250);
            }
            Ok(content) => {
                self.chunked = false;
                self.mails.push((reverse_path, recipients, content));
                self.codes.push(250);
            }
        }
    }

    fn content(&mut self) -> bool {
        let end = match self.heard.windows(5).position(|five| five == b"\r\n.\r\n") {
            _ if self.heard.starts_with(b".\r\n") => 0,
            Some(at) => at + 2,
            None => return false,
        };
        let raw: Vec<u8> = self.heard.drain(..end + 3).take(end).collect();
        self.mode = Mode::Commands;
        let Some((_, (reverse_path, recipients, _))) = self.open.take() else {
            return true;
        };
        match judged(&raw, true, self.options) {
            Ok(content) => {
                self.mails.push((reverse_path, recipients, content));
                self.codes.push(250);
            }
            Err(fault) if fault.closes() => self.close(fault.reply().code),
            Err(fault) => self.codes.push(fault.reply().code),
        }
        true
    }
}
