//! How fast the local write-ahead log takes appends: `cargo run --release --example append_rate [DIRECTORY]`.
//!
//! Closed loop: each appender appends 10 KiB, waits until it is durable, and appends again, for three seconds. A shard
//! follows each appender by truncating, so that the log stays small. Then the time to open what is left.
// a program of its own: nothing here has to be drained
#![allow(clippy::disallowed_methods)]

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hikyaku_log::wal::{Wal, WalOptions};
use hikyaku_log::{Class, Log, Position, ShardId};
use tokio::time::Instant;

const PAYLOAD_BYTES: usize = 10 << 10;
const TIME: Duration = Duration::from_secs(3);

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let parent = std::env::args_os()
        .nth(1)
        .map_or_else(std::env::temp_dir, PathBuf::from);
    let directory = parent.join(format!("append_rate.{}", std::process::id()));
    for appenders in [1_u16, 32, 128] {
        measure(&directory, appenders).await?;
        std::fs::remove_dir_all(&directory)?;
    }
    Ok(())
}

async fn measure(
    directory: &std::path::Path,
    appenders: u16,
) -> Result<(), Box<dyn std::error::Error>> {
    let wal = Arc::new(Wal::open(directory, WalOptions::new(1))?);
    let begin = Instant::now();
    let tasks: Vec<_> = (0..appenders)
        .map(|appender| tokio::spawn(append(wal.clone(), appender, begin)))
        .collect();
    let mut waits = Vec::new();
    for task in tasks {
        waits.extend(task.await??);
    }
    let seconds = begin.elapsed().as_secs_f64();
    let counts = wal.counts();
    waits.sort_unstable();
    let at = |share: f64| {
        waits
            .get((waits.len() as f64 * share) as usize)
            .copied()
            .unwrap_or_default()
    };
    let appends = waits.len() as f64;
    println!(
        "{appenders:3} appenders: {:6.0} appends/s, {:5.1} MB/s, p50 {:?}, p99 {:?}, {:.3} syncs per append, \
         {:.4} bytes per payload byte",
        appends / seconds,
        appends * PAYLOAD_BYTES as f64 / seconds / 1e6,
        at(0.5),
        at(0.99),
        counts.syncs as f64 / appends,
        counts.frame_bytes as f64 / (appends * PAYLOAD_BYTES as f64),
    );
    drop(wal);
    let begin = Instant::now();
    let wal = Wal::open(directory, WalOptions::new(1))?;
    println!(
        "    opened {} MB in {:?}",
        wal.counts().physical_bytes / 1_000_000,
        begin.elapsed()
    );
    Ok(())
}

/// One appender's waits.
async fn append(wal: Arc<Wal>, appender: u16, begin: Instant) -> Result<Vec<Duration>, String> {
    let shard = ShardId::new(Class::Incoming, appender);
    let payload = Bytes::from(vec![appender as u8; PAYLOAD_BYTES]);
    let mut waits = Vec::new();
    while begin.elapsed() < TIME {
        let asked = Instant::now();
        let stamp = wal
            .append(shard, payload.clone())
            .await
            .map_err(|error| error.to_string())?;
        waits.push(asked.elapsed());
        if stamp.position.0.is_multiple_of(500) {
            let start = Position(stamp.position.0 - 100);
            wal.truncate(shard, start)
                .await
                .map_err(|error| error.to_string())?;
        }
    }
    Ok(waits)
}
