//! The configuration: one TOML file, typed and closed. `docs/hikyaku.toml` is its reference and holds every default.
//!
//! A file is read as a whole or not at all. What is wrong is said with file, line, key and what is allowed.

pub mod advice;
mod contradictions;
pub mod listeners;
pub mod log_filter;
mod values;

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hikyaku_serve::file;
use serde::Deserialize;
use toml::Spanned;

use crate::config::contradictions::{Contradiction, contradictions};
use crate::config::values::{Address, Bytes, Domain, Interval, Net};

/// A configuration file, a hundred times what one has.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Everything an operator sets.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// This machine.
    pub node: Node,
    /// Who the users are.
    pub directory: Directory,
    /// The mailbox servers, by the names that the directory's `mailHost` uses.
    pub mbox: BTreeMap<String, Mbox>,
    /// SMTP in.
    pub smtp: Smtp,
    /// POP3.
    pub pop3: Pop3,
    /// TLS material.
    pub tls: Option<Tls>,
    /// Accepted mail on its way.
    pub queue: Queue,
    /// The log under everything.
    pub log: Log,
    /// Mailbox stores.
    pub store: Store,
    /// Large bodies.
    pub blobs: Blobs,
    /// Log lines, metrics, traces.
    pub telemetry: Telemetry,
}

/// `[node]`
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Node {
    /// The name in greetings, Received and DSNs.
    pub hostname: Domain,
    /// Where everything is kept.
    pub data_dir: PathBuf,
    /// How long a stop waits for what is under way.
    pub drain_timeout: Interval,
}

/// `[directory]`
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Directory {
    /// The LDIF file.
    pub ldif: Spanned<PathBuf>,
    /// The domain of `<postmaster>`, the only address that may lack one.
    pub default_domain: Option<Domain>,
    /// Who gets mail for postmaster where the directory names nobody.
    pub postmaster: Option<Address>,
    /// Between the user and the detail in `user+detail@domain`; empty for none.
    pub recipient_delimiter: String,
    /// What a mailbox may hold whose entry does not say; 0 is unlimited.
    pub quota_bytes_default: Bytes,
}

/// `[mbox.NAME]`
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mbox {
    /// The mailbox shards it consists of.
    pub shards: Spanned<Vec<u16>>,
}

/// `[smtp]`
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Smtp {
    /// Addresses that take mail.
    pub listen: Vec<SocketAddr>,
    /// Addresses that speak TLS from the first byte.
    pub listen_tls: Spanned<Vec<SocketAddr>>,
    /// Those of them that load balancers connect to.
    pub proxy_protocol: Spanned<Vec<SocketAddr>>,
    /// Where the load balancers are.
    pub proxy_networks: Vec<Net>,
    /// The largest message.
    pub message_bytes_max: Bytes,
    /// Recipients of one transaction.
    pub recipients_max: u32,
    /// Connections at once.
    pub connections_max: u32,
    /// Connections at once from one address.
    pub connections_per_source_max: u32,
    /// Memory for messages being received, all connections together.
    pub memory_bytes_max: Bytes,
    /// For one command to arrive, and for a reply to be taken.
    pub command_timeout: Interval,
    /// For the next octets of a content to arrive.
    pub data_timeout: Interval,
    /// Silence before the banner.
    pub greet_delay: Interval,
    /// What becomes of a bare LF in a content in chunks.
    pub bare_lf_in_chunks: BareLf,
}

/// `smtp.bare_lf_in_chunks`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BareLf {
    /// It is written as CRLF.
    Crlf,
    /// The mail is refused.
    Refuse,
}

/// `[pop3]`
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Pop3 {
    /// Addresses that begin in the clear and offer STLS.
    pub listen: Vec<SocketAddr>,
    /// Addresses that speak TLS from the first byte.
    pub listen_tls: Spanned<Vec<SocketAddr>>,
    /// Allow passwords without TLS.
    pub cleartext_login: bool,
    /// Connections at once.
    pub connections_max: u32,
    /// Connections at once from one address.
    pub connections_per_source_max: u32,
    /// Memory for open maildrops, all connections together.
    pub memory_bytes_max: Bytes,
    /// From the banner to a login.
    pub login_timeout: Interval,
    /// For one command to arrive.
    pub idle_timeout: Interval,
}

/// `[tls]`
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// PEM chain, leaf first.
    pub certificate: Spanned<PathBuf>,
    /// PEM key.
    pub key: Spanned<PathBuf>,
}

