//! The network between roles: requests get lost, arrive late or twice, replies get lost, a shard does not answer. The services
//! behind it are the real ones, called by their generated clients over the in-process transport.
//!
//! A call runs among the tasks of the machine that serves it: the machine's death ends it, the caller's does not.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::Stream;
use hikyaku_mbox::home::HomeService;
use hikyaku_mbox::mailbox::MailboxService;
use hikyaku_proto::transport::{Transport, in_process};
use hikyaku_proto::v1::home_client::HomeClient;
use hikyaku_proto::v1::home_server::{Home, HomeServer};
use hikyaku_proto::v1::mailbox_client::MailboxClient;
use hikyaku_proto::v1::mailbox_server::{Mailbox, MailboxServer};
use hikyaku_proto::v1::{
    ClaimReply, ClaimRequest, DeliverReply, DeliverRequest, ExpungeReply, ExpungeRequest,
    FetchReply, FetchRequest, LookupReply, LookupRequest, MaildropPage, NearlyFullReply,
    NearlyFullRequest, OpenMaildropRequest, UsageReply, UsageRequest, VoidReply, VoidRequest,
};
use hikyaku_serve::tasks::Tasks;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep};
use tonic::{Request, Response, Status};

use super::random::Random;
use super::world::{World, lock};

/// The number Home goes by among shards.
const HOME: u16 = u16::MAX;

/// How badly the network behaves, per mille of the calls.
#[derive(Clone, Copy, Debug, Default)]
pub struct NetFaults {
    /// The request never arrives.
    pub request_lost: u32,
    /// It is carried out, the reply never arrives.
    pub reply_lost: u32,
    /// The request takes up to a few seconds.
    pub slow: u32,
    /// The request arrives a second time, later.
    pub duplicate: u32,
    /// How much later at most, in milliseconds.
    pub duplicate_ms: u64,
    /// A machine is asked that is not the usual one.
    pub other_machine: u32,
}

impl NetFaults {
    /// As bad as it gets in ordinary life.
    pub fn rough() -> NetFaults {
        NetFaults {
            request_lost: 20,
            reply_lost: 30,
            slow: 30,
            duplicate: 30,
            duplicate_ms: 20_000,
            other_machine: 300,
        }
    }
}

/// What one machine serves.
#[derive(Clone)]
pub struct Peer {
    /// Which machine.
    pub machine: usize,
    /// Its tasks.
    pub tasks: Tasks,
    /// Home.
    pub home: HomeService,
    /// Mailbox shards.
    pub mailboxes: MailboxService,
}

struct State {
    random: Random,
    faults: NetFaults,
    peers: BTreeMap<usize, Peer>,
    dead: BTreeMap<u16, Instant>,
    slow: BTreeMap<u16, Instant>,
    cut: BTreeMap<usize, Instant>,
}

/// The network. Clones share it.
#[derive(Clone)]
pub struct Network {
    world: World,
    tasks: Tasks,
    state: Arc<Mutex<State>>,
}

/// What becomes of one call.
struct Plan {
    delay: Duration,
    request_lost: bool,
    reply_lost: bool,
    again_after: Option<Duration>,
    silent: bool,
}

impl Network {
    /// A network that does nothing wrong and connects nobody. Late requests live in `tasks`.
    pub fn new(world: World, tasks: Tasks, random: Random) -> Network {
        Network {
            world,
            tasks,
            state: Arc::new(Mutex::new(State {
                random,
                faults: NetFaults::default(),
                peers: BTreeMap::new(),
                dead: BTreeMap::new(),
                slow: BTreeMap::new(),
                cut: BTreeMap::new(),
            })),
        }
    }

    /// How it behaves from now on.
    pub fn set_faults(&self, faults: NetFaults) {
        lock(&self.state).faults = faults;
    }

    /// A machine serves from now on.
    pub fn connect(&self, peer: Peer) {
        lock(&self.state).peers.insert(peer.machine, peer);
    }

    /// A machine is gone.
    pub fn disconnect(&self, machine: usize) {
        lock(&self.state).peers.remove(&machine);
    }

