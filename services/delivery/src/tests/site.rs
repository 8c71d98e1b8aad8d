//! One node: queue shard and leader over a simulated log, with mailbox shards and Home that answer by script.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::Empty;
use hikyaku_blob::body::inline_body;
use hikyaku_blob::memory::MemoryBlobs;
use hikyaku_directory::ldif_directory::{LdifDirectory, Loss, Reload};
use hikyaku_directory::password::PoolLimits;
use hikyaku_directory::settings::Settings;
use hikyaku_directory::{Account, Directory, LoginError, Resolution, Unavailable};
use hikyaku_log::sim::{SimDisk, SimFaults, SimLog};
use hikyaku_log::{Class, ShardId};
use hikyaku_mail::id::{AccountId, DeliveryId, MessageId};
use hikyaku_mail::path::Mailbox;
use hikyaku_proto::transport::in_process;
use hikyaku_proto::v1::home_client::HomeClient;
use hikyaku_proto::v1::home_server::{Home, HomeServer};
use hikyaku_proto::v1::mailbox_client::MailboxClient;
use hikyaku_proto::v1::mailbox_server::{self, MailboxServer};
use hikyaku_proto::v1::recipient::Target;
use hikyaku_proto::v1::{
    Accept, Body, Busy, ClaimReply, ClaimRequest, DeliverReply, DeliverRequest, Disabled, Envelope,
    ExpandTarget, ExpungeReply, ExpungeRequest, FetchReply, FetchRequest, LocalTarget, LookupReply,
    LookupRequest, MaildropPage, NearlyFullReply, NearlyFullRequest, NotOwner, OpenMaildropRequest,
    OverQuota, QueueListRequest, Recipient, Record, Stored, UsageReply, UsageRequest, VoidReply,
    VoidRequest, Voided, deliver_reply, recipient_state, record, void_reply,
};
use hikyaku_queue::machine::{QueueMachine, QueueOptions};
use hikyaku_serve::tasks::Tasks;
use hikyaku_shard::ambient::Ambient;
use hikyaku_shard::runtime::{Shard, ShardOptions};
use tokio::time::Instant;
use tonic::{Request, Response, Status};

use crate::control::QueueControl;
use crate::leader::{DeliveryOptions, Deps, Leader};
use crate::placement::Placement;

pub const QUEUE: ShardId = ShardId::new(Class::Incoming, 0);
pub const START_MS: u64 = 1_795_000_000_000;

const DIRECTORY: &str = "version: 1

dn: dc=example,dc=jp
objectClass: dcObject
objectClass: organization
objectClass: domainRelatedObject
dc: example
o: Example
associatedDomain: example.jp
";

/// A user's entry.
pub fn user(name: &str, account: &str, mbox: &str) -> String {
    format!(
        "\ndn: uid={name},dc=example,dc=jp\nobjectClass: inetLocalMailRecipient\nuid: {name}\nentryUUID: {account}\nmailLocalAddress: {name}@example.jp\nmailHost: {mbox}\n"
    )
}

/// An entry that forwards to another address.
pub fn forward(name: &str, to: &str) -> String {
    format!(
        "\ndn: uid={name},dc=example,dc=jp\nobjectClass: inetLocalMailRecipient\nuid: {name}\nentryUUID: fwd-{name}\nmailLocalAddress: {name}@example.jp\nmailRoutingAddress: {to}\n"
    )
}

/// A group's entry.
pub fn group(name: &str, members: &[&str], more: &str) -> String {
    let mut text = format!(
        "\ndn: cn={name},dc=example,dc=jp\nobjectClass: groupOfNames\nobjectClass: inetMailGroup\ncn: {name}\nmailLocalAddress: {name}@example.jp\n{more}"
    );
    for member in members {
        text.push_str(&format!("mgrpRFC822MailMember: {member}\n"));
    }
    text
}

struct Clock {
    start: Instant,
    /// How far the wall clock has jumped.
    ahead_ms: AtomicU64,
    random: AtomicU64,
}

impl Ambient for Clock {
    fn now_ms(&self) -> u64 {
        let ahead_ms = self.ahead_ms.load(Ordering::Relaxed);
        START_MS + ahead_ms + self.start.elapsed().as_millis() as u64
    }

    fn random(&self) -> u64 {
        let n = self.random.fetch_add(1, Ordering::Relaxed);
        n.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (n << 7)
    }
}

