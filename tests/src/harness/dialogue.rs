//! Dialogues: files of what client and server say, played against a running server.
//!
//! A line is one of
//! ```text
//! # a comment
//! C: what the client sends, with CRLF added; \r \n \t \\ \x00 are escapes, \600{x} is x 600 times,
//!    a final \c leaves the CRLF out
//! C*20: the same 20 times, in one piece
//! S: what the server answers: its line must begin with this; `...` stands for anything, `S: *` for any number of lines,
//!    `S:` for an empty line
//! S*20: 20 such lines
//! C> another client from here on: smtp, smtps, pop3, pop3s, or `proxied` for the listener of load balancers
//! TLS: the client begins TLS
//! FINISH: the client will send nothing more, and listens
//! CLOSED: the server has closed the connection
//! LOG: text that the server logs in one line, sooner or later
//! READ user: a POP3 session in which `S:` lines are the lines of the user's only mail; `S: *` as above
//! COUNT user 2: so many mails are in the user's maildrop, not more, once all that was accepted was tried
//! ```

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::server::Server;
use super::site::{PASSWORD, Site};
use super::talk::{Talk, wait_for_mails};
use super::wire;

/// Longest wait for a line of the log.
const LOG_TIMEOUT: Duration = Duration::from_secs(60);

/// Where a dialogue takes place.
#[derive(Clone, Copy, Debug)]
pub struct Stage<'a> {
    /// Its users and certificate.
    pub site: &'a Site,
    /// The running process.
    pub server: &'a Server,
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
    mail: Option<VecDeque<String>>,
    /// `S: *` came: lines that do not fit the next one are passed over.
    skipping: bool,
}

