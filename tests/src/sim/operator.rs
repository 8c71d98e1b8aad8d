//! What operators and tools do: orders to the queue, commands to mailbox shards, a restored backup.

use std::time::Duration;

use bytes::Bytes;
use hikyaku_engine::Snapshot;
use hikyaku_mail::id::MessageId;
use hikyaku_mbox::mailbox::LocalMailbox;
use hikyaku_proto::v1::operate::Order;
use hikyaku_proto::v1::record::Command;
use hikyaku_proto::v1::{
    AccountState, CreateMailbox, Ingest, LookupRequest, QueueOperateRequest, SetAccount,
    ShardHeader, StoreFlags, shard_piece, store_flags::How,
};
use hikyaku_store::export::{Export, FORMAT};
use hikyaku_store::machine::Answer;
use hikyaku_store::read::{self, Account};
use tokio::time::{sleep, timeout};

use super::network::Network;
use super::run::Run;
use super::site::{SPARE_SHARD, account_id};
use super::world::{World, lock};

/// For one command.
const PATIENCE: Duration = Duration::from_secs(20);

/// Gives some order about some message that is in the queue.
pub fn order(run: &mut Run) {
    let live = run.cluster.history.look(|truth| {
        let live = truth.messages.iter().filter(|(_, fate)| !fate.is_settled());
        live.map(|(id, _)| *id).collect::<Vec<MessageId>>()
    });
    if live.is_empty() {
        return;
    }
    let id = *run.random.pick(&live);
    let order = *run.random.pick(&[
        Order::Hold,
        Order::Hold,
        Order::Release,
        Order::Delete,
        Order::Retry,
    ]);
    give(run, order, id);
}

/// Gives an order about a message to whoever leads.
pub fn give(run: &Run, order: Order, id: MessageId) {
    let machines = run.cluster.machines.iter();
    let lives = machines.filter_map(|machine| machine.life.as_ref());
    let Some((tasks, control)) = lives
        .filter_map(|life| Some((life.tasks.clone(), life.control.clone()?)))
        .next()
    else {
        return;
    };
    run.world.note(format_args!("operator: {order:?} {id}"));
    run.world.count(format!("operator/{}", order.as_str_name()));
    if order == Order::Delete {
        lock(&run.cluster.clients.ledger).deleted.insert(id);
    }
    let request = QueueOperateRequest {
        order: order.into(),
        message_ids: vec![Bytes::copy_from_slice(&id.to_bytes())],
        operator: "sim".to_owned(),
        ..QueueOperateRequest::default()
    };
    tasks.spawn("operator", async move {
        let _ = control.operate(&request).await;
    });
}

/// The replica, on some machine that is up, of the shard that owns a user's account.
pub async fn owner(network: &Network, user: &str) -> Option<LocalMailbox> {
    let request = LookupRequest {
        account: account_id(user).to_string(),
        linearizable: false,
    };
    let mut home = network.home_client();
    let reply = timeout(PATIENCE, home.lookup(request)).await.ok()?.ok()?;
    let shard = reply.into_inner().shard?;
    let peer = network.any_peer()?;
    peer.mailboxes.local(u16::try_from(shard).ok()?).cloned()
}

/// Proposes `command` where `user`'s account is; whether it was carried out.
pub async fn propose(network: &Network, user: &str, command: Command) -> bool {
    let Some(local) = owner(network, user).await else {
        return false;
    };
    let proposal = local.shard.propose(command);
    matches!(timeout(PATIENCE, proposal).await, Ok(Ok(_)))
}

/// Sets the state of `user`'s account, again and again until it is set.
pub async fn set_state(network: &Network, user: &str, state: AccountState) {
    let command = state_command(user, state);
    while !propose(network, user, command.clone()).await {
        sleep(Duration::from_secs(1)).await;
    }
}

/// Sets the quota of `user`'s account, again and again until it is set; 0 is unlimited.
pub async fn set_quota(world: &World, network: &Network, user: &str, quota_bytes: u64) {
    let command = quota_command(user, quota_bytes);
    world.count("operator/quota");
    while !propose(network, user, command.clone()).await {
        sleep(Duration::from_secs(1)).await;
    }
}