    /// A mailbox shard (or Home: `None`) does not answer for so long.
    pub fn dead_for(&self, shard: Option<u16>, duration: Duration) {
        let until = Instant::now() + duration;
        lock(&self.state).dead.insert(shard.unwrap_or(HOME), until);
    }

    /// A mailbox shard is slow for so long.
    pub fn slow_for(&self, shard: Option<u16>, duration: Duration) {
        let until = Instant::now() + duration;
        lock(&self.state).slow.insert(shard.unwrap_or(HOME), until);
    }

    /// Nobody reaches a machine for so long; it goes on, and reaches others.
    pub fn cut_for(&self, machine: usize, duration: Duration) {
        let until = Instant::now() + duration;
        lock(&self.state).cut.insert(machine, until);
    }

    /// The services of some machine that is up.
    pub fn any_peer(&self) -> Option<Peer> {
        lock(&self.state).peers.values().next().cloned()
    }

    /// Everything works.
    pub fn heal(&self) {
        let mut state = lock(&self.state);
        state.faults = NetFaults::default();
        state.dead.clear();
        state.slow.clear();
        state.cut.clear();
    }

    /// A client for Home.
    pub fn home_transport(&self) -> Transport {
        in_process(HomeServer::new(self.clone()))
    }

    /// A client for Home.
    pub fn home_client(&self) -> HomeClient<Transport> {
        HomeClient::new(self.home_transport())
    }

    /// A client for all mailbox shards.
    pub fn mailbox_client(&self) -> MailboxClient<Transport> {
        MailboxClient::new(in_process(MailboxServer::new(self.clone())))
    }

    fn plan(&self, shard: u16) -> Plan {
        let state = &mut *lock(&self.state);
        let now = Instant::now();
        let (random, faults) = (&mut state.random, state.faults);
        let is_until = |until: Option<&Instant>| until.is_some_and(|until| now < *until);
        let dead = is_until(state.dead.get(&shard));
        let slow = random.chance(faults.slow) || is_until(state.slow.get(&shard));
        let delay = match slow {
            true => random.millis(100, 8_000),
            false => random.millis(0, 3),
        };
        let again = random.chance(faults.duplicate);
        let again_after = random.millis(1, faults.duplicate_ms.max(2));
        let plan = Plan {
            delay,
            request_lost: random.chance(faults.request_lost) || dead,
            reply_lost: random.chance(faults.reply_lost),
            again_after: again.then_some(again_after),
            silent: random.chance(500),
        };
        let fired = [
            ("fault/shard dead", dead),
            ("fault/request slow", slow),
            ("fault/request lost", plan.request_lost),
            ("fault/reply lost", plan.reply_lost),
            ("fault/request twice", again && !plan.request_lost),
        ];
        for (what, fired) in fired {
            if fired {
                self.world.count(what);
            }
        }
        plan
    }

    /// The machine asked this time: usually the first one.
    fn peer(&self) -> Result<Peer, Status> {
        let state = &mut *lock(&self.state);
        let other = state.random.chance(state.faults.other_machine);
        let now = Instant::now();
        let cut = &state.cut;
        let is_reached = |peer: &&Peer| cut.get(&peer.machine).is_none_or(|until| now >= *until);
        let mut peers = state.peers.values().filter(is_reached);
        let peer = if other {
            peers.next_back()
        } else {
            peers.next()
        };
        peer.cloned()
            .ok_or_else(|| Status::unavailable("no machine is up"))
    }

    async fn call<Q, R, F>(
        &self,
        shard: u16,
        request: Request<Q>,
        serve: impl Fn(Peer, Request<Q>) -> F + Send + Sync + Clone + 'static,
    ) -> Result<Response<R>, Status>
    where
        Q: Clone + Send + Sync + 'static,
        R: Send + 'static,
        F: Future<Output = Result<Response<R>, Status>> + Send + 'static,
    {
        let request = request.into_inner();
        let plan = self.plan(shard);
        if plan.request_lost {
            // a dead peer refuses at once or says nothing until the caller gives up
            let patience = if plan.silent { 60_000 } else { 5 };
            sleep(Duration::from_millis(patience)).await;
            return Err(Status::unavailable("the request was lost"));
        }
        if let Some(after) = plan.again_after {
            let (network, serve, request) = (self.clone(), serve.clone(), request.clone());
            self.tasks.spawn("late request", async move {
                sleep(after).await;
                let _ = network.arrive(&serve, request).await;
            });
        }
        sleep(plan.delay).await;
        let reply = self.arrive(&serve, request).await;
        if plan.reply_lost {
            return Err(Status::unavailable("the reply was lost"));
        }
        reply
    }

