//! The mailbox shard's state machine, and what its proposers hear.

use std::sync::Arc;

use hikyaku_engine::Engine;
use hikyaku_log::{Applied, Bounds, Position, Stamp};
use hikyaku_proto::v1::{
    Record, StoredAccount, StoredMailbox, StoredShard, StoredTenant, record::Command,
};
use hikyaku_shard::machine::{Machine, Trouble, resume_after};
use hikyaku_shard::stored::Stored;
use prost::Message;

use crate::nearly_full::NearlyFull;
use crate::writer::{Heads, Writer};
use crate::{StoreError, key};

/// What a proposer hears.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Applied; there is nothing to say (barriers, ticks, account settings).
    Done,
    /// The account is open here, with this generation.
    Opened {
        /// The generation it was opened with.
        generation: u64,
    },
    /// Commit point B: the mail is stored.
    Delivered(StoredAt),
    /// The mail was stored before, under the same delivery id.
    AlreadyDelivered(StoredAt),
    /// Not stored: no room in the account. Not remembered.
    OverQuota,
    /// Not stored: the account takes no mail. Not remembered.
    Disabled,
    /// The account is not here, or not with that generation.
    NotOwner,
    /// The account is being restored or purged: again in a moment.
    Busy,
    /// The delivery id stores nothing, now and for the next ten days.
    Voided,
    /// So many messages are gone now that were there.
    Expunged(u32),
    /// Flags were stored.
    Flagged(Flagged),
    /// The mailbox exists now.
    Created {
        /// Its id.
        mailbox_id: u64,
    },
    /// The piece of a restored account is stored, or was before.
    Ingested,
    /// Old remains of the account are being removed: the same `Ingest` again.
    Discarding,
    /// The account is open here and has mail: it is not restored over.
    Exists,
    /// The command cannot be done as it stands; the reason.
    Refused(&'static str),
}

/// Where a mail is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredAt {
    /// UIDVALIDITY of its mailbox.
    pub uid_validity: u32,
    /// Its UID.
    pub uid: u32,
}

/// What `StoreFlags` did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Flagged {
    /// HIGHESTMODSEQ of the mailbox now.
    pub modseq: u64,
    /// UIDs whose flags are other now.
    pub changed: Vec<u32>,
    /// UIDs that had changed since UNCHANGEDSINCE, untouched.
    pub refused: Vec<u32>,
}

/// The record being applied.
#[derive(Clone, Copy, Debug)]
pub(crate) struct At {
    /// Its position: a body's key.
    pub(crate) position: u64,
    /// Its proposer's clock.
    pub(crate) time_ms: u64,
}

/// Accounts and their mailboxes, over an engine.
pub struct MailboxMachine {
    pub(crate) writer: Writer,
    pub(crate) accounts: Heads<StoredAccount>,
    pub(crate) mailboxes: Heads<StoredMailbox>,
    pub(crate) tenants: Heads<StoredTenant>,
    pub(crate) shard: StoredShard,
    /// No tombstone goes before this log time, and no account is purged before that one: hints, rebuilt by looking.
    pub(crate) tombstone_due_ms: u64,
    pub(crate) purge_due_ms: u64,
    pub(crate) nearly_full: NearlyFull,
    applied: Applied,
}

impl MailboxMachine {
    /// The machine whose state is what `engine` holds.
    ///
    /// # Errors
    /// [`Trouble::Store`] when the engine cannot be read or holds something else.
    pub fn open(engine: Arc<dyn Engine>) -> Result<MailboxMachine, Trouble> {
        Self::try_open(engine).map_err(|error| trouble(&error))
    }

    fn try_open(engine: Arc<dyn Engine>) -> Result<MailboxMachine, StoreError> {
        // the log may have let go of the records of a newer version that would stop us
        if !engine.scan(&[], &key::NEWER, 1)?.is_empty() {
            return Err(StoreError::Newer);
        }
        let Stored { applied, hash } =
            Stored::decode(&engine.position()).ok_or(StoreError::Corrupt("the position"))?;
        let shard = match engine.get(&key::SHARD)? {
            Some(value) => {
                StoredShard::decode(value).map_err(|_| StoreError::Corrupt("the shard's head"))?
            }
            None => StoredShard::default(),
        };
        let nearly_full = NearlyFull::at_start(&*engine)?;
        Ok(MailboxMachine {
            writer: Writer::new(engine, hash),
            accounts: Heads::new("an account"),
            mailboxes: Heads::new("a mailbox"),
            tenants: Heads::new("a tenant"),
            shard,
            tombstone_due_ms: 0,
            purge_due_ms: 0,
            nearly_full,
            applied,
        })
    }

