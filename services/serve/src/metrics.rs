//! What this process counts, for the page that Prometheus reads. `docs/OPERATIONS.md` says what each figure means.
//!
//! One set for the whole process: whoever counts writes one line and carries nothing about. Counting is an atomic addition;
//! label values are closed lists, so no peer can make the page grow. Gauges are not here: they are looked at when asked for.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Counters of one name, one for each of `N` closed label sets.
pub struct Family<const N: usize> {
    name: &'static str,
    help: &'static str,
    /// As they stand between the braces; the last one also takes what is none of them.
    labels: [&'static str; N],
    counts: [AtomicU64; N],
}

impl<const N: usize> Family<N> {
    const fn new(name: &'static str, help: &'static str, labels: [&'static str; N]) -> Family<N> {
        Family {
            name,
            help,
            labels,
            counts: [const { AtomicU64::new(0) }; N],
        }
    }

    /// Counts one more under the label set `labels`, e.g. `result="ok"`.
    pub fn count(&self, labels: &str) {
        let found = self.labels.iter().position(|known| *known == labels);
        if let Some(count) = self.counts.get(found.unwrap_or(N - 1)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Counts one more under a single label whose value is `value`.
    pub fn count_value(&self, value: &str) {
        let found = self.labels.iter().position(|known| {
            known
                .split_once("=\"")
                .is_some_and(|(_, rest)| rest.strip_suffix('"') == Some(value))
        });
        if let Some(count) = self.counts.get(found.unwrap_or(N - 1)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn render(&self, page: &mut String) {
        head(page, self.name, self.help, "counter");
        for (labels, count) in self.labels.iter().zip(&self.counts) {
            let count = count.load(Ordering::Relaxed);
            let _ = match *labels {
                "" => writeln!(page, "{} {count}", self.name),
                labels => writeln!(page, "{}{{{labels}}} {count}", self.name),
            };
        }
    }
}

impl Family<1> {
    /// Counts `count` more.
    pub fn add(&self, count: u64) {
        self.counts[0].fetch_add(count, Ordering::Relaxed);
    }
}

/// Upper bounds of the histograms' buckets, in microseconds.
const BUCKETS_US: [u64; 14] = [
    500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000,
    2_500_000, 10_000_000, 60_000_000,
];

/// How long something takes.
pub struct Histogram {
    name: &'static str,
    help: &'static str,
    /// One more than bounds: what is over all of them.
    counts: [AtomicU64; BUCKETS_US.len() + 1],
    sum_us: AtomicU64,
}

impl Histogram {
    const fn new(name: &'static str, help: &'static str) -> Histogram {
        Histogram {
            name,
            help,
            counts: [const { AtomicU64::new(0) }; BUCKETS_US.len() + 1],
            sum_us: AtomicU64::new(0),
        }
    }

    /// Counts one that took `took`.
    pub fn observe(&self, took: Duration) {
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let bucket = BUCKETS_US.partition_point(|bound| *bound < us);
        if let Some(count) = self.counts.get(bucket) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        self.sum_us.fetch_add(us, Ordering::Relaxed);
    }

    fn render(&self, page: &mut String) {
        let name = self.name;
        head(page, name, self.help, "histogram");
        let mut total = 0;
        for (index, count) in self.counts.iter().enumerate() {
            total += count.load(Ordering::Relaxed);
            let _ = match BUCKETS_US.get(index) {
                Some(us) => writeln!(page, "{name}_bucket{{le=\"{}\"}} {total}", seconds(*us)),
                None => writeln!(page, "{name}_bucket{{le=\"+Inf\"}} {total}"),
            };
        }
        let sum = seconds(self.sum_us.load(Ordering::Relaxed));
        let _ = writeln!(page, "{name}_sum {sum}\n{name}_count {total}");
    }
}

/// Microseconds as seconds, without a float's noise.
fn seconds(us: u64) -> String {
    let text = format!("{}.{:06}", us / 1_000_000, us % 1_000_000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Writes the two comment lines before a metric's samples.
pub fn head(page: &mut String, name: &str, help: &str, kind: &str) {
    let _ = writeln!(page, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

/// Mails that became durable and were answered 250.
pub static SMTP_ACCEPTED: Family<1> = Family::new(
    "hikyaku_smtp_accepted_total",
    "Mails accepted: durable, answered 250",
    [""],
);
/// Octets of their contents.
pub static SMTP_ACCEPTED_BYTES: Family<1> = Family::new(
    "hikyaku_smtp_accepted_bytes_total",
    "Octets of the mails accepted",
    [""],
);
/// Refusals over SMTP; count with [`rejected`].
static SMTP_REJECTED: Family<11> = Family::new(
    "hikyaku_smtp_rejected_total",
    "Refusals by where in the dialogue and by code class",
    [
        r#"phase="connect",class="4xx""#,
        r#"phase="connect",class="5xx""#,
        r#"phase="command",class="4xx""#,
        r#"phase="command",class="5xx""#,
        r#"phase="mail",class="4xx""#,
        r#"phase="mail",class="5xx""#,
        r#"phase="rcpt",class="4xx""#,
        r#"phase="rcpt",class="5xx""#,
        r#"phase="data",class="4xx""#,
        r#"phase="data",class="5xx""#,
        r#"phase="other",class="other""#,
    ],
);
/// How SMTP sessions ended.
pub static SMTP_ENDED: Family<7> = Family::new(
    "hikyaku_smtp_sessions_ended_total",
    "SMTP sessions by how they ended",
    [
        r#"end="quit""#,
        r#"end="disconnected""#,
        r#"end="timed-out""#,
        r#"end="refused""#,
        r#"end="drained""#,
        r#"end="handshake-failed""#,
        r#"end="other""#,
    ],
);
/// From DATA's 354 (or the first chunk) to 250.
pub static SMTP_DATA_SECONDS: Histogram = Histogram::new(
    "hikyaku_smtp_data_seconds",
    "From the go-ahead for the content to 250, the client's sending included",
);
/// From the end of the content to 250.
pub static SMTP_COMMIT_SECONDS: Histogram = Histogram::new(
    "hikyaku_smtp_commit_seconds",
    "From the end of the content to 250: what we take to make a mail durable",
);
/// A figure that is known now and then.
pub struct Gauge {
    name: &'static str,
    help: &'static str,
    value: AtomicU64,
}

impl Gauge {
    const fn new(name: &'static str, help: &'static str) -> Gauge {
        Gauge {
            name,
            help,
            value: AtomicU64::new(0),
        }
    }

    /// It is `value` now.
    pub fn set(&self, value: u64) {
        self.value.store(value, Ordering::Relaxed);
    }

    fn render(&self, page: &mut String) {
        head(page, self.name, self.help, "gauge");
        let _ = writeln!(page, "{} {}", self.name, self.value.load(Ordering::Relaxed));
    }
}

/// How recipients ended.
pub static SETTLED: Family<7> = Family::new(
    "hikyaku_recipients_settled_total",
    "Recipients by how they ended",
    [
        r#"outcome="delivered""#,
        r#"outcome="bounced""#,
        r#"outcome="expanded""#,
        r#"outcome="held""#,
        r#"outcome="collapsed""#,
        r#"outcome="deleted""#,
        r#"outcome="other""#,
    ],
);
/// Tries that settled nothing.
pub static DEFERRED: Family<1> = Family::new(
    "hikyaku_recipients_deferred_total",
    "Tries put off: mailbox full, disabled, or its address in doubt",
    [""],
);
/// Reports to senders that became messages.
pub static REPORTS: Family<4> = Family::new(
    "hikyaku_reports_total",
    "Reports to senders (DSNs) by what they tell",
    [
        r#"action="failed""#,
        r#"action="delayed""#,
        r#"action="delivered""#,
        r#"action="expanded""#,
    ],
);
/// Failed recipients of which nobody could be told.
pub static DOUBLE_BOUNCES: Family<1> = Family::new(
    "hikyaku_double_bounces_total",
    "Failed recipients that nobody is told of: a bounce that bounced, or no address to tell",
    [""],
);
/// POP3 logins.
pub static POP3_LOGINS: Family<5> = Family::new(
    "hikyaku_pop3_logins_total",
    "POP3 logins by what became of them",
    [
        r#"result="ok""#,
        r#"result="wrong""#,
        r#"result="closed""#,
        r#"result="throttled""#,
        r#"result="unavailable""#,
    ],
);
/// Connections taken and turned away.
pub static CONNECTIONS: Family<7> = Family::new(
    "hikyaku_connections_total",
    "Connections by service, taken or turned away for too many from one address",
    [
        r#"service="smtp",result="taken""#,
        r#"service="smtp",result="refused""#,
        r#"service="pop3",result="taken""#,
        r#"service="pop3",result="refused""#,
        r#"service="metrics",result="taken""#,
        r#"service="metrics",result="refused""#,
        r#"service="other",result="other""#,
    ],
);
/// Attempts to read TLS material or configuration again.
pub static RELOADS: Family<5> = Family::new(
    "hikyaku_reloads_total",
    "Readings of configuration and certificates at run time",
    [
        r#"what="configuration",result="ok""#,
        r#"what="configuration",result="refused""#,
        r#"what="certificate",result="ok""#,
        r#"what="certificate",result="refused""#,
        r#"what="other",result="other""#,
    ],
);
/// Blobs the sweep has seen.
pub static BLOBS: Gauge = Gauge::new(
    "hikyaku_blobs",
    "Large bodies at the last look of the sweep",
);
/// Blobs deleted by the sweep.
pub static BLOBS_DELETED: Family<1> = Family::new(
    "hikyaku_blobs_deleted_total",
    "Large bodies deleted because no mail names them any more",
    [""],
);

/// Lines of the log for which there was no room.
pub static LINES_LEFT_OUT: Family<1> = Family::new(
    "hikyaku_lines_left_out_total",
    "Lines of the log that were left out: standard error was not read in time",
    [""],
);

/// Counts a refusal given in `phase` with reply code `code`.
pub fn rejected(phase: &str, code: u16) {
    let class = if code >= 500 { "5xx" } else { "4xx" };
    SMTP_REJECTED.count(&format!("phase=\"{phase}\",class=\"{class}\""));
}

/// Writes everything that is counted here in Prometheus' text format.
pub fn render(page: &mut String) {
    CONNECTIONS.render(page);
    SMTP_ACCEPTED.render(page);
    SMTP_ACCEPTED_BYTES.render(page);
    SMTP_REJECTED.render(page);
    SMTP_ENDED.render(page);
    SMTP_DATA_SECONDS.render(page);
    SMTP_COMMIT_SECONDS.render(page);
    SETTLED.render(page);
    DEFERRED.render(page);
    REPORTS.render(page);
    DOUBLE_BOUNCES.render(page);
    POP3_LOGINS.render(page);
    RELOADS.render(page);
    BLOBS.render(page);
    BLOBS_DELETED.render(page);
    LINES_LEFT_OUT.render(page);
}

#[cfg(test)]
mod tests {
    use super::{Duration, Family, Histogram};

    #[test]
    fn a_histogram_is_cumulative_and_in_seconds() {
        let histogram = Histogram::new("x_seconds", "help");
        for us in [500, 501, 61_000_000] {
            histogram.observe(Duration::from_micros(us));
        }
        let mut page = String::new();
        histogram.render(&mut page);
        assert!(page.starts_with("# HELP x_seconds help\n# TYPE x_seconds histogram\n"));
        assert!(
            page.contains("x_seconds_bucket{le=\"0.0005\"} 1\n"),
            "{page}"
        );
        assert!(
            page.contains("x_seconds_bucket{le=\"0.001\"} 2\n"),
            "{page}"
        );
        assert!(page.contains("x_seconds_bucket{le=\"60\"} 2\n"), "{page}");
        assert!(page.ends_with(
            "x_seconds_bucket{le=\"+Inf\"} 3\nx_seconds_sum 61.001001\nx_seconds_count 3\n"
        ));
    }

    #[test]
    fn what_has_no_label_of_its_own_is_counted_as_the_last_one() {
        let family = Family::new("x_total", "help", [r#"a="one""#, r#"a="other""#]);
        family.count(r#"a="one""#);
        family.count_value("one");
        family.count_value("an address of a peer");
        let mut page = String::new();
        family.render(&mut page);
        assert!(page.ends_with("x_total{a=\"one\"} 2\nx_total{a=\"other\"} 1\n"));
    }
}