/// What a mailbox shard does with one call instead of storing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Says {
    OverQuota,
    Disabled,
    Busy,
    Error,
    Hang,
    Panic,
    /// Stores, and loses the answer.
    StoredUnanswered,
    /// Does not answer, and stores after the caller has given up.
    StoredLate,
}

#[derive(Clone, Debug)]
pub struct Call {
    pub shard: u32,
    pub account: String,
    pub cmd_id: Bytes,
    pub prefix: String,
    pub body: Body,
    pub tenant: String,
    pub received_ms: u64,
    pub number: u32,
    pub void: bool,
}

#[derive(Default)]
pub struct State {
    pub script: BTreeMap<String, VecDeque<Says>>,
    /// Said whenever the script is empty.
    pub always: BTreeMap<String, Says>,
    pub dead: BTreeSet<u32>,
    pub home_dead: bool,
    /// The domain about which the directory does not answer.
    pub silent: Option<&'static str>,
    /// The domain about which it panics.
    pub poisonous: Option<&'static str>,
    pub owners: BTreeMap<String, (u32, u64)>,
    pub stored: BTreeMap<DeliveryId, (String, u32)>,
    pub voided: BTreeSet<DeliveryId>,
    pub calls: Vec<Call>,
}

/// Home and all mailbox shards.
#[derive(Clone, Default)]
pub struct Mailboxes(pub Arc<Mutex<State>>);

impl Mailboxes {
    pub fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Accounts that got the message, one per copy.
    pub fn copies(&self, id: MessageId) -> Vec<String> {
        let state = self.state();
        let stored = state.stored.iter().filter(|(key, _)| key.message == id);
        let mut accounts: Vec<String> = stored.map(|(_, (account, _))| account.clone()).collect();
        accounts.sort();
        accounts
    }

    /// Mails that `account` has got, oldest first.
    pub fn copies_of(&self, account: &str) -> Vec<MessageId> {
        let state = self.state();
        let stored = state.stored.iter().filter(|(_, (of, _))| of == account);
        let mut mails: Vec<MessageId> = stored.map(|(key, _)| key.message).collect();
        mails.sort_by_key(|id| id.time_ms());
        mails
    }
}

#[tonic::async_trait]
impl Home for Mailboxes {
    async fn claim(&self, request: Request<ClaimRequest>) -> Result<Response<ClaimReply>, Status> {
        let request = request.into_inner();
        if self.state().home_dead {
            return Err(Status::unavailable("home is away"));
        }
        let mut state = self.state();
        let (shard, generation) = *state
            .owners
            .entry(request.account)
            .or_insert((request.shard, 1));
        Ok(Response::new(ClaimReply { shard, generation }))
    }

    async fn lookup(
        &self,
        request: Request<LookupRequest>,
    ) -> Result<Response<LookupReply>, Status> {
        let owner = self
            .state()
            .owners
            .get(&request.into_inner().account)
            .copied();
        Ok(Response::new(LookupReply {
            shard: owner.map(|(shard, _)| shard),
            generation: owner.map_or(0, |(_, generation)| generation),
        }))
    }
}

#[tonic::async_trait]
impl mailbox_server::Mailbox for Mailboxes {
    async fn deliver(
        &self,
        request: Request<DeliverRequest>,
    ) -> Result<Response<DeliverReply>, Status> {
        let request = request.into_inner();
        let deliver = request.deliver.unwrap();
        let id = DeliveryId::from_bytes(&deliver.delivery_id).unwrap();
        let says = {
            let mut state = self.state();
            state.calls.push(Call {
                shard: request.shard,
                account: deliver.account.clone(),
                cmd_id: request.cmd_id,
                prefix: String::from_utf8(deliver.prefix.to_vec()).unwrap(),
                body: deliver.body.unwrap(),
                tenant: request.tenant,
                received_ms: deliver.received_ms,
                number: id.recipient,
                void: false,
            });
            let scripted = state.script.get_mut(&deliver.account);
            let next = scripted.and_then(VecDeque::pop_front);
            match next.or_else(|| state.always.get(&deliver.account).copied()) {
                _ if state.dead.contains(&request.shard) => Some(Says::Hang),
                says => says,
            }
        };
        tokio::time::sleep(Duration::from_millis(3)).await;
        use deliver_reply::Answer;
        let answer = match says {
            Some(Says::Hang) => std::future::pending().await,
            Some(Says::Panic) => panic!("poisonous"),
            Some(Says::Error) => return Err(Status::unavailable("no")),
            Some(Says::OverQuota) => Answer::OverQuota(OverQuota {}),
            Some(Says::Disabled) => Answer::Disabled(Disabled {}),
            Some(Says::Busy) => Answer::Busy(Busy {}),
            Some(Says::StoredLate) => {
                let (late, account) = (self.clone(), deliver.account.clone());
                #[allow(clippy::disallowed_methods)]
                tokio::spawn(async move {
                    tokio::time::sleep(Duration::from_secs(15)).await;
                    late.store(id, request.shard, account);
                });
                std::future::pending().await
            }
            Some(Says::StoredUnanswered) | None => self.store(id, request.shard, deliver.account),
        };
        if says == Some(Says::StoredUnanswered) {
            return Err(Status::deadline_exceeded("answer lost"));
        }
        Ok(Response::new(DeliverReply {
            answer: Some(answer),
        }))
    }

