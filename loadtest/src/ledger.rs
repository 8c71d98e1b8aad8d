//! The ledger: what was tried, and what the server said. Append-only, one JSON line per event.
//!
//! The attempt line is in the file before the dot goes out and the outcome line right after the reply, so a ledger
//! whose writer was killed errs on the safe side: an attempt without an outcome is unknown. Syncs are batched
//! ([`Writer::sync`]), because the machine under this process is not what is being crashed.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::str::FromStr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

use crate::equation::Class;

/// Names one attempt for all time: 128 random bits, 32 hex digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct AttemptId(u128);

impl AttemptId {
    /// A new one from the operating system, never from the workload's seed: two runs of one seed are two sets of mail.
    pub fn random() -> anyhow::Result<AttemptId> {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes).map_err(|e| anyhow::anyhow!("no randomness: {e}"))?;
        Ok(AttemptId(u128::from_be_bytes(bytes)))
    }

    /// What the body's generator starts from.
    pub(crate) fn seed(self) -> u64 {
        (self.0 >> 64) as u64 ^ self.0 as u64
    }
}

impl From<u128> for AttemptId {
    fn from(bits: u128) -> AttemptId {
        AttemptId(bits)
    }
}

impl fmt::Display for AttemptId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl FromStr for AttemptId {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<AttemptId> {
        if text.len() != 32 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            bail!("{text:?} is not 32 hex digits");
        }
        Ok(AttemptId(u128::from_str_radix(text, 16)?))
    }
}

impl From<AttemptId> for String {
    fn from(id: AttemptId) -> String {
        id.to_string()
    }
}

impl TryFrom<String> for AttemptId {
    type Error = anyhow::Error;

    fn try_from(text: String) -> anyhow::Result<AttemptId> {
        text.parse()
    }
}

/// How far a transaction came before it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// MAIL was sent, and not accepted.
    Mail,
    /// MAIL was accepted; RCPTs are being answered.
    Rcpt,
    /// DATA was sent, 354 not seen.
    Data,
    /// 354 was seen; the content is going out, the dot has not left.
    Content,
    /// The dot line was handed to the kernel.
    Dot,
}

/// One line of the ledger.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub enum Event {
    /// A writer opened the file.
    Open {
        /// Unix milliseconds.
        at_ms: u64,
        /// The workload's seed.
        seed: u64,
    },
    /// About to send the content and the dot, or ended before that.
    Attempt {
        /// Names it; in the message's header and body.
        id: AttemptId,
        /// Unix milliseconds.
        at_ms: u64,
        /// MAIL FROM, empty for the null reverse-path.
        reverse_path: String,
        /// RCPT TO, in order.
        rcpts: Vec<String>,
        /// The full reply to each RCPT, or nothing.
        rcpt_replies: Vec<Option<String>>,
        /// BLAKE3 of the whole message as sent, before dot-stuffing.
        hash: String,
        /// Bytes of the message.
        size: u64,
    },
    /// The transaction ended.
    Outcome {
        /// Which attempt.
        id: AttemptId,
        /// Unix milliseconds.
        at_ms: u64,
        /// How far it came.
        phase: Phase,
        /// The last full reply of that phase.
        reply: Option<String>,
        /// What came of a reply that did not end.
        partial: Option<String>,
        /// Why the connection ended, if it did.
        error: Option<String>,
    },
    /// A verified copy was deleted from the maildrop, and must never come back.
    Collected {
        /// Which attempt.
        id: AttemptId,
        /// Whose copy (or whose DSN).
        rcpt: String,
        /// A DSN rather than a copy.
        dsn: bool,
    },
}

/// Appends events; shared by all sessions.
#[derive(Debug)]
pub struct Writer {
    file: Mutex<File>,
    syncing: File,
    dirty: AtomicBool,
}

impl Writer {
    /// Opens `path` for appending, creating it if needed, and says so in it. A line torn by a killed writer is ended,
    /// so that it spoils nothing but itself.
    pub fn open(path: &Path, seed: u64) -> anyhow::Result<Writer> {
        let naming = || format!("ledger {}", path.display());
        let mut file = File::options()
            .create(true)
            .append(true)
            .read(true)
            .open(path)
            .with_context(naming)?;
        if file.metadata()?.len() > 0 {
            let mut last = [0];
            file.seek(SeekFrom::End(-1))?;
            file.read_exact(&mut last)?;
            if last != *b"\n" {
                file.write_all(b"\n").with_context(naming)?;
            }
        }
        let syncing = file.try_clone()?;
        let writer = Writer {
            file: Mutex::new(file),
            syncing,
            dirty: AtomicBool::new(false),
        };
        writer.append(&Event::Open {
            at_ms: crate::now_ms(),
            seed,
        })?;
        Ok(writer)
    }

    /// Writes one event; it is in the kernel when this returns.
    pub fn append(&self, event: &Event) -> anyhow::Result<()> {
        let mut line = serde_json::to_vec(event)?;
        line.push(b'\n');
        let mut file = self
            .file
            .lock()
            .map_err(|_| anyhow::anyhow!("a session died while writing the ledger"))?;
        file.write_all(&line).context("writing the ledger")?;
        self.dirty.store(true, Ordering::Release);
        Ok(())
    }

