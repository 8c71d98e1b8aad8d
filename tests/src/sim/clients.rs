//! Those outside: senders, by SMTP or by the backend under it, and readers.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use hikyaku_access::mailboxes::Mailboxes;
use hikyaku_access::pop3::maildrop::{MailboxRef, Maildrop};
use hikyaku_blob::Blobs;
use hikyaku_blob::body::BodyReader;
use hikyaku_blob::memory::MemoryBlobs;
use hikyaku_edge::backend::EdgeBackend;
use hikyaku_mail::reply::Reply;
use hikyaku_proto::v1::Body;
use hikyaku_serve::tasks::Tasks;
use hikyaku_smtp::backend::{Backend, Peer, Transaction};
use hikyaku_smtp::command::{self, Command};
use hikyaku_smtp::options::Options;
use hikyaku_smtp::server::{Tls, serve_connection};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, DuplexStream};
use tokio::time::{sleep, timeout};

use super::ledger::{Attempt, Ledger, Phase, Place, number_in};
use super::random::Random;
use super::site::{ADDRESSES, account_id};
use super::truth::{End, Truth};
use super::world::{World, lock};

/// For a client to give up on one reply.
const PATIENCE: Duration = Duration::from_secs(90);

/// What senders want to hear of.
const NOTIFY: [&str; 6] = [
    "",
    "NEVER",
    "SUCCESS",
    "",
    "FAILURE,DELAY",
    "SUCCESS,FAILURE,DELAY",
];
/// What they want to have back.
const RETURNED: [&str; 3] = ["", " RET=HDRS", " RET=FULL ENVID=sim+2B1"];

/// What one machine offers to those outside.
#[derive(Clone)]
pub struct Front {
    /// Its tasks.
    pub tasks: Tasks,
    /// SMTP in.
    pub backend: EdgeBackend,
    /// POP3 out.
    pub access: Mailboxes,
}

/// All clients. Clones share it.
#[derive(Clone)]
pub struct Clients {
    /// The run.
    pub world: World,
    /// What they know.
    pub ledger: Arc<Mutex<Ledger>>,
    /// The machines that are up.
    pub fronts: Arc<Mutex<BTreeMap<usize, Front>>>,
    /// Their own tasks, which no machine's death ends.
    pub tasks: Tasks,
    /// Where large bodies are.
    pub blobs: MemoryBlobs,
    sessions: Arc<AtomicU64>,
    /// Sessions without the protocol around them; they end with their machine.
    talking: Arc<AtomicU64>,
    options: Arc<Options>,
}

/// Counts a session as long as it lasts, however it ends.
struct Talk(Arc<AtomicU64>);

impl Talk {
    fn begin(talking: &Arc<AtomicU64>) -> Talk {
        talking.fetch_add(1, Ordering::Relaxed);
        Talk(talking.clone())
    }
}

impl Drop for Talk {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Clients {
    /// Nobody yet.
    pub fn new(world: World, blobs: MemoryBlobs) -> Clients {
        Clients {
            ledger: Arc::new(Mutex::new(Ledger::new(world.clone()))),
            fronts: Arc::default(),
            tasks: Tasks::new(),
            blobs,
            sessions: Arc::new(AtomicU64::new(1)),
            talking: Arc::default(),
            options: Arc::new(Options::new("mx.example.jp")),
            world,
        }
    }

    /// Some machine that is up.
    pub fn front(&self, random: &mut Random) -> Option<Front> {
        let fronts = lock(&self.fronts);
        let count = fronts.len();
        fronts.values().nth(random.below(count)).cloned()
    }

    /// Sends one mail to `addresses` (indices into [`ADDRESSES`]) from somebody.
    pub fn send(&self, random: &mut Random, addresses: Vec<usize>) {
        let reverse_path = *random.pick(&[
            "sender@example.jp",
            "sender@example.jp",
            "sender@example.jp",
            "somebody@remote.example",
            "",
        ]);
        self.send_from(random, reverse_path, addresses);
    }

