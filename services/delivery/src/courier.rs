//! The local courier: one recipient to the mailbox shard that owns its account, over gRPC, and what each answer means.

use std::future::Future;

use bytes::Bytes;
use hikyaku_directory::Decision;
use hikyaku_mail::dsn::Action;
use hikyaku_mail::id::DeliveryId;
use hikyaku_mail::path::Mailbox;
use hikyaku_mail::reply::Reply;
use hikyaku_proto::v1::deliver_reply::Answer;
use hikyaku_proto::v1::outcome::Result as Attempt;
use hikyaku_proto::v1::void_reply::Answer as VoidAnswer;
use hikyaku_proto::v1::{
    ClaimRequest, Deliver, DeliverRequest, Delivered, LocalTarget, LookupRequest, NotOwner,
    Recipient, Stored, VoidRequest,
};
use hikyaku_queue::held;
use hikyaku_serve::trace;
use tracing::{Instrument as _, Span};

use crate::homes::Owner;
use crate::job::{ANSWER_TIMEOUT, Job, Step};
use crate::lanes::LaneKey;
use crate::report::{self, Event, Other};
use crate::{bounce, expand};

/// Owners followed in a row; more is a quarrel between Home and the shards, which is ours to mend.
const HOPS_MAX: u8 = 4;

/// The next step for a recipient with a mailbox of ours.
pub async fn step(job: &mut Job<'_>, local: &LocalTarget) -> Result<Step, Step> {
    if job.entry.reroute {
        return reroute(job, local).await;
    }
    match job.entry.owner {
        None => claim(job, local).await,
        Some(owner) => deliver(job, local, owner).await,
    }
}

/// Asks Home who owns the account, claiming it for the wanted shard when nobody does. Only so does a mailbox come to exist.
async fn claim(job: &mut Job<'_>, local: &LocalTarget) -> Result<Step, Step> {
    let known = job.context.homes().find(&local.account);
    let owner = match known {
        Some(owner) => owner,
        None => {
            let placement = &job.context.placement;
            let wanted = placement.shard(&local.tenant, &local.mbox, &local.account);
            let Some(shard) = wanted else {
                tracing::error!(mbox = local.mbox, account = local.account, "no such mbox");
                return job.hold(held::UNKNOWN_MBOX).await;
            };
            let request = ClaimRequest {
                account: local.account.clone(),
                shard,
            };
            let mut home = job.context.home.clone();
            let reply = answer(LaneKey::Home, home.claim(request)).await?;
            job.answered.push(LaneKey::Home);
            let owner = Owner {
                shard: reply.shard,
                generation: reply.generation,
            };
            job.context.homes().learn(&local.account, owner);
            owner
        }
    };
    job.entry.owner = Some(owner);
    Ok(Step::Next(LaneKey::Mbox(owner.shard)))
}

/// Commit point B, seen from here.
async fn deliver(job: &mut Job<'_>, local: &LocalTarget, owner: Owner) -> Result<Step, Step> {
    let lane = LaneKey::Mbox(owner.shard);
    let span = span(job);
    let body = job.body().instrument(span.clone()).await?;
    let quota_bytes = quota(job, local).await;
    // a repeat of a call that was not answered is the same command; a new attempt is a new one
    let cmd_id = match job.entry.unanswered {
        Some(cmd_id) => cmd_id,
        None => job.context.shard.ambient().command_id(),
    };
    job.entry.unanswered = Some(cmd_id);
    let request = DeliverRequest {
        shard: owner.shard,
        deliver: Some(Deliver {
            delivery_id: delivery_id(job),
            account: local.account.clone(),
            generation: owner.generation,
            prefix: prefix(job),
            body: Some(body),
            received_ms: job.work.envelope.received_ms,
            mailbox: String::new(),
            quota_bytes,
        }),
        cmd_id: Bytes::copy_from_slice(&cmd_id),
        tenant: local.tenant.clone(),
        traceparent: trace::traceparent(&span),
    };
    let mut mailboxes = (job.context.mailboxes)(owner.shard);
    let reply = answer(lane, mailboxes.deliver(request))
        .instrument(span)
        .await?;
    let Some(said) = reply.answer else {
        return Err(Step::Failed(lane, "empty answer".into()));
    };
    job.entry.unanswered = None;
    if !matches!(said, Answer::Busy(_)) {
        job.answered.push(lane);
    }
    match said {
        Answer::Delivered(stored) | Answer::AlreadyDelivered(stored) => {
            delivered(job, local, owner.shard, stored).await
        }
        Answer::OverQuota(_) => {
            let later = Reply::new(452, (4, 2, 2), "mailbox full");
            let never = Reply::new(552, (5, 2, 2), "mailbox full");
            not_now(job, local, later, never).await
        }
        Answer::Disabled(_) => disabled(job, local).await,
        Answer::NotOwner(said) => moved(job, local, said),
        Answer::Busy(_) => Err(Step::Failed(lane, "busy".into())),
        // an earlier leader meant to route it elsewhere and did not come to it
        Answer::Voided(_) => reroute(job, local).await,
    }
}