    async fn void(&self, request: Request<VoidRequest>) -> Result<Response<VoidReply>, Status> {
        let request = request.into_inner();
        let id = DeliveryId::from_bytes(&request.delivery_id).unwrap();
        let mut state = self.state();
        if state.dead.contains(&request.shard) {
            return Err(Status::unavailable("dead"));
        }
        state.calls.push(Call {
            shard: request.shard,
            account: request.account,
            cmd_id: request.cmd_id,
            prefix: String::new(),
            body: Body::default(),
            tenant: String::new(),
            received_ms: 0,
            number: id.recipient,
            void: true,
        });
        use void_reply::Answer;
        let answer = match state.stored.get(&id) {
            Some((_, uid)) => Answer::AlreadyDelivered(Stored {
                uid_validity: 1,
                uid: *uid,
            }),
            None => {
                state.voided.insert(id);
                Answer::Voided(Voided {})
            }
        };
        Ok(Response::new(VoidReply {
            answer: Some(answer),
        }))
    }

    type OpenMaildropStream = Empty<Result<MaildropPage, Status>>;

    async fn open_maildrop(
        &self,
        _: Request<OpenMaildropRequest>,
    ) -> Result<Response<Self::OpenMaildropStream>, Status> {
        Err(Status::unimplemented("delivery does not read"))
    }

    async fn fetch(&self, _: Request<FetchRequest>) -> Result<Response<FetchReply>, Status> {
        Err(Status::unimplemented("delivery does not read"))
    }

    async fn expunge(&self, _: Request<ExpungeRequest>) -> Result<Response<ExpungeReply>, Status> {
        Err(Status::unimplemented("delivery does not expunge"))
    }

    async fn nearly_full(
        &self,
        _: Request<NearlyFullRequest>,
    ) -> Result<Response<NearlyFullReply>, Status> {
        Err(Status::unimplemented("delivery does not ask"))
    }

    async fn usage(&self, _: Request<UsageRequest>) -> Result<Response<UsageReply>, Status> {
        Err(Status::unimplemented("delivery does not ask"))
    }
}

impl Mailboxes {
    fn store(&self, id: DeliveryId, shard: u32, account: String) -> deliver_reply::Answer {
        use deliver_reply::Answer;
        let mut state = self.state();
        let uid = state.stored.len() as u32 + 1;
        let owner = state.owners.get(&account).copied();
        if let Some((owner, generation)) = owner.filter(|(owner, _)| *owner != shard) {
            return Answer::NotOwner(NotOwner {
                shard: Some(owner),
                generation,
            });
        }
        assert!(owner.is_some(), "a mailbox without a claim");
        if state.voided.contains(&id) {
            return Answer::Voided(Voided {});
        }
        let stored = |uid| Stored {
            uid_validity: 1,
            uid,
        };
        match state.stored.get(&id) {
            Some((_, uid)) => Answer::AlreadyDelivered(stored(*uid)),
            None => {
                state.stored.insert(id, (account, uid));
                Answer::Delivered(stored(uid))
            }
        }
    }
}

/// The directory, unless it is silent.
struct Silenced {
    directory: Arc<LdifDirectory>,
    mailboxes: Mailboxes,
}

