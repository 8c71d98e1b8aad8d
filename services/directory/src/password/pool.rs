//! Verifying passwords off the async threads, a bounded number at once and in bounded memory, so that a flood of logins starves
//! nobody else.
//!
//! A salted digest takes microseconds and is verified where it stands: it never waits behind somebody's Argon2. What costs more
//! waits for a thread and for its memory, first come, first served; one that would wait too long is told to come later.
//! Right answers to costly passwords may be remembered, see [`Pool::with_recent`].

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use crate::Unavailable;
use crate::password::recent::Recent;
use crate::password::{Cost, PoolLimits, Unusable, cost, verify};

/// See the module.
pub struct Pool {
    limits: PoolLimits,
    admitted: Arc<Semaphore>,
    hashing: Arc<Semaphore>,
    memory: Arc<Semaphore>,
    recent: Option<Recent>,
}

/// What the stored passwords of one account say to a password.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// One of them is it.
    Right,
    /// None is.
    Wrong,
    /// None of those that could be verified is, and at least one could not be.
    Unknown,
}

impl Pool {
    /// A pool of at least one thread.
    pub fn new(limits: PoolLimits) -> Pool {
        let hashing = limits.hashing_max.clamp(1, Semaphore::MAX_PERMITS / 2);
        let waiting = limits.waiting_max.min(Semaphore::MAX_PERMITS / 2);
        let memory = usize::try_from(limits.memory_mib_max)
            .unwrap_or(1)
            .clamp(1, Semaphore::MAX_PERMITS);
        Pool {
            limits,
            admitted: Arc::new(Semaphore::new(hashing + waiting)),
            hashing: Arc::new(Semaphore::new(hashing)),
            memory: Arc::new(Semaphore::new(memory)),
            recent: None,
        }
    }

    /// Remembers for five minutes that a costly password was right, under a keyed digest of it and of the stored passwords: a
    /// changed password is wrong at once. Wrong ones are never remembered, so they take as long as ever.
    /// `key`: random, of this process.
    #[must_use]
    pub fn with_recent(self, key: [u8; 32]) -> Pool {
        Pool {
            recent: Some(Recent::new(key)),
            ..self
        }
    }

    /// Tries `password` against each of `stored`.
    pub async fn verify(
        &self,
        stored: Vec<Box<str>>,
        password: Vec<u8>,
    ) -> Result<Verdict, Unavailable> {
        let Cost::Costly { memory_bytes } = stored
            .iter()
            .map(|stored| cost(stored))
            .max()
            .unwrap_or_default()
        else {
            return Ok(verdict(&stored, &password));
        };
        let tag = self
            .recent
            .as_ref()
            .map(|recent| (recent, recent.tag(&stored, &password)));
        if let Some((recent, tag)) = &tag
            && recent.knows(tag, Instant::now())
        {
            return Ok(Verdict::Right);
        }
        let permits = self.permits(memory_bytes).await?;
        // The permits end with the hashing, not with a caller that has gone away: a hash under way cannot be cancelled.
        let verdict = tokio::task::spawn_blocking(move || {
            let _permits = permits;
            verdict(&stored, &password)
        });
        let verdict = verdict
            .await
            .map_err(|_| Unavailable::new("password verification failed"))?;
        if let (Some((recent, tag)), Verdict::Right) = (tag, verdict) {
            recent.remember(tag, Instant::now());
        }
        Ok(verdict)
    }

    async fn permits(&self, memory_bytes: u64) -> Result<[OwnedSemaphorePermit; 3], Unavailable> {
        let busy = || Unavailable::new("too many logins at once");
        let admitted = Arc::clone(&self.admitted)
            .try_acquire_owned()
            .map_err(|_| busy())?;
        let memory_mib = u32::try_from(memory_bytes.div_ceil(1 << 20)).unwrap_or(u32::MAX);
        let memory_mib = memory_mib.min(self.limits.memory_mib_max.max(1));
        let waited = tokio::time::timeout(self.limits.wait_max, async {
            let hashing = Arc::clone(&self.hashing).acquire_owned().await?;
            let memory = Arc::clone(&self.memory)
                .acquire_many_owned(memory_mib)
                .await?;
            Ok::<_, tokio::sync::AcquireError>([admitted, hashing, memory])
        });
        waited.await.map_err(|_| busy())?.map_err(|_| busy())
    }
}

