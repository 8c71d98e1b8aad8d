//! The Home service: which mailbox shard owns an account.

use std::sync::Arc;

use hikyaku_engine::Engine;
use hikyaku_home::machine::{Answer, HomeMachine, Owner};
use hikyaku_home::read;
use hikyaku_proto::convert;
use hikyaku_proto::v1::record::Command;
use hikyaku_proto::v1::{Claim, ClaimReply, ClaimRequest, LookupReply, LookupRequest, home_server};
use hikyaku_serve::tasks::Tasks;
use hikyaku_shard::runtime::Shard;
use tonic::{Request, Response, Status};

use crate::barrier::Barriers;
use crate::options::MboxOptions;
use crate::status;

/// This node's replica of the home shard, and the store under it.
#[derive(Clone)]
pub struct LocalHome {
    /// Proposes and applies.
    pub shard: Shard<HomeMachine>,
    /// Read from, by snapshots.
    pub engine: Arc<dyn Engine>,
}

/// Answers `hikyaku.v1.Home`. Clones share it.
#[derive(Clone)]
pub struct HomeService {
    pub(crate) local: LocalHome,
    tasks: Tasks,
    options: MboxOptions,
    barriers: Barriers,
}

impl HomeService {
    /// A service over `local`.
    pub fn new(tasks: &Tasks, local: LocalHome, options: MboxOptions) -> HomeService {
        HomeService {
            local,
            tasks: tasks.clone(),
            options,
            barriers: Barriers::new(options.barrier_waiters_max),
        }
    }

    /// Everything logged before this call is applied and visible.
    pub(crate) async fn barrier(&self) -> Result<(), Status> {
        self.barriers
            .pass(&self.tasks, &self.local.shard, self.options.propose_timeout)
            .await
    }

    fn owner(&self, account: &str) -> Result<Option<Owner>, Status> {
        read::owner(&*self.local.engine.snapshot(), account)
            .map_err(|error| status::of_engine(&error))
    }

    /// Claims `account` for `shard`; the owner is whoever was first.
    ///
    /// # Errors
    /// A gRPC status when the answer is not known, or the claim makes no sense.
    pub async fn claim_for(&self, account: &str, shard: u32) -> Result<Owner, Status> {
        convert::account_id(account)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        // an owner stays, so what is applied here is true everywhere
        if let Some(owner) = self.owner(account)? {
            return Ok(owner);
        }
        let claim = Command::Claim(Claim {
            account: account.to_owned(),
            shard,
        });
        let proposal = self.local.shard.propose(claim);
        match status::within(self.options.propose_timeout, proposal).await {
            Ok(Answer::Owner(owner)) => Ok(owner),
            Ok(Answer::Malformed | Answer::Done) => Err(Status::invalid_argument(
                "not a shard that can own accounts",
            )),
            Err(error) => Err(status::of_propose(&error)),
        }
    }
}

#[tonic::async_trait]
impl home_server::Home for HomeService {
    async fn claim(&self, request: Request<ClaimRequest>) -> Result<Response<ClaimReply>, Status> {
        let ClaimRequest { account, shard } = request.into_inner();
        let owner = self.claim_for(&account, shard).await?;
        Ok(Response::new(ClaimReply {
            shard: u32::from(owner.shard),
            generation: owner.generation,
        }))
    }

    async fn lookup(
        &self,
        request: Request<LookupRequest>,
    ) -> Result<Response<LookupReply>, Status> {
        let LookupRequest {
            account,
            linearizable,
        } = request.into_inner();
        let mut owner = self.owner(&account)?;
        // an owner stays; only "nobody" can be out of date
        if owner.is_none() && linearizable {
            self.barrier().await?;
            owner = self.owner(&account)?;
        }
        Ok(Response::new(LookupReply {
            shard: owner.map(|owner| u32::from(owner.shard)),
            generation: owner.map_or(0, |owner| owner.generation),
        }))
    }
}
