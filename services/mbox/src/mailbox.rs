//! The Mailbox service: one node's mailbox shards by index.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hikyaku_engine::Engine;
use hikyaku_log::ShardId;
use hikyaku_proto::transport::Transport;
use hikyaku_proto::v1::home_client::HomeClient;
use hikyaku_proto::v1::record::Command;
use hikyaku_proto::v1::{
    ClaimReply, ClaimRequest, DeliverReply, DeliverRequest, ExpungeReply, ExpungeRequest,
    FetchReply, FetchRequest, LookupReply, LookupRequest, NearlyFullReply, NearlyFullRequest,
    OpenMaildropRequest, UsageReply, UsageRequest, VoidReply, VoidRequest, mailbox_server,
};
use hikyaku_serve::tasks::Tasks;
use hikyaku_shard::runtime::{ProposeError, Shard};
use hikyaku_store::machine::{Answer, MailboxMachine};
use tokio::sync::Semaphore;
use tonic::{Request, Response, Status};

use crate::barrier::Barriers;
use crate::maildrop::Pages;
use crate::options::MboxOptions;
use crate::status;

/// Accounts a shard remembers having found open.
const KNOWN_MAX: usize = 8_192;

/// This node's replica of one mailbox shard, and the store under it.
#[derive(Clone)]
pub struct LocalMailbox {
    /// Proposes and applies.
    pub shard: Shard<MailboxMachine>,
    /// Read from, by snapshots.
    pub engine: Arc<dyn Engine>,
}

/// Answers `hikyaku.v1.Mailbox`. Clones share it.
#[derive(Clone)]
pub struct MailboxService {
    inner: Arc<Inner>,
}

struct Inner {
    shards: BTreeMap<u16, ServedShard>,
    home: HomeClient<Transport>,
    tasks: Tasks,
    options: MboxOptions,
}

/// A shard and what is under way in it.
pub(crate) struct ServedShard {
    pub(crate) local: LocalMailbox,
    /// Deliveries, in KiB.
    pub(crate) in_flight: Arc<Semaphore>,
    pub(crate) maildrops: Arc<Semaphore>,
    /// Accounts that were open here lately.
    pub(crate) known: Known,
    barriers: Barriers,
}

/// Accounts lately found open in a shard, and their generations. It saves a look into the store and decides nothing:
/// whether an account is still here is seen again when a record is applied.
#[derive(Default)]
pub(crate) struct Known(Mutex<BTreeMap<String, u64>>);

impl Known {
    fn accounts(&self) -> MutexGuard<'_, BTreeMap<String, u64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn generation(&self, account: &str) -> Option<u64> {
        self.accounts().get(account).copied()
    }

    pub(crate) fn learn(&self, account: &str, generation: u64) {
        let mut accounts = self.accounts();
        if accounts.len() >= KNOWN_MAX {
            accounts.clear();
        }
        accounts.insert(account.to_owned(), generation);
    }

    pub(crate) fn forget(&self, account: &str) {
        self.accounts().remove(account);
    }
}

impl MailboxService {
    /// A service over `shards`, which asks Home through `home`.
    pub fn new(
        tasks: &Tasks,
        shards: impl IntoIterator<Item = LocalMailbox>,
        home: Transport,
        options: MboxOptions,
    ) -> MailboxService {
        let in_flight_kib = (options.in_flight_bytes_max / 1_024).min(Semaphore::MAX_PERMITS);
        let shards = shards
            .into_iter()
            .map(|local| {
                let served = ServedShard {
                    in_flight: Arc::new(Semaphore::new(in_flight_kib)),
                    maildrops: Arc::new(Semaphore::new(options.maildrops_max)),
                    known: Known::default(),
                    barriers: Barriers::new(options.barrier_waiters_max),
                    local,
                };
                (served.local.shard.id().index, served)
            })
            .collect();
        MailboxService {
            inner: Arc::new(Inner {
                shards,
                home: HomeClient::new(home),
                tasks: tasks.clone(),
                options,
            }),
        }
    }