/// `[queue]`
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Queue {
    /// Live messages; beyond it senders hear 452.
    pub messages_max: u64,
    /// Octets of live messages; beyond it senders hear 452.
    pub bytes_max: Bytes,
    /// Memory for bodies of fresh mail.
    pub body_cache_bytes_max: Bytes,
    /// How long a recipient may defer for a reason of the recipient's.
    pub expire_after: Interval,
    /// The same for bounces.
    pub expire_bounces_after: Interval,
    /// When a sender who asked for it hears that a mail takes long.
    pub report_delay_after: Interval,
}

/// `[log]`
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// The whole log on disk; beyond it senders hear 452.
    pub bytes_max: Bytes,
    /// One file of it.
    pub segment_bytes: Bytes,
    /// Recent records kept in memory.
    pub cache_bytes_max: Bytes,
}

/// `[store]`
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Store {
    /// Memory for what is not flushed yet, all shards together.
    pub memtable_bytes_max: Bytes,
    /// Memory for reading, all shards together.
    pub cache_bytes_max: Bytes,
    /// Unflushed data is flushed at this age at the latest.
    pub flush_interval: Interval,
}

/// `[blobs]`
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Blobs {
    /// How often blobs that nobody names are looked for.
    pub sweep_interval: Interval,
    /// How long a blob must have been named by nobody before it is deleted.
    pub keep_unnamed: Interval,
}

/// `[telemetry]`
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Telemetry {
    /// How a log line is written.
    pub log_format: LogFormat,
    /// Which lines are written.
    pub log_filter: String,
    /// Where `/metrics`, `/healthz` and `/readyz` are answered.
    pub metrics_listen: Option<SocketAddr>,
    /// The OTLP collector that traces go to.
    pub otlp_endpoint: Option<String>,
    /// The part of mails that is traced.
    pub otlp_ratio: f64,
}

/// `log_format`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// `key=value` pairs.
    Logfmt,
    /// One JSON object a line.
    Json,
}

impl Default for Telemetry {
    fn default() -> Telemetry {
        Telemetry {
            log_format: LogFormat::Logfmt,
            log_filter: "info".into(),
            metrics_listen: None,
            otlp_endpoint: None,
            otlp_ratio: 1.0,
        }
    }
}

impl Default for Blobs {
    fn default() -> Blobs {
        Blobs {
            sweep_interval: Interval(Duration::from_secs(3600)),
            keep_unnamed: Interval(Duration::from_secs(86400)),
        }
    }
}

impl Default for Node {
    fn default() -> Node {
        Node {
            hostname: Domain("localhost".into()),
            data_dir: "data".into(),
            drain_timeout: Interval(Duration::from_secs(30)),
        }
    }
}

impl Default for Directory {
    fn default() -> Directory {
        Directory {
            ldif: Spanned::new(0..0, "directory.ldif".into()),
            default_domain: None,
            postmaster: None,
            recipient_delimiter: "+".into(),
            quota_bytes_default: Bytes(0),
        }
    }
}

impl Default for Smtp {
    fn default() -> Smtp {
        Smtp {
            listen: Vec::new(),
            listen_tls: Spanned::new(0..0, Vec::new()),
            proxy_protocol: Spanned::new(0..0, Vec::new()),
            proxy_networks: Vec::new(),
            message_bytes_max: Bytes(50 << 20),
            recipients_max: 1000,
            connections_max: 2000,
            connections_per_source_max: 200,
            memory_bytes_max: Bytes(32 << 20),
            command_timeout: Interval(Duration::from_secs(300)),
            data_timeout: Interval(Duration::from_secs(180)),
            greet_delay: Interval(Duration::ZERO),
            bare_lf_in_chunks: BareLf::Crlf,
        }
    }
}

impl Default for Pop3 {
    fn default() -> Pop3 {
        Pop3 {
            listen: Vec::new(),
            listen_tls: Spanned::new(0..0, Vec::new()),
            cleartext_login: false,
            connections_max: 2000,
            connections_per_source_max: 200,
            memory_bytes_max: Bytes(8 << 20),
            login_timeout: Interval(Duration::from_secs(180)),
            idle_timeout: Interval(Duration::from_secs(600)),
        }
    }
}

impl Default for Queue {
    fn default() -> Queue {
        Queue {
            messages_max: 100_000,
            bytes_max: Bytes(4 << 30),
            body_cache_bytes_max: Bytes(8 << 20),
            expire_after: Interval(Duration::from_secs(5 * 86400)),
            expire_bounces_after: Interval(Duration::from_secs(2 * 86400)),
            report_delay_after: Interval(Duration::from_secs(4 * 3600)),
        }
    }
}

