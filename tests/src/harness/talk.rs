//! A client that sends and expects lines, for SMTP and POP3; and dialogues, files of `C:` and `S:` lines.
//!
//! A dialogue line is one of
//! ```text
//! # a comment
//! C: what the client sends, with CRLF added; \r \n \t \\ \x00 are escapes, a final \c leaves the CRLF out
//! S: what the server answers: its line must begin with this; `...` stands for anything, `S: *` for any number of lines,
//!    `S:` for an empty line
//! C> another client from here on: `C> smtp` or `C> pop3`
//! CLOSED: the server has closed the connection
//! READ user: a POP3 session in which `S:` lines are the lines of the user's only mail; `S: *` as above
//! COUNT user 2: so many mails arrive in the user's maildrop, not more
//! ```

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// Longest wait for one line.
const LINE_TIMEOUT: Duration = Duration::from_secs(20);
/// Longest wait for mail to arrive.
const MAIL_TIMEOUT: Duration = Duration::from_secs(20);
/// How long nothing more may arrive once all is there.
const MAIL_SETTLE: Duration = Duration::from_millis(150);

/// A connection that is read line by line.
#[derive(Debug)]
pub struct Talk {
    stream: BufReader<TcpStream>,
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
            stream: BufReader::new(stream),
        })
    }

    /// Sends bytes as they are.
    ///
    /// # Errors
    /// When the connection is gone.
    pub fn send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.stream.get_mut().write_all(bytes)
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
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => Ok(None),
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

/// Where a dialogue takes place.
#[derive(Clone, Copy, Debug)]
pub struct Stage<'a> {
    /// The SMTP listener.
    pub smtp: SocketAddr,
    /// The POP3 listener.
    pub pop3: SocketAddr,
    /// Every user's password.
    pub password: &'a str,
}

/// Plays a dialogue to its end.
///
/// # Errors
/// The first line that does not happen as written, with its number.
pub fn play(stage: Stage<'_>, text: &str) -> Result<(), String> {
    let mut player = Player {
        stage,
        talk: None,
        mail: None,
        skipping: false,
    };
    for (number, line) in text.lines().enumerate() {
        let line = line.trim_end();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        player
            .step(line)
            .map_err(|why| format!("line {}: {line}\n    {why}", number + 1))?;
    }
    player.finish()
}

struct Player<'a> {
    stage: Stage<'a>,
    talk: Option<Talk>,
    /// The lines of the mail that is being read.
    mail: Option<std::collections::VecDeque<String>>,
    /// `S: *` came: lines that do not fit the next one are passed over.
    skipping: bool,
}