/// Part of the mail's trace, if it has one.
fn span(job: &Job<'_>) -> Span {
    let traceparent = &job.work.traceparent;
    if traceparent.is_empty() {
        return Span::none();
    }
    let (queue_id, number) = job.work.key;
    let span =
        tracing::trace_span!(target: trace::TARGET, "delivery", %queue_id, recipient = number);
    trace::follow(&span, traceparent);
    span
}

/// Waits for an answer of what `lane` is for. No answer is our own trouble.
async fn answer<T>(
    lane: LaneKey,
    call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
) -> Result<T, Step> {
    match tokio::time::timeout(ANSWER_TIMEOUT, call).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(Step::Failed(
            lane,
            format!("{:?}: {}", status.code(), status.message()),
        )),
        Err(_) => Err(Step::Failed(lane, "timeout".into())),
    }
}

/// The account's quota as the directory has it now; without an answer the mail goes in rather than waits.
async fn quota(job: &Job<'_>, local: &LocalTarget) -> u64 {
    let Ok(id) = local.account.parse() else {
        return 0;
    };
    let asked = job.context.directory.account(&id);
    match tokio::time::timeout(job.context.options.quota_timeout, asked).await {
        Ok(Ok(Some(account))) => account.quota_bytes.unwrap_or(0),
        _ => 0,
    }
}

fn delivery_id(job: &Job<'_>) -> Bytes {
    let (message, recipient) = job.work.key;
    let id = DeliveryId { message, recipient };
    Bytes::copy_from_slice(&id.to_bytes())
}

/// RFC 5321 section 4.4: final delivery puts the reverse-path in front. A list's errors go to its owner (section 3.9.2).
fn prefix(job: &Job<'_>) -> Bytes {
    let reverse_path = bounce::report_to(&job.work);
    let address = &job.work.recipient.address;
    Bytes::from(format!(
        "Return-Path: <{reverse_path}>\r\nDelivered-To: {address}\r\n"
    ))
}

async fn delivered(
    job: &mut Job<'_>,
    local: &LocalTarget,
    shard: u32,
    stored: Stored,
) -> Result<Step, Step> {
    let fact = Delivered {
        shard,
        uid_validity: stored.uid_validity,
        uid: stored.uid,
    };
    let context = job.context;
    loop {
        let with = served_with(job);
        let event = Event {
            with: with.clone(),
            ..Event::now(Action::Delivered)
        };
        let report = report::of_success(job, event).await?;
        let _settling = context.settling(job.work.key.0, &local.account).await;
        // whoever has turned out to be in the same mailbox meanwhile is told of too
        if served_with(job) == with {
            job.record_with(Attempt::Delivered(fact), report).await;
            break;
        }
    }
    let at = format!("mbox-{shard}/{}", local.account);
    job.settled("delivered", &at, None, "");
    Ok(Step::Done)
}

/// Others who get the mail with this recipient.
fn served_with(job: &Job<'_>) -> Vec<Other> {
    let key = job.work.key;
    let served = job.context.shard.read(|machine| machine.served_with(key));
    let other = |(address, recipient): (String, Recipient)| Other {
        address,
        original_recipient: recipient.original_recipient,
        reply: None,
        last_attempt_ms: None,
    };
    served.into_iter().map(other).collect()
}

/// A trouble of the world's: later, or never once the message is too old.
async fn not_now(
    job: &mut Job<'_>,
    local: &LocalTarget,
    later: Reply,
    never: Reply,
) -> Result<Step, Step> {
    if job.has_expired() {
        if let Some(step) = void(job, local).await? {
            return Ok(step);
        }
        return bounce::fail(job, never, "expired").await;
    }
    let at = job.entry.owner.map(|owner| format!("mbox-{}", owner.shard));
    Ok(job.put_off(at.as_deref().unwrap_or_default(), &later).await)
}