    async fn arrive<Q, R, F>(
        &self,
        serve: &(impl Fn(Peer, Request<Q>) -> F + Clone),
        request: Q,
    ) -> Result<Response<R>, Status>
    where
        R: Send + 'static,
        F: Future<Output = Result<Response<R>, Status>> + Send + 'static,
    {
        let peer = self.peer()?;
        let (sender, reply) = oneshot::channel();
        let tasks = peer.tasks.clone();
        let serving = serve(peer, Request::new(request));
        tasks.spawn("call", async move {
            let _ = sender.send(serving.await);
        });
        match reply.await {
            Ok(reply) => reply,
            Err(_) => Err(Status::unavailable("the connection was lost")),
        }
    }
}

/// Which shard a request names; one that is out of range goes to nobody in particular.
fn shard(index: u32) -> u16 {
    u16::try_from(index).unwrap_or(HOME)
}

#[tonic::async_trait]
impl Home for Network {
    async fn claim(&self, request: Request<ClaimRequest>) -> Result<Response<ClaimReply>, Status> {
        let serve = |peer: Peer, request| async move { peer.home.claim(request).await };
        self.call(HOME, request, serve).await
    }

    async fn lookup(
        &self,
        request: Request<LookupRequest>,
    ) -> Result<Response<LookupReply>, Status> {
        let serve = |peer: Peer, request| async move { peer.home.lookup(request).await };
        self.call(HOME, request, serve).await
    }
}

#[tonic::async_trait]
impl Mailbox for Network {
    type OpenMaildropStream = Pin<Box<dyn Stream<Item = Result<MaildropPage, Status>> + Send>>;

    async fn deliver(
        &self,
        request: Request<DeliverRequest>,
    ) -> Result<Response<DeliverReply>, Status> {
        let serve = |peer: Peer, request| async move { peer.mailboxes.deliver(request).await };
        self.call(shard(request.get_ref().shard), request, serve)
            .await
    }

    async fn void(&self, request: Request<VoidRequest>) -> Result<Response<VoidReply>, Status> {
        let serve = |peer: Peer, request| async move { peer.mailboxes.void(request).await };
        self.call(shard(request.get_ref().shard), request, serve)
            .await
    }

    async fn open_maildrop(
        &self,
        request: Request<OpenMaildropRequest>,
    ) -> Result<Response<Self::OpenMaildropStream>, Status> {
        let serve =
            |peer: Peer, request| async move { peer.mailboxes.open_maildrop(request).await };
        self.call(shard(request.get_ref().shard), request, serve)
            .await
    }

    async fn fetch(&self, request: Request<FetchRequest>) -> Result<Response<FetchReply>, Status> {
        let serve = |peer: Peer, request| async move { peer.mailboxes.fetch(request).await };
        self.call(shard(request.get_ref().shard), request, serve)
            .await
    }

    async fn expunge(
        &self,
        request: Request<ExpungeRequest>,
    ) -> Result<Response<ExpungeReply>, Status> {
        let serve = |peer: Peer, request| async move { peer.mailboxes.expunge(request).await };
        self.call(shard(request.get_ref().shard), request, serve)
            .await
    }

    async fn nearly_full(
        &self,
        request: Request<NearlyFullRequest>,
    ) -> Result<Response<NearlyFullReply>, Status> {
        let serve = |peer: Peer, request| async move { peer.mailboxes.nearly_full(request).await };
        self.call(shard(request.get_ref().shard), request, serve)
            .await
    }

    async fn usage(&self, request: Request<UsageRequest>) -> Result<Response<UsageReply>, Status> {
        let serve = |peer: Peer, request| async move { peer.mailboxes.usage(request).await };
        self.call(shard(request.get_ref().shard), request, serve)
            .await
    }
}