impl Default for Log {
    fn default() -> Log {
        Log {
            bytes_max: Bytes(8 << 30),
            segment_bytes: Bytes(64 << 20),
            cache_bytes_max: Bytes(16 << 20),
        }
    }
}

impl Default for Store {
    fn default() -> Store {
        Store {
            memtable_bytes_max: Bytes(16 << 20),
            cache_bytes_max: Bytes(16 << 20),
            flush_interval: Interval(Duration::from_secs(60)),
        }
    }
}

/// One thing wrong with a configuration file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The file.
    pub file: PathBuf,
    /// Line, from 1; 0 when no line is to blame.
    pub line: usize,
    /// What is wrong and what is allowed.
    pub what: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "{}: {}", self.file.display(), self.what),
            line => write!(f, "{}:{line}: {}", self.file.display(), self.what),
        }
    }
}

impl Config {
    /// Reads and checks the file at `path`. Relative paths in it are relative to its directory.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn load(path: &Path) -> Result<Config, Vec<Problem>> {
        let problem = |what: String| {
            vec![Problem {
                file: path.to_owned(),
                line: 0,
                what,
            }]
        };
        let octets =
            file::read(path, FILE_BYTES_MAX).map_err(|error| problem(error.to_string()))?;
        let text = String::from_utf8(octets).map_err(|error| problem(error.to_string()))?;
        let mut config = Config::parse(path, &text)?;
        config.make_absolute(path.parent().unwrap_or(Path::new(".")));
        Ok(config)
    }

    pub(crate) fn parse(file: &Path, text: &str) -> Result<Config, Vec<Problem>> {
        let line_of = |offset: usize| text[..offset.min(text.len())].matches('\n').count() + 1;
        let problem = |line, what| Problem {
            file: file.to_owned(),
            line,
            what,
        };
        let config: Config = toml::from_str(text).map_err(|error| {
            let line = error.span().map_or(0, |span| line_of(span.start));
            let key = key_on_line(text, line);
            // the one type of ours whose own words do not say what is allowed
            let what = match error.message() {
                "invalid socket address syntax" => {
                    "expected an IP address and a port such as \"127.0.0.1:25\" or \"[::1]:25\""
                }
                what => what,
            };
            vec![problem(line, format!("{key}{what}"))]
        })?;
        let wrong = contradictions(&config);
        if wrong.is_empty() {
            return Ok(config);
        }
        let located = |Contradiction { offset, what }| match offset {
            0 => problem(line_setting(text, &what), what),
            offset => problem(line_of(offset), what),
        };
        Err(wrong.into_iter().map(located).collect())
    }

    fn make_absolute(&mut self, base: &Path) {
        let absolute = |path: &mut PathBuf| *path = base.join(&path);
        absolute(&mut self.node.data_dir);
        absolute(self.directory.ldif.get_mut());
        if let Some(tls) = &mut self.tls {
            absolute(tls.certificate.get_mut());
            absolute(tls.key.get_mut());
        }
    }
}

/// The line that sets the key which `what` begins with, `section.key: ...`; 0 when none does.
fn line_setting(text: &str, what: &str) -> usize {
    let named = what
        .split_once(':')
        .and_then(|(name, _)| name.rsplit_once('.'));
    let Some((section, key)) = named else {
        return 0;
    };
    let mut current = "";
    for (index, line) in text.lines().map(str::trim).enumerate() {
        if let Some(header) = line.strip_prefix('[') {
            current = header.split(']').next().unwrap_or_default();
        } else if current == section
            && line
                .split_once('=')
                .is_some_and(|(name, _)| name.trim() == key)
        {
            return index + 1;
        }
    }
    0
}

