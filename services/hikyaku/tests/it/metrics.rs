//! `/metrics`, `/healthz`, `/readyz`, and the lines of the log.

use crate::running::Site;
use crate::talk::{Smtp, get};

#[test]
fn figures_follow_the_mail() {
    let site = Site::new();
    site.configure("[telemetry]\nmetrics_listen = \"127.0.0.1:0\"\nlog_format = \"json\"\n");
    let node = site.start();
    let (smtp, metrics) = (node.address("smtp"), node.address("metrics"));
    assert_eq!(get(metrics, "/healthz"), (200, "alive\n".to_owned()));
    assert_eq!(
        get(metrics, "/readyz"),
        (200, "accepting mail\n".to_owned())
    );
    assert_eq!(get(metrics, "/").0, 404);

    let mut client = Smtp::connect(smtp);
    assert!(client.send("one").starts_with("250 "));
    assert!(client.say("RSET").starts_with("250 "));
    assert!(client.say("MAIL FROM:<x@y.example>").starts_with("250 "));
    assert!(
        client
            .say("RCPT TO:<nobody\u{7f}\u{1b}@example.jp>")
            .starts_with('5')
    );
    assert!(
        client
            .say("RCPT TO:<nobody@example.jp>")
            .starts_with("550 ")
    );
    let lines = [
        "hikyaku_recipients_settled_total{outcome=\"delivered\"} 1",
        "hikyaku_ready 1",
        "hikyaku_alarms 0",
        "hikyaku_connections{service=\"smtp\"} 1",
        "hikyaku_connections_total{service=\"smtp\",result=\"taken\"} 1",
        "hikyaku_smtp_accepted_total 1",
        "hikyaku_smtp_rejected_total{phase=\"rcpt\",class=\"5xx\"} 1",
        "hikyaku_smtp_data_seconds_count 1",
        "hikyaku_smtp_commit_seconds_count 1",
        "mail_queue_incoming 0",
        "mail_queue_active 0",
        "mail_queue_hold 0",
        "mail_queue_messages 0",
        "hikyaku_log_bytes_max 8589934592",
        "hikyaku_shard_trouble{shard=\"mbox-0\"} 0",
        "hikyaku_shard_lag_records{shard=\"incoming-0\"} 0",
    ];
    // each counts at its own moment
    let mut last = String::new();
    let page = node.wait_for("a page with all figures of one delivery", || {
        let page = get(metrics, "/metrics").1;
        let missing: Vec<_> = lines
            .iter()
            .filter(|line| !page.lines().any(|found| found == **line))
            .collect();
        let now = format!("{missing:?}");
        if now != last {
            println!("not yet on the page: {now}");
            last = now;
        }
        missing.is_empty().then_some(page)
    });
    // every sample belongs to a metric with a type, and none is there twice
    let mut names = std::collections::BTreeSet::new();
    for line in page.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            assert!(
                names.insert(rest.split(' ').next().unwrap()),
                "{line} twice"
            );
        } else if !line.starts_with('#') {
            let name = line.split(['{', ' ']).next().unwrap();
            let bare = ["_bucket", "_sum", "_count"]
                .iter()
                .find_map(|end| name.strip_suffix(end));
            assert!(
                names.contains(name) || bare.is_some_and(|bare| names.contains(bare)),
                "{line}"
            );
        }
    }
    // the pages name what the process tells
    let operations = include_str!("../../../../docs/OPERATIONS.md");
    let missing: Vec<_> = names
        .iter()
        .filter(|name| !operations.contains(&format!("`{name}`")))
        .collect();
    assert!(
        missing.is_empty(),
        "{missing:?} are not in docs/OPERATIONS.md"
    );
    let log = node.stop();
    assert!(
        !log.chars()
            .any(|letter| letter.is_control() && letter != '\n'),
        "{log}"
    );
    let queued = log
        .lines()
        .find(|line| line.contains("\"msg\":\"queued\""))
        .unwrap();
    assert!(
        queued.starts_with("{\"ts\":\"") && queued.ends_with('}'),
        "{queued}"
    );
}
