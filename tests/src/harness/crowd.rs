//! Many peers at once, from as many loopback addresses as they need, and a bystander among them whose mail must not wait.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::io::AsyncReadExt;
use tokio::net::{TcpSocket, TcpStream};

use super::site::PASSWORD;
use super::talk::{Talk, send_mail};

/// Peers that one address has, unless a test says otherwise: below what a server allows one source.
const PEERS_PER_SOURCE: u32 = 150;

/// Allows this process, and those it starts from now on, `wanted` file descriptors.
///
/// # Panics
/// When the system does not: it must be allowed outside.
pub fn allow_descriptors(wanted: u64) {
    let limit = getrlimit(Resource::Nofile);
    let enough = |limit: Option<u64>| limit.is_none_or(|limit| limit >= wanted);
    if enough(limit.current) {
        return;
    }
    let maximum = if enough(limit.maximum) {
        limit.maximum
    } else {
        Some(wanted)
    };
    let raised = Rlimit {
        current: Some(wanted),
        maximum,
    };
    setrlimit(Resource::Nofile, raised).unwrap_or_else(|error| {
        panic!(
            "{wanted} file descriptors are needed and {limit:?} are allowed (ulimit -n): {error}"
        )
    });
}

/// The loopback address of peer `number`: each address has but so many peers.
pub fn source(number: u32) -> Ipv4Addr {
    let address = number / PEERS_PER_SOURCE + 1;
    let [_, high, middle, low] = address.to_be_bytes();
    Ipv4Addr::new(127, high + 1, middle, low)
}

/// Connects from `source`; `receive_bytes` is a small buffer for what the server says, of a peer that does not read.
///
/// # Errors
/// When nobody answers, or there is no port left.
pub async fn connect_from(
    source: Ipv4Addr,
    server: SocketAddr,
    receive_bytes: Option<u32>,
) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    if let Some(bytes) = receive_bytes {
        socket.set_recv_buffer_size(bytes)?;
    }
    socket.bind(SocketAddr::new(IpAddr::V4(source), 0))?;
    let stream = socket.connect(server).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// What the server says until a whole reply is there, or the end, or `patience` is over.
pub async fn hear(stream: &mut TcpStream, patience: Duration) -> String {
    let mut heard = Vec::new();
    let whole = async {
        let mut piece = [0; 2048];
        loop {
            match stream.read(&mut piece).await {
                Ok(0) | Err(_) => return,
                Ok(count) => heard.extend_from_slice(&piece[..count]),
            }
            let text = String::from_utf8_lossy(&heard);
            let last = text.lines().last().unwrap_or_default();
            if text.ends_with("\r\n") && last.as_bytes().get(3) != Some(&b'-') {
                return;
            }
        }
    };
    let _ = tokio::time::timeout(patience, whole).await;
    String::from_utf8_lossy(&heard).into_owned()
}

/// Somebody who sends and reads mail all the while, one after another, and looks at the clock.
#[derive(Debug)]
pub struct Bystander {
    done: Arc<AtomicBool>,
    thread: JoinHandle<Vec<Duration>>,
}

impl Bystander {
    /// Begins: a mail to `user` from connection to reply, and a look into its maildrop from connection to QUIT, are one round.
    pub fn begin(smtp: SocketAddr, pop3: SocketAddr, user: &str) -> Bystander {
        let done = Arc::new(AtomicBool::new(false));
        let (seen, user) = (done.clone(), user.to_owned());
        let thread = std::thread::spawn(move || {
            let mut rounds = Vec::new();
            while !seen.load(Ordering::Relaxed) {
                let began = Instant::now();
                round(smtp, pop3, &user);
                rounds.push(began.elapsed());
            }
            rounds
        });
        Bystander { done, thread }
    }

    /// Ends, and says how long the rounds took.
    ///
    /// # Panics
    /// When one of them failed.
    pub fn end(self) -> Rounds {
        self.done.store(true, Ordering::Relaxed);
        let mut took = self.thread.join().expect("every round succeeds");
        assert!(!took.is_empty(), "not one round");
        took.sort();
        Rounds(took)
    }
}

fn round(smtp: SocketAddr, pop3: SocketAddr, user: &str) {
    let address = format!("{user}@example.jp");
    let reply = send_mail(
        smtp,
        "bystander@elsewhere.example",
        &[&address],
        "Subject: x\n",
    );
    assert!(
        reply.starts_with("250 2.0.0"),
        "the bystander heard {reply}"
    );
    let mut talk = Talk::connect(pop3).expect("a POP3 server");
    for command in [
        "",
        &format!("USER {user}"),
        &format!("PASS {PASSWORD}"),
        "QUIT",
    ] {
        if !command.is_empty() {
            talk.send(format!("{command}\r\n").as_bytes())
                .expect("it listens");
        }
        let line = talk.line().expect("in time").expect("an answer");
        assert!(line.starts_with("+OK"), "the bystander heard {line}");
    }
}

/// How long the rounds of a bystander took, shortest first.
#[derive(Debug)]
pub struct Rounds(Vec<Duration>);

impl Rounds {
    /// How many.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// All but one in a hundred took no longer.
    pub fn p99(&self) -> Duration {
        self.0[(self.0.len() * 99).div_ceil(100) - 1]
    }
}
