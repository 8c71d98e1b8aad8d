//! Real clients, as they come from Debian: what they send arrives, what they read is what was sent, with and without TLS.
//!
//! They trust the server's own certificate and nothing else, so a connection that says it is encrypted is.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use hikyaku_tests::harness::binary::{Said, run, tool};
use hikyaku_tests::harness::server::Server;
use hikyaku_tests::harness::site::{PASSWORD, Plan, Site};
use hikyaku_tests::harness::talk::{send_mail, wait_for_mails};
use hikyaku_tests::harness::wait_for;

/// Dots at the beginning of lines, letters outside ASCII, a line of the greatest length.
fn content(subject: &str) -> String {
    let long = "x".repeat(998);
    format!(
        "From: alice@example.jp\nTo: bob@example.jp\nSubject: {subject}\nMIME-Version: 1.0\n\
         Content-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: 8bit\n\n\
         .\n..two\n.three\nFrom here\n飛脚\n{long}\n\nlast\n"
    )
}

struct Stage {
    site: Site,
    server: Server,
    mail: PathBuf,
}

impl Stage {
    fn new(subject: &str) -> Stage {
        let site = Site::new(Plan::sample().certificate());
        let server = Server::start(&site);
        let mail = site.home().join("mail.eml");
        std::fs::write(&mail, content(subject).replace('\n', "\r\n")).unwrap();
        Stage { site, server, mail }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.site.home().join(name)
    }

    /// A name that the certificate has, with the port of a listener.
    fn at(&self, listener: &str) -> String {
        format!("localhost:{}", self.port(listener))
    }

    fn port(&self, listener: &str) -> String {
        self.server.address(listener).port().to_string()
    }

    /// A file that only its owner reads, as clients ask for those with passwords.
    fn secret(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        let mut options = std::fs::File::options();
        let mut file = options
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .unwrap();
        file.write_all(text.as_bytes()).unwrap();
        path
    }

    /// What was sent has arrived, whole.
    #[track_caller]
    fn arrived(&self, what: &str) {
        let mails = wait_for_mails(self.site.pop3, "bob", PASSWORD, 1);
        assert_is(&mails[0], &content(what));
    }

    fn deliver(&self, subject: &str) {
        let stuffed = content(subject).replace("\n.", "\n..");
        let reply = send_mail(
            self.site.smtp,
            "alice@example.jp",
            &["bob@example.jp"],
            stuffed.trim_end(),
        );
        assert!(reply.starts_with("250"), "{reply}");
        wait_for_mails(self.site.pop3, "bob", PASSWORD, 1);
    }

    /// There was a login under TLS, by the server's own log.
    #[track_caller]
    fn read_under_tls(&self) {
        wait_for("a login under TLS", Duration::from_secs(60), || {
            let log = self.server.log();
            let mut logins = log.lines().filter(|line| line.contains("login ok"));
            logins.any(|line| line.contains("tls=true"))
        });
    }
}

/// Both without the headers in front, and with one kind of line end.
#[track_caller]
fn assert_is(mail: &str, expected: &str) {
    let mail = mail.replace('\r', "");
    let (_, mail) = mail
        .split_once("\nFrom: alice")
        .unwrap_or_else(|| panic!("no mail:\n{mail}"));
    let (_, expected) = expected.split_once("From: alice").unwrap();
    assert_eq!(mail.trim_end(), expected.trim_end());
}

fn with_input(command: &mut Command, input: &Path) -> Said {
    run(command.stdin(Stdio::from(std::fs::File::open(input).unwrap())))
}

fn curl(stage: &Stage, more: &[&str]) -> Said {
    let mut command = tool("curl", "curl");
    command
        .args(["-sS", "--max-time", "30", "--cacert"])
        .arg(stage.site.certificate())
        .args(more);
    run(&mut command)
}

fn curl_sends(scheme: &str, more: &[&str]) {
    let stage = Stage::new("by curl");
    let url = format!("{scheme}://{}/client.example", stage.at(scheme));
    let mut arguments = vec![
        "--url",
        &url,
        "--mail-from",
        "alice@example.jp",
        "--mail-rcpt",
        "bob@example.jp",
        "-T",
    ];
    arguments.push(stage.mail.to_str().unwrap());
    arguments.extend(more);
    curl(&stage, &arguments).must();
    stage.arrived("by curl");
}

#[test]
fn curl_sends_in_the_clear() {
    curl_sends("smtp", &[]);
}

#[test]
fn curl_sends_under_starttls() {
    curl_sends("smtp", &["--ssl-reqd"]);
}

#[test]
fn curl_sends_under_tls() {
    curl_sends("smtps", &[]);
}