impl Player<'_> {
    fn step(&mut self, line: &str) -> Result<(), String> {
        let word = line.split([' ', ':']).next().unwrap_or_default();
        let rest = line[word.len()..].trim_start_matches(':');
        let rest = rest.strip_prefix(' ').unwrap_or(rest);
        match word {
            "C>" => self.switch(rest),
            "C" => self.say(rest),
            "S" if rest == "*" => {
                self.skipping = true;
                Ok(())
            }
            "S" => self.hear(rest),
            "CLOSED" => match self.next()? {
                None => Ok(()),
                Some(line) => Err(format!("the server went on: {line:?}")),
            },
            "READ" => self.read(rest.trim_end_matches(':')),
            "COUNT" => {
                let (user, count) = rest.split_once(' ').ok_or("COUNT user number")?;
                let count = count.parse().map_err(|_| "COUNT user number")?;
                wait_for_mails(self.stage.pop3, user, self.stage.password, count);
                Ok(())
            }
            _ => Err("not a line of a dialogue".to_owned()),
        }
    }

    fn switch(&mut self, to: &str) -> Result<(), String> {
        self.finish()?;
        let server = match to {
            "smtp" => self.stage.smtp,
            "pop3" => self.stage.pop3,
            _ => return Err("C> smtp or C> pop3".to_owned()),
        };
        self.talk = Some(Talk::connect(server).map_err(|error| error.to_string())?);
        Ok(())
    }

    fn say(&mut self, text: &str) -> Result<(), String> {
        let bytes = unescape(text)?;
        let talk = self.talk.as_mut().ok_or("no connection yet: C> smtp")?;
        talk.send(&bytes).map_err(|error| error.to_string())
    }

    fn hear(&mut self, expected: &str) -> Result<(), String> {
        let mut passed = Vec::new();
        loop {
            let Some(line) = self.next()? else {
                return Err(format!("it ended instead; before that: {passed:?}"));
            };
            if fits(&line, expected) {
                self.skipping = false;
                return Ok(());
            }
            if !self.skipping {
                return Err(format!("it was {line:?}"));
            }
            passed.push(line);
        }
    }

    fn next(&mut self) -> Result<Option<String>, String> {
        if let Some(mail) = &mut self.mail {
            return Ok(mail.pop_front());
        }
        let talk = self.talk.as_mut().ok_or("no connection yet: C> smtp")?;
        talk.line().map_err(|error| error.to_string())
    }

    fn read(&mut self, user: &str) -> Result<(), String> {
        self.finish()?;
        let mails = wait_for_mails(self.stage.pop3, user, self.stage.password, 1);
        self.mail = Some(mails[0].lines().map(str::to_owned).collect());
        Ok(())
    }

    /// Ends what was being read: a mail must have been heard to its end.
    fn finish(&mut self) -> Result<(), String> {
        let skipping = std::mem::take(&mut self.skipping);
        match self.mail.take() {
            Some(mail) if !skipping && !mail.is_empty() => {
                Err(format!("the mail goes on: {mail:?}"))
            }
            _ => Ok(()),
        }
    }
}

/// Whether `line` begins with `expected`, in which `...` stands for anything; nothing is an empty line.
fn fits(line: &str, expected: &str) -> bool {
    if expected.is_empty() {
        return line.is_empty();
    }
    let mut parts = expected.split("...");
    let Some(mut rest) = parts.next().and_then(|first| line.strip_prefix(first)) else {
        return false;
    };
    for part in parts {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    true
}

fn unescape(text: &str) -> Result<Vec<u8>, String> {
    let (text, end) = match text.strip_suffix("\\c") {
        Some(text) => (text, ""),
        None => (text, "\r\n"),
    };
    let mut bytes = Vec::new();
    let mut letters = text.bytes();
    while let Some(letter) = letters.next() {
        if letter != b'\\' {
            bytes.push(letter);
            continue;
        }
        match letters.next() {
            Some(b'r') => bytes.push(b'\r'),
            Some(b'n') => bytes.push(b'\n'),
            Some(b't') => bytes.push(b'\t'),
            Some(b'\\') => bytes.push(b'\\'),
            Some(b'x') => {
                let digits = [letters.next(), letters.next()].map(|digit| digit.map(char::from));
                let value = |digit: Option<char>| digit.and_then(|digit| digit.to_digit(16));
                let [Some(high), Some(low)] = digits.map(value) else {
                    return Err("\\x needs two hex digits".to_owned());
                };
                bytes.push((high << 4 | low) as u8);
            }
            other => return Err(format!("unknown escape {other:?}")),
        }
    }
    bytes.extend_from_slice(end.as_bytes());
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::{fits, unescape};

    #[test]
    fn lines_fit_by_their_beginning() {
        assert!(fits("250 2.0.0 queued as 1", "250 2.0.0 queued"));
        assert!(fits("Received: from x by y", "Received: ... by y"));
        assert!(!fits("550 5.1.1 no", "250"));
        assert!(!fits("250 ok", "250 ... nothing"));
        assert!(!fits("250-SIZE", "250 ..."));
        assert!(fits("", "") && !fits("Subject: x", ""));
    }

    #[test]
    fn escapes_are_bytes() {
        assert_eq!(unescape("a\\x00\\n.\\n\\c").unwrap(), b"a\0\n.\n");
        assert_eq!(unescape("QUIT").unwrap(), b"QUIT\r\n");
        assert!(unescape("\\q").is_err());
    }
}