fn verdict(stored: &[Box<str>], password: &[u8]) -> Verdict {
    let mut verdict = Verdict::Wrong;
    for stored in stored {
        // No early return: how long it takes must not say which of them it was.
        match (verify(stored, password), verdict) {
            (Ok(true), _) => verdict = Verdict::Right,
            (Err(Unusable::Locked), _) => {}
            (Err(_), Verdict::Wrong) => verdict = Verdict::Unknown,
            _ => {}
        }
    }
    verdict
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Pool, Verdict};
    use crate::password::{PoolLimits, hash_argon2, hash_ssha256};

    /// For those who are to get their turn, on a slow machine too.
    const PATIENCE: Duration = Duration::from_secs(300);

    fn slow() -> Vec<Box<str>> {
        vec![hash_argon2(b"pw", b"saltsaltsaltsalt").unwrap().into()]
    }

    #[tokio::test]
    async fn one_of_several_passwords_is_enough_and_an_unknown_one_is_never_wrong() {
        let pool = Pool::new(PoolLimits::default());
        let good = hash_ssha256(b"pw", b"salt");
        let crypt = "{CRYPT}x";
        let verdict = |stored: &[&str], password: &[u8]| {
            pool.verify(
                stored.iter().map(|&s| s.into()).collect(),
                password.to_vec(),
            )
        };
        assert_eq!(verdict(&[crypt, &good], b"pw").await, Ok(Verdict::Right));
        assert_eq!(verdict(&[&good, crypt], b"pw").await, Ok(Verdict::Right));
        assert_eq!(verdict(&[&good, crypt], b"no").await, Ok(Verdict::Unknown));
        assert_eq!(verdict(&[&good], b"no").await, Ok(Verdict::Wrong));
        assert_eq!(verdict(&[], b"no").await, Ok(Verdict::Wrong));
        let locked = format!("{{CRYPT}}!{good}");
        assert_eq!(verdict(&[&locked], b"pw").await, Ok(Verdict::Wrong));
        assert_eq!(verdict(&[&locked, &good], b"pw").await, Ok(Verdict::Right));
        assert_eq!(
            verdict(&[&locked, crypt], b"no").await,
            Ok(Verdict::Unknown)
        );
    }

    #[tokio::test]
    async fn a_flood_is_bounded_and_told_to_come_later() {
        let limits = PoolLimits {
            hashing_max: 1,
            waiting_max: 2,
            wait_max: PATIENCE,
            ..PoolLimits::default()
        };
        let pool = Pool::new(limits);
        let logins = (0..10).map(|_| pool.verify(slow(), b"pw".to_vec()));
        let results = futures_util::future::join_all(logins).await;
        assert_eq!(
            results
                .iter()
                .filter(|result| **result == Ok(Verdict::Right))
                .count(),
            3
        );
        assert_eq!(results.iter().filter(|result| result.is_err()).count(), 7);
        // and it recovers
        assert_eq!(
            pool.verify(slow(), b"pw".to_vec()).await,
            Ok(Verdict::Right)
        );
    }

    #[tokio::test]
    async fn nobody_waits_for_ever() {
        let limits = PoolLimits {
            hashing_max: 1,
            waiting_max: 2,
            wait_max: Duration::ZERO,
            ..PoolLimits::default()
        };
        let pool = Pool::new(limits);
        let (first, second) = tokio::join!(
            pool.verify(slow(), b"pw".to_vec()),
            pool.verify(slow(), b"pw".to_vec())
        );
        assert_eq!(first, Ok(Verdict::Right));
        assert!(second.is_err());
    }

    #[tokio::test]
    async fn cheap_ones_never_wait_behind_costly_ones() {
        // one thread, and nobody may wait for it
        let limits = PoolLimits {
            hashing_max: 1,
            waiting_max: 0,
            ..PoolLimits::default()
        };
        let pool = Pool::new(limits);
        let cheap: Vec<Box<str>> = vec![hash_ssha256(b"pw", b"salt").into()];
        let (costly, refused, cheap) = tokio::join!(
            pool.verify(slow(), b"pw".to_vec()),
            pool.verify(slow(), b"pw".to_vec()),
            pool.verify(cheap, b"pw".to_vec())
        );
        assert_eq!((costly, cheap), (Ok(Verdict::Right), Ok(Verdict::Right)));
        assert!(refused.is_err());
    }

    #[tokio::test]
    async fn memory_is_a_limit_of_its_own() {
        // slow() needs 19 MiB; two at once would be 38
        let limits = PoolLimits {
            hashing_max: 4,
            memory_mib_max: 20,
            ..PoolLimits::default()
        };
        let pool = Pool::new(limits);
        let first = pool.permits(19 << 20).await.unwrap();
        assert_eq!(pool.memory.available_permits(), 1);
        assert!(
            tokio::time::timeout(Duration::from_millis(50), pool.permits(19 << 20))
                .await
                .is_err()
        );
        drop(first);
        // more than there is: alone
        let alone = pool.permits(200 << 20).await.unwrap();
        assert_eq!(pool.memory.available_permits(), 0);
        drop(alone);
        assert_eq!(pool.memory.available_permits(), 20);
    }

    #[tokio::test]
    async fn what_was_right_is_remembered_for_this_password_and_this_hash() {
        let limits = PoolLimits {
            hashing_max: 1,
            waiting_max: 0,
            ..PoolLimits::default()
        };
        let pool = Pool::new(limits).with_recent([7; 32]);
        assert_eq!(
            pool.verify(slow(), b"pw".to_vec()).await,
            Ok(Verdict::Right)
        );
        assert_eq!(
            pool.verify(slow(), b"pW".to_vec()).await,
            Ok(Verdict::Wrong)
        );
        // the thread is taken: whatever must be hashed is refused, what is remembered is not
        let taken = pool.permits(0).await.unwrap();
        assert_eq!(
            pool.verify(slow(), b"pw".to_vec()).await,
            Ok(Verdict::Right)
        );
        assert!(
            pool.verify(slow(), b"pW".to_vec()).await.is_err(),
            "wrong ones are not remembered"
        );
        let changed = vec![hash_argon2(b"pw", b"saltsaltsaltsalT").unwrap().into()];
        assert!(
            pool.verify(changed, b"pw".to_vec()).await.is_err(),
            "another hash is another question"
        );
        drop(taken);
        tokio::time::pause();
        tokio::time::advance(Duration::from_secs(301)).await;
        tokio::time::resume();
        let _taken = pool.permits(0).await.unwrap();
        assert!(
            pool.verify(slow(), b"pw".to_vec()).await.is_err(),
            "five minutes are over"
        );
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn a_flood_leaves_the_async_threads_to_others() {
        let pool = std::sync::Arc::new(Pool::new(PoolLimits {
            hashing_max: 1,
            wait_max: PATIENCE,
            ..PoolLimits::default()
        }));
        let flood: Vec<_> = (0..40)
            .map(|_| {
                let pool = pool.clone();
                tokio::spawn(async move { pool.verify(slow(), b"pw".to_vec()).await })
            })
            .collect();
        // A bystander on the only async thread: were a hash made there, it would have one turn for each, 40 in all.
        let bystander = tokio::spawn(async move {
            let mut turns = 0;
            while !flood.iter().all(tokio::task::JoinHandle::is_finished) {
                tokio::time::sleep(Duration::from_millis(1)).await;
                turns += 1;
            }
            for login in flood {
                assert_eq!(login.await.unwrap(), Ok(Verdict::Right));
            }
            turns
        });
        let turns = bystander.await.unwrap();
        assert!(turns > 80, "{turns} turns");
    }
}
