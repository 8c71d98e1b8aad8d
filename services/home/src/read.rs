//! What services and backups read of a home shard, from a snapshot.

use hikyaku_engine::{EngineError, Snapshot};
use hikyaku_proto::v1::Claim;
use hikyaku_shard::stored::{StateHash, Stored};

use crate::machine::{OWNER_PREFIX, Owner, owner_key};

/// Who owns `account`, if anybody.
///
/// # Errors
/// As [`Snapshot::get`].
pub fn owner(snapshot: &dyn Snapshot, account: &str) -> Result<Option<Owner>, EngineError> {
    match snapshot.get(&owner_key(account))? {
        Some(value) => Owner::decode(value).map(Some).ok_or_else(corrupt),
        None => Ok(None),
    }
}

/// Up to `limit` accounts after `after` (empty: from the first), each as the claim that made it.
///
/// # Errors
/// As [`Snapshot::scan`].
pub fn claims(
    snapshot: &dyn Snapshot,
    after: &str,
    limit: usize,
) -> Result<Vec<Claim>, EngineError> {
    let mut from = owner_key(after);
    if !after.is_empty() {
        from.push(0);
    }
    snapshot
        .scan(&OWNER_PREFIX, &from, limit)?
        .into_iter()
        .map(|(key, value)| {
            let account = key.get(OWNER_PREFIX.len()..).unwrap_or_default();
            Ok(Claim {
                account: String::from_utf8(account.to_vec()).map_err(|_| corrupt())?,
                shard: u32::from(Owner::decode(value).ok_or_else(corrupt)?.shard),
            })
        })
        .collect()
}

/// Recounts what the machine keeps running, and says what does not agree; empty when all does.
///
/// # Errors
/// As [`Snapshot::scan`].
pub fn audit(snapshot: &dyn Snapshot) -> Result<Vec<String>, EngineError> {
    const PAGE: usize = 1_000;
    let mut faults = Vec::new();
    let mut hash = StateHash::default();
    let mut from = Vec::new();
    loop {
        let pairs = snapshot.scan(&[], &from, PAGE)?;
        for (key, value) in &pairs {
            hash.add(key, value);
            if key.starts_with(&OWNER_PREFIX) && Owner::decode(value.clone()).is_none() {
                faults.push(format!("owner {key:?} does not decode"));
            }
        }
        match pairs.last() {
            Some((key, _)) if pairs.len() == PAGE => from = [&key[..], &[0]].concat(),
            _ => break,
        }
    }
    match Stored::decode(&snapshot.position()) {
        Some(stored) if stored.hash == hash => {}
        Some(_) => faults.push("the running hash is not the hash of the state".into()),
        None => faults.push("the position does not decode".into()),
    }
    Ok(faults)
}

fn corrupt() -> EngineError {
    EngineError::Failed("an owner does not decode".into())
}
