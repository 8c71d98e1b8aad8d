//! What a node may use of the memory: the table in docs/OPERATIONS.md, which `hikyaku check` prints for a configuration.
//!
//! Every line is a limit that the code keeps, but for the first two, which are measured. What is not here: connections beyond a
//! few hundred (about 10 KiB each, 22 under TLS) and single passwords hashed with more memory than all hashes may take.

use hikyaku_queue::machine::MESSAGE_MEMORY_BYTES;

use crate::config::Config;

/// Code, threads, a few hundred connections, metrics, 4 MiB of lines that nobody reads: measured.
const PROGRAM_BYTES: u64 = 32 << 20;
/// Users, aliases and groups of 10,000 users, twice while the file is read again: measured.
const DIRECTORY_BYTES: u64 = 15 << 20;
/// Appends that wait for the disk.
pub const PENDING_BYTES_MAX: usize = 16 << 20;
/// Bodies being delivered, and the same number of octets on the mailboxes' side of the call.
pub const IN_FLIGHT_BYTES_MAX: usize = 8 << 20;
/// Costly password hashes (Argon2, yescrypt) at once, MiB.
pub const HASHING_MIB_MAX: u32 = 16;
/// What stores have not flushed reaches so many times its limit before deliveries wait.
const MEMTABLES_STALL_AT: u64 = 2;

/// One line of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// What the memory is for.
    pub what: &'static str,
    /// The key that sets it, or that it is fixed or measured.
    pub key: &'static str,
    /// Octets at most.
    pub bytes: u64,
}

/// The table for this configuration.
pub fn budgets(config: &Config) -> Vec<Budget> {
    let line = |what, key, bytes| Budget { what, key, bytes };
    let queue = &config.queue;
    let memtables = config.store.memtable_bytes_max.0;
    vec![
        line(
            "program, threads, some hundred connections",
            "measured",
            PROGRAM_BYTES,
        ),
        line("directory of 10,000 users", "measured", DIRECTORY_BYTES),
        line(
            "mails being received",
            "smtp.memory_bytes_max",
            config.smtp.memory_bytes_max.0,
        ),
        line(
            "appends that wait for the disk",
            "fixed",
            PENDING_BYTES_MAX as u64,
        ),
        line(
            "newest records of the log",
            "log.cache_bytes_max",
            config.log.cache_bytes_max.0,
        ),
        line(
            "who waits in the queue, 512 octets a mail",
            "queue.messages_max",
            queue.messages_max.saturating_mul(MESSAGE_MEMORY_BYTES),
        ),
        line(
            "bodies of fresh mail",
            "queue.body_cache_bytes_max",
            queue.body_cache_bytes_max.0,
        ),
        line(
            "bodies being delivered, on both sides of the call",
            "fixed",
            2 * IN_FLIGHT_BYTES_MAX as u64,
        ),
        line(
            "what stores have not flushed; deliveries wait at twice the key",
            "store.memtable_bytes_max",
            memtables.saturating_mul(MEMTABLES_STALL_AT),
        ),
        line(
            "reading mailboxes",
            "store.cache_bytes_max",
            config.store.cache_bytes_max.0,
        ),
        line(
            "open maildrops of over 1,000 mails, 32 octets a mail",
            "pop3.memory_bytes_max",
            config.pop3.memory_bytes_max.0,
        ),
        line(
            "password hashes at once (Argon2, yescrypt)",
            "fixed",
            u64::from(HASHING_MIB_MAX) << 20,
        ),
    ]
}

/// The sum of the table.
pub fn total(config: &Config) -> u64 {
    let lines = budgets(config);
    lines
        .iter()
        .fold(0, |sum, line| sum.saturating_add(line.bytes))
}

/// Octets in MiB, to one place where that is no whole number.
pub fn mib(bytes: u64) -> String {
    let tenths = (u128::from(bytes) * 10).div_ceil(1 << 20);
    match tenths % 10 {
        0 => format!("{} MiB", tenths / 10),
        rest => format!("{}.{rest} MiB", tenths / 10),
    }
}

/// What `hikyaku check` says of memory: the sum, then its parts.
pub fn lines(config: &Config) -> Vec<String> {
    let sum = format!("memory: at most {} in all:", mib(total(config)));
    let parts = budgets(config).into_iter().map(|line| {
        let size = mib(line.bytes);
        format!("memory: {size:>10}  {} ({})", line.what, line.key)
    });
    std::iter::once(sum).chain(parts).collect()
}

#[cfg(test)]
mod tests {
    use super::{budgets, lines, mib, total};
    use crate::config::Config;

    const OPERATIONS: &str = include_str!("../../../docs/OPERATIONS.md");

    #[test]
    fn the_defaults_fit_a_small_machine_and_the_table_says_them() {
        let config = Config::default();
        assert!(total(&config) <= 256 << 20, "{}", mib(total(&config)));
        for line in budgets(&config) {
            let key = match line.key {
                "measured" | "fixed" => line.key.to_owned(),
                key => format!("`{key}`"),
            };
            let row = format!("| {} | {key} | {} |", line.what, mib(line.bytes));
            assert!(
                OPERATIONS.contains(&row),
                "not in docs/OPERATIONS.md: {row}"
            );
        }
        let sum = format!("| **sum** | | **{}** |", mib(total(&config)));
        assert!(
            OPERATIONS.contains(&sum),
            "not in docs/OPERATIONS.md: {sum}"
        );
        let rows = OPERATIONS
            .lines()
            .skip_while(|line| *line != "| for | key | default |");
        let rows = rows.skip(2).take_while(|line| line.starts_with("| "));
        assert_eq!(
            rows.count(),
            budgets(&config).len() + 1,
            "rows of the table"
        );
    }

    #[test]
    fn a_larger_key_makes_a_larger_sum() {
        let mut config = Config::default();
        let before = total(&config);
        config.store.memtable_bytes_max.0 += 1 << 20;
        config.queue.messages_max += 2048;
        assert_eq!(total(&config), before + (3 << 20));
        assert!(lines(&config)[0].ends_with(&format!("{} in all:", mib(before + (3 << 20)))));
        config.queue.messages_max = u64::MAX;
        assert_eq!(total(&config), u64::MAX);
    }
}
