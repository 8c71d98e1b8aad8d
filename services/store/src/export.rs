//! A shard as a stream of pieces: accounts as `Ingest` takes them, between a header and a sealed trailer.
//!
//! Read page by page from one snapshot, so it takes bounded memory and shows one position. What it leaves out: accounts
//! being restored or purged, and bodies that lie in the blob store, which are named only.

use std::collections::VecDeque;

use hikyaku_engine::Snapshot;
use hikyaku_proto::v1::ingest::Piece;
use hikyaku_proto::v1::shard_piece;
use hikyaku_proto::v1::stored_account::Phase;
use hikyaku_proto::v1::{
    Ingest, IngestAccount, IngestEnd, IngestMailbox, IngestMessage, IngestTombstone, ShardHeader,
    ShardPiece, ShardTrailer, StoredAccount, StoredEmail, StoredMailbox, StoredMessage,
    StoredTombstone,
};
use prost::Message;

use crate::flag::{self, Flags};
use crate::id::EmailId;
use crate::key::{self, Parts};
use crate::{StoreError, read};

/// The format of the pieces.
pub const FORMAT: u32 = 1;
/// Rows read at once.
const PAGE: usize = 200;

/// BLAKE3 over pieces, as the trailer carries it.
#[derive(Default)]
pub struct Seal(blake3::Hasher);

impl Seal {
    /// The piece counts from here on. The trailer itself must not be added.
    pub fn add(&mut self, piece: &ShardPiece) {
        self.0.update(&piece.encode_length_delimited_to_vec());
    }

    /// The hash of all pieces added.
    pub fn finish(&self) -> [u8; 32] {
        *self.0.finalize().as_bytes()
    }
}

/// Why pieces are no backup.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PieceError {
    /// It does not begin with a header, or with one of another format.
    #[error("the backup does not begin with a header of format {FORMAT}")]
    Header,
    /// It ends without a trailer, or goes on after it.
    #[error("the backup is cut off or goes on after its end")]
    Trailer,
    /// The trailer's hash or counts are not those of the pieces.
    #[error("the backup is damaged: its pieces do not match its seal")]
    Seal,
}

/// Checks a stream of pieces from header to trailer.
#[derive(Default)]
pub struct Verifier {
    seal: Seal,
    begun: bool,
    ended: bool,
    accounts: u64,
    messages: u64,
}

impl Verifier {
    /// The next piece.
    ///
    /// # Errors
    /// [`PieceError`] when it cannot follow those before.
    pub fn piece(&mut self, piece: &ShardPiece) -> Result<(), PieceError> {
        if self.ended {
            return Err(PieceError::Trailer);
        }
        match &piece.piece {
            Some(shard_piece::Piece::Header(header)) if !self.begun && header.format == FORMAT => {
                self.begun = true;
            }
            _ if !self.begun => return Err(PieceError::Header),
            Some(shard_piece::Piece::Trailer(trailer)) => {
                self.ended = true;
                let same = trailer.blake3[..] == self.seal.finish()
                    && trailer.accounts == self.accounts
                    && trailer.messages == self.messages;
                return if same { Ok(()) } else { Err(PieceError::Seal) };
            }
            Some(shard_piece::Piece::Claim(_)) => self.accounts += 1,
            Some(shard_piece::Piece::Ingest(ingest)) => match &ingest.piece {
                Some(Piece::Begin(_)) => self.accounts += 1,
                Some(Piece::Message(_)) => self.messages += 1,
                _ => {}
            },
            _ => return Err(PieceError::Header),
        }
        self.seal.add(piece);
        Ok(())
    }

    /// There are no more pieces.
    ///
    /// # Errors
    /// [`PieceError::Trailer`] when the trailer did not come.
    pub fn end(&self) -> Result<(), PieceError> {
        if self.ended {
            Ok(())
        } else {
            Err(PieceError::Trailer)
        }
    }
}