    /// Syncs what was appended since the last call, if anything.
    pub fn sync(&self) -> anyhow::Result<()> {
        if self.dirty.swap(false, Ordering::AcqRel) {
            self.syncing.sync_data().context("syncing the ledger")?;
        }
        Ok(())
    }
}

/// One recipient of an attempt, as the ledger knows it.
#[derive(Debug, Clone)]
pub struct Recipient {
    /// The forward-path, as sent.
    pub address: String,
    /// What may be concluded about it.
    pub class: Class,
    /// Copies deleted by earlier sweeps.
    pub copies_collected: u32,
    /// DSNs deleted by earlier sweeps.
    pub dsns_collected: u32,
}

/// One attempt, as the ledger knows it.
#[derive(Debug, Clone)]
pub struct Attempt {
    /// Empty for the null reverse-path.
    pub reverse_path: String,
    /// BLAKE3 of the message.
    pub hash: blake3::Hash,
    /// Its recipients, in the order of the RCPTs.
    pub rcpts: Vec<Recipient>,
    /// Place in the ledger; later attempts have higher ones.
    pub order: u64,
}

impl Attempt {
    /// Which of its recipients an address is, without regard to case.
    pub fn place_of(&self, address: &str) -> Option<usize> {
        self.rcpts
            .iter()
            .position(|r| r.address.eq_ignore_ascii_case(address))
    }
}

/// A ledger read back.
#[derive(Debug, Default)]
pub struct Book {
    /// All attempts.
    pub attempts: BTreeMap<AttemptId, Attempt>,
    /// Lines that a killed writer left unfinished.
    pub torn: u64,
}

impl Book {
    /// Reads a ledger. An undecodable line is only believable where a writer was killed, which is the end of the file
    /// or just before the next writer's first line; anywhere else the ledger is damaged and nothing can be proved by it.
    pub fn read(path: &Path) -> anyhow::Result<Book> {
        let file = File::open(path).with_context(|| format!("ledger {}", path.display()))?;
        let mut book = Book::default();
        let mut torn_at = None;
        for (number, line) in BufReader::new(file).split(b'\n').enumerate() {
            let line = line?;
            let event = serde_json::from_slice::<Event>(&line);
            if let Some(torn) = torn_at.take()
                && !matches!(event, Ok(Event::Open { .. }))
            {
                bail!("ledger {} is damaged at line {torn}", path.display());
            }
            match event {
                Ok(event) => {
                    book.apply(event, number as u64)
                        .with_context(|| format!("ledger line {}", number + 1))?;
                }
                Err(_) => {
                    torn_at = Some(number + 1);
                    book.torn += 1;
                }
            }
        }
        Ok(book)
    }

    fn apply(&mut self, event: Event, order: u64) -> anyhow::Result<()> {
        match event {
            Event::Open { .. } => Ok(()),
            Event::Attempt {
                id,
                reverse_path,
                rcpts,
                rcpt_replies,
                hash,
                ..
            } => {
                let mut replies = rcpt_replies
                    .iter()
                    .map(Option::as_deref)
                    .chain(std::iter::repeat(None));
                let rcpts = rcpts
                    .into_iter()
                    .map(|address| {
                        let class = classify(replies.next().flatten(), Phase::Dot, None);
                        Recipient {
                            address,
                            class,
                            copies_collected: 0,
                            dsns_collected: 0,
                        }
                    })
                    .collect();
                let attempt = Attempt {
                    reverse_path,
                    hash: hash.parse().context("hash")?,
                    rcpts,
                    order,
                };
                if self.attempts.insert(id, attempt).is_some() {
                    bail!("attempt {id} is in the ledger twice");
                }
                Ok(())
            }
            Event::Outcome {
                id, phase, reply, ..
            } => {
                let attempt = self
                    .attempts
                    .get_mut(&id)
                    .with_context(|| format!("outcome of no attempt {id}"))?;
                for rcpt in &mut attempt.rcpts {
                    // Those accepted share the fate of the message; MAIL refused is an answer to all.
                    let offered = rcpt.class == Class::None && phase == Phase::Mail;
                    if rcpt.class == Class::Unk || offered {
                        rcpt.class = conclude(phase, reply.as_deref());
                    }
                }
                Ok(())
            }
            Event::Collected { id, rcpt, dsn } => {
                let attempt = self
                    .attempts
                    .get_mut(&id)
                    .with_context(|| format!("collected of no attempt {id}"))?;
                let rcpt = attempt
                    .rcpts
                    .iter_mut()
                    .find(|r| r.address == rcpt)
                    .context("collected of no recipient")?;
                if dsn {
                    rcpt.dsns_collected += 1;
                } else {
                    rcpt.copies_collected += 1;
                }
                Ok(())
            }
        }
    }
}