/// `key: ` when line `line` of `text` sets one.
fn key_on_line(text: &str, line: usize) -> String {
    let Some(line) = line
        .checked_sub(1)
        .and_then(|index| text.lines().nth(index))
    else {
        return String::new();
    };
    match line.split_once('=') {
        Some((key, _)) if !key.trim_start().starts_with('#') => format!("{}: ", key.trim()),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::Config;
    use std::path::Path;

    const REFERENCE: &str = include_str!("../../../docs/hikyaku.toml");
    const LEAST: &str = "[mbox.mbox1]\nshards = [0]\n";

    fn problems(text: &str) -> String {
        let problems = Config::parse(Path::new("x.toml"), text).unwrap_err();
        problems
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join("\n")
    }

    #[test]
    fn the_reference_holds_every_default() {
        let mut reference = Config::parse(Path::new("reference"), REFERENCE).unwrap();
        // what has no default is shown by example
        assert_eq!(reference.mbox.len(), 2);
        assert!(reference.tls.is_some() && reference.directory.postmaster.is_some());
        reference.mbox.clear();
        reference.tls = None;
        reference.directory.postmaster = None;
        reference.directory.default_domain = None;
        reference.telemetry.metrics_listen = None;
        reference.telemetry.otlp_endpoint = None;
        assert_eq!(reference, Config::default());
    }

    #[test]
    fn the_reference_mentions_every_key_with_prose() {
        let debug = format!(
            "{:?}",
            Config::parse(Path::new("reference"), REFERENCE).unwrap()
        );
        let keys = debug
            .split([' ', '{', '('])
            .filter_map(|word| word.strip_suffix(':'));
        for key in
            keys.filter(|key| !["mbox1", "mbox2", "span", "value", "text", "at", "0"].contains(key))
        {
            let key = key.trim_matches('"');
            let set = REFERENCE.lines().any(|line| {
                line.split(['=', ']', '.'])
                    .any(|part| part.trim_matches(['[', ' ']) == key)
            });
            assert!(
                set || key.is_empty() || key.starts_with("mbox"),
                "{key} is not in docs/hikyaku.toml"
            );
        }
    }

    #[test]
    fn mistakes_are_named_with_line_key_and_what_is_allowed() {
        assert!(Config::parse(Path::new("x.toml"), LEAST).is_ok());
        let unknown = problems(&format!("{LEAST}[smtp]\nlisten_on = []\n"));
        assert!(
            unknown.starts_with(
                "x.toml:4: listen_on: unknown field `listen_on`, expected one of `listen`"
            ),
            "{unknown}"
        );
        let size = problems(&format!("{LEAST}[smtp]\nmessage_bytes_max = \"ten\"\n"));
        assert!(
            size.starts_with("x.toml:4: message_bytes_max: expected a size such as"),
            "{size}"
        );
        let address = problems(&format!("{LEAST}[smtp]\nlisten = [\"localhost\"]\n"));
        assert!(address.starts_with("x.toml:4: listen: "), "{address}");
        let shard = problems("[mbox.a]\nshards = [0, 1]\n[mbox.b]\nshards = [1]\n");
        assert_eq!(
            shard,
            "x.toml:4: mbox.b.shards: shard 1 belongs to mbox.a already"
        );
        let tls = problems(&format!(
            "{LEAST}[pop3]\nlisten_tls = [\"127.0.0.1:995\"]\n"
        ));
        assert_eq!(
            tls,
            "x.toml:4: pop3.listen_tls: needs [tls] with certificate and key"
        );
        assert!(problems("").contains("[mbox.NAME]"));
        assert!(problems(&format!("{LEAST}[smtp]\nrecipients_max = 5\n")).contains("at least 100"));
        let quota = problems(&format!("{LEAST}[directory]\nquota_bytes_default = 500\n"));
        assert!(
            quota.starts_with("x.toml:4: directory.quota_bytes_default: 500 is too small"),
            "{quota}"
        );
        let delay = problems(&format!("{LEAST}[smtp]\ngreet_delay = \"5m\"\n"));
        assert!(
            delay.starts_with("x.toml:4: smtp.greet_delay: 300 seconds are too long"),
            "{delay}"
        );
        let log = problems(&format!("{LEAST}[log]\nbytes_max = \"511 MiB\"\n"));
        assert!(
            log.starts_with(
                "x.toml:4: log.bytes_max: 535822336 is too small for 8 files of 67108864"
            ),
            "{log}"
        );
        let enough = format!("{LEAST}[log]\nbytes_max = \"512 MiB\"\n");
        assert!(Config::parse(Path::new("x.toml"), &enough).is_ok());
        for (size, wrong) in [("1 MiB", "too small"), ("2 GiB", "too large")] {
            let segment = problems(&format!("{LEAST}[log]\nsegment_bytes = \"{size}\"\n"));
            assert!(
                segment.starts_with("x.toml:4: log.segment_bytes: ") && segment.contains(wrong),
                "{segment}"
            );
        }
        assert!(problems("[mbox").starts_with("x.toml:1: "));
        assert!(
            problems(&format!("{LEAST}[queue]\nexpire_after = 5\n"))
                .contains("expected a time such as")
        );
    }
}
