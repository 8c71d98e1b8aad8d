//! The load generator against the real server: figures are there, are bounded by what is known, and lies are refused.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use loadtest::drain::DrainReport;
use loadtest::load;
use loadtest::report::RunReport;
use loadtest::run::{RunOptions, Watch};
use loadtest::saturation::SaturationReport;
use loadtest::users;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::loadtest;

const USERS: usize = 30;

/// A server on ports that it chose itself, with a certificate for `localhost`.
struct Server {
    home: TempDir,
    process: Child,
    listeners: BTreeMap<String, String>,
}

impl Server {
    fn start() -> Server {
        let home = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(home.path().join(name), text).unwrap();
        let (ldif, accounts) = users::generate(USERS, "example.jp", &["mbox1".to_owned()]).unwrap();
        write("directory.ldif", &ldif);
        write("users", &accounts);
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        write("certificate.pem", &made.cert.pem());
        write("key.pem", &made.signing_key.serialize_pem());
        let any = "[\"127.0.0.1:0\"]";
        write(
            "hikyaku.toml",
            &format!(
                "[node]\ndata_dir = \"data\"\n[directory]\nldif = \"directory.ldif\"\n\
                 postmaster = \"user01@example.jp\"\n[mbox.mbox1]\nshards = [0]\n[smtp]\nlisten = {any}\n\
                 listen_tls = {any}\n[pop3]\nlisten = {any}\nlisten_tls = {any}\ncleartext_login = true\n\
                 [tls]\ncertificate = \"certificate.pem\"\nkey = \"key.pem\"\n\
                 [telemetry]\nlog_filter = \"warn\"\nmetrics_listen = \"127.0.0.1:0\"\n"
            ),
        );
        let mut process = Command::new(hikyaku())
            .args(["all", "--config"])
            .arg(home.path().join("hikyaku.toml"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(std::fs::File::create(home.path().join("server.log")).unwrap())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let mut listeners = BTreeMap::new();
        while listeners.len() < 5 {
            let Some(Ok(line)) = lines.next() else {
                let log = std::fs::read_to_string(home.path().join("server.log"));
                panic!("the server did not start: {log:?}");
            };
            let (name, address) = line.split_once(' ').unwrap();
            listeners.insert(name.to_owned(), address.to_owned());
        }
        Server {
            home,
            process,
            listeners,
        }
    }

    fn at(&self, name: &str) -> &str {
        &self.listeners[name]
    }

    fn path(&self, name: &str) -> String {
        self.home.path().join(name).to_str().unwrap().to_owned()
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.process.id()).unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
    }

    /// `loadtest COMMAND` with what every measurement states, and the report it wrote.
    fn measure<R: serde::de::DeserializeOwned>(
        &self,
        command: &str,
        more: &[&str],
    ) -> (i32, String, Option<R>) {
        let json = self.path("report.json");
        let _ = std::fs::remove_file(&json);
        let pid = self.process.id().to_string();
        let (users, data) = (self.path("users"), self.path("data"));
        let all = [
            command,
            "--users",
            &users,
            "--quiet",
            "--json",
            &json,
            "--idle",
            "0.3",
            "--durability",
            "fdatasync before 250",
            "--data-dir",
            &data,
            "--server-pid",
            &pid,
        ];
        let (code, text, error) = loadtest(&[&all[..], more].concat());
        let report = std::fs::read(&json)
            .ok()
            .map(|bytes| serde_json::from_slice(&bytes).unwrap());
        (code, text + &error, report)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The server's program, beside the directory of the running test.
fn hikyaku() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let path = test.ancestors().nth(2).unwrap().join("hikyaku");
    assert!(
        path.is_file(),
        "{} is missing: build it first with `cargo build -p hikyaku`",
        path.display()
    );
    path
}

#[test]
fn an_open_loop_under_tls_gives_every_figure_with_its_conditions() {
    let server = Server::start();
    let (certificate, url) = (
        server.path("certificate.pem"),
        format!("http://{}/metrics", server.at("metrics")),
    );
    let (code, text, report) = server.measure::<RunReport>(
        "run",
        &[
            "--smtp",
            server.at("smtp"),
            "--starttls",
            "--tls-ca",
            &certificate,
            "--pop3s",
            server.at("pop3s"),
            "--messages",
            "200",
            "--rate",
            "250",
            "--size",
            "4K",
            "--sessions",
            "6",
            "--metrics",
            &url,
            "--sample-syncs",
            "0.5",
            "--seed",
            "1",
        ],
    );
    assert_eq!(code, 0, "{text}");
    let report = report.unwrap();
    assert_eq!((report.acknowledged, report.recipients.ack), (200, 200));
    let verify = report.verify.unwrap();
    // those sent under strace are in the ledger too
    assert!(verify.balanced() && verify.mails > 200, "{text}");
    let open = report.open.unwrap();
    assert_eq!(
        (open.rate, open.due_to_reply.count, open.unserved),
        (250.0, 200, 0)
    );
    assert_eq!(open.lag.count + open.wait.count, 200);
    // 200 arrivals at 250/s by this schedule; nothing can be accepted faster than it is due
    assert!(report.accept_rate.unwrap() < 400.0, "{text}");
    assert!(report.readable.unwrap().rate.is_some(), "{text}");
    let conditions = report.conditions;
    assert!(
        conditions
            .tls
            .contains("upgraded (certificate verified for localhost"),
        "{text}"
    );
    assert!(conditions.users == USERS && conditions.users_accepted > USERS / 2);
    let costs = report.server.unwrap();
    assert!(
        costs.cpu_s.unwrap() > 0.0 && costs.rss_peak > 1 << 20,
        "{text}"
    );
    assert!(
        costs.pss_peak.unwrap() > 1 << 20 && costs.idle_at_s.is_some(),
        "{text}"
    );
    let source = |all: &[loadtest::report::Sourced], name: &str| {
        all.iter()
            .find(|figure| figure.source.contains(name))
            .map(|figure| figure.value)
    };
    // each message is 4 KiB that compresses about two to one, and is written at least once
    assert!(
        source(&costs.disk_bytes, "write_bytes").unwrap() > 1000.0,
        "{text}"
    );
    let metered = source(&costs.syncs, "hikyaku_log_syncs_total").unwrap();
    assert!(metered > 0.0 && metered < 5.0, "{text}");
    assert!(source(&costs.syncs, "strace of").unwrap() > 0.0, "{text}");
    assert!(
        text.contains("messages/s") && text.contains("fdatasync before 250"),
        "{text}"
    );
}

#[test]
fn the_cost_of_handshakes_is_measured_and_the_costs_of_a_bystander_are_not() {
    let server = Server::start();
    let run = [
        "--smtp",
        server.at("smtps"),
        "--smtps",
        "--tls-insecure",
        "--size",
        "1K",
        "--sessions",
        "2",
    ];
    let each = ["--per-connection", "2", "--messages", "20"];
    let (code, text, report) = server.measure::<RunReport>("run", &[&run[..], &each[..]].concat());
    assert_eq!(code, 0, "{text}");
    let report = report.unwrap();
    assert_eq!(
        (
            report.acknowledged,
            report.conditions.messages_per_connection
        ),
        (20, Some(2))
    );
    assert!((10..=11).contains(&report.connections), "{text}");
    assert!(
        report
            .conditions
            .tls
            .contains("no resumption), TLSv1_3 TLS13_"),
        "{text}"
    );
    // a process that does not listen there could only be cheap
    let mut bystander = Command::new("sleep").arg("60").spawn().unwrap();
    let users = server.path("users");
    let watched = [
        "--messages",
        "1",
        "--quiet",
        "--users",
        &users,
        "--server-pid",
    ];
    let pid = bystander.id().to_string();
    let (code, _, error) = loadtest(&[&["run"][..], &run, &watched, &[&pid]].concat());
    bystander.kill().unwrap();
    bystander.wait().unwrap();
    assert!(
        code == 1 && error.contains("none of the processes watched listens"),
        "{error}"
    );
}

#[test]
fn a_wrong_certificate_is_refused() {
    let server = Server::start();
    let certificate = server.path("certificate.pem");
    let run = [
        "--smtp",
        server.at("smtps"),
        "--smtps",
        "--messages",
        "3",
        "--size",
        "1K",
        "--sessions",
        "1",
    ];
    let with = |more: &[&str]| server.measure::<RunReport>("run", &[&run[..], more].concat());
    let (code, text, _) = with(&["--tls-ca", &certificate, "--tls-name", "elsewhere.example"]);
    assert!(code == 1 && text.contains("TLS handshake"), "{text}");
    let (code, text, _) = with(&[]);
    assert!(code == 1 && text.contains("--tls-insecure"), "{text}");
    let (code, text, report) = with(&["--tls-insecure"]);
    assert!(
        code == 0 && report.unwrap().conditions.tls.contains("not verified"),
        "{text}"
    );
}

#[test]
fn maildrops_are_drained_and_what_is_not_there_is_a_fault() {
    let server = Server::start();
    let certificate = server.path("certificate.pem");
    let of = [
        "--logins",
        "3",
        "--mails",
        "20",
        "--sessions",
        "2",
        "--size",
        "2K",
    ];
    let fill = ["--fill", server.at("smtp")];
    let drain = |more: &[&[&str]]| server.measure::<DrainReport>("pop3-drain", &more.concat());
    for (how, pipelining) in [
        (vec!["--pop3", server.at("pop3")], true),
        (vec!["--pop3", server.at("pop3"), "--no-pipelining"], false),
        (
            vec!["--pop3s", server.at("pop3s"), "--tls-ca", &certificate],
            true,
        ),
        (
            vec!["--pop3", server.at("pop3"), "--stls", "--tls-insecure"],
            true,
        ),
    ] {
        let (code, text, report) = drain(&[&of, &fill, &how]);
        assert_eq!(code, 0, "{text}");
        let report = report.unwrap();
        assert_eq!(
            (report.drained, report.pipelining),
            (60, pipelining),
            "{text}"
        );
        // 2 KiB each, and what the server puts in front
        assert!(
            report.bytes > 60 * 2048 && report.bytes < 60 * 4096,
            "{text}"
        );
        assert_eq!((report.retrieve.count, report.session.count), (60, 3));
        assert!(
            report.rate.is_some() && report.server_cpu_s_per_1000.is_some(),
            "{text}"
        );
    }
    let (code, text, report) = drain(&[&of[..6], &["--pop3", server.at("pop3")]]);
    let report = report.unwrap();
    assert_eq!(
        (code, report.drained, report.faults_count, report.rate),
        (1, 0, 3, None),
        "{text}"
    );
    assert!(
        text.contains("0 mails where 20 are to be retrieved"),
        "{text}"
    );
}

#[test]
fn a_sweep_is_drawn_and_verified() {
    let server = Server::start();
    let svg = server.path("sweep.svg");
    let (code, text, report) = server.measure::<SaturationReport>(
        "sweep",
        &[
            "--smtp",
            server.at("smtp"),
            "--pop3",
            server.at("pop3"),
            "--rates",
            "40-160/2",
            "--session-counts",
            "1,3",
            "--step",
            "0.5",
            "--size",
            "2K",
            "--sessions",
            "4",
            "--svg",
            &svg,
        ],
    );
    assert_eq!(code, 0, "{text}");
    let report = report.unwrap();
    let offered: Vec<f64> = report
        .steps
        .iter()
        .map(|step| step.open.as_ref().unwrap().rate)
        .collect();
    assert_eq!(offered, [40.0, 160.0]);
    let kept_busy: Vec<usize> = report
        .closed
        .iter()
        .map(|step| step.conditions.sessions)
        .collect();
    assert_eq!(kept_busy, [1, 3]);
    let sum = |steps: &[RunReport]| steps.iter().map(|step| step.acknowledged).sum::<u64>();
    let (closed, open) = (sum(&report.closed), sum(&report.steps));
    assert!(closed > 0 && open == 100, "{text}");
    assert_eq!(report.verify.unwrap().mails, closed + open, "{text}");
    let drawing = std::fs::read_to_string(svg).unwrap();
    assert!(drawing.contains("every 250 verified") && drawing.matches("<circle").count() == 12);
}

/// The server stands still for a second. Nobody asks it less for that, so a third of all messages has waited.
#[test]
fn a_server_that_is_stopped_for_a_second_shows_in_the_percentiles() {
    let server = Server::start();
    let users = users::read(server.path("users").as_ref()).unwrap();
    let options = RunOptions {
        messages: 600,
        sessions: 4,
        rate: Some(200.0),
        seed: 3,
        ..RunOptions::new(
            server.at("smtp").parse().unwrap(),
            users,
            "2K".parse().unwrap(),
            server.path("ledger").into(),
        )
    };
    let watch = Arc::new(Watch::default());
    let report = std::thread::scope(|scope| {
        let running = scope.spawn(|| load::run(&options, &watch).unwrap());
        while watch
            .acknowledged
            .load(std::sync::atomic::Ordering::Relaxed)
            < 100
        {
            std::thread::sleep(Duration::from_millis(5));
        }
        server.signal(Signal::STOP);
        std::thread::sleep(Duration::from_secs(1));
        server.signal(Signal::CONT);
        running.join().unwrap()
    });
    assert_eq!(report.acknowledged, 600, "{report}");
    let open = report.open.as_ref().unwrap();
    // of the 200 due in that second, those of its first half waited for more than the other half of it
    assert!(open.due_to_reply.p95_ms > 500.0, "{report}");
    assert!(
        open.due_to_reply.max_ms > 900.0 && open.wait.count > 50,
        "{report}"
    );
    // A clock that starts when a session is free sees four slow messages of 600.
    assert!(
        report.data_to_reply.p95_ms < open.due_to_reply.p95_ms,
        "{report}"
    );
}