/// Some command that no role proposes yet.
pub fn command(run: &mut Run) {
    let user = *run.random.pick(&["u0", "u1", "u2", "u3", "u8"]);
    let kind = run.random.below(3);
    let network = run.cluster.network.clone();
    let number = run.random.below(4);
    let flags = match run.random.chance(500) {
        true => vec!["\\Seen".to_owned(), "$Work".to_owned()],
        false => vec!["\\Flagged".to_owned()],
    };
    run.world
        .note(format_args!("command {kind} for account {user}"));
    run.cluster.clients.tasks.spawn("command", async move {
        let account = account_id(user).to_string();
        let command = match kind {
            0 => Command::SetAccount(SetAccount {
                account,
                state: Some(AccountState::Suspended.into()),
                ..SetAccount::default()
            }),
            1 => Command::CreateMailbox(CreateMailbox {
                account,
                name: format!("Work-{number}"),
                special_use: String::new(),
            }),
            _ => {
                let Some(local) = owner(&network, user).await else {
                    return;
                };
                let snapshot = local.engine.snapshot();
                let Ok(Account::Open(open)) = read::account(&*snapshot, &account) else {
                    return;
                };
                let Ok(Some(inbox)) = read::mailbox(&*snapshot, &account, open.inbox) else {
                    return;
                };
                Command::StoreFlags(StoreFlags {
                    account,
                    mailbox_id: 0,
                    uid_validity: inbox.uid_validity,
                    uids: (1..inbox.uid_next).step_by(number + 1).collect(),
                    how: How::Add.into(),
                    flags,
                    unchanged_since: 0,
                })
            }
        };
        propose(&network, user, command).await;
    });
}

/// Opens every account again that something has closed.
pub async fn activate_all(run: &mut Run) {
    for user in ["u0", "u1", "u2", "u3", "u6", "u7", "u8"] {
        // an account that nobody has claimed needs nothing
        let owned = owner(&run.cluster.network, user).await.is_some();
        if owned {
            insist(run, user, state_command(user, AccountState::Active)).await;
        }
    }
}

/// Lifts what [`super::scenario::operator_limits`] may have left.
pub async fn end_limits(run: &mut Run) {
    if owner(&run.cluster.network, "u8").await.is_some() {
        run.world.count("operator/quota");
        insist(run, "u8", quota_command("u8", 0)).await;
    }
}

/// Proposes `command` again and again, and looks after the machines meanwhile: the log may leave a replica behind at any time.
async fn insist(run: &mut Run, user: &str, command: Command) {
    let network = run.cluster.network.clone();
    while !propose(&network, user, command.clone()).await {
        sleep(Duration::from_secs(1)).await;
        run.supervise().await;
    }
}

fn state_command(user: &str, state: AccountState) -> Command {
    Command::SetAccount(SetAccount {
        account: account_id(user).to_string(),
        state: Some(state.into()),
        ..SetAccount::default()
    })
}

fn quota_command(user: &str, quota_bytes: u64) -> Command {
    Command::SetAccount(SetAccount {
        account: account_id(user).to_string(),
        quota_bytes: Some(quota_bytes),
        ..SetAccount::default()
    })
}

/// Attempts to restore a backup.
const RESTORE_TRIES: usize = 3;

/// Hands all pieces of an account to a shard; what it says to the piece that it does not take.
async fn ingest(into: &LocalMailbox, pieces: &[Ingest]) -> Option<String> {
    for piece in pieces {
        loop {
            let command = Command::Ingest(piece.clone());
            match into.shard.propose(command).await {
                Ok(committed) if committed.answer == Answer::Ingested => break,
                Ok(committed) if committed.answer == Answer::Discarding => {}
                other => return Some(format!("{:?}", other.map(|committed| committed.answer))),
            }
        }
    }
    None
}

/// Takes a backup of an account and restores it into a shard of its own; what comes out must be what went in.
pub async fn restore(run: &Run) {
    let Some(local) = owner(&run.cluster.network, "u0").await else {
        return;
    };
    let _ = local.shard.barrier().await;
    let account = account_id("u0").to_string();
    let header = ShardHeader {
        shard: local.shard.id().to_string(),
        format: FORMAT,
        ..ShardHeader::default()
    };
    let contents = |snapshot: &dyn Snapshot| {
        let Ok(Account::Open(open)) = read::account(snapshot, &account) else {
            return Vec::new();
        };
        let messages = read::messages(snapshot, &account, open.inbox, 0, 10_000);
        let messages = messages.unwrap_or_default().into_iter();
        messages
            .map(|(uid, message)| (uid, message.email_id, message.size, message.flags))
            .collect()
    };
    // mail may come in meanwhile: what was taken counts
    let taken = local.engine.snapshot();
    let expected = contents(&*taken);
    let mut export = Export::new(taken, header);
    let mut pieces: Vec<Ingest> = Vec::new();
    while let Ok(Some(piece)) = export.next_piece() {
        if let Some(shard_piece::Piece::Ingest(ingest)) = piece.piece
            && ingest.account == account
        {
            pieces.push(ingest);
        }
    }
    let peer = run.cluster.network.any_peer();
    let Some(spare) = peer.and_then(|peer| peer.mailboxes.local(SPARE_SHARD).cloned()) else {
        return;
    };
    // a clock that jumps may end an attempt as given up: whoever restores begins again
    let mut answer = None;
    for _ in 0..RESTORE_TRIES {
        answer = ingest(&spare, &pieces).await;
        if answer.is_none() {
            break;
        }
    }
    if let Some(answer) = answer {
        run.world
            .violate(format_args!("a backup is not taken back: {answer}"));
        return;
    }
    if contents(&*spare.engine.snapshot()) != expected {
        run.world.violate("a restored account is another one");
    }
    run.world.count("event/restored");
}
