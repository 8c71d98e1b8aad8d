//! What no single value of a configuration is to blame for: values that do not go together, and limits that nothing could work with.

use std::collections::BTreeMap;
use std::time::Duration;

use hikyaku_log::wal::SEGMENTS_LEAST;

use crate::config::listeners::conflicts;
use crate::config::{Config, log_filter};

/// A segment holds the largest record, the shards' heads and room to truncate in.
const SEGMENT_BYTES_LEAST: u64 = 2 << 20;
/// Recovery reads a segment at once.
const SEGMENT_BYTES_LARGEST: u64 = 1 << 30;

/// Clients wait for a banner too, and not all as long as RFC 5321 section 4.5.3.2.1 has it.
const GREET_DELAY_LONGEST: Duration = Duration::from_secs(60);

/// Less would refuse every mail: somebody meant another unit.
const QUOTA_BYTES_LEAST: u64 = 1 << 20;

/// Something wrong, and the byte offset in the file of the value that is to blame; 0 when the text has to name the key.
pub struct Contradiction {
    /// From the beginning of the file; 0 for none.
    pub offset: usize,
    /// `key: what is wrong`.
    pub what: String,
}

impl Contradiction {
    fn at(offset: usize, what: impl Into<String>) -> Contradiction {
        Contradiction {
            offset,
            what: what.into(),
        }
    }

    fn anywhere(what: impl Into<String>) -> Contradiction {
        Contradiction::at(0, what)
    }
}

/// Everything that contradicts something else in `config`, section by section.
pub fn contradictions(config: &Config) -> Vec<Contradiction> {
    let mut wrong = Vec::new();
    shards(config, &mut wrong);
    tls(config, &mut wrong);
    load_balancers(config, &mut wrong);
    single_values(config, &mut wrong);
    wrong.extend(conflicts(config).into_iter().map(Contradiction::anywhere));
    if let Some(why) = log_filter::fault(&config.telemetry.log_filter) {
        let what = format!("telemetry.log_filter: {why}");
        wrong.push(Contradiction::anywhere(what));
    }
    limits(config, &mut wrong);
    wrong
}

/// A shard belongs to one mbox.
fn shards(config: &Config, wrong: &mut Vec<Contradiction>) {
    if config.mbox.is_empty() {
        wrong.push(Contradiction::anywhere(
            "mbox: at least one [mbox.NAME] with shards = [0, ...] is needed",
        ));
    }
    let mut owners: BTreeMap<u16, &str> = BTreeMap::new();
    for (name, mbox) in &config.mbox {
        let offset = mbox.shards.span().start;
        if mbox.shards.get_ref().is_empty() {
            wrong.push(Contradiction::at(
                offset,
                format!("mbox.{name}.shards: at least one shard number is needed"),
            ));
        }
        for &shard in mbox.shards.get_ref() {
            if shard >= 1 << 14 {
                wrong.push(Contradiction::at(
                    offset,
                    format!("mbox.{name}.shards: {shard} is over 16383"),
                ));
            } else if let Some(other) = owners.insert(shard, name) {
                wrong.push(Contradiction::at(
                    offset,
                    format!("mbox.{name}.shards: shard {shard} belongs to mbox.{other} already"),
                ));
            }
        }
    }
}

/// TLS needs a certificate.
fn tls(config: &Config, wrong: &mut Vec<Contradiction>) {
    if config.tls.is_some() {
        return;
    }
    for (key, covered) in [
        ("smtp.listen_tls", &config.smtp.listen_tls),
        ("pop3.listen_tls", &config.pop3.listen_tls),
    ] {
        if !covered.get_ref().is_empty() {
            wrong.push(Contradiction::at(
                covered.span().start,
                format!("{key}: needs [tls] with certificate and key"),
            ));
        }
    }
}

/// PROXY headers are taken on addresses of ours, from networks that are named.
fn load_balancers(config: &Config, wrong: &mut Vec<Contradiction>) {
    let smtp = &config.smtp;
    let proxied = smtp.proxy_protocol.get_ref();
    let offset = smtp.proxy_protocol.span().start;
    for address in proxied {
        if !smtp.listen.contains(address) && !smtp.listen_tls.get_ref().contains(address) {
            wrong.push(Contradiction::at(
                offset,
                format!("smtp.proxy_protocol: {address} is neither in listen nor in listen_tls"),
            ));
        }
    }
    if !proxied.is_empty() && smtp.proxy_networks.is_empty() {
        wrong.push(Contradiction::at(
            offset,
            "smtp.proxy_protocol: needs proxy_networks",
        ));
    }
}