    /// Sends one mail; answers its ledger number.
    pub fn send_from(
        &self,
        random: &mut Random,
        reverse_path: &'static str,
        addresses: Vec<usize>,
    ) -> usize {
        let number = lock(&self.ledger).attempts.len();
        let content = content(random, number);
        self.world.digest(&content);
        self.world.note(format_args!(
            "#{number} from <{reverse_path}> to {:?}, {} octets",
            addresses
                .iter()
                .map(|index| ADDRESSES[*index].local_part)
                .collect::<Vec<_>>(),
            content.len()
        ));
        let attempt = Attempt {
            reverse_path,
            // not drawn, so that seeds go on to mean what they meant
            notify: NOTIFY[number % NOTIFY.len()],
            returned: RETURNED[number / NOTIFY.len() % RETURNED.len()],
            addresses,
            accepted: Vec::new(),
            full: false,
            content,
            phase: Phase::Talking,
        };
        lock(&self.ledger).open(attempt.clone());
        let Some(front) = self.front(random) else {
            self.world.count("attempt/nobody listens");
            return number;
        };
        let session = self.sessions.fetch_add(1, Ordering::Relaxed);
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 1025));
        let peer = Peer::new(session, address, "smtp".into());
        let clients = self.clone();
        if random.chance(250) {
            self.world.count("attempt/by SMTP");
            let (near, far) = tokio::io::duplex(4096);
            let (backend, options) = (front.backend.clone(), self.options.clone());
            let draining = front.tasks.draining();
            front.tasks.spawn("smtp session", async move {
                serve_connection(far, peer, &backend, &options, Tls::Off, &draining).await;
            });
            self.tasks.spawn("smtp client", async move {
                // a lost connection ends the conversation wherever it was
                let _ = clients.converse(near, number, attempt).await;
            });
        } else {
            self.world.count("attempt/by the backend");
            let backend = front.backend.clone();
            let talk = Talk::begin(&self.talking);
            front.tasks.spawn("session", async move {
                let _talk = talk;
                clients.transact(&backend, peer, number, attempt).await;
            });
        }
        number
    }

    /// A session without the protocol around it.
    async fn transact(&self, backend: &EdgeBackend, peer: Peer, number: usize, attempt: Attempt) {
        if let Some(refusal) = backend.greet(&peer).await {
            return lock(&self.ledger).refused(number, refusal.reply.code);
        }
        let line = attempt.mail();
        let Ok(Command::Mail(mail)) = command::parse(line.as_bytes()) else {
            unreachable!("{line}");
        };
        let mut transaction = match backend.mail(&peer, &mail).await {
            Ok(transaction) => transaction,
            Err(refusal) => return lock(&self.ledger).refused(number, refusal.reply.code),
        };
        let mut taken = 0;
        for index in &attempt.addresses {
            let line = attempt.rcpt(*index);
            let Ok(Command::Rcpt(rcpt)) = command::parse(line.as_bytes()) else {
                unreachable!("{line}");
            };
            let reply = match transaction.rcpt(&rcpt).await {
                Ok(reply) => reply,
                Err(refusal) => refusal.reply,
            };
            taken += usize::from(reply.is_positive());
            lock(&self.ledger).rcpt(number, *index, reply.code, &enhanced(&reply));
        }
        if taken == 0 {
            return;
        }
        if let Err(refusal) = transaction.data().await {
            return lock(&self.ledger).refused(number, refusal.reply.code);
        }
        for chunk in attempt.content.chunks(16 * 1024) {
            if let Err(refusal) = transaction.chunk(chunk).await {
                return lock(&self.ledger).refused(number, refusal.reply.code);
            }
        }
        lock(&self.ledger).dot(number);
        let reply = match transaction.finish().await {
            Ok(reply) => reply,
            Err(refusal) => refusal.reply,
        };
        lock(&self.ledger).answered(number, reply.code, &reply.text);
    }

    /// The client's side of a real session.
    async fn converse(
        &self,
        stream: DuplexStream,
        number: usize,
        attempt: Attempt,
    ) -> std::io::Result<()> {
        let mut stream = BufReader::new(stream);
        let (code, _) = reply(&mut stream).await?;
        if code != 220 {
            lock(&self.ledger).refused(number, code);
            return Ok(());
        }
        let mail = attempt.mail();
        for line in ["EHLO client.example", &mail] {
            let (code, _) = ask(&mut stream, line).await?;
            if code != 250 {
                lock(&self.ledger).refused(number, code);
                return Ok(());
            }
        }
        let mut taken = 0;
        for index in &attempt.addresses {
            let line = attempt.rcpt(*index);
            let (code, text) = ask(&mut stream, &line).await?;
            taken += usize::from(code == 250);
            let enhanced = text.split(' ').next().unwrap_or_default().to_owned();
            lock(&self.ledger).rcpt(number, *index, code, &enhanced);
        }
        if taken == 0 {
            return Ok(());
        }
        let (code, _) = ask(&mut stream, "DATA").await?;
        if code != 354 {
            lock(&self.ledger).refused(number, code);
            return Ok(());
        }
        stream.write_all(&stuffed(&attempt.content)).await?;
        lock(&self.ledger).dot(number);
        stream.write_all(b".\r\n").await?;
        let (code, text) = reply(&mut stream).await?;
        lock(&self.ledger).answered(number, code, &text);
        let _ = ask(&mut stream, "QUIT").await;
        Ok(())
    }

    /// A reader looks at a user's maildrop, and deletes some of it.
    pub fn read(&self, random: &mut Random, user: &'static str, history: super::history::History) {
        let (clients, mut random) = (self.clone(), random.fork());
        self.tasks.spawn("reader", async move {
            clients.read_once(&mut random, user, &history).await;
        });
    }

    /// One session of a reader.
    pub async fn read_once(
        &self,
        random: &mut Random,
        user: &'static str,
        history: &super::history::History,
    ) {
        let Some(front) = self.front(random) else {
            return;
        };
        if let Some(maildrop) = self.open(&front, user, history).await {
            self.read_some(&front.access, &maildrop, random).await;
        }
    }

    /// A session that looks what there is, and perhaps deletes it, mail by mail.
    pub fn look_in(
        &self,
        random: &mut Random,
        user: &'static str,
        history: super::history::History,
        deletes: bool,
    ) {
        let Some(front) = self.front(random) else {
            return;
        };
        let (clients, mut random) = (self.clone(), random.fork());
        self.tasks.spawn("watcher", async move {
            let Some(maildrop) = clients.open(&front, user, &history).await else {
                return;
            };
            let Some(mailbox) = maildrop.mailbox().filter(|_| deletes) else {
                return;
            };
            for message in maildrop.messages() {
                clients
                    .expunge(&front.access, mailbox, vec![message.uid])
                    .await;
                sleep(random.millis(0, 100)).await;
            }
        });
    }

    /// A maildrop that holds what it must.
    pub async fn open(
        &self,
        front: &Front,
        user: &'static str,
        history: &super::history::History,
    ) -> Option<Maildrop> {
        let expected = self.expected(user, history);
        let gone = lock(&self.ledger).expunged.clone();
        let Ok(maildrop) = front.access.open(&account_id(user)).await else {
            self.world.count("read/unavailable");
            return None;
        };
        self.world.count("read/open");
        self.check_maildrop(user, &maildrop, &expected, &gone);
        Some(maildrop)
    }

    /// What the queue has recorded as delivered to `user`, and nobody has asked to delete (M4).
    pub fn expected(&self, user: &str, history: &super::history::History) -> BTreeSet<Place> {
        history.collect();
        let account = account_id(user).to_string();
        let delivered = history.look(|truth| delivered_to(truth, &account));
        let ledger = lock(&self.ledger);
        delivered
            .difference(&ledger.expunge_asked)
            .cloned()
            .collect()
    }

    /// A maildrop as opened must hold `expected` and nothing of `gone`.
    pub fn check_maildrop(
        &self,
        user: &str,
        maildrop: &Maildrop,
        expected: &BTreeSet<Place>,
        gone: &BTreeSet<Place>,
    ) {
        let mut ledger = lock(&self.ledger);
        let mut here = BTreeSet::new();
        if let Some(mailbox) = maildrop.mailbox() {
            for message in maildrop.messages() {
                let place = place(mailbox, message.uid);
                if gone.contains(&place) {
                    self.world
                        .violate(format_args!("deleted mail is back: {place:?}"));
                }
                let unique_id = message.unique_id.to_string();
                let seen = ledger.seen.entry(place.clone());
                if *seen.or_insert_with(|| unique_id.clone()) != unique_id {
                    self.world
                        .violate(format_args!("M2: {place:?} is another mail than before"));
                }
                here.insert(place);
            }
        }
        for missing in expected.difference(&here) {
            if !ledger.expunge_asked.contains(missing) {
                self.world
                    .violate(format_args!("M4: {user} does not see {missing:?}"));
            }
        }
    }

    /// A reader deletes all that a user has; whether all of it is gone.
    pub async fn empty(&self, front: &Front, user: &'static str) -> bool {
        let Ok(maildrop) = front.access.open(&account_id(user)).await else {
            return false;
        };
        let Some(mailbox) = maildrop.mailbox() else {
            return true;
        };
        let uids: Vec<u32> = maildrop.messages().map(|message| message.uid).collect();
        self.expunge(&front.access, mailbox, uids).await
    }

    async fn expunge(&self, access: &Mailboxes, mailbox: &MailboxRef, doomed: Vec<u32>) -> bool {
        let places: Vec<Place> = doomed.iter().map(|uid| place(mailbox, *uid)).collect();
        lock(&self.ledger).expunge_asked.extend(places.clone());
        match access.expunge(mailbox, doomed).await {
            Ok(_) => {
                self.world.count("read/expunged");
                lock(&self.ledger).expunged.extend(places);
                true
            }
            Err(_) => {
                self.world.count("read/expunge unanswered");
                false
            }
        }
    }

    async fn read_some(&self, access: &Mailboxes, maildrop: &Maildrop, random: &mut Random) {
        let Some(mailbox) = maildrop.mailbox() else {
            return;
        };
        let uids: Vec<u32> = maildrop.messages().map(|message| message.uid).collect();
        let mut doomed = Vec::new();
        for uid in uids {
            if random.chance(200) {
                match access.fetch(mailbox, uid).await {
                    Ok(Some(fetched)) => self.check_content(&fetched.prefix, &fetched.body).await,
                    Ok(None) => {
                        let place = place(mailbox, uid);
                        if !lock(&self.ledger).expunge_asked.contains(&place) {
                            self.world
                                .violate(format_args!("{place:?} is said to be expunged"));
                        }
                    }
                    Err(_) => self.world.count("read/unavailable"),
                }
            }
            if random.chance(300) {
                doomed.push(uid);
            }
        }
        if !doomed.is_empty() {
            self.expunge(access, mailbox, doomed).await;
        }
    }

    /// The mail is one that was sent, octet for octet, behind documented headers; or a report. Answers its ledger number.
    pub async fn check_content(&self, prefix: &[u8], body: &Body) {
        let Some(content) = self.content_of(body).await else {
            self.world.violate("a stored body cannot be read");
            return;
        };
        let prefix = String::from_utf8_lossy(prefix).into_owned();
        if !prefix.starts_with("Return-Path: <") || !prefix.contains("\r\nDelivered-To: ") {
            self.world.violate(format_args!("a prefix is {prefix:?}"));
        }
        if content.starts_with(b"From: Mail Delivery System ") {
            self.world.count("read/report");
            return;
        }
        let ledger = lock(&self.ledger);
        let attempt = number_in(&content).and_then(|number| ledger.attempts.get(number));
        let Some(attempt) = attempt else {
            self.world.violate("a mail nobody sent");
            return;
        };
        let fields = content.len().checked_sub(attempt.content.len());
        let same = fields.is_some_and(|fields| {
            content[fields..] == attempt.content[..] && content.starts_with(b"Received: ")
        });
        if !same || blake3::hash(&content).as_bytes()[..] != body.blake3[..] {
            self.world.violate("a mail's octets have changed");
        }
        self.world.count("read/content");
    }

    /// A body's octets.
    pub async fn content_of(&self, body: &Body) -> Option<Vec<u8>> {
        let mut reader = BodyReader::open(&self.blobs as &dyn Blobs, body)
            .await
            .ok()?;
        let mut content = Vec::new();
        while let Some(chunk) = reader.read().await.ok()? {
            content.extend_from_slice(&chunk);
        }
        Some(content)
    }

    /// Waits a while for clients that are still talking.
    pub async fn rest(&self) {
        for _ in 0..240 {
            if self.tasks.running() == 0 && self.talking.load(Ordering::Relaxed) == 0 {
                return;
            }
            sleep(Duration::from_secs(1)).await;
        }
    }
}

