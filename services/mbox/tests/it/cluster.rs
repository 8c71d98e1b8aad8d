//! One node: a home shard and two mailbox shards over one simulated log, which can crash and start again.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use hikyaku_engine::memory::{MemoryDisk, MemoryEngine};
use hikyaku_home::machine::HomeMachine;
use hikyaku_log::sim::{SimDisk, SimFaults, SimLog};
use hikyaku_log::{Class, Log, ShardId};
use hikyaku_mail::id::{DeliveryId, MessageId};
use hikyaku_mbox::home::{HomeService, LocalHome};
use hikyaku_mbox::mailbox::{LocalMailbox, MailboxService};
use hikyaku_mbox::options::MboxOptions;
use hikyaku_proto::transport::{Transport, in_process};
use hikyaku_proto::v1::home_client::HomeClient;
use hikyaku_proto::v1::home_server::HomeServer;
use hikyaku_proto::v1::mailbox_client::MailboxClient;
use hikyaku_proto::v1::mailbox_server::MailboxServer;
use hikyaku_proto::v1::{
    self, Body, Deliver, DeliverRequest, MaildropPage, OpenMaildropRequest, body, deliver_reply,
};
use hikyaku_serve::tasks::Tasks;
use hikyaku_shard::ambient::Ambient;
use hikyaku_shard::runtime::{Shard, ShardOptions};
use hikyaku_store::machine::MailboxMachine;
use tonic::Status;

pub const START_MS: u64 = 1_795_478_400_000;

struct World {
    started: tokio::time::Instant,
    drawn: AtomicU64,
}

impl Ambient for World {
    fn now_ms(&self) -> u64 {
        START_MS + self.started.elapsed().as_millis() as u64
    }

    fn random(&self) -> u64 {
        let drawn = self.drawn.fetch_add(1, Ordering::Relaxed);
        (drawn + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }
}

/// What survives a crash.
pub struct Cluster {
    pub log: SimDisk,
    pub disk: MemoryDisk,
    world: Arc<World>,
}

/// One life of the node.
pub struct Node {
    pub tasks: Tasks,
    pub home: HomeService,
    pub mailboxes: MailboxService,
    pub client: MailboxClient<Transport>,
    pub home_client: HomeClient<Transport>,
}

impl Cluster {
    pub fn new(seed: u64) -> Cluster {
        Cluster {
            log: SimDisk::new(seed),
            disk: MemoryDisk::new(),
            world: Arc::new(World {
                started: tokio::time::Instant::now(),
                drawn: AtomicU64::new(seed << 32),
            }),
        }
    }

    /// Another node's disk under the same log.
    pub fn replica(&self) -> Cluster {
        Cluster {
            log: self.log.clone(),
            disk: MemoryDisk::new(),
            world: self.world.clone(),
        }
    }

    pub fn start(&self, faults: SimFaults, options: MboxOptions) -> Node {
        let tasks = Tasks::new();
        let log: Arc<dyn Log> = Arc::new(SimLog::open(&self.log, faults));
        let home_engine = MemoryEngine::open(&self.disk, "home-0");
        let home = LocalHome {
            shard: Shard::start(
                &tasks,
                ShardId::new(Class::Home, 0),
                "node",
                log.clone(),
                self.world.clone(),
                HomeMachine::open(home_engine.clone()).unwrap(),
                ShardOptions::default(),
            ),
            engine: home_engine,
        };
        let home = HomeService::new(&tasks, home, options);
        let transport = in_process(HomeServer::new(home.clone()));
        let shards = (0..2).map(|index| {
            let id = ShardId::new(Class::Mbox, index);
            let engine = MemoryEngine::open(&self.disk, &id.to_string());
            LocalMailbox {
                shard: Shard::start(
                    &tasks,
                    id,
                    "node",
                    log.clone(),
                    self.world.clone(),
                    MailboxMachine::open(engine.clone()).unwrap(),
                    ShardOptions::default(),
                ),
                engine,
            }
        });
        let mailboxes = MailboxService::new(&tasks, shards, transport.clone(), options);
        Node {
            client: MailboxClient::new(in_process(MailboxServer::new(mailboxes.clone()))),
            home_client: HomeClient::new(transport),
            tasks,
            home,
            mailboxes,
        }
    }

