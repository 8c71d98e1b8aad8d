//! Backups: what a shard holds at one position, as pieces; and back, for accounts that the cluster does not have.
//!
//! A restore goes through the log like all else, claims every account at Home first, skips what exists and says so. Damage
//! of the stream is noticed at its end at the latest: accounts that were whole by then stay, which the error says too.

use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt};
use futures_util::{Stream, stream};
use hikyaku_engine::Snapshot;
use hikyaku_log::{AppendError, Class, ShardId};
use hikyaku_proto::v1::ingest::Piece;
use hikyaku_proto::v1::record::Command;
use hikyaku_proto::v1::{
    Claim, Ingest, ShardHeader, ShardPiece, ShardRestoreReply, ShardTrailer, StoredTenant,
    shard_piece,
};
use hikyaku_shard::machine::Machine;
use hikyaku_shard::runtime::{ProposeError, Shard};
use hikyaku_shard::stored::Stored;
use hikyaku_store::audit::{Audit, audit};
use hikyaku_store::export::{Export, FORMAT, PieceError, Seal, Verifier};
use hikyaku_store::machine::Answer;
use hikyaku_store::read;
use tokio::time::Instant;
use tonic::Status;

use crate::home::HomeService;
use crate::mailbox::{MailboxService, ServedShard};
use crate::status;

/// Lines said about skipped accounts.
const NOTES_MAX: usize = 100;
/// Messages of one account, or claims, on their way into the log.
const INGESTS_MAX: usize = 32;
/// Claims read at once.
const CLAIMS_PAGE: usize = 1_000;
/// Wait before an unavailable log is tried again.
const RETRY_WAIT: Duration = Duration::from_millis(200);

/// The pieces of mailbox shard `index` at this moment: everything logged before the call.
///
/// # Errors
/// A gRPC status when the shard is not here or cannot be read now.
pub async fn snapshot_mailboxes(
    service: &MailboxService,
    index: u16,
) -> Result<impl Stream<Item = Result<ShardPiece, Status>> + Send + 'static, Status> {
    let served = service.served(u32::from(index))?;
    service.barrier(served).await?;
    let snapshot = served.local.engine.snapshot();
    let header = header(&served.local.shard, &*snapshot)?;
    let export = Export::new(snapshot, header);
    Ok(stream::unfold(Some(export), async |export| {
        let mut export = export?;
        // a long read must not keep the node's other tasks from running
        tokio::task::yield_now().await;
        match export.next_piece() {
            Ok(Some(piece)) => Some((Ok(piece), Some(export))),
            Ok(None) => None,
            Err(error) => Some((Err(status::of_store(&error)), None)),
        }
    }))
}

/// The pieces of the home shard at this moment.
///
/// # Errors
/// A gRPC status when it cannot be read now.
pub async fn snapshot_home(
    service: &HomeService,
) -> Result<impl Stream<Item = Result<ShardPiece, Status>> + Send + 'static, Status> {
    service.barrier().await?;
    let snapshot = service.local.engine.snapshot();
    let header = header(&service.local.shard, &*snapshot)?;
    let export = HomeExport {
        snapshot,
        seal: Seal::default(),
        accounts: 0,
        after: String::new(),
        ready: vec![shard_piece::Piece::Header(header)].into_iter(),
        ended: false,
    };
    Ok(stream::unfold(Some(export), async |export| {
        let mut export = export?;
        match export.next_piece() {
            Ok(Some(piece)) => Some((Ok(piece), Some(export))),
            Ok(None) => None,
            Err(status) => Some((Err(status), None)),
        }
    }))
}

fn header<M: Machine>(shard: &Shard<M>, snapshot: &dyn Snapshot) -> Result<ShardHeader, Status> {
    let stored = Stored::decode(&snapshot.position())
        .ok_or_else(|| Status::internal("the store's position does not decode"))?;
    Ok(ShardHeader {
        shard: shard.id().to_string(),
        position: stored.applied.stamp.position.0,
        incarnation: stored.applied.incarnation,
        time_ms: shard.ambient().now_ms(),
        format: FORMAT,
    })
}

struct HomeExport {
    snapshot: Box<dyn Snapshot>,
    seal: Seal,
    accounts: u64,
    after: String,
    ready: std::vec::IntoIter<shard_piece::Piece>,
    ended: bool,
}

impl HomeExport {
    fn next_piece(&mut self) -> Result<Option<ShardPiece>, Status> {
        if let Some(piece) = self.ready.next() {
            return Ok(Some(self.sealed(piece)));
        }
        if self.ended {
            return Ok(None);
        }
        let claims = hikyaku_home::read::claims(&*self.snapshot, &self.after, CLAIMS_PAGE)
            .map_err(|error| status::of_engine(&error))?;
        let Some(last) = claims.last() else {
            self.ended = true;
            let trailer = ShardTrailer {
                accounts: self.accounts,
                messages: 0,
                blake3: self.seal.finish().to_vec().into(),
            };
            return Ok(Some(ShardPiece {
                piece: Some(shard_piece::Piece::Trailer(trailer)),
            }));
        };
        self.after = last.account.clone();
        self.accounts += claims.len() as u64;
        let pieces: Vec<_> = claims.into_iter().map(shard_piece::Piece::Claim).collect();
        self.ready = pieces.into_iter();
        Ok(self.ready.next().map(|piece| self.sealed(piece)))
    }