#[test]
fn curl_reads_in_the_clear_under_stls_and_under_tls_and_deletes() {
    let stage = Stage::new("");
    stage.deliver("for curl");
    let user = format!("bob:{PASSWORD}");
    let url = format!("pop3://{}/1", stage.at("pop3"));
    assert_is(
        &curl(&stage, &["-u", &user, &url]).must(),
        &content("for curl"),
    );
    assert_is(
        &curl(&stage, &["-u", &user, "--ssl-reqd", &url]).must(),
        &content("for curl"),
    );
    stage.read_under_tls();
    let tls = format!("pop3s://{}/1", stage.at("pop3s"));
    assert_is(
        &curl(&stage, &["-u", &user, &tls]).must(),
        &content("for curl"),
    );
    let plain = ["-u", &user, "--login-options", "AUTH=PLAIN", &tls];
    assert_is(&curl(&stage, &plain).must(), &content("for curl"));
    let wrong = curl(&stage, &["-u", "bob:wrong", &tls]).refusal();
    assert!(wrong.contains("denied"), "{wrong}");
    curl(&stage, &["-u", &user, "-I", "-X", "DELE", &tls]).must();
    wait_for_mails(stage.site.pop3, "bob", PASSWORD, 0);
}

/// Sends and reads in the clear, after STARTTLS or STLS and under TLS; sends to an address outside ASCII; deletes.
const PYTHON: &str = r#"
import poplib, smtplib, ssl, sys, time
smtp, smtps, pop3, pop3s, ca, mail = sys.argv[1:]
trust = ssl.create_default_context(cafile=ca)
content = open(mail, 'rb').read()
for how in ('clear', 'starttls', 'tls'):
    if how == 'tls':
        client = smtplib.SMTP_SSL('localhost', int(smtps), timeout=30, context=trust)
    else:
        client = smtplib.SMTP('localhost', int(smtp), timeout=30)
    with client:
        if how == 'starttls':
            client.starttls(context=trust)
        refused = client.sendmail('alice@example.jp', ['bob@example.jp', 'nobody@example.jp'], content, ['BODY=8BITMIME'])
        assert list(refused) == ['nobody@example.jp'] and refused['nobody@example.jp'][0] == 550, refused
with smtplib.SMTP('localhost', int(smtp), timeout=30) as client:
    client.ehlo_or_helo_if_needed()
    assert client.verify('bob')[0] == 252 and client.noop()[0] == 250 and client.help(), 'commands'
    try:
        client.sendmail('飛脚@elsewhere.example', ['手紙@example.jp'], content, ['SMTPUTF8', 'BODY=8BITMIME'])
        assert False, 'nobody has this address'
    except smtplib.SMTPRecipientsRefused as refused:
        assert refused.recipients['手紙@example.jp'][0] == 550, refused.recipients
def login(client):
    client.user('bob')
    client.pass_('hikyaku')
    return client
def plain():
    return login(poplib.POP3('localhost', int(pop3), timeout=30))
def stls():
    client = poplib.POP3('localhost', int(pop3), timeout=30)
    assert 'STLS' in client.capa()
    client.stls(context=trust)
    return login(client)
def tls():
    return login(poplib.POP3_SSL('localhost', int(pop3s), timeout=30, context=trust))
until = time.monotonic() + 60
while True:
    assert time.monotonic() < until, 'three mails do not arrive'
    client = plain()
    count, octets = client.stat()
    client.quit()
    if count == 3:
        break
    time.sleep(0.05)
wanted = content.split(b'\r\n\r\n', 1)[1]
for connect in (plain, stls, tls):
    client = connect()
    assert client.stat() == (count, octets)
    _, listed, _ = client.list()
    assert len(listed) == 3 and sum(int(line.split()[1]) for line in listed) == octets, listed
    _, ids, _ = client.uidl()
    assert len(set(line.split()[1] for line in ids)) == 3, ids
    for number in (1, 2, 3):
        _, lines, _ = client.retr(number)
        body = b'\r\n'.join(lines).split(b'\r\n\r\n', 1)[1] + b'\r\n'
        assert body == wanted, (connect, body)
        _, top, _ = client.top(number, 1)
        assert top[-1] == b'.', top
    client.quit()
client = tls()
client.dele(1)
client.rset()
client.dele(2)
client.quit()
client = stls()
assert client.stat()[0] == 2
client.dele(1)
client.dele(2)
client.quit()
assert plain().stat() == (0, 0)
"#;

#[test]
fn python_sends_reads_and_deletes() {
    let stage = Stage::new("by python");
    let mut command = tool("python3", "python3");
    command.args([
        "-c",
        PYTHON,
        &stage.port("smtp"),
        &stage.port("smtps"),
        &stage.port("pop3"),
        &stage.port("pop3s"),
    ]);
    command.arg(stage.site.certificate()).arg(&stage.mail);
    run(&mut command).must();
    stage.read_under_tls();
}

