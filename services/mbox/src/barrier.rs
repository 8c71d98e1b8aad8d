//! Many linearizable reads, one record: callers that come while a barrier is under way share the next one.
//!
//! A barrier that began before a caller came may not have seen what the caller has seen, so it is never given to it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hikyaku_serve::tasks::Tasks;
use hikyaku_shard::machine::Machine;
use hikyaku_shard::runtime::{ProposeError, Shard};
use tokio::sync::oneshot;
use tonic::Status;

use crate::status;

type Passed = Result<(), ProposeError>;

/// The barriers of one shard.
#[derive(Clone)]
pub(crate) struct Barriers {
    waiting: Arc<Mutex<Waiting>>,
    waiters_max: usize,
}

#[derive(Default)]
struct Waiting {
    callers: Vec<oneshot::Sender<Passed>>,
    running: bool,
}

impl Barriers {
    pub(crate) fn new(waiters_max: usize) -> Barriers {
        Barriers {
            waiting: Arc::default(),
            waiters_max,
        }
    }

    /// Returns when everything logged before this call is applied and visible in snapshots taken from then on.
    pub(crate) async fn pass<M: Machine>(
        &self,
        tasks: &Tasks,
        shard: &Shard<M>,
        patience: Duration,
    ) -> Result<(), Status> {
        let (sender, receiver) = oneshot::channel();
        let start = {
            let mut waiting = self.lock();
            waiting.callers.retain(|caller| !caller.is_closed());
            if waiting.callers.len() >= self.waiters_max {
                return Err(Status::unavailable("too many wait for this shard"));
            }
            waiting.callers.push(sender);
            !std::mem::replace(&mut waiting.running, true)
        };
        if start {
            let (barriers, shard) = (self.clone(), shard.clone());
            tasks.spawn(
                "barrier",
                async move { barriers.run(&shard, patience).await },
            );
        }
        // one barrier may be under way, and the next one is ours
        match tokio::time::timeout(patience * 2, receiver).await {
            Ok(Ok(passed)) => passed.map_err(|error| status::of_propose(&error)),
            Ok(Err(_)) | Err(_) => Err(Status::unavailable("the shard does not answer")),
        }
    }

    async fn run<M: Machine>(&self, shard: &Shard<M>, patience: Duration) {
        loop {
            let callers = {
                let mut waiting = self.lock();
                if waiting.callers.is_empty() {
                    waiting.running = false;
                    return;
                }
                std::mem::take(&mut waiting.callers)
            };
            // the record is made after all of them came
            let passed = match tokio::time::timeout(patience, shard.barrier()).await {
                Ok(passed) => passed.map(|_| ()),
                Err(_) => Err(ProposeError::Unknown),
            };
            for caller in callers {
                // a caller that went away needs no answer
                let _ = caller.send(passed.clone());
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