    fn sealed(&mut self, piece: shard_piece::Piece) -> ShardPiece {
        let piece = ShardPiece { piece: Some(piece) };
        self.seal.add(&piece);
        piece
    }
}

/// Restores accounts that neither mailbox shard `index` nor any other has.
///
/// # Errors
/// A gRPC status when the pieces are no backup of a mailbox shard, or the log stays unavailable. What was restored stays.
pub async fn restore_mailboxes(
    service: &MailboxService,
    index: u16,
    pieces: impl Stream<Item = Result<ShardPiece, Status>>,
) -> Result<ShardRestoreReply, Status> {
    let mut restore = Restore {
        service,
        served: service.served(u32::from(index))?,
        index: u32::from(index),
        reply: ShardRestoreReply::default(),
        account: Current::Skipped,
    };
    let mut verifier = Verifier::default();
    let mut pieces = std::pin::pin!(pieces);
    // messages of an account may be logged in any order
    let mut under_way = FuturesUnordered::new();
    while let Some(piece) = pieces.next().await {
        let piece = piece?;
        check(&mut verifier, &piece, Class::Mbox)?;
        let Some(shard_piece::Piece::Ingest(mut ingest)) = piece.piece else {
            continue;
        };
        let one_at_a_time = !matches!(ingest.piece, Some(Piece::Message(_)));
        while under_way.len() >= INGESTS_MAX || (one_at_a_time && !under_way.is_empty()) {
            if let Some(answer) = under_way.next().await {
                restore.ingested(answer?);
            }
        }
        if let Some(Piece::Begin(_)) = ingest.piece {
            restore.begin(ingest).await?;
            continue;
        }
        let Current::Restoring { id, generation } = &restore.account else {
            continue;
        };
        if *id != ingest.account {
            return Err(Status::invalid_argument("pieces of accounts are mixed"));
        }
        ingest.generation = *generation;
        if one_at_a_time {
            let end = match &ingest.piece {
                Some(Piece::End(end)) => Some(end.messages),
                _ => None,
            };
            let answer = restore.ingest(ingest).await?;
            restore.ingested(answer);
            if let Some(messages) = end {
                restore.end(messages);
            }
        } else {
            under_way.push(ingest_one(service, restore.served, ingest));
        }
    }
    while let Some(answer) = under_way.next().await {
        restore.ingested(answer?);
    }
    verifier.end().map_err(|error| damaged(&error))?;
    Ok(restore.reply)
}

/// Claims every account of a home backup for the shard it had; who has another home keeps it.
///
/// # Errors
/// As [`restore_mailboxes`].
pub async fn restore_home(
    service: &HomeService,
    pieces: impl Stream<Item = Result<ShardPiece, Status>>,
) -> Result<ShardRestoreReply, Status> {
    let mut verifier = Verifier::default();
    let mut reply = ShardRestoreReply::default();
    let mut pieces = std::pin::pin!(pieces);
    let mut under_way = FuturesUnordered::new();
    while let Some(piece) = pieces.next().await {
        let piece = piece?;
        check(&mut verifier, &piece, Class::Home)?;
        let Some(shard_piece::Piece::Claim(Claim { account, shard })) = piece.piece else {
            continue;
        };
        if under_way.len() >= INGESTS_MAX
            && let Some(claimed) = under_way.next().await
        {
            claimed_home(&mut reply, claimed?);
        }
        under_way.push(claim_one(service, account, shard));
    }
    while let Some(claimed) = under_way.next().await {
        claimed_home(&mut reply, claimed?);
    }
    verifier.end().map_err(|error| damaged(&error))?;
    Ok(reply)
}

/// Account, wanted shard, owner.
type Claimed = (String, u32, u32);

async fn claim_one(service: &HomeService, account: String, shard: u32) -> Result<Claimed, Status> {
    let owner = service.claim_for(&account, shard).await?;
    Ok((account, shard, u32::from(owner.shard)))
}

fn claimed_home(reply: &mut ShardRestoreReply, (account, wanted, owner): Claimed) {
    if owner == wanted {
        reply.accounts_restored += 1;
    } else {
        skip(reply, format!("{account}: lives in mbox-{owner}"));
    }
}