    pub fn steady(&self) -> Node {
        self.start(SimFaults::none(), MboxOptions::default())
    }

    /// The node dies where it stands.
    pub async fn crash(&self, node: Node) {
        self.log.crash();
        node.tasks.kill().await;
    }
}

impl Node {
    pub async fn deliver(
        &self,
        shard: u32,
        account: &str,
        number: u64,
    ) -> Result<deliver_reply::Answer, Status> {
        self.deliver_as(shard, account, number, number).await
    }

    pub async fn deliver_as(
        &self,
        shard: u32,
        account: &str,
        number: u64,
        call: u64,
    ) -> Result<deliver_reply::Answer, Status> {
        let request = DeliverRequest {
            shard,
            deliver: Some(delivery(account, number)),
            cmd_id: cmd_id(call),
            tenant: "example.jp".into(),
            traceparent: String::new(),
        };
        let reply = self.client.clone().deliver(request).await?;
        Ok(reply.into_inner().answer.unwrap())
    }

    pub async fn stored(&self, shard: u32, account: &str, number: u64) -> v1::Stored {
        match self.deliver(shard, account, number).await.unwrap() {
            deliver_reply::Answer::Delivered(stored) => stored,
            other => panic!("not delivered: {other:?}"),
        }
    }

    pub async fn maildrop(&self, shard: u32, account: &str) -> Result<Vec<MaildropPage>, Status> {
        let request = OpenMaildropRequest {
            shard,
            account: account.into(),
        };
        let mut stream = self
            .client
            .clone()
            .open_maildrop(request)
            .await?
            .into_inner();
        let mut pages = Vec::new();
        while let Some(page) = stream.message().await? {
            pages.push(page);
        }
        Ok(pages)
    }

    pub async fn uids(&self, shard: u32, account: &str) -> Vec<u32> {
        let pages = self.maildrop(shard, account).await.unwrap();
        pages
            .iter()
            .flat_map(|page| page.messages.iter().map(|message| message.uid))
            .collect()
    }

    pub fn assert_clean(&self) {
        for index in 0..2 {
            let audit = hikyaku_mbox::backup::audit_mailboxes(&self.mailboxes, index).unwrap();
            assert_eq!(audit.faults, Vec::<String>::new());
        }
    }
}

pub fn cmd_id(number: u64) -> Bytes {
    let mut id = [7; 16];
    id[8..].copy_from_slice(&number.to_be_bytes());
    Bytes::copy_from_slice(&id)
}

pub fn delivery_id(number: u64) -> Bytes {
    let message = MessageId::new(ShardId::new(Class::Incoming, 0), START_MS, number);
    let id = DeliveryId {
        message,
        recipient: 0,
    };
    Bytes::copy_from_slice(&id.to_bytes())
}

pub fn delivery(account: &str, number: u64) -> Deliver {
    let content = format!("Subject: {number}\r\n\r\n");
    Deliver {
        delivery_id: delivery_id(number),
        account: account.into(),
        generation: 0,
        prefix: Bytes::from_static(b"Delivered-To: x\r\n"),
        body: Some(Body {
            size: content.len() as u64,
            blake3: Bytes::copy_from_slice(blake3::hash(content.as_bytes()).as_bytes()),
            content: Some(body::Content::Zstd(content.into())),
        }),
        received_ms: START_MS,
        mailbox: String::new(),
        quota_bytes: 0,
    }
}

/// Asks until there is a definite answer, as delivery does.
pub async fn insist<T, F: Future<Output = Result<T, Status>>>(mut ask: impl FnMut() -> F) -> T {
    loop {
        match ask().await {
            Ok(answer) => return answer,
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}
