//! Every implementation of the log against the one contract.

use std::sync::Arc;

use hikyaku_log::Log;
use hikyaku_log::contract::{self, Place};
use hikyaku_log::sim::{SimDisk, SimFaults, SimLog};
use hikyaku_log::wal::{Wal, WalOptions};
use tempfile::TempDir;

struct WalPlace {
    directory: TempDir,
    options: WalOptions,
}

impl WalPlace {
    fn new(options: WalOptions) -> WalPlace {
        WalPlace {
            directory: tempfile::tempdir().unwrap(),
            options,
        }
    }
}

impl Place for WalPlace {
    fn open(&mut self) -> Arc<dyn Log> {
        Arc::new(Wal::open(self.directory.path(), self.options.clone()).unwrap())
    }

    fn clear(&mut self) {
        self.directory = tempfile::tempdir().unwrap();
    }

    fn record_bytes_max(&self) -> usize {
        self.options.record_bytes_max
    }
}

#[tokio::test]
async fn local_wal() {
    contract::all(&mut WalPlace::new(WalOptions::new(77))).await;
}

/// Many segments, and nothing served from memory.
#[tokio::test]
async fn local_wal_of_small_segments_without_memory() {
    let options = WalOptions {
        segment_bytes: 16 << 10,
        record_bytes_max: 4 << 10,
        recent_bytes_max: 0,
        shards_max: 32,
        wal_bytes_max: 16 << 20,
        ..WalOptions::new(78)
    };
    contract::all(&mut WalPlace::new(options)).await;
}

struct SimPlace {
    disk: SimDisk,
    seed: u64,
    faults: SimFaults,
}

impl Place for SimPlace {
    fn open(&mut self) -> Arc<dyn Log> {
        Arc::new(SimLog::open(&self.disk, self.faults.clone()))
    }

    fn clear(&mut self) {
        self.seed += 1;
        self.disk = SimDisk::new(self.seed);
    }

    fn record_bytes_max(&self) -> usize {
        self.faults.record_bytes_max
    }
}

#[tokio::test(start_paused = true)]
async fn simulated_log() {
    contract::all(&mut SimPlace {
        disk: SimDisk::new(1),
        seed: 1,
        faults: SimFaults::none(),
    })
    .await;
}

/// Faults that break no promise: everything late.
#[tokio::test(start_paused = true)]
async fn simulated_log_that_is_late() {
    let faults = SimFaults {
        append_late: 100,
        ack_late: 100,
        tail_slow: 100,
        ..SimFaults::none()
    };
    contract::all(&mut SimPlace {
        disk: SimDisk::new(2),
        seed: 2,
        faults,
    })
    .await;
}
