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

const STEPS: [(u32, Step); 30] = [
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
];

const RECIPIENTS_MAX: usize = 4;
const ERRORS_MAX: usize = 5;
const JUNK_MAX: usize = 4;

#[derive(Debug, Default)]
struct Open {
    reverse_path: String,
    recipients: Vec<String>,
    asked: usize,
}

/// What an SMTP server must be like.
#[derive(Debug, Default)]
struct Model {
    can_tls: bool,
    tls: bool,
    greeted: bool,
    open: Option<Open>,
    errors: usize,
    junk: usize,
    closed: bool,
    stored: Vec<(String, Vec<String>, String)>,
}

impl Model {
    /// The code of the reply to `step`; for DATA the one that ends it, with whether 354 came first.
    fn step(&mut self, step: Step) -> (bool, u32) {
        let junk = matches!(step, Step::Noop | Step::Rset | Step::Vrfy)
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
            Step::Rcpt(address) => return (false, self.rcpt(address)),
            _ => {}
        }
        let code = match step {
            Step::Ehlo | Step::Helo => {
                (self.greeted, self.open) = (true, None);
                250
            }
            Step::Mail(_) | Step::MailTooBig if !self.greeted || self.open.is_some() => 503,
            Step::Mail("nospace@example.com") => 452,
            Step::Mail(path) => {
                self.open = Some(Open {
                    reverse_path: path.to_owned(),
                    ..Open::default()
                });
                250
            }
            Step::MailTooBig => 552,
            Step::EhloBad | Step::MailMalformed | Step::RcptMalformed => 501,
            Step::Rset => {
                self.open = None;
                250
            }
            Step::Noop => 250,
            Step::Vrfy => 252,
            Step::Auth => 502,
            Step::StartTls if self.tls => 554,
            Step::StartTls if !self.can_tls => 502,
            Step::StartTls if !self.greeted || self.open.is_some() => 503,
            Step::StartTls => {
                (self.tls, self.greeted) = (true, false);
                220
            }
            Step::Quit | Step::Http => {
                self.closed = true;
                if step == Step::Quit { 221 } else { 521 }
            }
            Step::Garbage | Step::Long => 500,
            Step::Rcpt(_) | Step::Data(_) => unreachable!(),
        };
        (false, code)
    }

    fn rcpt(&mut self, address: &str) -> u32 {
        let Some(open) = &mut self.open else {
            return 503;
        };
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
                250
            }
        }
    }

    fn data(&mut self, text: &str) -> (bool, u32) {
        match &self.open {
            None => return (false, 503),
            Some(open) if open.asked == 0 => return (false, 503),
            Some(open) if open.recipients.is_empty() => return (false, 554),
            Some(_) => {}
        }
        let open = self.open.take().unwrap();
        let last_special = open.recipients.iter().rfind(|address| {
            ["<full@example.jp>", "<nodata@example.jp>"].contains(&address.as_str())
        });
        let special = last_special.map(String::as_str);
        if special == Some("<nodata@example.jp>") {
            return (false, 451);
        }
        let code = match text {
            "bare\nfeed" => {
                self.closed = true;
                550
            }
            // an empty content gives the edge nothing to choke on
            "" => 250,
            _ if special == Some("<full@example.jp>") => 452,
            "REJECT" => 550,
            "DEFER" => 451,
            _ => 250,
        };
        if code == 250 {
            (self.errors, self.junk) = (0, 0);
            self.stored
                .push((open.reverse_path, open.recipients, content(text)));
        }
        (true, code)
    }
}

/// Lines refused by the grammar never reach the session and its count of junk.
fn step_is_command(step: Step) -> bool {
    !matches!(
        step,
        Step::EhloBad
            | Step::MailMalformed
            | Step::RcptMalformed
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

/// Holds one dialogue; how many mails it stored and over how many STARTTLS.
async fn dialogue(seed: u64, keys: &Keys) -> (usize, usize) {
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    random.below(2);
    let mut rig = Rig::new();
    rig.options.recipients_max = u32::try_from(RECIPIENTS_MAX).unwrap();
    rig.options.errors_max = u32::try_from(ERRORS_MAX).unwrap();
    rig.options.junk_commands_max = u32::try_from(JUNK_MAX).unwrap();
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
        client.send(format!("{}\r\n", line(step))).await;
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
                stored.recipients,
                String::from_utf8(stored.content).unwrap(),
            )
        })
        .collect();
    assert_eq!(stored, model.stored, "seed {seed}: {said:?}");
    (stored.len(), upgrades)
}

#[tokio::test(start_paused = true)]
async fn random_dialogues_agree_with_the_model() {
    let keys = Keys::new();
    let (mut mails, mut upgrades) = (0, 0);
    for seed in 0..40_000 {
        let (stored, upgraded) = dialogue(seed, &keys).await;
        mails += stored;
        upgrades += upgraded;
    }
    assert!(
        mails > 60_000 && upgrades > 500,
        "the dialogues are too shallow: {mails} mails, {upgrades} upgrades"
    );
}