    /// The shards served here.
    pub fn shards(&self) -> impl Iterator<Item = ShardId> + '_ {
        self.inner
            .shards
            .values()
            .map(|served| served.local.shard.id())
    }

    /// The replica of shard `index` here.
    pub fn local(&self, index: u16) -> Option<&LocalMailbox> {
        self.inner.shards.get(&index).map(|served| &served.local)
    }

    pub(crate) fn options(&self) -> &MboxOptions {
        &self.inner.options
    }

    /// The shard a request names, if it is here and works.
    pub(crate) fn served(&self, index: u32) -> Result<&ServedShard, Status> {
        let served = u16::try_from(index)
            .ok()
            .and_then(|index| self.inner.shards.get(&index))
            .ok_or_else(|| Status::unavailable("the shard is not served by this node"))?;
        match served.local.shard.trouble() {
            None => Ok(served),
            Some(_) => Err(Status::unavailable("the shard is parked")),
        }
    }

    pub(crate) async fn propose(
        &self,
        served: &ServedShard,
        cmd_id: [u8; 16],
        command: Command,
    ) -> Result<Answer, ProposeError> {
        let proposal = served.local.shard.propose_as(cmd_id, command);
        status::within(self.inner.options.propose_timeout, proposal).await
    }

    /// Everything logged before this call is applied and visible in the shard's snapshots.
    pub(crate) async fn barrier(&self, served: &ServedShard) -> Result<(), Status> {
        let patience = self.inner.options.propose_timeout;
        served
            .barriers
            .pass(&self.inner.tasks, &served.local.shard, patience)
            .await
    }

    pub(crate) async fn claim(&self, account: &str, shard: u32) -> Result<ClaimReply, Status> {
        let mut home = self.inner.home.clone();
        let request = ClaimRequest {
            account: account.to_owned(),
            shard,
        };
        match tokio::time::timeout(self.inner.options.home_timeout, home.claim(request)).await {
            Ok(reply) => Ok(reply?.into_inner()),
            Err(_) => Err(Status::unavailable("home does not answer")),
        }
    }

    pub(crate) async fn lookup(&self, account: &str) -> Result<LookupReply, Status> {
        let mut home = self.inner.home.clone();
        let request = LookupRequest {
            account: account.to_owned(),
            linearizable: true,
        };
        match tokio::time::timeout(self.inner.options.home_timeout, home.lookup(request)).await {
            Ok(reply) => Ok(reply?.into_inner()),
            Err(_) => Err(Status::unavailable("home does not answer")),
        }
    }
}

#[tonic::async_trait]
impl mailbox_server::Mailbox for MailboxService {
    type OpenMaildropStream = Pages;

    async fn deliver(
        &self,
        request: Request<DeliverRequest>,
    ) -> Result<Response<DeliverReply>, Status> {
        self.deliver_mail(request.into_inner())
            .await
            .map(Response::new)
    }

    async fn void(&self, request: Request<VoidRequest>) -> Result<Response<VoidReply>, Status> {
        self.void_delivery(request.into_inner())
            .await
            .map(Response::new)
    }

    async fn open_maildrop(
        &self,
        request: Request<OpenMaildropRequest>,
    ) -> Result<Response<Pages>, Status> {
        self.maildrop(request.into_inner()).await.map(Response::new)
    }

    async fn fetch(&self, request: Request<FetchRequest>) -> Result<Response<FetchReply>, Status> {
        self.fetch_message(request.into_inner())
            .await
            .map(Response::new)
    }

    async fn expunge(
        &self,
        request: Request<ExpungeRequest>,
    ) -> Result<Response<ExpungeReply>, Status> {
        self.expunge_messages(request.into_inner())
            .await
            .map(Response::new)
    }

    async fn nearly_full(
        &self,
        request: Request<NearlyFullRequest>,
    ) -> Result<Response<NearlyFullReply>, Status> {
        self.nearly_full_in(request.get_ref()).map(Response::new)
    }

    async fn usage(&self, request: Request<UsageRequest>) -> Result<Response<UsageReply>, Status> {
        self.usage_of(request.get_ref()).map(Response::new)
    }
}
