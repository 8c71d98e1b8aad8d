//! B-62: random dialogues against a model of RFC 5321 that shares no code with the server. Every reply code and the set
//! of stored mails must agree.

use crate::support::{Client, Keys, Rig};
use hikyaku_smtp::server::Tls;

/// One thing a client may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Ehlo,
    Helo,
    EhloBad,
    Mail(&'static str),
    MailTooBig,
    MailMalformed,
    Rcpt(&'static str),
    RcptMalformed,
    /// DATA; the content if it is answered 354.
    Data(&'static str),
    /// BDAT with its octets, and whether it is the last.
    Bdat(&'static str, bool),
    BdatHuge,
    BdatMalformed,
    MailUtf8,
    MailReports,
    RcptUtf8,
    RcptReports,
    RcptReportsMalformed,
    VrfyUtf8,
    Help,
    Rset,
    Noop,
    Vrfy,
    Auth,
    StartTls,
    Quit,
    Garbage,
    Long,
    Http,
}

const STEPS: [(u32, Step); 53] = [
    (8, Step::Ehlo),
    (3, Step::Helo),
    (1, Step::EhloBad),
    (16, Step::Mail("a@example.com")),
    (4, Step::Mail("")),
    (2, Step::Mail("nospace@example.com")),
    (1, Step::MailTooBig),
    (1, Step::MailMalformed),
    (14, Step::Rcpt("r1@example.jp")),
    (8, Step::Rcpt("r2@example.jp")),
    (4, Step::Rcpt("postmaster")),
    (4, Step::Rcpt("bad@example.jp")),
    (4, Step::Rcpt("defer@example.jp")),
    (1, Step::Rcpt("full@example.jp")),
    (1, Step::Rcpt("nodata@example.jp")),
    (1, Step::RcptMalformed),
    (10, Step::Data("one")),
    (4, Step::Data("")),
    (2, Step::Data("REJECT")),
    (2, Step::Data("DEFER")),
    (1, Step::Data("bare\nfeed")),
    (4, Step::Data(".dot")),
    (3, Step::Rset),
    (3, Step::Noop),
    (2, Step::Vrfy),
    (1, Step::Auth),
    (4, Step::StartTls),
    (1, Step::Quit),
    (2, Step::Garbage),
    (1, Step::Long),
    (6, Step::Bdat("one", true)),
    (4, Step::Bdat("two", false)),
    (2, Step::Bdat("", true)),
    (2, Step::Bdat("", false)),
    (4, Step::Bdat(".dot\r\n.\r\nRSET\r\n", false)),
    (3, Step::Bdat("tail\r", false)),
    (1, Step::Bdat("tail\r", true)),
    (3, Step::Bdat("\nhead", false)),
    (3, Step::Bdat("\nhead", true)),
    (1, Step::Bdat("REJECT", false)),
    (1, Step::Bdat("DEFER", true)),
    (1, Step::Bdat("bare\rreturn", false)),
    (1, Step::BdatHuge),
    (1, Step::BdatMalformed),
    (4, Step::MailUtf8),
    (4, Step::MailReports),
    (4, Step::RcptUtf8),
    (4, Step::RcptReports),
    (1, Step::RcptReportsMalformed),
    (2, Step::VrfyUtf8),
    (2, Step::Help),
    (1, Step::Rset),
    (1, Step::Helo),
];

const RECIPIENTS_MAX: usize = 4;
const ERRORS_MAX: usize = 5;
const JUNK_MAX: usize = 4;
const CONTENT_BYTES_MAX: usize = 4096;

/// What a stored mail is compared by: reverse-path, parameters, recipients, what they want to hear, content.
type Stored = (String, String, Vec<String>, Vec<String>, String);

#[derive(Debug, Default)]
struct Open {
    reverse_path: String,
    parameters: &'static str,
    recipients: Vec<String>,
    reports: Vec<String>,
    asked: usize,
    /// What has come in chunks, if any has.
    chunks: Option<String>,
}

/// What an SMTP server must be like.
#[derive(Debug, Default)]
struct Model {
    can_tls: bool,
    tls: bool,
    greeted: bool,
    extended: bool,
    open: Option<Open>,
    errors: usize,
    junk: usize,
    closed: bool,
    stored: Vec<Stored>,
}

impl Model {
    /// The code of the reply to `step`; for DATA the one that ends it, with whether 354 came first.
    fn step(&mut self, step: Step) -> (bool, u32) {
        let junk = matches!(step, Step::Noop | Step::Rset | Step::Vrfy | Step::Help)
            || step == Step::Bdat("", false)
            || matches!(step, Step::Ehlo | Step::Helo) && self.greeted;
        self.junk += usize::from(junk);
        if self.junk > JUNK_MAX && step_is_command(step) {
            self.closed = true;
            return (false, 421);
        }
        let (content, code) = self.answer(step);
        if code >= 500 && step != Step::Http {
            self.errors += 1;
        }
        if code == 452 && matches!(step, Step::Mail(_)) {
            self.junk += 1;
        }
        // content that cannot be trusted closes by itself
        if self.errors > ERRORS_MAX && !self.closed {
            self.closed = true;
            return (content, 421);
        }
        (content, code)
    }

    fn answer(&mut self, step: Step) -> (bool, u32) {
        match step {
            Step::Data(text) => return self.data(text),
            Step::Bdat(text, last) => return (false, self.bdat(text, last)),
            Step::Rcpt(address) => return (false, self.rcpt(address, " ")),
            Step::RcptReports => return (false, self.rcpt("r3@example.jp", "DELAY rfc822;x@y")),
            Step::RcptUtf8 => return (false, self.rcpt("\u{fc}@example.jp", " ")),
            _ => {}
        }
        let code = match step {
            Step::Ehlo | Step::Helo => {
                (self.greeted, self.open) = (true, None);
                self.extended = step == Step::Ehlo;
                250
            }
            Step::Mail(_) | Step::MailTooBig | Step::MailUtf8 | Step::MailReports
                if !self.greeted || self.open.is_some() =>
            {
                503
            }
            Step::Mail("nospace@example.com") => 452,
            Step::Mail(path) => self.begin(path, "false  "),
            Step::MailUtf8 => self.begin("\u{e9}@example.com", "true  "),
            Step::MailReports => self.begin("a@example.com", "false FULL I=D"),
            Step::MailTooBig => 552,
            Step::EhloBad | Step::MailMalformed | Step::RcptMalformed => 501,
            Step::RcptReportsMalformed => 501,
            Step::BdatMalformed => {
                self.closed = true;
                501
            }
            Step::BdatHuge => {
                self.closed = true;
                let code = self.no_content().unwrap_or(552);
                self.open = None;
                code
            }
            Step::VrfyUtf8 => 553,
            Step::Help => 214,
            Step::Rset => {
                self.open = None;
                250
            }
            Step::Noop => 250,
            Step::Vrfy => 252,
            Step::Auth => 502,
            Step::StartTls if self.tls => 554,
            Step::StartTls if !self.can_tls => 502,
            Step::StartTls if !self.extended || self.open.is_some() => 503,
            Step::StartTls => {
                (self.tls, self.greeted, self.extended) = (true, false, false);
                220
            }
            Step::Quit | Step::Http => {
                self.closed = true;
                if step == Step::Quit { 221 } else { 521 }
            }
            Step::Garbage | Step::Long => 500,
            Step::Rcpt(_) | Step::RcptReports | Step::RcptUtf8 => unreachable!(),
            Step::Data(_) | Step::Bdat(..) => unreachable!(),
        };
        (false, code)
    }

    fn begin(&mut self, path: &str, parameters: &'static str) -> u32 {
        self.open = Some(Open {
            reverse_path: path.to_owned(),
            parameters,
            ..Open::default()
        });
        250
    }

    /// Why BDAT cannot be: the code.
    fn no_content(&self) -> Option<u32> {
        match &self.open {
            _ if !self.extended => Some(503),
            None => Some(503),
            Some(open) if open.asked == 0 => Some(503),
            Some(open) if open.recipients.is_empty() => Some(554),
            Some(_) => None,
        }
    }

    fn bdat(&mut self, text: &str, last: bool) -> u32 {
        if let Some(code) = self.no_content() {
            return code;
        }
        let mut open = self.open.take().unwrap();
        let special = special(&open);
        if open.chunks.is_none() && special == Some("<nodata@example.jp>") {
            return 451;
        }
        let mut content = open.chunks.take().unwrap_or_default();
        content.push_str(text);
        if last && content.ends_with('\r') {
            content.push('-');
        }
        let lines = content.replace("\r\n", "\n");
        if lines.trim_end_matches('\r').contains('\r') {
            self.closed = true;
            return 550;
        }
        if !text.is_empty() && special == Some("<full@example.jp>") {
            return 452;
        }
        if !last {
            open.chunks = Some(content);
            self.open = Some(open);
            return 250;
        }
        // a bare LF ends a line too
        let mut content = lines.replace('\n', "\r\n");
        if !content.is_empty() && !content.ends_with("\r\n") {
            content.push_str("\r\n");
        }
        self.finish(open, content)
    }

    /// What the edge says to a whole content.
    fn finish(&mut self, open: Open, content: String) -> u32 {
        if content.contains("REJECT") {
            return 550;
        }
        if content.contains("DEFER") {
            return 451;
        }
        (self.errors, self.junk) = (0, 0);
        self.stored.push((
            open.reverse_path,
            open.parameters.to_owned(),
            open.recipients,
            open.reports,
            content,
        ));
        250
    }

    fn rcpt(&mut self, address: &str, reports: &str) -> u32 {
        let Some(open) = self.open.as_mut().filter(|open| open.chunks.is_none()) else {
            return 503;
        };
        if !address.is_ascii() && !open.parameters.starts_with("true") {
            return 553;
        }
        open.asked += 1;
        if open.asked > 2 * RECIPIENTS_MAX {
            self.closed = true;
            return 421;
        }
        if open.asked > RECIPIENTS_MAX {
            return 452;
        }
        let address = format!("<{address}>");
        match address.as_str() {
            "<bad@example.jp>" => 550,
            "<defer@example.jp>" => 451,
            _ if open.recipients.contains(&address) => 250,
            _ => {
                open.recipients.push(address);
                open.reports.push(reports.to_owned());
                250
            }
        }
    }

    fn data(&mut self, text: &str) -> (bool, u32) {
        match &self.open {
            None => return (false, 503),
            Some(open) if open.asked == 0 || open.chunks.is_some() => return (false, 503),
            Some(open) if open.recipients.is_empty() => return (false, 554),
            Some(_) => {}
        }
        let open = self.open.take().unwrap();
        let special = special(&open);
        if special == Some("<nodata@example.jp>") {
            return (false, 451);
        }
        let code = match text {
            "bare\nfeed" => {
                self.closed = true;
                550
            }
            // an empty content gives the edge nothing to choke on
            _ if !text.is_empty() && special == Some("<full@example.jp>") => 452,
            _ => self.finish(open, content(text)),
        };
        (true, code)
    }
}

/// The last recipient that the edge has its trouble with.
fn special(open: &Open) -> Option<&'static str> {
    const SPECIALS: [&str; 2] = ["<full@example.jp>", "<nodata@example.jp>"];
    let last = open
        .recipients
        .iter()
        .rev()
        .find_map(|address| SPECIALS.iter().find(|special| *special == address));
    last.copied()
}

/// Lines refused by the grammar never reach the session and its count of junk.
fn step_is_command(step: Step) -> bool {
    !matches!(
        step,
        Step::EhloBad
            | Step::MailMalformed
            | Step::RcptMalformed
            | Step::RcptReportsMalformed
            | Step::BdatMalformed
            | Step::VrfyUtf8
            | Step::Auth
            | Step::Garbage
            | Step::Long
            | Step::Http
    )
}

fn content(text: &str) -> String {
    if text.is_empty() {
        String::new()
    } else {
        format!("{text}\r\n")
    }
}

fn line(step: Step) -> String {
    match step {
        Step::Ehlo => "EHLO client.example.com".into(),
        Step::Helo => "HELO client.example.com".into(),
        Step::EhloBad => "EHLO".into(),
        Step::Mail(path) => format!("MAIL FROM:<{path}>"),
        Step::MailTooBig => "MAIL FROM:<> SIZE=999999999".into(),
        Step::MailMalformed => "MAIL FROM:<a@@b>".into(),
        Step::Rcpt(address) => format!("RCPT TO:<{address}>"),
        Step::RcptMalformed => "RCPT TO:a@b".into(),
        Step::Data(_) => "DATA".into(),
        Step::Bdat(text, last) => {
            let last = if last { " LAST" } else { "" };
            format!("BDAT {}{last}", text.len())
        }
        Step::BdatHuge => format!("BDAT {}", CONTENT_BYTES_MAX + 1),
        Step::BdatMalformed => "BDAT ten".into(),
        Step::MailUtf8 => "MAIL FROM:<e\u{301}@example.com> SMTPUTF8".into(),
        Step::MailReports => "MAIL FROM:<a@example.com> RET=FULL ENVID=I+3DD".into(),
        Step::RcptUtf8 => "RCPT TO:<\u{fc}@example.jp>".into(),
        Step::RcptReports => "RCPT TO:<r3@example.jp> NOTIFY=DELAY ORCPT=rfc822;x@y".into(),
        Step::RcptReportsMalformed => "RCPT TO:<r3@example.jp> NOTIFY=NEVER,DELAY".into(),
        Step::VrfyUtf8 => "VRFY \u{fc}".into(),
        Step::Help => "HELP".into(),
        Step::Rset => "RSET".into(),
        Step::Noop => "NOOP".into(),
        Step::Vrfy => "VRFY alice".into(),
        Step::Auth => "AUTH PLAIN AA==".into(),
        Step::StartTls => "STARTTLS".into(),
        Step::Quit => "QUIT".into(),
        Step::Garbage => "X\u{1}Y".into(),
        Step::Long => "x".repeat(2000),
        Step::Http => "GET / HTTP/1.1".into(),
    }
}

/// What follows the line at once.
fn octets(step: Step) -> String {
    match step {
        Step::Bdat(text, _) => text.into(),
        Step::BdatHuge => "x".repeat(CONTENT_BYTES_MAX + 1),
        _ => String::new(),
    }
}

struct Random(u64);

impl Random {
    fn below(&mut self, bound: u32) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        u32::try_from(self.0 >> 33).unwrap() % bound
    }

    fn step(&mut self, model: &Model) -> Step {
        // half of the steps get on with it, or no dialogue would get far
        if self.below(2) == 0 {
            return match &model.open {
                None if !model.greeted => Step::Ehlo,
                None => Step::Mail("a@example.com"),
                Some(open) if open.recipients.is_empty() => Step::Rcpt("r1@example.jp"),
                Some(open) if open.chunks.is_some() => Step::Bdat("three\r\n", true),
                Some(_) if self.below(2) == 0 => Step::Bdat("one", false),
                Some(_) => Step::Data("one"),
            };
        }
        if self.below(300) == 0 {
            return Step::Http;
        }
        let mut at = self.below(STEPS.iter().map(|(weight, _)| weight).sum());
        for &(weight, step) in &STEPS {
            match at.checked_sub(weight) {
                Some(rest) => at = rest,
                None => return step,
            }
        }
        unreachable!()
    }
}

/// Holds one dialogue; how many mails it stored, how many of several chunks, and over how many STARTTLS.
async fn dialogue(seed: u64, keys: &Keys) -> (usize, usize, usize) {
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    random.below(2);
    let mut rig = Rig::new();
    rig.options.recipients_max = u32::try_from(RECIPIENTS_MAX).unwrap();
    rig.options.errors_max = u32::try_from(ERRORS_MAX).unwrap();
    rig.options.junk_commands_max = u32::try_from(JUNK_MAX).unwrap();
    rig.options.content_bytes_max = u64::try_from(CONTENT_BYTES_MAX).unwrap();
    let mut model = Model {
        can_tls: random.below(4) == 0,
        ..Model::default()
    };
    let tls = if model.can_tls {
        Tls::StartTls(keys.acceptor.clone())
    } else {
        Tls::Off
    };
    let mut client = Client::new(rig.start(tls).0);
    client.hear("220 ").await;
    let (mut said, mut upgrades) = (Vec::new(), 0);
    for _ in 0..random.below(41) {
        let step = random.step(&model);
        said.push(step);
        let (content_first, code) = model.step(step);
        client
            .send(format!("{}\r\n{}", line(step), octets(step)))
            .await;
        if content_first {
            let reply = client.reply().await;
            assert!(reply.starts_with("354 "), "seed {seed}: {said:?}: {reply}");
            let Step::Data(text) = step else {
                unreachable!()
            };
            let stuffed = if text.starts_with('.') {
                format!(".{text}")
            } else {
                text.to_owned()
            };
            client.send(format!("{}.\r\n", content(&stuffed))).await;
        }
        let reply = client.reply().await;
        assert!(
            reply.starts_with(&code.to_string()),
            "seed {seed}: {said:?}: expected {code}, heard {reply}"
        );
        if model.closed {
            assert_eq!(client.reply().await, "closed", "seed {seed}: {said:?}");
            break;
        }
        if step == Step::StartTls && code == 220 {
            client = Client::new(keys.handshake(client.stream).await);
            upgrades += 1;
        }
    }
    drop(client);
    let stored: Vec<_> = rig
        .edge
        .stored()
        .into_iter()
        .map(|stored| {
            (
                stored.reverse_path,
                stored.parameters,
                stored.recipients,
                stored.reports,
                String::from_utf8(stored.content).unwrap(),
            )
        })
        .collect();
    assert_eq!(stored, model.stored, "seed {seed}: {said:?}");
    let chunked = stored
        .iter()
        .filter(|mail| mail.4.contains("three"))
        .count();
    (stored.len(), chunked, upgrades)
}

#[tokio::test(start_paused = true)]
async fn random_dialogues_agree_with_the_model() {
    let keys = Keys::new();
    let (mut mails, mut chunked, mut upgrades) = (0, 0, 0);
    for seed in 0..40_000 {
        let counts = dialogue(seed, &keys).await;
        mails += counts.0;
        chunked += counts.1;
        upgrades += counts.2;
    }
    assert!(
        mails > 60_000 && chunked > 10_000 && upgrades > 400,
        "the dialogues are too shallow: {mails} mails, {chunked} in chunks, {upgrades} upgrades"
    );
}
