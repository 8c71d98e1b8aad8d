//! Maildrops with more mails than a person reads.

use std::time::Duration;

use hikyaku_tests::harness::fill::fill;
use hikyaku_tests::harness::server::Server;
use hikyaku_tests::harness::site::{PASSWORD, Plan, Site, account_of};
use hikyaku_tests::harness::talk::{Talk, send_mail, wait_for_mails};
use hikyaku_tests::harness::wait_for;

/// Longest wait for what happens at once.
const AT_ONCE: Duration = Duration::from_secs(60);
/// More than POP3 showed once.
const MAILS: u64 = 110_000;
/// How many of them one account is shown with `pop3.memory_bytes_max` at its least, 1 MiB.
const SHOWN: u64 = 24_576;

struct Session(Talk);

impl Session {
    fn of(site: &Site, user: &str) -> Session {
        let mut session = Session(Talk::connect(site.pop3).unwrap());
        session.line();
        session.say(&format!("USER {user}"));
        session.say(&format!("PASS {PASSWORD}"));
        session
    }

    fn line(&mut self) -> String {
        let line = self.0.line().unwrap().expect("a line");
        line.trim_end().to_owned()
    }

    /// The answer, which must be a yes.
    fn say(&mut self, command: &str) -> String {
        self.0.send(format!("{command}\r\n").as_bytes()).unwrap();
        let line = self.line();
        assert!(line.starts_with("+OK"), "{command}: {line}");
        line
    }

    fn count(&mut self) -> u64 {
        let stat = self.say("STAT");
        stat.split(' ').nth(1).unwrap().parse().unwrap()
    }

    /// The lines of a longer answer.
    fn lines(&mut self, command: &str) -> Vec<String> {
        self.say(command);
        let lines = std::iter::repeat_with(|| self.line());
        lines.take_while(|line| line != ".").collect()
    }
}

#[test]
fn all_of_many_mails_are_shown_or_an_alarm_says_that_they_are_not() {
    let mut site = Site::new(Plan::sample());
    let mut server = Server::start(&site);
    let send = |site: &Site, subject: &str| {
        let content = format!("Subject: {subject}\n");
        let reply = send_mail(site.smtp, "", &["alice@example.jp"], &content);
        assert!(reply.starts_with("250"), "{reply}");
    };
    send(&site, "the first one");
    wait_for_mails(site.pop3, "alice", PASSWORD, 1);
    assert!(server.stop().0.success());
    let store = site.data().join("store").join("mbox-0");
    assert_eq!(fill(&store, &account_of("alice"), MAILS), MAILS + 1);

    let mut server = Server::start(&site);
    send(&site, "the newest one");
    wait_for("the newest mail", AT_ONCE, || {
        Session::of(&site, "alice").count() == MAILS + 2
    });
    let mut session = Session::of(&site, "alice");
    let newest = session.lines(&format!("RETR {}", MAILS + 2));
    assert!(
        newest.contains(&"Subject: the newest one".to_owned()),
        "{newest:?}"
    );
    let mut ids = session.lines("UIDL");
    assert_eq!(ids.len() as u64, MAILS + 2);
    ids.sort_unstable();
    ids.dedup_by_key(|line| line.split(' ').nth(1).unwrap().to_owned());
    assert_eq!(ids.len() as u64, MAILS + 2, "unique ids");
    session.say(&format!("DELE {}", MAILS + 2));
    session.say("DELE 2");
    session.say("QUIT");
    assert_eq!(Session::of(&site, "alice").count(), MAILS);
    assert!(!site.ask(&["status"]).must().contains("INBOX"));

    // memory for fewer: the oldest are shown, which an operator hears of, and others log in beside
    // her
    assert!(server.stop().0.success());
    site.configure("pop3", "memory_bytes_max", "\"1 MiB\"");
    let server = Server::start(&site);
    let mut session = Session::of(&site, "alice");
    assert_eq!(session.count(), SHOWN);
    assert_eq!(Session::of(&site, "bob").count(), 0);
    let mut second = Talk::connect(site.pop3).unwrap();
    second.line().unwrap();
    second
        .send(format!("USER alice\r\nPASS {PASSWORD}\r\n").as_bytes())
        .unwrap();
    second.line().unwrap();
    let refused = second.line().unwrap().unwrap();
    assert!(refused.starts_with("-ERR [SYS/TEMP]"), "{refused}");
    let alarm = format!("the INBOX of {} has {MAILS} mails", account_of("alice"));
    let status = site.ask(&["status"]).must();
    assert!(status.contains(&format!("ALARM {alarm}")), "{status}");
    wait_for("the alarm in the log", AT_ONCE, || {
        server.log().contains(&alarm)
    });
    // the others come when these are gone
    for number in 1..=1_000 {
        session.say(&format!("DELE {number}"));
    }
    session.say("QUIT");
    let mut session = Session::of(&site, "alice");
    assert_eq!(session.count(), SHOWN);
    let last = session.lines(&format!("TOP {SHOWN} 0"));
    assert!(
        last.contains(&"Subject: one of many".to_owned()),
        "{last:?}"
    );
}