/// The class of one recipient: the reply to its RCPT, how far the transaction came, and the reply that ended it.
pub fn classify(rcpt_reply: Option<&str>, phase: Phase, reply: Option<&str>) -> Class {
    match rcpt_reply.map(severity) {
        Some(b'2') => conclude(phase, reply),
        Some(_) => Class::Nak,
        None if phase == Phase::Mail => conclude(phase, reply),
        None => Class::None,
    }
}

/// What the end of a transaction says about a recipient that was accepted (or, refused with MAIL, never offered).
fn conclude(phase: Phase, reply: Option<&str>) -> Class {
    match (phase, reply) {
        (Phase::Dot, Some(text)) if text.starts_with("250") => Class::Ack,
        (Phase::Dot, Some(text)) if severity(text) == b'5' => Class::Nak,
        (Phase::Dot, _) => Class::Unk,
        (_, Some(text)) if matches!(severity(text), b'4' | b'5') => Class::Nak,
        (_, _) => Class::None,
    }
}

fn severity(reply: &str) -> u8 {
    reply.bytes().next().unwrap_or(b'?')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_follow_what_was_seen() {
        let ok = Some("250 2.1.5 ok");
        let table = [
            (ok, Phase::Dot, Some("250 2.0.0 queued"), Class::Ack),
            (ok, Phase::Dot, Some("250-two\r\n250 lines"), Class::Ack),
            (ok, Phase::Dot, None, Class::Unk),
            (ok, Phase::Dot, Some("451 4.3.0 later"), Class::Unk),
            (ok, Phase::Dot, Some("421 4.3.2 going down"), Class::Unk),
            (ok, Phase::Dot, Some("354 what"), Class::Unk),
            (ok, Phase::Dot, Some("550 5.7.1 no"), Class::Nak),
            (ok, Phase::Content, None, Class::None),
            (ok, Phase::Content, Some("552 5.3.4 too big"), Class::Nak),
            (ok, Phase::Data, Some("451 4.3.0 no"), Class::Nak),
            (ok, Phase::Data, None, Class::None),
            (ok, Phase::Rcpt, None, Class::None),
            (None, Phase::Rcpt, None, Class::None),
            (None, Phase::Mail, Some("452 4.3.1 full"), Class::Nak),
            (None, Phase::Mail, None, Class::None),
            (
                Some("550 5.1.1 who"),
                Phase::Dot,
                Some("250 2.0.0 queued"),
                Class::Nak,
            ),
            (Some("451 4.4.3 later"), Phase::Dot, None, Class::Nak),
        ];
        for (rcpt, phase, reply, class) in table {
            assert_eq!(
                classify(rcpt, phase, reply),
                class,
                "{rcpt:?} {phase:?} {reply:?}"
            );
        }
    }

    fn attempt(id: u128) -> Event {
        Event::Attempt {
            id: id.into(),
            at_ms: 1,
            reverse_path: "a@example.jp".into(),
            rcpts: vec!["b@example.jp".into(), "c@example.jp".into()],
            rcpt_replies: vec![Some("250 ok".into()), Some("550 no".into())],
            hash: blake3::hash(b"x").to_hex().to_string(),
            size: 1,
        }
    }

    fn classes(path: &Path, id: u128) -> Vec<Class> {
        let book = Book::read(path).unwrap();
        book.attempts[&AttemptId::from(id)]
            .rcpts
            .iter()
            .map(|r| r.class)
            .collect()
    }

    #[test]
    fn an_attempt_without_outcome_is_unknown() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger");
        let writer = Writer::open(&path, 0).unwrap();
        writer.append(&attempt(1)).unwrap();
        assert_eq!(classes(&path, 1), [Class::Unk, Class::Nak]);
        let outcome = |phase, reply: &str| Event::Outcome {
            id: 1.into(),
            at_ms: 2,
            phase,
            reply: Some(reply.into()),
            partial: None,
            error: None,
        };
        writer.append(&outcome(Phase::Dot, "250 queued")).unwrap();
        writer.sync().unwrap();
        assert_eq!(classes(&path, 1), [Class::Ack, Class::Nak]);
    }

    #[test]
    fn a_torn_line_spoils_only_itself_and_damage_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger");
        Writer::open(&path, 0).unwrap().append(&attempt(1)).unwrap();
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, &whole[..whole.len() - 20]).unwrap();
        assert_eq!(Book::read(&path).unwrap().torn, 1);
        Writer::open(&path, 0).unwrap().append(&attempt(2)).unwrap();
        let book = Book::read(&path).unwrap();
        assert_eq!((book.torn, book.attempts.len()), (1, 1));
        // The same line anywhere else is no crash of ours.
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(
            &path,
            text.replacen(
                "{\"event\":\"attempt\"",
                "{rubbish\n{\"event\":\"attempt\"",
                2,
            ),
        )
        .unwrap();
        assert!(
            Book::read(&path)
                .unwrap_err()
                .to_string()
                .contains("damaged")
        );
    }

    #[test]
    fn ids_read_back() {
        let id = AttemptId::random().unwrap();
        assert_eq!(id.to_string().parse::<AttemptId>().unwrap(), id);
        assert!(
            "+1234567890123456789012345678901"
                .parse::<AttemptId>()
                .is_err()
        );
    }
}