    /// Accounts that are nearly full.
    pub fn nearly_full(&self) -> &NearlyFull {
        &self.nearly_full
    }

    /// The time by which tombstones and deleted accounts go: moved by `Tick` only.
    pub fn log_time_ms(&self) -> u64 {
        self.shard.log_time_ms
    }

    fn step(&mut self, stamp: Stamp, record: Record) -> Result<Answer, StoreError> {
        let at = At {
            position: stamp.position.0,
            time_ms: record.time_ms,
        };
        if self.shard.log_time_ms == 0 {
            // log time begins with the log; from then on only ticks move it
            self.move_log_time(at.time_ms)?;
        }
        let answer = match record.command {
            Some(Command::OpenAccount(command)) => self.open_account(at, command)?,
            Some(Command::Deliver(command)) => self.deliver(at, command)?,
            Some(Command::Void(command)) => self.void(&command)?,
            Some(Command::Expunge(command)) => self.expunge(&command)?,
            Some(Command::StoreFlags(command)) => self.store_flags(&command)?,
            Some(Command::CreateMailbox(command)) => self.create_mailbox(at, &command)?,
            Some(Command::SetAccount(command)) => self.set_account(&command)?,
            Some(Command::Ingest(command)) => self.ingest(at, command)?,
            Some(Command::Tick(tick)) => {
                self.move_log_time(tick.log_time_ms)?;
                self.tick()?;
                Answer::Done
            }
            // barriers, leaders and marks change nothing; commands of other classes never get here and mean nothing here
            _ => Answer::Done,
        };
        self.expire_some()?;
        Ok(answer)
    }

    fn move_log_time(&mut self, time_ms: u64) -> Result<(), StoreError> {
        if time_ms <= self.shard.log_time_ms {
            return Ok(());
        }
        self.store_shard(StoredShard {
            log_time_ms: time_ms,
            ..self.shard
        })
    }

    fn store_shard(&mut self, shard: StoredShard) -> Result<(), StoreError> {
        let value = shard.encode_to_vec().into();
        if self.shard == StoredShard::default() {
            self.writer.insert(key::SHARD.to_vec(), value)?;
        } else {
            let old = self.shard.encode_to_vec();
            self.writer.replace(key::SHARD.to_vec(), &old, value)?;
        }
        self.shard = shard;
        Ok(())
    }
}

fn trouble(error: &StoreError) -> Trouble {
    Trouble::Store(error.to_string())
}

impl Machine for MailboxMachine {
    type Answer = Answer;

    fn resume(&mut self, incarnation: u64, bounds: Bounds) -> Result<Position, Trouble> {
        resume_after(self.applied, incarnation, bounds)
    }

    fn applied(&self) -> Applied {
        self.applied
    }

    fn apply(&mut self, stamp: Stamp, record: Record) -> Result<Answer, Trouble> {
        self.step(stamp, record).map_err(|error| trouble(&error))
    }

    fn quarantine(&mut self, stamp: Stamp) -> Result<(), Trouble> {
        let shard = StoredShard {
            quarantined: self.shard.quarantined + 1,
            last_quarantined: stamp.position.0,
            ..self.shard
        };
        self.store_shard(shard).map_err(|error| trouble(&error))
    }

    fn batch_end(&mut self, applied: Applied) -> Result<(), Trouble> {
        self.applied = applied;
        let stored = Stored {
            applied,
            hash: self.writer.hash(),
        };
        self.writer
            .engine()
            .commit(stored.encode())
            .map_err(|error| trouble(&error.into()))
    }

    fn keep_from(&self) -> Position {
        // an unreadable durable position keeps everything
        Stored::decode(&self.writer.engine().durable())
            .map_or(Position(1), |stored| stored.applied.stamp.position.next())
    }

    fn log_start(&mut self, _start: Position) {}

    fn pressed(&mut self) {
        self.writer.engine().request_flush();
    }

    fn ready(&self) -> bool {
        !self.writer.engine().stalled()
    }

    fn state_hash(&self) -> [u8; 32] {
        self.writer.hash().to_bytes()
    }
}