#[test]
fn swaks_sends_in_the_clear_and_under_both_kinds_of_tls() {
    let perl = tool("perl", "perl")
        .args(["-MNet::SSLeay", "-e", "1"])
        .status()
        .unwrap();
    assert!(
        perl.success(),
        "swaks cannot do TLS: apt-get install libnet-ssleay-perl (tests/run does it)"
    );
    for (listener, more) in [
        ("smtp", &[][..]),
        ("smtp", &["--tls"][..]),
        ("smtps", &["--tls-on-connect"][..]),
    ] {
        let stage = Stage::new("by swaks");
        let mut command = tool("swaks", "swaks");
        command.args(["--server", &stage.at(listener)]);
        command.args(["--from", "alice@example.jp", "--to", "bob@example.jp"]);
        command
            .args(["--ehlo", "client.example", "--pipeline"])
            .args(more);
        if !more.is_empty() {
            command.args(["--tls-verify", "--tls-ca-path"]);
            command.arg(stage.site.certificate());
        }
        command
            .arg("--data")
            .arg(format!("@{}", stage.mail.display()));
        let said = run(&mut command).must();
        assert_eq!(said.contains("TLS started"), !more.is_empty(), "{said}");
        stage.arrived("by swaks");
        let mut command = tool("swaks", "swaks");
        command.args([
            "--server",
            &stage.at("smtp"),
            "--from",
            "<>",
            "--to",
            "nobody@example.jp",
        ]);
        let said = run(&mut command);
        assert!(!said.ok && said.out.contains("550 5.1.1"), "{said:?}");
    }
}

#[test]
fn msmtp_sends_in_the_clear_and_under_both_kinds_of_tls() {
    for (listener, tls, starttls) in [
        ("smtp", "off", "off"),
        ("smtp", "on", "on"),
        ("smtps", "on", "off"),
    ] {
        let stage = Stage::new("by msmtp");
        let mut command = tool("msmtp", "msmtp");
        command.args(["--host=localhost", "--from=alice@example.jp", "--auth=off"]);
        command
            .arg(format!("--tls={tls}"))
            .arg(format!("--tls-starttls={starttls}"));
        command.arg(format!("--port={}", stage.port(listener)));
        let certificate = stage.site.certificate();
        command.arg(format!("--tls-trust-file={}", certificate.display()));
        command.args(["--timeout=30", "bob@example.jp"]);
        with_input(&mut command, &stage.mail).must();
        stage.arrived("by msmtp");
    }
}

#[test]
fn fetchmail_fetches_in_the_clear_under_stls_and_under_tls() {
    for (listener, tls) in [
        ("pop3", "sslproto ''"),
        ("pop3", "sslproto TLS1.2+"),
        ("pop3s", "ssl sslproto TLS1.2+"),
    ] {
        let stage = Stage::new("");
        stage.deliver("for fetchmail");
        let inbox = stage.path("inbox");
        let rc = stage.secret(
            "fetchmailrc",
            &format!(
                "poll localhost service {} protocol pop3 timeout 30 uidl\n\
                 username bob password {PASSWORD} {tls} sslcertck sslcertfile {} fetchall\n\
                 mda \"cat >> {}\"\n",
                stage.port(listener),
                stage.site.certificate().display(),
                inbox.display()
            ),
        );
        let mut command = tool("fetchmail", "fetchmail");
        command
            .env("FETCHMAILHOME", stage.site.home())
            .arg("-f")
            .arg(rc)
            .arg("--nosyslog");
        let said = run(&mut command);
        assert!(said.ok, "{said:?}");
        // it puts a Received field of its own in front, and asks for no more than the mail
        assert_is(
            &std::fs::read_to_string(inbox).unwrap(),
            &content("for fetchmail"),
        );
        if tls.contains("TLS") {
            stage.read_under_tls();
        }
        wait_for_mails(stage.site.pop3, "bob", PASSWORD, 0);
    }
}

#[test]
fn mpop_fetches_under_stls_and_under_tls() {
    for (listener, starttls, auth) in [
        ("pop3", "on", "user"),
        ("pop3", "on", "plain"),
        ("pop3s", "off", "user"),
        ("pop3s", "off", "plain"),
    ] {
        let stage = Stage::new("");
        stage.deliver("for mpop");
        let inbox = stage.path("inbox");
        let rc = stage.secret(
            "mpoprc",
            &format!(
                "account default\nhost localhost\nport {}\ntimeout 30\nuser bob\npassword {PASSWORD}\nauth {auth}\ntls on\n\
                 tls_starttls {starttls}\ntls_trust_file {}\nuidls_file {}\nkeep off\ndelivery mbox {}\n",
                stage.port(listener),
                stage.site.certificate().display(),
                stage.path("uidls").display(),
                inbox.display()
            ),
        );
        let mut command = tool("mpop", "mpop");
        command.arg("--file").arg(rc);
        run(&mut command).must();
        // mbox quotes lines that begin with From
        let mail = std::fs::read_to_string(inbox)
            .unwrap()
            .replace("\n>From ", "\nFrom ");
        assert_is(&mail, &content("for mpop"));
        stage.read_under_tls();
        wait_for_mails(stage.site.pop3, "bob", PASSWORD, 0);
    }
}
