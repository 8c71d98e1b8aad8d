//! The home shard's state machine: `Claim`, first writer wins, over an engine.

use std::sync::Arc;

use bytes::Bytes;
use hikyaku_engine::{Engine, EngineError, Write};
use hikyaku_log::{Applied, Bounds, Position, Stamp};
use hikyaku_mail::id::AccountId;
use hikyaku_proto::v1::{Claim, Record, StoredOwner, StoredShard, record::Command};
use hikyaku_shard::machine::{Machine, Trouble, resume_after};
use hikyaku_shard::stored::{StateHash, Stored};
use prost::Message;

/// Keys begin with the version of their layout.
const LAYOUT: u8 = 1;
/// The highest index a mailbox shard can have.
const SHARD_MAX: u32 = 0x3fff;

/// The key of what belongs to no account.
const SHARD_KEY: [u8; 2] = [LAYOUT, b'm'];
/// What every owner's key begins with; the account id follows.
pub(crate) const OWNER_PREFIX: [u8; 2] = [LAYOUT, b'h'];

pub(crate) fn owner_key(account: &str) -> Vec<u8> {
    [&OWNER_PREFIX[..], account.as_bytes()].concat()
}

/// What a proposer hears.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Applied; there is nothing to say (barriers, ticks).
    Done,
    /// Who owns the account: the claimer, or whoever was first.
    Owner(Owner),
    /// The claim names no account or no shard.
    Malformed,
}

/// Where an account lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Mailbox shard index.
    pub shard: u16,
    /// Counts the moves of the account; 1 is the first home.
    pub generation: u64,
}

impl Owner {
    pub(crate) fn decode(value: Bytes) -> Option<Owner> {
        let stored = StoredOwner::decode(value).ok()?;
        Some(Owner {
            shard: u16::try_from(stored.shard).ok()?,
            generation: stored.generation,
        })
    }
}

/// Account id -> owner.
pub struct HomeMachine {
    engine: Arc<dyn Engine>,
    applied: Applied,
    hash: StateHash,
    shard: StoredShard,
}

impl HomeMachine {
    /// The machine whose state is what `engine` holds.
    ///
    /// # Errors
    /// [`Trouble::Store`] when the engine cannot be read or holds something else.
    pub fn open(engine: Arc<dyn Engine>) -> Result<HomeMachine, Trouble> {
        let corrupt = |what: &str| Trouble::Store(format!("{what} does not decode"));
        // the log may have let go of the records of a newer version that would stop us
        let newer = engine.scan(&[], &[LAYOUT + 1], 1).map_err(trouble)?;
        if !newer.is_empty() {
            return Err(Trouble::Store(
                "a newer program has written to the store".into(),
            ));
        }
        let Stored { applied, hash } =
            Stored::decode(&engine.position()).ok_or_else(|| corrupt("the store's position"))?;
        let shard = match engine.get(&SHARD_KEY).map_err(trouble)? {
            Some(value) => StoredShard::decode(value).map_err(|_| corrupt("the shard's head"))?,
            None => StoredShard::default(),
        };
        Ok(HomeMachine {
            engine,
            applied,
            hash,
            shard,
        })
    }

    fn claim(&mut self, claim: &Claim) -> Result<Answer, Trouble> {
        let Ok(account) = claim.account.parse::<AccountId>() else {
            return Ok(Answer::Malformed);
        };
        let Some(shard) = u16::try_from(claim.shard)
            .ok()
            .filter(|_| claim.shard <= SHARD_MAX)
        else {
            return Ok(Answer::Malformed);
        };
        let key = owner_key(account.as_str());
        if let Some(value) = self.engine.get(&key).map_err(trouble)? {
            let owner = Owner::decode(value)
                .ok_or_else(|| Trouble::Store("an owner does not decode".into()))?;
            return Ok(Answer::Owner(owner));
        }
        let stored = StoredOwner {
            shard: claim.shard,
            generation: 1,
        };
        let value = Bytes::from(stored.encode_to_vec());
        self.hash.add(&key, &value);
        self.write(key, value)?;
        Ok(Answer::Owner(Owner {
            shard,
            generation: 1,
        }))
    }

    fn write(&self, key: Vec<u8>, value: Bytes) -> Result<(), Trouble> {
        let write = Write {
            key,
            value: Some(value),
        };
        self.engine.write(vec![write]).map_err(trouble)
    }

    fn store_shard(&mut self, shard: StoredShard) -> Result<(), Trouble> {
        if shard == self.shard {
            return Ok(());
        }
        if self.shard != StoredShard::default() {
            self.hash.remove(&SHARD_KEY, &self.shard.encode_to_vec());
        }
        let value = Bytes::from(shard.encode_to_vec());
        self.hash.add(&SHARD_KEY, &value);
        self.shard = shard;
        self.write(SHARD_KEY.to_vec(), value)
    }
}

fn trouble(error: EngineError) -> Trouble {
    Trouble::Store(error.to_string())
}

impl Machine for HomeMachine {
    type Answer = Answer;

    fn resume(&mut self, incarnation: u64, bounds: Bounds) -> Result<Position, Trouble> {
        resume_after(self.applied, incarnation, bounds)
    }

    fn applied(&self) -> Applied {
        self.applied
    }

    fn apply(&mut self, _stamp: Stamp, record: Record) -> Result<Answer, Trouble> {
        match record.command {
            Some(Command::Claim(claim)) => self.claim(&claim),
            Some(Command::Tick(tick)) => {
                let mut shard = self.shard;
                shard.log_time_ms = shard.log_time_ms.max(tick.log_time_ms);
                self.store_shard(shard)?;
                Ok(Answer::Done)
            }
            // commands of other classes never get here; if one does, it means nothing here
            _ => Ok(Answer::Done),
        }
    }

    fn quarantine(&mut self, stamp: Stamp) -> Result<(), Trouble> {
        let mut shard = self.shard;
        shard.quarantined += 1;
        shard.last_quarantined = stamp.position.0;
        self.store_shard(shard)
    }

    fn batch_end(&mut self, applied: Applied) -> Result<(), Trouble> {
        self.applied = applied;
        let stored = Stored {
            applied,
            hash: self.hash,
        };
        self.engine.commit(stored.encode()).map_err(trouble)
    }

    fn keep_from(&self) -> Position {
        // an unreadable durable position keeps everything
        Stored::decode(&self.engine.durable())
            .map_or(Position(1), |stored| stored.applied.stamp.position.next())
    }

    fn log_start(&mut self, _start: Position) {}

    fn pressed(&mut self) {
        self.engine.request_flush();
    }

    fn ready(&self) -> bool {
        !self.engine.stalled()
    }

    fn state_hash(&self) -> [u8; 32] {
        self.hash.to_bytes()
    }
}
