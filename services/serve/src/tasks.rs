//! The tasks of one node. Nothing is spawned outside, so nothing is forgotten at the end.

use std::future::Future;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Spawns a node's tasks and ends them: gently with [`Tasks::drain`], at once with [`Tasks::kill`]. Clones share the node.
#[derive(Clone, Debug, Default)]
pub struct Tasks {
    tracker: TaskTracker,
    drain: CancellationToken,
    kill: CancellationToken,
}

impl Tasks {
    /// A node without tasks.
    pub fn new() -> Tasks {
        Tasks::default()
    }

    /// Runs `future` until it ends or the node is killed. A panic ends this task only; `name` says which in the log.
    pub fn spawn<F>(&self, name: &'static str, future: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let kill = self.kill.clone();
        let guard = PanicReport { name };
        // not pinned in the task, whose future would then have room for it twice
        let future = Box::pin(future);
        // the one place where a task is born
        #[allow(clippy::disallowed_methods)]
        self.tracker.spawn(async move {
            tokio::select! {
                biased;
                () = kill.cancelled() => {}
                () = future => {}
            }
            drop(guard);
        });
    }

    /// Ends when the node starts to drain: finish what was promised, begin nothing.
    pub fn draining(&self) -> CancellationToken {
        self.drain.clone()
    }

    /// Asks all tasks to finish and waits at most `patience` for them, then kills the rest. True when none had to be killed.
    pub async fn drain(&self, patience: Duration) -> bool {
        self.drain.cancel();
        self.tracker.close();
        let gentle = tokio::time::timeout(patience, self.tracker.wait())
            .await
            .is_ok();
        if !gentle {
            self.kill().await;
        }
        gentle
    }

    /// Drops every task where it stands, as a crash would, and waits until they are gone.
    pub async fn kill(&self) {
        self.drain.cancel();
        self.kill.cancel();
        self.tracker.close();
        self.tracker.wait().await;
    }

    /// How many tasks run.
    pub fn running(&self) -> usize {
        self.tracker.len()
    }
}

/// Logs a panic that unwinds through the task holding it.
struct PanicReport {
    name: &'static str,
}

impl Drop for PanicReport {
    fn drop(&mut self) {
        if std::thread::panicking() {
            tracing::error!(
                task = self.name,
                "a task panicked and ended; its node goes on"
            );
        }
    }
}