impl Directory for Silenced {
    fn resolve<'a>(
        &'a self,
        address: &'a Mailbox,
    ) -> BoxFuture<'a, Result<Resolution, Unavailable>> {
        let (silent, poisonous) = {
            let state = self.mailboxes.state();
            (state.silent, state.poisonous)
        };
        assert_ne!(poisonous, Some(address.domain()), "poisonous");
        match silent {
            Some(domain) if domain == address.domain() => Box::pin(std::future::pending()),
            _ => self.directory.resolve(address),
        }
    }

    fn authenticate<'a>(
        &'a self,
        login: &'a str,
        password: &'a [u8],
    ) -> BoxFuture<'a, Result<Account, LoginError>> {
        self.directory.authenticate(login, password)
    }

    fn account<'a>(
        &'a self,
        id: &'a AccountId,
    ) -> BoxFuture<'a, Result<Option<Account>, Unavailable>> {
        self.directory.account(id)
    }

    fn postmaster(&self) -> Mailbox {
        self.directory.postmaster()
    }
}

/// A node and everything around it that survives it.
pub struct Site {
    pub disk: SimDisk,
    pub mailboxes: Mailboxes,
    pub directory: Arc<LdifDirectory>,
    pub node: Node,
    clock: Arc<Clock>,
    options: DeliveryOptions,
    made: u64,
}

pub struct Node {
    pub tasks: Tasks,
    pub log: Arc<SimLog>,
    pub shard: Shard<QueueMachine>,
    pub control: QueueControl,
}

fn placement() -> Placement {
    Placement::new()
        .with_mbox("mbox1", [0])
        .with_mbox("mbox2", [1])
}

impl Site {
    pub fn new(entries: &[String], options: DeliveryOptions) -> Site {
        Site::with_faults(entries, options, SimFaults::none())
    }

    pub fn with_faults(entries: &[String], options: DeliveryOptions, faults: SimFaults) -> Site {
        let settings = Settings::new(&["mbox1", "mbox2"], "example.jp");
        let ldif = format!("{DIRECTORY}{}", entries.concat());
        let directory =
            LdifDirectory::load(ldif.as_bytes(), settings, PoolLimits::default()).unwrap();
        let disk = SimDisk::new(7);
        let directory = Arc::new(directory);
        let mailboxes = Mailboxes::default();
        let clock = Arc::new(Clock {
            start: Instant::now(),
            ahead_ms: AtomicU64::new(0),
            random: AtomicU64::new(1),
        });
        let node = boot(&disk, faults, &directory, &mailboxes, &clock, &options);
        Site {
            disk,
            mailboxes,
            directory,
            node,
            clock,
            options,
            made: 0,
        }
    }

    /// The wall clock jumps ahead.
    pub fn jump(&self, by: Duration) {
        let by_ms = by.as_millis() as u64;
        self.clock.ahead_ms.fetch_add(by_ms, Ordering::Relaxed);
    }

    /// Another node that believes it leads, over the same log.
    pub fn rival(&self) -> Node {
        let faults = self.disk.faults();
        boot(
            &self.disk,
            faults,
            &self.directory,
            &self.mailboxes,
            &self.clock,
            &self.options,
        )
    }

    /// The node crashes, and another one takes over from the log.
    pub async fn crash(&mut self) {
        self.node.log.crash();
        self.node.tasks.kill().await;
        let faults = self.disk.faults();
        self.node = boot(
            &self.disk,
            faults,
            &self.directory,
            &self.mailboxes,
            &self.clock,
            &self.options,
        );
    }

    pub fn reload(&self, entries: &[String]) {
        let ldif = format!("{DIRECTORY}{}", entries.concat());
        let reload = self.directory.reload(ldif.as_bytes(), Loss::Accepted);
        assert!(matches!(reload, Reload::Replaced { .. }), "{reload:?}");
    }

    /// Accepts a mail as an edge would.
    pub async fn accept(&mut self, reverse_path: &str, recipients: Vec<Recipient>) -> MessageId {
        self.made += 1;
        let content = format!(
            "Received: by test\r\nSubject: mail {}\r\n\r\nhello\r\n",
            self.made
        );
        self.accept_content(reverse_path, recipients, content.as_bytes())
            .await
    }

    pub async fn accept_content(
        &mut self,
        reverse_path: &str,
        recipients: Vec<Recipient>,
        content: &[u8],
    ) -> MessageId {
        let envelope = Envelope {
            reverse_path: reverse_path.into(),
            ..Envelope::default()
        };
        self.accept_envelope(envelope, recipients, content).await
    }

