//! A site with an edge, and a client that talks to it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use hikyaku_blob::body::BodyReader;
use hikyaku_blob::memory::MemoryBlobs;
use hikyaku_directory::ldif_directory::LdifDirectory;
use hikyaku_directory::password::PoolLimits;
use hikyaku_directory::settings::Settings;
use hikyaku_edge::backend::{Edge, EdgeBackend};
use hikyaku_edge::quota::Quotas;
use hikyaku_log::sim::{SimDisk, SimFaults, SimLog};
use hikyaku_log::{Class, ShardId};
use hikyaku_proto::v1::Accept;
use hikyaku_proto::v1::record::Command;
use hikyaku_queue::intake::Intake;
use hikyaku_queue::machine::{QueueMachine, QueueOptions};
use hikyaku_serve::tasks::Tasks;
use hikyaku_shard::ambient::Ambient;
use hikyaku_shard::runtime::{Shard, ShardOptions};
use hikyaku_smtp::backend::Peer;
use hikyaku_smtp::options::Options;
use hikyaku_smtp::server::{Tls, serve_connection};
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

const QUEUE: ShardId = ShardId::new(Class::Incoming, 0);
const DIRECTORY: &str = "version: 1

dn: dc=example,dc=jp
objectClass: dcObject
objectClass: organization
objectClass: domainRelatedObject
dc: example
o: Example
associatedDomain: local.example
associatedDomain: xn--bcher-kva.example

dn: uid=alice,dc=example,dc=jp
objectClass: inetLocalMailRecipient
uid: alice
entryUUID: id-alice
mailLocalAddress: alice@local.example
mailLocalAddress: alice@xn--bcher-kva.example
mailHost: mbox1

dn: uid=jurgen,dc=example,dc=jp
objectClass: inetLocalMailRecipient
uid: jurgen
entryUUID: id-jurgen
mailLocalAddress:: asO8cmdlbkBsb2NhbC5leGFtcGxl
mailHost: mbox1

dn: uid=hanako,dc=example,dc=jp
objectClass: inetLocalMailRecipient
uid: hanako
entryUUID: id-hanako
mailLocalAddress: hana..ko@local.example
mailLocalAddress: \"hanako.\"@local.example
mailLocalAddress: bounces+1234567-ab12-taro.yamada.sales=company.example.of.hanako@local.example
mailHost: mbox1
mailQuotaSize: 100000

dn: uid=operator,dc=example,dc=jp
objectClass: inetLocalMailRecipient
uid: operator
entryUUID: id-operator
mailLocalAddress: operator@local.example
mailHost: mbox1
";

struct Clock(AtomicU64);

impl Ambient for Clock {
    fn now_ms(&self) -> u64 {
        1_795_000_000_000
    }

    fn random(&self) -> u64 {
        self.0.fetch_add(1, Ordering::Relaxed)
    }
}

pub struct Site {
    pub edge: Arc<Edge>,
    pub options: Options,
    pub disk: SimDisk,
    sessions: AtomicU64,
}

impl Site {
    pub fn new() -> Site {
        Site::with_memory(64 << 20)
    }

    pub fn with_memory(bytes: usize) -> Site {
        let mut settings = Settings::new(&["mbox1"], "local.example");
        settings.postmaster = Some("operator@local.example".parse().unwrap());
        settings.host_name = Some("mx.local.example".into());
        let directory =
            LdifDirectory::load(DIRECTORY.as_bytes(), settings, PoolLimits::default()).unwrap();
        let (tasks, disk) = (Tasks::new(), SimDisk::new(1));
        let clock = Arc::new(Clock(AtomicU64::new(1)));
        let shard = Shard::start(
            &tasks,
            QUEUE,
            "test",
            Arc::new(SimLog::open(&disk, SimFaults::none())),
            clock.clone(),
            QueueMachine::new(QueueOptions::default()),
            ShardOptions::default(),
        );
        let edge = Edge {
            host_name: "mx.local.example".into(),
            directory: Arc::new(directory),
            blobs: Arc::new(MemoryBlobs::new()),
            intakes: vec![Intake::new(&shard)],
            ambient: clock,
            tasks,
            memory: Edge::memory_budget(bytes),
            quotas: Quotas::unknown(),
        };
        Site {
            edge: Arc::new(edge),
            options: Options {
                errors_max: 10_000,
                errors_soft_max: 10_000,
                junk_commands_max: 10_000,
                ..Options::new("mx.local.example")
            },
            disk,
            sessions: AtomicU64::new(1),
        }
    }

    /// A session from `address`, greeted with EHLO.
    pub async fn connect(&self, address: &str) -> Client {
        let (ours, theirs) = tokio::io::duplex(64 << 10);
        let number = self.sessions.fetch_add(1, Ordering::Relaxed);
        let peer = Peer::new(number, address.parse().unwrap(), "smtp".into());
        let (backend, options) = (EdgeBackend(self.edge.clone()), self.options.clone());
        let drain = self.edge.tasks.draining();
        tokio::spawn(async move {
            serve_connection(theirs, peer, &backend, &options, Tls::Off, &drain).await
        });
        let mut client = Client(ours);
        assert!(client.reply().await.starts_with("220 "));
        client.say("EHLO client.example.com").await;
        client
    }

    /// Everything accepted so far, in order.
    pub fn accepted(&self) -> Vec<Accept> {
        let records = self.disk.records(QUEUE);
        let commands = records.iter().filter_map(|record| {
            hikyaku_proto::v1::Record::decode(record.payload.clone())
                .unwrap()
                .command
        });
        commands
            .filter_map(|command| match command {
                Command::Accept(accept) => Some(accept),
                _ => None,
            })
            .collect()
    }

    pub async fn content(&self, accept: &Accept) -> String {
        let body = accept.body.clone().unwrap();
        let mut reader = BodyReader::open(&*self.edge.blobs, &body).await.unwrap();
        let mut content = Vec::new();
        while let Some(chunk) = reader.read().await.unwrap() {
            content.extend_from_slice(&chunk);
        }
        String::from_utf8(content).unwrap()
    }
}

pub struct Client(DuplexStream);

impl Client {
    /// One reply with all its lines; `closed` if there is none.
    pub async fn reply(&mut self) -> String {
        let (mut reply, mut line) = (String::new(), Vec::new());
        loop {
            let mut octet = [0];
            match self.0.read(&mut octet).await {
                Ok(1) => line.push(octet[0]),
                _ => return "closed".into(),
            }
            if line.ends_with(b"\r\n") {
                let text = String::from_utf8(std::mem::take(&mut line)).unwrap();
                let last = text.as_bytes()[3] == b' ';
                reply.push_str(&text);
                if last {
                    return reply.trim_end().to_owned();
                }
            }
        }
    }

    pub async fn send(&mut self, octets: impl AsRef<[u8]>) {
        let _ = self.0.write_all(octets.as_ref()).await;
    }

    pub async fn say(&mut self, line: impl AsRef<[u8]>) -> String {
        let line = [line.as_ref(), b"\r\n"].concat();
        self.send(line).await;
        self.reply().await
    }

    pub async fn must(&mut self, line: &str, expected: &str) -> String {
        let reply = self.say(line).await;
        assert!(
            reply.starts_with(expected),
            "{line:?}: {reply:?} is not {expected:?}"
        );
        reply
    }

    /// Sends a content after 354 and its end; the reply.
    pub async fn content(&mut self, text: &str) -> String {
        self.must("DATA", "354 ").await;
        self.send(format!("{text}.\r\n")).await;
        self.reply().await
    }
}
