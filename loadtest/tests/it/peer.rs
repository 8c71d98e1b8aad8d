//! A mail server small enough to be wrong on purpose: SMTP in, POP3 out, mail in memory.
//!
//! It stands for the system under test where the load tool itself is tested: the ledger is worth something only if it
//! notices each of these faults.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use loadtest::users::User;

/// What goes wrong with every n-th message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    Nothing,
    /// 250, and no copy.
    Lose,
    /// 250, and two copies.
    Double,
    /// 250, and one byte differs.
    Corrupt,
    /// 250, and the message ends at its first line that is a lone dot, as if it had not been stuffed.
    Truncate,
    /// 250, and a mail nobody sent beside it.
    Forge,
    /// 250, and the copy goes to somebody else.
    Misplace,
    /// Stored, and the connection ends without a reply.
    SilentStored,
    /// Not stored, and the connection ends without a reply.
    SilentDropped,
    /// Stored, and half of the reply.
    HalfReply,
    /// Stored twice, and the connection ends without a reply.
    SilentDoubled,
    /// 554 after the dot, and stored.
    Ghost,
    /// 554 after the dot.
    Refuse,
    /// 451 after the dot.
    Defer,
    /// 250, and a DSN instead of a copy.
    Bounce,
    /// 250, and both.
    BounceAndKeep,
    /// Reads half of the content, stores it, hangs up.
    StoreHalf,
    /// Return-Path is somebody else's.
    WrongReturnPath,
}

#[derive(Debug, Default)]
struct State {
    drops: BTreeMap<String, Vec<(u64, Vec<u8>)>>,
    uid: u64,
    logins: u64,
}

struct Inner {
    users: Vec<User>,
    fault: Fault,
    every: u64,
    pipelining: bool,
    /// Each login sees other unique ids.
    fickle_uids: bool,
    /// Deleted mail is there again at the next login.
    keeps_deleted: bool,
    /// At that message, nobody is answered for so long.
    stall: Option<(u64, Duration)>,
    stalled: Mutex<()>,
    messages: AtomicU64,
    faults: AtomicU64,
    state: Mutex<State>,
    up: AtomicBool,
    /// No more faults.
    mended: AtomicBool,
    /// Connections by number, to be cut when the peer goes down.
    open: Mutex<BTreeMap<u64, TcpStream>>,
    connections: AtomicU64,
}

pub struct Peer {
    inner: Arc<Inner>,
    pub smtp: SocketAddr,
    pub pop3: SocketAddr,
    threads: Vec<JoinHandle<()>>,
}

pub struct Manner {
    pub fault: Fault,
    pub every: u64,
    pub pipelining: bool,
    pub fickle_uids: bool,
    pub keeps_deleted: bool,
    pub stall: Option<(u64, Duration)>,
}

impl Default for Manner {
    fn default() -> Manner {
        Manner {
            fault: Fault::Nothing,
            every: 10,
            pipelining: true,
            fickle_uids: false,
            keeps_deleted: false,
            stall: None,
        }
    }
}

impl Peer {
    pub fn start(users: &[User], manner: Manner) -> Peer {
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let inner = Arc::new(Inner {
            users: users.to_vec(),
            fault: manner.fault,
            every: manner.every,
            pipelining: manner.pipelining,
            fickle_uids: manner.fickle_uids,
            keeps_deleted: manner.keeps_deleted,
            stall: manner.stall,
            stalled: Mutex::default(),
            messages: AtomicU64::new(0),
            faults: AtomicU64::new(0),
            state: Mutex::default(),
            up: AtomicBool::new(false),
            mended: AtomicBool::new(false),
            open: Mutex::default(),
            connections: AtomicU64::new(0),
        });
        let mut peer = Peer {
            inner,
            smtp: any,
            pop3: any,
            threads: Vec::new(),
        };
        peer.up();
        peer
    }