impl Player<'_> {
    fn step(&mut self, line: &str) -> Result<(), String> {
        let word = line.split([' ', ':']).next().unwrap_or_default();
        let rest = line[word.len()..].trim_start_matches(':');
        let rest = rest.strip_prefix(' ').unwrap_or(rest);
        let (word, times) = match word.split_once('*') {
            Some((word, times)) => (word, times.parse().map_err(|_| "C*20: or S*20:")?),
            None => (word, 1),
        };
        match word {
            "C>" => self.switch(rest),
            "C" => self.say(rest, times),
            "S" if rest == "*" => {
                self.skipping = true;
                Ok(())
            }
            "S" => (0..times).try_for_each(|_| self.hear(rest)),
            "TLS" => self.encrypt(),
            "FINISH" => self.talk()?.finish().map_err(|error| error.to_string()),
            "CLOSED" => match self.next()? {
                None => Ok(()),
                Some(line) => Err(format!("the server went on: {line:?}")),
            },
            "LOG" => self.wait_for_log(rest),
            "READ" => self.read(rest.trim_end_matches(':')),
            "COUNT" => {
                let (user, count) = rest.split_once(' ').ok_or("COUNT user number")?;
                let count = count.parse().map_err(|_| "COUNT user number")?;
                // what was accepted has arrived by then, and one too many with it
                self.stage.site.wait_until_tried();
                wait_for_mails(self.stage.site.pop3, user, PASSWORD, count);
                Ok(())
            }
            _ => Err("not a line of a dialogue".to_owned()),
        }
    }

    fn talk(&mut self) -> Result<&mut Talk, String> {
        self.talk
            .as_mut()
            .ok_or_else(|| "no connection yet: C> smtp".to_owned())
    }

    fn switch(&mut self, to: &str) -> Result<(), String> {
        self.finish()?;
        let Stage { site, server } = self.stage;
        let address = match to {
            "smtp" => site.smtp,
            "pop3" => site.pop3,
            "smtps" | "pop3s" => server.address(to),
            "proxied" => site.proxied.ok_or("# with proxy_networks = [...]")?,
            _ => return Err("C> smtp, smtps, pop3, pop3s or proxied".to_owned()),
        };
        self.talk = Some(Talk::connect(address).map_err(|error| error.to_string())?);
        if to.ends_with("3s") || to.ends_with("ps") {
            return self.encrypt();
        }
        Ok(())
    }

    fn encrypt(&mut self) -> Result<(), String> {
        let config = wire::trusting(&self.stage.site.certificate());
        let talk = self.talk.take().ok_or("no connection yet: C> smtp")?;
        self.talk = Some(talk.encrypt(config).map_err(|error| error.to_string())?);
        Ok(())
    }

    fn say(&mut self, text: &str, times: usize) -> Result<(), String> {
        let bytes = unescape(text)?.repeat(times);
        self.talk()?.send(&bytes).map_err(|error| error.to_string())
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
        self.talk()?.line().map_err(|error| error.to_string())
    }

    fn wait_for_log(&self, text: &str) -> Result<(), String> {
        let began = Instant::now();
        loop {
            let log = self.stage.server.log();
            if log.lines().any(|line| contains(line, text)) {
                return Ok(());
            }
            if began.elapsed() > LOG_TIMEOUT {
                return Err(format!("it is not logged:\n{log}"));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn read(&mut self, user: &str) -> Result<(), String> {
        self.finish()?;
        let mails = wait_for_mails(self.stage.site.pop3, user, PASSWORD, 1);
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
    let first = expected.split("...").next().unwrap_or_default();
    line.starts_with(first) && contains(line, expected)
}

/// Whether the parts of `expected`, in which `...` stands for anything, are in `line` one after another.
fn contains(line: &str, expected: &str) -> bool {
    let mut rest = line;
    for part in expected.split("...") {
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
    let mut bytes = octets(text)?;
    bytes.extend_from_slice(end.as_bytes());
    Ok(bytes)
}

fn octets(text: &str) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let mut rest = text;
    while let Some((plain, escape)) = rest.split_once('\\') {
        bytes.extend_from_slice(plain.as_bytes());
        let letter = escape.get(..1).ok_or("an escape without its letter")?;
        rest = &escape[1..];
        match letter {
            "r" => bytes.push(b'\r'),
            "n" => bytes.push(b'\n'),
            "t" => bytes.push(b'\t'),
            "\\" => bytes.push(b'\\'),
            "x" => {
                let digits = rest.get(..2).ok_or("\\x needs two hex digits")?;
                let value = u8::from_str_radix(digits, 16);
                bytes.push(value.map_err(|_| "\\x needs two hex digits")?);
                rest = &rest[2..];
            }
            "0" | "1" | "2" | "3" | "4" | "5" | "6" | "7" | "8" | "9" => {
                let many = repeated(escape);
                let (times, inside, after) = many.ok_or("\\600{x} is x 600 times")?;
                bytes.extend(octets(inside)?.repeat(times));
                rest = after;
            }
            other => return Err(format!("unknown escape {other:?}")),
        }
    }
    bytes.extend_from_slice(rest.as_bytes());
    Ok(bytes)
}

/// `600{x}` and what follows: how often, what, and the rest.
fn repeated(text: &str) -> Option<(usize, &str, &str)> {
    let (times, rest) = text.split_once('{')?;
    let mut depth = 1;
    let end = rest.find(|letter| {
        match letter {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        depth == 0
    })?;
    Some((times.parse().ok()?, &rest[..end], &rest[end + 1..]))
}

#[cfg(test)]
mod tests {
    use super::{contains, fits, unescape};

    #[test]
    fn lines_fit_by_their_beginning() {
        assert!(fits("250 2.0.0 queued as 1", "250 2.0.0 queued"));
        assert!(fits("Received: from x by y", "Received: ... by y"));
        assert!(!fits("550 5.1.1 no", "250"));
        assert!(!fits("250 ok", "250 ... nothing"));
        assert!(!fits("250-SIZE", "250 ..."));
        assert!(fits("", "") && !fits("Subject: x", ""));
        assert!(contains("a b c", "b...c") && !contains("a b c", "c...b"));
    }

    #[test]
    fn escapes_are_bytes() {
        assert_eq!(unescape("a\\x00\\n.\\n\\c").unwrap(), b"a\0\n.\n");
        assert_eq!(unescape("QUIT").unwrap(), b"QUIT\r\n");
        assert_eq!(
            unescape("\\3{a\\r}é\\\\\\c").unwrap(),
            "a\ra\ra\ré\\".as_bytes()
        );
        assert!(unescape("\\q").is_err() && unescape("\\3x").is_err() && unescape("\\").is_err());
    }
}