/// What the type of a value does not say.
fn single_values(config: &Config, wrong: &mut Vec<Contradiction>) {
    if config.directory.recipient_delimiter.chars().count() > 1 {
        wrong.push(Contradiction::anywhere(
            "directory.recipient_delimiter: expected one character, or none",
        ));
    }
    if config.smtp.greet_delay.0 > GREET_DELAY_LONGEST {
        wrong.push(Contradiction::anywhere(format!(
            "smtp.greet_delay: {} seconds are too long, at most {} will do",
            config.smtp.greet_delay.0.as_secs(),
            GREET_DELAY_LONGEST.as_secs()
        )));
    }
    let quota = config.directory.quota_bytes_default.0;
    if (1..QUOTA_BYTES_LEAST).contains(&quota) {
        wrong.push(Contradiction::anywhere(format!(
            "directory.quota_bytes_default: {quota} is too small, expected 0 for no quota or at least {QUOTA_BYTES_LEAST}"
        )));
    }
    if !(0.0..=1.0).contains(&config.telemetry.otlp_ratio) {
        wrong.push(Contradiction::anywhere(
            "telemetry.otlp_ratio: expected a number from 0 to 1",
        ));
    }
}

/// Limits so low that nothing would work.
fn limits(config: &Config, wrong: &mut Vec<Contradiction>) {
    let (smtp, pop3, queue) = (&config.smtp, &config.pop3, &config.queue);
    let least = [
        ("smtp.message_bytes_max", smtp.message_bytes_max.0, 64 << 10),
        // RFC 5321 section 4.5.3.1.8
        ("smtp.recipients_max", smtp.recipients_max.into(), 100),
        ("smtp.connections_max", smtp.connections_max.into(), 1),
        (
            "smtp.connections_per_source_max",
            smtp.connections_per_source_max.into(),
            1,
        ),
        ("smtp.memory_bytes_max", smtp.memory_bytes_max.0, 1 << 20),
        ("smtp.command_timeout", smtp.command_timeout.0.as_secs(), 1),
        ("smtp.data_timeout", smtp.data_timeout.0.as_secs(), 1),
        ("pop3.connections_max", pop3.connections_max.into(), 1),
        (
            "pop3.connections_per_source_max",
            pop3.connections_per_source_max.into(),
            1,
        ),
        ("pop3.memory_bytes_max", pop3.memory_bytes_max.0, 1 << 20),
        ("pop3.login_timeout", pop3.login_timeout.0.as_secs(), 1),
        ("pop3.idle_timeout", pop3.idle_timeout.0.as_secs(), 1),
        ("queue.messages_max", queue.messages_max, 1),
        ("queue.bytes_max", queue.bytes_max.0, 1 << 20),
        (
            "log.segment_bytes",
            config.log.segment_bytes.0,
            SEGMENT_BYTES_LEAST,
        ),
        (
            "store.memtable_bytes_max",
            config.store.memtable_bytes_max.0,
            1 << 20,
        ),
    ];
    let segment_bytes = config.log.segment_bytes.0;
    if segment_bytes > SEGMENT_BYTES_LARGEST {
        wrong.push(Contradiction::anywhere(format!(
            "log.segment_bytes: {segment_bytes} is too large, at most {SEGMENT_BYTES_LARGEST} will do"
        )));
    }
    let log_bytes_least = segment_bytes.saturating_mul(SEGMENTS_LEAST);
    if config.log.bytes_max.0 < log_bytes_least {
        wrong.push(Contradiction::anywhere(format!(
            "log.bytes_max: {} is too small for {SEGMENTS_LEAST} files of {segment_bytes} (log.segment_bytes), at least {log_bytes_least} is needed",
            config.log.bytes_max.0
        )));
    }
    for (key, value, least) in least {
        if value < least {
            wrong.push(Contradiction::anywhere(format!(
                "{key}: {value} is too small, at least {least} is needed"
            )));
        }
    }
}