    /// Listens, on the same ports as before if it has been down.
    pub fn up(&mut self) {
        self.inner.up.store(true, Ordering::SeqCst);
        self.smtp = self.listen(self.smtp, smtp);
        self.pop3 = self.listen(self.pop3, pop3);
    }

    /// Closes everything at once, as a kill does. The mail stays.
    pub fn down(&mut self) {
        self.inner.up.store(false, Ordering::SeqCst);
        for address in [self.smtp, self.pop3] {
            let _ = TcpStream::connect(address);
        }
        for thread in self.threads.drain(..) {
            thread.join().unwrap();
        }
        for stream in std::mem::take(&mut *self.inner.open.lock().unwrap()).into_values() {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// From now on nothing goes wrong.
    pub fn mend(&self) {
        self.inner.mended.store(true, Ordering::SeqCst);
    }

    /// How often the fault happened.
    pub fn faults(&self) -> u64 {
        self.inner.faults.load(Ordering::SeqCst)
    }

    fn listen(
        &mut self,
        at: SocketAddr,
        serve: fn(&Inner, TcpStream) -> std::io::Result<()>,
    ) -> SocketAddr {
        let listener = TcpListener::bind(at).unwrap();
        let bound = listener.local_addr().unwrap();
        let inner = self.inner.clone();
        self.threads.push(std::thread::spawn(move || {
            for stream in listener.incoming() {
                let stream = stream.unwrap();
                if !inner.up.load(Ordering::SeqCst) {
                    return;
                }
                stream.set_nodelay(true).unwrap();
                let number = inner.connections.fetch_add(1, Ordering::SeqCst);
                let cut = stream.try_clone().unwrap();
                inner.open.lock().unwrap().insert(number, cut);
                let inner = inner.clone();
                std::thread::spawn(move || {
                    let _ = serve(&inner, stream);
                    // The last handle closes the connection; what lies unread in it makes that a reset.
                    inner.open.lock().unwrap().remove(&number);
                });
            }
        }));
        bound
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.down();
    }
}

impl Inner {
    fn store(&self, user: &str, front: &str, content: &[u8]) {
        let mut state = self.state.lock().unwrap();
        state.uid += 1;
        let uid = state.uid;
        let mail = [front.as_bytes(), content].concat();
        state
            .drops
            .entry(user.to_owned())
            .or_default()
            .push((uid, mail));
    }

    /// What becomes of a message after its dot: the reply, or nothing and a closed connection.
    fn accept(&self, reverse_path: &str, rcpts: &[String], content: &[u8]) -> Option<&'static str> {
        let number = self.messages.fetch_add(1, Ordering::SeqCst) + 1;
        let turn = self.stalled.lock().unwrap();
        if let Some((at, stall)) = self.stall
            && at == number
        {
            std::thread::sleep(stall);
        }
        drop(turn);
        let fault = if number.is_multiple_of(self.every) && !self.mended.load(Ordering::SeqCst) {
            self.fault
        } else {
            Fault::Nothing
        };
        if fault != Fault::Nothing {
            self.faults.fetch_add(1, Ordering::SeqCst);
        }
        for rcpt in rcpts {
            let front = |path: &str| {
                format!(
                    "Return-Path: <{path}>\r\nDelivered-To: {rcpt}\r\nReceived: from [127.0.0.1]\r\n\tby peer;\r\n\tnow\r\n"
                )
            };
            let keep = |bytes: &[u8]| self.store(rcpt, &front(reverse_path), bytes);
            match fault {
                Fault::Lose
                | Fault::SilentDropped
                | Fault::Refuse
                | Fault::Defer
                | Fault::StoreHalf => {}
                Fault::Double | Fault::SilentDoubled => {
                    keep(content);
                    keep(content);
                }
                Fault::Corrupt => {
                    let mut bytes = content.to_vec();
                    let at = bytes.len() - 10;
                    bytes[at] ^= 1;
                    keep(&bytes);
                }
                Fault::Truncate => {
                    let dot = content.windows(5).position(|w| w == b"\r\n.\r\n");
                    let line = content[..content.len() - 2]
                        .windows(2)
                        .rposition(|w| w == b"\r\n");
                    keep(&content[..dot.or(line).unwrap() + 2]);
                }
                Fault::Forge => {
                    keep(content);
                    self.store(rcpt, "", b"Subject: smuggled\r\n\r\nhello\r\n");
                }
                Fault::Misplace => {
                    let other = self
                        .users
                        .iter()
                        .find(|u| !rcpts.contains(&u.address))
                        .unwrap();
                    self.store(&other.address, &front(reverse_path), content);
                }
                Fault::Bounce => self.bounce(reverse_path, rcpt, content),
                Fault::BounceAndKeep => {
                    keep(content);
                    self.bounce(reverse_path, rcpt, content);
                }
                Fault::WrongReturnPath => self.store(rcpt, &front("mallory@example.net"), content),
                Fault::Nothing | Fault::SilentStored | Fault::HalfReply | Fault::Ghost => {
                    keep(content)
                }
            }
        }
        match fault {
            Fault::SilentStored | Fault::SilentDropped | Fault::SilentDoubled => None,
            Fault::HalfReply => Some("250 2.0"),
            Fault::Ghost | Fault::Refuse => Some("554 5.6.0 refused\r\n"),
            Fault::Defer => Some("451 4.3.0 later\r\n"),
            _ => Some("250 2.0.0 queued\r\n"),
        }
    }

    fn bounce(&self, reverse_path: &str, rcpt: &str, content: &[u8]) {
        let text = String::from_utf8_lossy(content);
        let header = text.split("\r\n\r\n").next().unwrap();
        let dsn = format!(
            "From: <mailer-daemon@peer>\r\nContent-Type: multipart/report; report-type=delivery-status;\r\n\tboundary=b\r\n\
             \r\n--b\r\n\r\nfailed\r\n--b\r\nContent-Type: message/delivery-status\r\n\r\nReporting-MTA: dns; peer\r\n\r\n\
             Final-Recipient: rfc822; {rcpt}\r\nAction: failed\r\nStatus: 5.2.2\r\n\r\n--b\r\n\
             Content-Type: text/rfc822-headers\r\n\r\n{header}\r\n\r\n--b--\r\n"
        );
        self.store(reverse_path, "Return-Path: <>\r\n", dsn.as_bytes());
    }
}

fn line(reader: &mut BufReader<TcpStream>) -> std::io::Result<String> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    Ok(line)
}

