//! A client that sends and expects lines, for SMTP and POP3; mails sent and read whole.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::ClientConfig;

use super::wire::Wire;

/// Longest wait for one line.
const LINE_TIMEOUT: Duration = Duration::from_secs(60);
/// Longest wait for mail to arrive.
const MAIL_TIMEOUT: Duration = Duration::from_secs(60);
/// How long nothing more may arrive once all is there.
const MAIL_SETTLE: Duration = Duration::from_millis(150);

/// A connection that is read line by line.
#[derive(Debug)]
pub struct Talk {
    stream: BufReader<Wire>,
}

impl Talk {
    /// Connects.
    ///
    /// # Errors
    /// When nobody answers there.
    pub fn connect(server: SocketAddr) -> std::io::Result<Talk> {
        let stream = TcpStream::connect_timeout(&server, LINE_TIMEOUT)?;
        stream.set_read_timeout(Some(LINE_TIMEOUT))?;
        stream.set_nodelay(true)?;
        Ok(Talk {
            stream: BufReader::new(Wire::Clear(stream)),
        })
    }

    /// Goes on under TLS.
    ///
    /// # Errors
    /// When the handshake fails, or the server has sent more than the reply before it.
    pub fn encrypt(self, config: Arc<ClientConfig>) -> std::io::Result<Talk> {
        if !self.stream.buffer().is_empty() {
            return Err(std::io::Error::other("the server goes on in the clear"));
        }
        let wire = self.stream.into_inner().encrypt(config)?;
        Ok(Talk {
            stream: BufReader::new(wire),
        })
    }

    /// Says that nothing more will be sent.
    ///
    /// # Errors
    /// When the connection is gone.
    pub fn finish(&mut self) -> std::io::Result<()> {
        self.stream.get_mut().finish()
    }

    /// Sends bytes as they are.
    ///
    /// # Errors
    /// When the connection is gone.
    pub fn send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.stream.get_mut().write_all(bytes)?;
        self.stream.get_mut().flush()
    }

    /// The next line without its CRLF; `None` when the server has closed.
    ///
    /// # Errors
    /// When nothing comes in time.
    pub fn line(&mut self) -> std::io::Result<Option<String>> {
        let mut bytes = Vec::new();
        match self
            .stream
            .by_ref()
            .take(1 << 20)
            .read_until(b'\n', &mut bytes)
        {
            Ok(0) => Ok(None),
            Ok(_) => {
                let text = String::from_utf8_lossy(&bytes);
                Ok(Some(text.trim_end_matches(['\r', '\n']).to_owned()))
            }
            Err(error) if is_end(error.kind()) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Sends `command` with CRLF and answers the whole reply of an SMTP server, lines joined.
    ///
    /// # Panics
    /// When the connection breaks.
    pub fn smtp(&mut self, command: &str) -> String {
        self.send(format!("{command}\r\n").as_bytes())
            .unwrap_or_else(|error| panic!("{command}: {error}"));
        self.reply()
    }

    /// The whole reply of an SMTP server, lines joined.
    ///
    /// # Panics
    /// When none comes.
    pub fn reply(&mut self) -> String {
        let mut lines = Vec::new();
        loop {
            let line = self
                .line()
                .expect("a reply in time")
                .expect("a reply, not the end");
            let more = line.as_bytes().get(3) == Some(&b'-');
            lines.push(line);
            if !more {
                return lines.join("\n");
            }
        }
    }
}

/// A reset, or under TLS an end without close_notify: the connection is over either way.
fn is_end(kind: std::io::ErrorKind) -> bool {
    use std::io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    matches!(
        kind,
        BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof
    )
}

/// Sends one mail over a connection of its own; the reply that ended the transaction.
///
/// # Panics
/// When the connection breaks.
pub fn send_mail(server: SocketAddr, reverse_path: &str, rcpts: &[&str], content: &str) -> String {
    let mut talk = Talk::connect(server).expect("an SMTP server");
    let greeting = talk.reply();
    if !greeting.starts_with("220") {
        return greeting;
    }
    talk.smtp("EHLO client.example");
    let mail = talk.smtp(&format!("MAIL FROM:<{reverse_path}>"));
    if !mail.starts_with("250") {
        return mail;
    }
    for rcpt in rcpts {
        let reply = talk.smtp(&format!("RCPT TO:<{rcpt}>"));
        if !reply.starts_with("250") {
            return reply;
        }
    }
    let go = talk.smtp("DATA");
    if !go.starts_with("354") {
        return go;
    }
    let reply = talk.smtp(&format!("{}\r\n.", content.replace('\n', "\r\n")));
    talk.smtp("QUIT");
    reply
}

/// All mails of a maildrop, read whole.
///
/// # Errors
/// What the server said.
pub fn read_mails(server: SocketAddr, login: &str, password: &str) -> anyhow::Result<Vec<String>> {
    let mut drop = loadtest::pop3::Maildrop::open(server, login, password, LINE_TIMEOUT)?;
    let numbers: Vec<u32> = drop
        .uidl()?
        .into_iter()
        .map(|listed| listed.number)
        .collect();
    let mut mails = vec![String::new(); numbers.len()];
    let line = |mails: &mut Vec<String>, at: usize, bytes: &[u8]| {
        mails[at].push_str(&String::from_utf8_lossy(bytes));
        mails[at].push('\n');
    };
    drop.retrieve(&numbers, &mut mails, line, |_, _| {})?;
    drop.quit()?;
    Ok(mails)
}

/// Waits until a maildrop holds `count` mails, and a little longer for one too many.
///
/// # Panics
/// When it does not.
pub fn wait_for_mails(
    server: SocketAddr,
    login: &str,
    password: &str,
    count: usize,
) -> Vec<String> {
    let began = Instant::now();
    let mut seen_all = None;
    loop {
        let mails = read_mails(server, login, password);
        match &mails {
            Ok(mails) if mails.len() > count => {
                panic!(
                    "{login} has {} mails instead of {count}:\n{}",
                    mails.len(),
                    mails.join("\n---\n")
                )
            }
            Ok(mails) if mails.len() == count => {
                let since = *seen_all.get_or_insert_with(Instant::now);
                if since.elapsed() >= MAIL_SETTLE {
                    return mails.clone();
                }
            }
            _ => seen_all = None,
        }
        assert!(
            began.elapsed() < MAIL_TIMEOUT,
            "{login} does not get its {count} mails: {:?}",
            mails.map(|mails| mails.len())
        );
        std::thread::sleep(Duration::from_millis(10));
    }
}