/// Where the queue says that mail of `account` was delivered, and where a restore has brought some.
pub fn delivered_to(truth: &Truth, account: &str) -> BTreeSet<Place> {
    let restored = truth.restored.keys();
    let restored = restored.filter(|place| place.0 == account).cloned();
    let fates = truth.messages.values().flat_map(|fate| &fate.recipients);
    let ends = fates.filter(|recipient| recipient.account() == Some(account));
    ends.filter_map(|recipient| match &recipient.end {
        Some(End::Delivered { at, .. }) => Some((account.to_owned(), at.uid_validity, at.uid)),
        _ => None,
    })
    .chain(restored)
    .collect()
}

fn place(mailbox: &MailboxRef, uid: u32) -> Place {
    (mailbox.account.to_string(), mailbox.uid_validity, uid)
}

fn enhanced(reply: &Reply) -> String {
    reply
        .enhanced
        .map(|code| code.to_string())
        .unwrap_or_default()
}

fn content(random: &mut Random, number: usize) -> Bytes {
    // several mails share a Message-ID: senders do what they like
    let message_id = match random.chance(300) {
        true => 0,
        false => number / 3,
    };
    let mut text = format!(
        "From: Sender <sender@example.jp>\r\nSubject: simulated {number}\r\nMessage-ID: <{message_id}@sim.example>\r\nX-Ledger: {number}\r\n\r\n"
    );
    let lines = match random.below(100) {
        0..2 => 2_500,
        2..20 => 40,
        _ => 2 + random.below(6),
    };
    for line in 0..lines {
        if line == 1 {
            text.push_str(".leading dot\r\n.\r\n..\r\n");
        }
        text.push_str(&format!(
            "{:016x}{:016x}{:016x}{:08x}\r\n",
            random.draw(),
            random.draw(),
            random.draw(),
            line
        ));
    }
    Bytes::from(text)
}

fn stuffed(content: &[u8]) -> Vec<u8> {
    let mut stuffed = Vec::with_capacity(content.len() + 16);
    for line in content.split_inclusive(|octet| *octet == b'\n') {
        if line.starts_with(b".") {
            stuffed.push(b'.');
        }
        stuffed.extend_from_slice(line);
    }
    stuffed
}

async fn ask(stream: &mut BufReader<DuplexStream>, line: &str) -> std::io::Result<(u16, String)> {
    stream.write_all(format!("{line}\r\n").as_bytes()).await?;
    reply(stream).await
}

async fn reply(stream: &mut BufReader<DuplexStream>) -> std::io::Result<(u16, String)> {
    loop {
        let mut line = String::new();
        let reading = stream.read_line(&mut line);
        match timeout(PATIENCE, reading).await {
            Ok(Ok(read)) if read > 0 => {}
            _ => return Err(std::io::ErrorKind::UnexpectedEof.into()),
        }
        let (code, rest) = line.split_at_checked(3).unwrap_or_default();
        if rest.starts_with(' ') {
            return Ok((code.parse().unwrap_or(0), rest.trim().to_owned()));
        }
    }
}