    pub async fn accept_envelope(
        &mut self,
        envelope: Envelope,
        recipients: Vec<Recipient>,
        content: &[u8],
    ) -> MessageId {
        let now_ms = self.clock.now_ms();
        let id = MessageId::new(QUEUE, now_ms, self.clock.random());
        let accept = Accept {
            message_id: id.to_bytes().to_vec().into(),
            envelope: Some(Envelope {
                received_ms: now_ms,
                ..envelope
            }),
            recipients,
            body: Some(inline_body(content).unwrap()),
            tenant: "example.jp".into(),
            ..Accept::default()
        };
        while let Err(error) = self
            .node
            .shard
            .append(record::Command::Accept(accept.clone()))
            .await
        {
            assert_ne!(error, hikyaku_log::AppendError::TooLarge);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        id
    }

    pub fn live(&self) -> usize {
        self.node
            .shard
            .read(|machine| machine.index().messages().len())
    }

    /// Waits until nothing is queued.
    pub async fn settle(&self) {
        while self.node.shard.barrier().await.is_err() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        self.until("the queue is empty", |site| site.live() == 0)
            .await;
    }

    pub async fn until(&self, what: &str, holds: impl Fn(&Site) -> bool) {
        for _ in 0..200_000 {
            if holds(self) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let list = self.node.control.list(&QueueListRequest::default());
        panic!("never: {what}; queued: {:#?}", list.messages);
    }

    pub fn held(&self, reason: &str) -> Vec<String> {
        let list = self.node.control.list(&QueueListRequest::default());
        let mut held = Vec::new();
        for state in list.messages.into_iter().flat_map(|m| m.recipients) {
            if let Some(recipient_state::State::Held(why)) = &state.state
                && why.reason == reason
            {
                held.push(state.recipient.unwrap().address);
            }
        }
        held
    }

    /// How many records of each kind the log holds.
    pub fn records(&self) -> BTreeMap<&'static str, usize> {
        use prost::Message as _;
        let mut counts = BTreeMap::new();
        for record in self.disk.records(QUEUE) {
            let word = match Record::decode(record.payload).unwrap().command.unwrap() {
                record::Command::Accept(_) => "accept",
                record::Command::Attempted(_) => "attempted",
                record::Command::Routed(_) => "routed",
                record::Command::Bounce(_) => "bounce",
                record::Command::Carry(_) => "carry",
                _ => "other",
            };
            *counts.entry(word).or_default() += 1;
        }
        counts
    }
}

fn boot(
    disk: &SimDisk,
    faults: SimFaults,
    directory: &Arc<LdifDirectory>,
    mailboxes: &Mailboxes,
    clock: &Arc<Clock>,
    options: &DeliveryOptions,
) -> Node {
    let tasks = Tasks::new();
    let log = Arc::new(SimLog::open(disk, faults));
    let shard = Shard::start(
        &tasks,
        QUEUE,
        "test",
        log.clone(),
        clock.clone(),
        QueueMachine::new(QueueOptions::default()),
        ShardOptions::default(),
    );
    let mailbox = MailboxClient::new(in_process(MailboxServer::new(mailboxes.clone())));
    let deps = Deps {
        directory: Arc::new(Silenced {
            directory: directory.clone(),
            mailboxes: mailboxes.clone(),
        }),
        blobs: Arc::new(MemoryBlobs::new()),
        home: HomeClient::new(in_process(HomeServer::new(mailboxes.clone()))),
        mailboxes: Arc::new(move |_| mailbox.clone()),
        placement: placement(),
    };
    let control = Leader::start(&tasks, shard.clone(), deps, options.clone());
    Node {
        tasks,
        log,
        shard,
        control,
    }
}

fn recipient(address: &str, target: Target) -> Recipient {
    Recipient {
        address: address.into(),
        target: Some(target),
        ..Recipient::default()
    }
}

pub fn local(name: &str, account: &str, mbox: &str) -> Recipient {
    let target = LocalTarget {
        account: account.into(),
        tenant: "example.jp".into(),
        mbox: mbox.into(),
    };
    recipient(&format!("{name}@example.jp"), Target::Local(target))
}

pub fn expand(name: &str) -> Recipient {
    recipient(
        &format!("{name}@example.jp"),
        Target::Expand(ExpandTarget::default()),
    )
}

/// Alice and Bob in mbox1, Carol in mbox2.
pub fn people() -> Vec<String> {
    vec![
        user("alice", "a-1", "mbox1"),
        user("bob", "b-1", "mbox1"),
        user("carol", "c-1", "mbox2"),
    ]
}