/// What the export does next.
enum Step {
    Header(ShardHeader),
    Accounts,
    Messages { mailbox: usize, uid: u32 },
    Tombstones { from: Vec<u8> },
    End,
    Trailer,
    Over,
}

/// The account being exported.
#[derive(Default)]
struct Current {
    id: String,
    account: StoredAccount,
    mailboxes: Vec<(u64, StoredMailbox)>,
    messages: u64,
}

/// All pieces of one snapshot, in order.
pub struct Export {
    snapshot: Box<dyn Snapshot>,
    step: Step,
    accounts_from: Vec<u8>,
    current: Current,
    ready: VecDeque<ShardPiece>,
    seal: Seal,
    accounts: u64,
    messages: u64,
}

impl Export {
    /// The pieces of what `snapshot` shows, after `header`.
    pub fn new(snapshot: Box<dyn Snapshot>, header: ShardHeader) -> Export {
        Export {
            snapshot,
            step: Step::Header(header),
            accounts_from: key::table(b'a'),
            current: Current::default(),
            ready: VecDeque::new(),
            seal: Seal::default(),
            accounts: 0,
            messages: 0,
        }
    }

    /// The next piece; `None` after the trailer. Reads the engine: some milliseconds at most.
    ///
    /// # Errors
    /// [`StoreError`]
    pub fn next_piece(&mut self) -> Result<Option<ShardPiece>, StoreError> {
        loop {
            if let Some(piece) = self.ready.pop_front() {
                if !matches!(piece.piece, Some(shard_piece::Piece::Trailer(_))) {
                    self.seal.add(&piece);
                }
                return Ok(Some(piece));
            }
            let step = std::mem::replace(&mut self.step, Step::Over);
            self.step = match step {
                Step::Header(header) => {
                    self.push(shard_piece::Piece::Header(header));
                    Step::Accounts
                }
                Step::Accounts => self.next_account()?,
                Step::Messages { mailbox, uid } => self.some_messages(mailbox, uid)?,
                Step::Tombstones { from } => self.some_tombstones(&from)?,
                Step::End => {
                    let end = IngestEnd {
                        messages: self.current.messages,
                        purge_at_ms: self.current.account.purge_at_ms,
                    };
                    self.push_ingest(Piece::End(end));
                    Step::Accounts
                }
                Step::Trailer => {
                    let trailer = ShardTrailer {
                        accounts: self.accounts,
                        messages: self.messages,
                        blake3: self.seal.finish().to_vec().into(),
                    };
                    self.push(shard_piece::Piece::Trailer(trailer));
                    Step::Over
                }
                Step::Over => return Ok(None),
            };
        }
    }

    fn push(&mut self, piece: shard_piece::Piece) {
        self.ready.push_back(ShardPiece { piece: Some(piece) });
    }

    fn push_ingest(&mut self, piece: Piece) {
        let ingest = Ingest {
            account: self.current.id.clone(),
            generation: self.current.account.generation,
            piece: Some(piece),
        };
        self.push(shard_piece::Piece::Ingest(ingest));
    }

