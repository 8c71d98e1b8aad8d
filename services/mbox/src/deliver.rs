//! Commit point B, asked over gRPC: claim the account if it is new, log the delivery, answer when it is applied.

use hikyaku_proto::convert;
use hikyaku_proto::v1::record::Command;
use hikyaku_proto::v1::{
    Busy, Deliver, DeliverReply, DeliverRequest, Disabled, NotOwner, OpenAccount, OverQuota,
    Stored, Void, VoidReply, VoidRequest, Voided, body, deliver_reply, void_reply,
};
use hikyaku_serve::trace;
use hikyaku_store::machine::{Answer, StoredAt};
use hikyaku_store::read::{self, Account};
use tonic::Status;
use tracing::{Instrument as _, Span};

use crate::mailbox::{MailboxService, ServedShard};
use crate::status;

/// What a delivery takes of the shard's room at least, so that their number is bounded too.
const DELIVERY_KIB_MIN: usize = 8;

/// Whether the account is here.
enum Here {
    Yes { generation: u64 },
    Elsewhere(NotOwner),
    Busy,
}

impl MailboxService {
    pub(crate) async fn deliver_mail(
        &self,
        request: DeliverRequest,
    ) -> Result<DeliverReply, Status> {
        let served = self.served(request.shard)?;
        let cmd_id = status::command_id(&request.cmd_id)?;
        let mut deliver = request
            .deliver
            .ok_or_else(|| Status::invalid_argument("nothing to deliver"))?;
        check(&deliver)?;
        let Some(_room) = room(served, &deliver) else {
            return Ok(reply(deliver_reply::Answer::Busy(Busy {})));
        };
        let generation = match self
            .here(served, request.shard, &deliver.account, request.tenant)
            .await?
        {
            Here::Yes { generation } => generation,
            Here::Elsewhere(owner) => return Ok(reply(deliver_reply::Answer::NotOwner(owner))),
            Here::Busy => return Ok(reply(deliver_reply::Answer::Busy(Busy {}))),
        };
        if deliver.generation == 0 {
            deliver.generation = generation;
        }
        let span = span(&request.traceparent);
        let account = deliver.account.clone();
        let proposal = self
            .propose(served, cmd_id, Command::Deliver(deliver))
            .instrument(span);
        let answer = proposal.await.map_err(|error| status::of_propose(&error))?;
        Ok(reply(match answer {
            Answer::Delivered(at) => deliver_reply::Answer::Delivered(stored(at)),
            Answer::AlreadyDelivered(at) => deliver_reply::Answer::AlreadyDelivered(stored(at)),
            Answer::OverQuota => deliver_reply::Answer::OverQuota(OverQuota {}),
            Answer::Disabled => deliver_reply::Answer::Disabled(Disabled {}),
            Answer::Voided => deliver_reply::Answer::Voided(Voided {}),
            Answer::Busy => deliver_reply::Answer::Busy(Busy {}),
            // it was here, under another generation or a moment ago: the caller asks again with what it hears now
            Answer::NotOwner => {
                served.known.forget(&account);
                deliver_reply::Answer::NotOwner(NotOwner {
                    shard: Some(request.shard),
                    generation,
                })
            }
            other => return Err(unexpected(&other)),
        }))
    }

    /// Makes sure that the account is open here, which takes a `Claim` the first time.
    async fn here(
        &self,
        served: &ServedShard,
        shard: u32,
        account: &str,
        tenant: String,
    ) -> Result<Here, Status> {
        if let Some(generation) = served.known.generation(account) {
            return Ok(Here::Yes { generation });
        }
        let known = read::account(&*served.local.engine.snapshot(), account)
            .map_err(|error| status::of_store(&error))?;
        match known {
            Account::Open(known) => {
                served.known.learn(account, known.generation);
                return Ok(Here::Yes {
                    generation: known.generation,
                });
            }
            Account::Busy => return Ok(Here::Busy),
            Account::Absent => {}
        }
        let owner = self.claim(account, shard).await?;
        if owner.shard != shard {
            return Ok(Here::Elsewhere(NotOwner {
                shard: Some(owner.shard),
                generation: owner.generation,
            }));
        }
        let open = Command::OpenAccount(OpenAccount {
            account: account.to_owned(),
            generation: owner.generation,
            tenant,
        });
        let cmd_id = served.local.shard.ambient().command_id();
        match self.propose(served, cmd_id, open).await {
            Ok(Answer::Opened { generation }) => {
                served.known.learn(account, generation);
                Ok(Here::Yes { generation })
            }
            Ok(Answer::Busy) => Ok(Here::Busy),
            Ok(other) => Err(unexpected(&other)),
            Err(error) => Err(status::of_propose(&error)),
        }
    }

    pub(crate) async fn void_delivery(&self, request: VoidRequest) -> Result<VoidReply, Status> {
        let served = self.served(request.shard)?;
        let cmd_id = status::command_id(&request.cmd_id)?;
        // also when the account is not here: a delivery still under way could open it
        let void = Command::Void(Void {
            delivery_id: request.delivery_id,
            account: request.account,
        });
        let answer = self
            .propose(served, cmd_id, void)
            .await
            .map_err(|error| status::of_propose(&error))?;
        let answer = match answer {
            Answer::Voided => void_reply::Answer::Voided(Voided {}),
            Answer::AlreadyDelivered(at) => void_reply::Answer::AlreadyDelivered(stored(at)),
            other => return Err(unexpected(&other)),
        };
        Ok(VoidReply {
            answer: Some(answer),
        })
    }
}

/// Part of the mail's trace, if it has one.
fn span(traceparent: &str) -> Span {
    if traceparent.is_empty() {
        return Span::none();
    }
    let span = tracing::trace_span!(target: trace::TARGET, "mbox");
    trace::follow(&span, traceparent);
    span
}

fn check(deliver: &Deliver) -> Result<(), Status> {
    let invalid = |error: convert::Malformed| Status::invalid_argument(error.to_string());
    convert::delivery_id(&deliver.delivery_id).map_err(invalid)?;
    convert::account_id(&deliver.account).map_err(invalid)?;
    Ok(())
}

/// Room for one more delivery in the shard, as long as it is held; `None` when it is full or behind with its writing.
fn room<'a>(
    served: &'a ServedShard,
    deliver: &Deliver,
) -> Option<tokio::sync::SemaphorePermit<'a>> {
    if served.local.engine.stalled() {
        return None;
    }
    let inline = match deliver.body.as_ref().and_then(|body| body.content.as_ref()) {
        Some(body::Content::Zstd(bytes)) => bytes.len(),
        _ => 0,
    };
    let kib = ((inline + deliver.prefix.len()) / 1_024).max(DELIVERY_KIB_MIN);
    let kib = u32::try_from(kib).ok()?;
    served.in_flight.try_acquire_many(kib).ok()
}

fn reply(answer: deliver_reply::Answer) -> DeliverReply {
    DeliverReply {
        answer: Some(answer),
    }
}

fn stored(at: StoredAt) -> Stored {
    Stored {
        uid_validity: at.uid_validity,
        uid: at.uid,
    }
}

/// Answers that leave the caller with nothing definite.
pub(crate) fn unexpected(answer: &Answer) -> Status {
    match answer {
        Answer::Refused(reason) => Status::invalid_argument(*reason),
        Answer::Busy => Status::unavailable("the account is being restored or purged"),
        Answer::NotOwner => Status::failed_precondition("the account is not here"),
        other => Status::internal(format!("answered {other:?}")),
    }
}