fn smtp(inner: &Inner, stream: TcpStream) -> std::io::Result<()> {
    let mut out = stream.try_clone()?;
    let mut reader = BufReader::new(stream);
    let (mut reverse_path, mut rcpts) = (String::new(), Vec::new());
    out.write_all(b"220 peer\r\n")?;
    loop {
        let command = line(&mut reader)?;
        let angle = || {
            command
                .split(['<', '>'])
                .nth(1)
                .unwrap_or_default()
                .to_owned()
        };
        let reply = match command.get(..4).unwrap_or_default() {
            "EHLO" if inner.pipelining => "250-peer\r\n250-PIPELINING\r\n250 8BITMIME\r\n",
            "EHLO" => "250-peer\r\n250 8BITMIME\r\n",
            "MAIL" => {
                reverse_path = angle();
                rcpts.clear();
                "250 2.1.0 ok\r\n"
            }
            "RCPT" if inner.users.iter().any(|u| u.address == angle()) => {
                rcpts.push(angle());
                "250 2.1.5 ok\r\n"
            }
            "RCPT" => "550 5.1.1 nobody\r\n",
            "DATA" if rcpts.is_empty() => "503 5.5.1 no recipients\r\n",
            "DATA" => {
                out.write_all(b"354 go\r\n")?;
                let half = inner.fault == Fault::StoreHalf
                    && (inner.messages.load(Ordering::SeqCst) + 1).is_multiple_of(inner.every);
                if half {
                    inner.messages.fetch_add(1, Ordering::SeqCst);
                    inner.faults.fetch_add(1, Ordering::SeqCst);
                    let mut bytes = vec![0; 4096];
                    reader.read_exact(&mut bytes)?;
                    rcpts
                        .iter()
                        .for_each(|rcpt| inner.store(rcpt, "", &[&bytes[..], b"\r\n"].concat()));
                    return Ok(());
                }
                let content = content(&mut reader)?;
                match inner.accept(&reverse_path, &rcpts, &content) {
                    Some(reply) if reply.ends_with("\r\n") => reply,
                    Some(half) => return out.write_all(half.as_bytes()),
                    None => return Ok(()),
                }
            }
            "QUIT" => return out.write_all(b"221 2.0.0 bye\r\n"),
            _ => "250 2.0.0 ok\r\n",
        };
        out.write_all(reply.as_bytes())?;
    }
}