    fn next_account(&mut self) -> Result<Step, StoreError> {
        const CORRUPT: StoreError = StoreError::Corrupt("an account");
        let table = key::table(b'a');
        let found = self.snapshot.scan(&table, &self.accounts_from, 1)?;
        let Some((found, value)) = found.into_iter().next() else {
            return Ok(Step::Trailer);
        };
        self.accounts_from = [&found[..], &[0]].concat();
        let account = StoredAccount::decode(value).map_err(|_| CORRUPT)?;
        if account.phase() != Phase::Open {
            return Ok(Step::Accounts);
        }
        let id = Parts::of(&found, b'a')
            .and_then(|mut parts| parts.account())
            .ok_or(CORRUPT)?
            .to_owned();
        self.accounts += 1;
        let begin = IngestAccount {
            tenant: account.tenant.clone(),
            state: account.state,
            quota_bytes: account.quota_bytes,
            next_mailbox: account.next_mailbox,
            last_uid_validity: account.last_uid_validity,
        };
        self.current = Current {
            mailboxes: read::mailboxes(&*self.snapshot, &id)?,
            id,
            account,
            messages: 0,
        };
        self.push_ingest(Piece::Begin(begin));
        let mailboxes: Vec<IngestMailbox> = self
            .current
            .mailboxes
            .iter()
            .map(|(mailbox_id, mailbox)| IngestMailbox {
                mailbox_id: *mailbox_id,
                name: mailbox.name.clone(),
                uid_validity: mailbox.uid_validity,
                uid_next: mailbox.uid_next,
                highest_modseq: mailbox.highest_modseq,
                special_use: mailbox.special_use.clone(),
                keywords: mailbox.keywords.clone(),
            })
            .collect();
        for mailbox in mailboxes {
            self.push_ingest(Piece::Mailbox(mailbox));
        }
        Ok(Step::Messages { mailbox: 0, uid: 1 })
    }

    fn some_messages(&mut self, mailbox: usize, uid: u32) -> Result<Step, StoreError> {
        let Some((mailbox_id, head)) = self.current.mailboxes.get(mailbox).cloned() else {
            let from = key::of_account(b'd', &self.current.id);
            return Ok(Step::Tombstones { from });
        };
        // few at a time: each comes with its body
        let page = read::messages(&*self.snapshot, &self.current.id, mailbox_id, uid, 16)?;
        let Some((last, _)) = page.last() else {
            return Ok(Step::Messages {
                mailbox: mailbox + 1,
                uid: 1,
            });
        };
        let next = last.saturating_add(1);
        for (uid, message) in page {
            let piece = self.message(mailbox_id, &head, uid, message)?;
            self.push_ingest(Piece::Message(piece));
            self.current.messages += 1;
            self.messages += 1;
        }
        Ok(Step::Messages { mailbox, uid: next })
    }

    fn message(
        &self,
        mailbox_id: u64,
        mailbox: &StoredMailbox,
        uid: u32,
        message: StoredMessage,
    ) -> Result<IngestMessage, StoreError> {
        let email_id =
            EmailId::from_bytes(&message.email_id).ok_or(StoreError::Corrupt("an email id"))?;
        let email_key = key::email(&self.current.id, email_id);
        let email: StoredEmail = read::decoded(&*self.snapshot, &email_key, "an email")?
            .ok_or(StoreError::Corrupt("an email of a message"))?;
        let body = read::body(&*self.snapshot, &message)?;
        let flags = Flags {
            system: message.flags,
            keywords: message.keywords,
        };
        Ok(IngestMessage {
            mailbox_id,
            uid,
            modseq: message.modseq,
            flags: flag::names(flags, &mailbox.keywords),
            received_ms: message.internal_ms,
            email_id: message.email_id,
            prefix: body.prefix,
            body: body.body,
            delivery_id: email.delivery_id,
            saved_ms: message.saved_ms,
        })
    }

    fn some_tombstones(&mut self, from: &[u8]) -> Result<Step, StoreError> {
        let prefix = key::of_account(b'd', &self.current.id);
        let page = self.snapshot.scan(&prefix, from, PAGE)?;
        let Some((last, _)) = page.last() else {
            return Ok(Step::End);
        };
        let next = [&last[..], &[0]].concat();
        for (found, value) in page {
            let tombstone =
                StoredTombstone::decode(value).map_err(|_| StoreError::Corrupt("a tombstone"))?;
            let delivery_id = found.get(prefix.len()..).unwrap_or_default().to_vec();
            self.push_ingest(Piece::Tombstone(IngestTombstone {
                delivery_id: delivery_id.into(),
                voided: tombstone.voided,
                uid_validity: tombstone.uid_validity,
                uid: tombstone.uid,
            }));
        }
        Ok(Step::Tombstones { from: next })
    }
}