/// The mailbox takes no mail. Perhaps the address belongs to somebody else by now.
async fn disabled(job: &mut Job<'_>, local: &LocalTarget) -> Result<Step, Step> {
    let address: Option<Mailbox> = job.work.recipient.address.parse().ok();
    if let Some(address) = address
        && let Ok(Ok(resolution)) = job.ask(&address).await
    {
        let same = matches!(&resolution.decision,
            Decision::Local { account, .. } if account.id.as_str() == local.account);
        if !same {
            return reroute(job, local).await;
        }
    }
    let later = Reply::new(450, (4, 2, 1), "mailbox disabled");
    let never = Reply::new(550, (5, 2, 1), "mailbox disabled");
    not_now(job, local, later, never).await
}

/// The account lives elsewhere: there at once, a few times in a row.
fn moved(job: &mut Job<'_>, local: &LocalTarget, said: NotOwner) -> Result<Step, Step> {
    job.entry.hops += 1;
    let quarrel = job.entry.hops > HOPS_MAX;
    let owner = said.shard.map(|shard| Owner {
        shard,
        generation: said.generation,
    });
    job.context.homes().forget(&local.account);
    job.entry.owner = owner.filter(|_| !quarrel);
    if quarrel {
        job.entry.hops = 0;
        return Err(Step::Failed(
            LaneKey::Home,
            format!("nobody owns account {}", local.account),
        ));
    }
    match owner {
        Some(owner) => {
            job.context.homes().learn(&local.account, owner);
            Ok(Step::Next(LaneKey::Mbox(owner.shard)))
        }
        None => Ok(Step::Next(LaneKey::Home)),
    }
}

/// Sends a recipient where the directory says now, once nothing can be stored under its delivery id any more.
async fn reroute(job: &mut Job<'_>, local: &LocalTarget) -> Result<Step, Step> {
    job.entry.reroute = true;
    let Ok(address) = job.work.recipient.address.parse::<Mailbox>() else {
        return job.hold(held::MALFORMED).await;
    };
    let resolution = job.resolve(&address).await?;
    if let Some(step) = void(job, local).await? {
        return Ok(step);
    }
    expand::route(job, &address, resolution, &[]).await
}

/// Makes sure that nothing is or will be stored under the delivery id. A step when it is stored already.
async fn void(job: &mut Job<'_>, local: &LocalTarget) -> Result<Option<Step>, Step> {
    let mut owner = match job.entry.owner {
        Some(owner) => owner,
        None => match lookup(job, local).await? {
            Some(owner) => owner,
            // nobody has ever delivered to it
            None => return Ok(None),
        },
    };
    for _ in 0..HOPS_MAX {
        job.entry.owner = Some(owner);
        let lane = LaneKey::Mbox(owner.shard);
        let request = VoidRequest {
            shard: owner.shard,
            account: local.account.clone(),
            delivery_id: delivery_id(job),
            cmd_id: Bytes::copy_from_slice(&job.context.shard.ambient().command_id()),
        };
        let mut mailboxes = (job.context.mailboxes)(owner.shard);
        let reply = answer(lane, mailboxes.void(request)).await?;
        match reply.answer {
            Some(VoidAnswer::Voided(_)) => {
                job.answered.push(lane);
                return Ok(None);
            }
            Some(VoidAnswer::AlreadyDelivered(stored)) => {
                job.answered.push(lane);
                let step = delivered(job, local, owner.shard, stored).await?;
                return Ok(Some(step));
            }
            Some(VoidAnswer::NotOwner(said)) => {
                job.answered.push(lane);
                match said.shard {
                    Some(shard) if shard != owner.shard => {
                        owner = Owner {
                            shard,
                            generation: said.generation,
                        };
                        job.context.homes().learn(&local.account, owner);
                    }
                    _ => return Ok(None),
                }
            }
            None => return Err(Step::Failed(lane, "empty answer".into())),
        }
    }
    Err(Step::Failed(
        LaneKey::Home,
        format!("nobody owns account {}", local.account),
    ))
}

/// The owner according to Home, without claiming anything.
async fn lookup(job: &mut Job<'_>, local: &LocalTarget) -> Result<Option<Owner>, Step> {
    let request = LookupRequest {
        account: local.account.clone(),
        linearizable: true,
    };
    let mut home = job.context.home.clone();
    let reply = answer(LaneKey::Home, home.lookup(request)).await?;
    job.answered.push(LaneKey::Home);
    Ok(reply.shard.map(|shard| Owner {
        shard,
        generation: reply.generation,
    }))
}