fn content(reader: &mut BufReader<TcpStream>) -> std::io::Result<Vec<u8>> {
    let mut content = Vec::new();
    loop {
        let line = line(reader)?;
        if line == ".\r\n" {
            return Ok(content);
        }
        content.extend_from_slice(line.strip_prefix('.').unwrap_or(&line).as_bytes());
    }
}

fn pop3(inner: &Inner, stream: TcpStream) -> std::io::Result<()> {
    let mut out = stream.try_clone()?;
    let mut reader = BufReader::new(stream);
    out.write_all(b"+OK peer\r\n")?;
    let (mut name, mut mails, mut login) = (String::new(), Vec::new(), 0);
    let mut deleted: Vec<u64> = Vec::new();
    loop {
        let command = line(&mut reader)?;
        let command = command.trim_end();
        let (verb, argument) = command.split_once(' ').unwrap_or((command, ""));
        let number = || argument.parse::<usize>().unwrap_or(0).wrapping_sub(1);
        let reply: Vec<u8> = match verb {
            "CAPA" if inner.pipelining => b"+OK\r\nUIDL\r\nPIPELINING\r\n.\r\n".to_vec(),
            "CAPA" => b"-ERR what\r\n".to_vec(),
            "USER" => {
                name = argument.to_owned();
                b"+OK\r\n".to_vec()
            }
            "PASS" => match inner
                .users
                .iter()
                .find(|u| u.login == name && u.password == argument)
            {
                Some(user) => {
                    let mut state = inner.state.lock().unwrap();
                    state.logins += 1;
                    login = state.logins;
                    name = user.address.clone();
                    mails = state.drops.get(&name).cloned().unwrap_or_default();
                    b"+OK\r\n".to_vec()
                }
                None => b"-ERR [AUTH] no\r\n".to_vec(),
            },
            "STAT" => format!("+OK {} 0\r\n", mails.len()).into_bytes(),
            "UIDL" => {
                let salt = if inner.fickle_uids { login } else { 0 };
                let list = mails
                    .iter()
                    .enumerate()
                    .map(|(at, (uid, _))| format!("{} {salt}-{uid}\r\n", at + 1));
                format!("+OK\r\n{}.\r\n", list.collect::<String>()).into_bytes()
            }
            "RETR" => match mails.get(number()) {
                Some((_, mail)) => {
                    let mut wire = Vec::new();
                    loadtest::message::stuff(mail, &mut wire);
                    [&b"+OK\r\n"[..], &wire].concat()
                }
                None => b"-ERR none\r\n".to_vec(),
            },
            "DELE" => {
                deleted.extend(mails.get(number()).map(|m| m.0));
                b"+OK\r\n".to_vec()
            }
            "QUIT" => {
                if !inner.keeps_deleted
                    && let Some(mails) = inner.state.lock().unwrap().drops.get_mut(&name)
                {
                    mails.retain(|(uid, _)| !deleted.contains(uid));
                }
                return out.write_all(b"+OK bye\r\n");
            }
            _ => b"-ERR what\r\n".to_vec(),
        };
        out.write_all(&reply)?;
    }
}