/// What the open accounts of a mailbox shard have, as applied here.
///
/// # Errors
/// A gRPC status when the shard is not here or cannot be read.
pub fn totals(service: &MailboxService, index: u16) -> Result<StoredTenant, Status> {
    let local = service
        .local(index)
        .ok_or_else(|| Status::unavailable("the shard is not served by this node"))?;
    read::totals(&*local.engine.snapshot()).map_err(|error| status::of_store(&error))
}

/// Recounts a mailbox shard, as applied here. Reads all of it.
///
/// # Errors
/// A gRPC status when the shard is not here or cannot be read.
pub fn audit_mailboxes(service: &MailboxService, index: u16) -> Result<Audit, Status> {
    let local = service
        .local(index)
        .ok_or_else(|| Status::unavailable("the shard is not served by this node"))?;
    audit(&*local.engine.snapshot()).map_err(|error| status::of_store(&error))
}

/// The piece can follow, and the backup is of a shard of this class.
fn check(verifier: &mut Verifier, piece: &ShardPiece, class: Class) -> Result<(), Status> {
    verifier.piece(piece).map_err(|error| damaged(&error))?;
    if let Some(shard_piece::Piece::Header(header)) = &piece.piece
        && !header
            .shard
            .parse::<ShardId>()
            .is_ok_and(|shard| shard.class == class)
    {
        return Err(Status::invalid_argument(format!(
            "a backup of {}, not of a {} shard",
            header.shard,
            class.word()
        )));
    }
    Ok(())
}

fn damaged(error: &PieceError) -> Status {
    Status::data_loss(format!("{error}; accounts restored so far stay"))
}

fn skip(reply: &mut ShardRestoreReply, note: String) {
    reply.accounts_skipped += 1;
    if reply.notes.len() < NOTES_MAX {
        reply.notes.push(note);
    }
}

/// The account whose pieces come.
enum Current {
    /// Its pieces go nowhere.
    Skipped,
    Restoring {
        id: String,
        generation: u64,
    },
}

struct Restore<'a> {
    service: &'a MailboxService,
    served: &'a ServedShard,
    index: u32,
    reply: ShardRestoreReply,
    account: Current,
}

impl Restore<'_> {
    async fn begin(&mut self, mut ingest: Ingest) -> Result<(), Status> {
        if let Current::Restoring { id, .. } = &self.account {
            let note = format!("{id}: the backup lacks its end");
            skip(&mut self.reply, note);
        }
        self.account = Current::Skipped;
        let id = ingest.account.clone();
        let owner = self.service.claim(&id, self.index).await?;
        if owner.shard != self.index {
            let note = format!("{id}: lives in mbox-{}", owner.shard);
            skip(&mut self.reply, note);
            return Ok(());
        }
        ingest.generation = owner.generation;
        let answer = loop {
            match self.ingest(ingest.clone()).await? {
                Answer::Discarding => {}
                answer => break answer,
            }
        };
        match answer {
            Answer::Ingested => {
                self.account = Current::Restoring {
                    id,
                    generation: owner.generation,
                };
            }
            Answer::Exists => skip(&mut self.reply, format!("{id}: exists and has mail")),
            other => skip(&mut self.reply, format!("{id}: {}", reason(&other))),
        }
        Ok(())
    }

    /// What became of one piece. A refused one ends its account: it is never shown.
    fn ingested(&mut self, answer: Answer) {
        if answer == Answer::Ingested {
            return;
        }
        if let Current::Restoring { id, .. } =
            std::mem::replace(&mut self.account, Current::Skipped)
        {
            skip(&mut self.reply, format!("{id}: {}", reason(&answer)));
        }
    }

    fn end(&mut self, messages: u64) {
        if let Current::Restoring { .. } = std::mem::replace(&mut self.account, Current::Skipped) {
            self.reply.accounts_restored += 1;
            self.reply.messages_restored += messages;
        }
    }

    async fn ingest(&self, ingest: Ingest) -> Result<Answer, Status> {
        ingest_one(self.service, self.served, ingest).await
    }
}

fn reason(answer: &Answer) -> String {
    match answer {
        Answer::Refused(reason) => (*reason).to_owned(),
        other => format!("answered {other:?}"),
    }
}

/// Logs one piece, however often it takes: a repeat does nothing.
async fn ingest_one(
    service: &MailboxService,
    served: &ServedShard,
    ingest: Ingest,
) -> Result<Answer, Status> {
    let cmd_id = served.local.shard.ambient().command_id();
    let give_up = Instant::now() + service.options().restore_patience;
    loop {
        let command = Command::Ingest(ingest.clone());
        let error = match service.propose(served, cmd_id, command).await {
            Ok(answer) => return Ok(answer),
            Err(error) => error,
        };
        let hopeless = matches!(error, ProposeError::Refused(AppendError::TooLarge));
        if hopeless || Instant::now() > give_up {
            return Err(status::of_propose(&error));
        }
        tokio::time::sleep(RETRY_WAIT).await;
    }
}
