//! A POP3 session's questions: what is in the maildrop, this message, these are gone.

use std::pin::Pin;

use futures_util::{Stream, stream};
use hikyaku_engine::Snapshot;
use hikyaku_proto::v1::record::Command;
use hikyaku_proto::v1::{
    Expunge, ExpungeReply, ExpungeRequest, FetchReply, FetchRequest, FetchedAhead, MaildropMessage,
    MaildropPage, NotOwner, OpenMaildropRequest, StoredBody,
};
use hikyaku_store::id::EmailId;
use hikyaku_store::machine::Answer;
use hikyaku_store::read::{self, Account};
use hikyaku_store::{StoreError, expunge};
use prost::Message as _;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;
use tonic::Status;

use crate::deliver::unexpected;
use crate::mailbox::MailboxService;
use crate::status;

/// Messages in one page.
const PAGE_MESSAGES_MAX: usize = 1_000;
/// Messages one call may expunge.
const EXPUNGE_UIDS_MAX: usize = 500_000;
/// Messages expunged by one record: short records, so that other commands of the shard get their turn.
const RECORD_UIDS_MAX: usize = 1_000;
/// Messages read ahead of one that is fetched, and their octets as stored: a session keeps them
/// while its commands are answered.
const AHEAD_MAX: usize = 32;
const AHEAD_BYTES_MAX: usize = 64 << 10;
const _: () = assert!(RECORD_UIDS_MAX <= expunge::UIDS_MAX);

/// The pages of a maildrop.
pub type Pages = Pin<Box<dyn Stream<Item = Result<MaildropPage, Status>> + Send>>;

impl MailboxService {
    pub(crate) async fn maildrop(&self, request: OpenMaildropRequest) -> Result<Pages, Status> {
        let served = self.served(request.shard)?;
        let permit = served.maildrops.clone().try_acquire_owned();
        let permit = permit.map_err(|_| Status::unavailable("too many maildrops being read"))?;
        self.barrier(served).await?;
        let snapshot = served.local.engine.snapshot();
        let known = read::account(&*snapshot, &request.account)
            .map_err(|error| status::of_store(&error))?;
        if let (false, Account::Open(_)) = (known.takes_logins(), &known) {
            return Ok(one_page(MaildropPage {
                closed: true,
                ..MaildropPage::default()
            }));
        }
        let account = match known {
            Account::Open(account) => account,
            Account::Busy => {
                return Err(Status::unavailable(
                    "the account is being restored or purged",
                ));
            }
            Account::Absent => return self.absent(&request).await,
        };
        let mailbox = read::mailbox(&*snapshot, &request.account, account.inbox)
            .map_err(|error| status::of_store(&error))?
            .ok_or_else(|| status::of_store(&StoreError::Corrupt("an account's INBOX")))?;
        let reader = Reader {
            snapshot,
            account: request.account,
            mailbox_id: account.inbox,
            uid_validity: mailbox.uid_validity,
            exists: mailbox.exists,
            next_uid: 1,
            until: Instant::now() + self.options().maildrop_timeout,
            first: true,
            _permit: permit,
        };
        let pages = stream::unfold(Some(reader), async |reader| {
            let mut reader = reader?;
            // a long read must not keep the node's other tasks from running
            tokio::task::yield_now().await;
            match reader.page() {
                Ok(Some(page)) => Some((Ok(page), Some(reader))),
                Ok(None) => None,
                Err(status) => Some((Err(status), None)),
            }
        });
        Ok(Box::pin(pages))
    }

    /// Nothing was ever delivered here: an empty maildrop, unless another shard has it.
    async fn absent(&self, request: &OpenMaildropRequest) -> Result<Pages, Status> {
        let owner = self.lookup(&request.account).await?;
        let page = match owner.shard {
            Some(shard) if shard != request.shard => MaildropPage {
                not_owner: Some(NotOwner {
                    shard: Some(shard),
                    generation: owner.generation,
                }),
                ..MaildropPage::default()
            },
            _ => MaildropPage {
                absent: true,
                ..MaildropPage::default()
            },
        };
        Ok(one_page(page))
    }

    pub(crate) async fn fetch_message(&self, request: FetchRequest) -> Result<FetchReply, Status> {
        let served = self.served(request.shard)?;
        let snapshot = served.local.engine.snapshot();
        if let Some(found) = fetch(&*snapshot, &request)? {
            return Ok(found);
        }
        drop(snapshot);
        // after a restart this replica may not have applied yet what the session saw: "expunged" must be true
        self.barrier(served).await?;
        let found = fetch(&*served.local.engine.snapshot(), &request)?;
        Ok(found.unwrap_or_default())
    }

    pub(crate) async fn expunge_messages(
        &self,
        request: ExpungeRequest,
    ) -> Result<ExpungeReply, Status> {
        let served = self.served(request.shard)?;
        let cmd_id = status::command_id(&request.cmd_id)?;
        let expunge = request
            .expunge
            .ok_or_else(|| Status::invalid_argument("nothing to expunge"))?;
        if expunge.uids.len() > EXPUNGE_UIDS_MAX {
            return Err(Status::invalid_argument("too many messages"));
        }
        let mut expunged = 0;
        for (part, uids) in (0u32..).zip(expunge.uids.chunks(RECORD_UIDS_MAX)) {
            let command = Command::Expunge(Expunge {
                account: expunge.account.clone(),
                mailbox_id: expunge.mailbox_id,
                uid_validity: expunge.uid_validity,
                uids: uids.to_vec(),
            });
            // a repeat of the call repeats its parts under the same ids; expunging twice is no harm either
            match self.propose(served, part_id(cmd_id, part), command).await {
                Ok(Answer::Expunged(count)) => expunged += count,
                Ok(other) => return Err(unexpected(&other)),
                Err(error) => return Err(status::of_propose(&error)),
            }
        }
        Ok(ExpungeReply { expunged })
    }
}

/// The command id of one part of a call.
fn part_id(mut cmd_id: [u8; 16], part: u32) -> [u8; 16] {
    for (byte, part) in cmd_id.iter_mut().zip(part.to_be_bytes()) {
        *byte ^= part;
    }
    cmd_id
}

fn fetch(snapshot: &dyn Snapshot, request: &FetchRequest) -> Result<Option<FetchReply>, Status> {
    fetched(snapshot, request).map_err(|error| status::of_store(&error))
}

fn fetched(
    snapshot: &dyn Snapshot,
    request: &FetchRequest,
) -> Result<Option<FetchReply>, StoreError> {
    let (account, uid_validity) = (&request.account, request.uid_validity);
    let mailbox = read::mailbox_under(snapshot, account, request.mailbox_id, uid_validity)?;
    let Some(mailbox) = mailbox else {
        return Ok(None);
    };
    let Some(wanted) = stored(snapshot, account, mailbox, request.uid)? else {
        return Ok(None);
    };
    let mut reply = FetchReply {
        found: true,
        prefix: wanted.prefix,
        body: wanted.body,
        ahead: Vec::new(),
    };
    let mut bytes = 0;
    for &uid in request.ahead.iter().take(AHEAD_MAX) {
        let Some(next) = stored(snapshot, account, mailbox, uid)? else {
            continue;
        };
        bytes += next.encoded_len();
        if bytes > AHEAD_BYTES_MAX {
            break;
        }
        reply.ahead.push(FetchedAhead {
            uid,
            prefix: next.prefix,
            body: next.body,
        });
    }
    Ok(Some(reply))
}

fn stored(
    snapshot: &dyn Snapshot,
    account: &str,
    mailbox: u64,
    uid: u32,
) -> Result<Option<StoredBody>, StoreError> {
    let message = read::message_in(snapshot, account, mailbox, uid)?;
    message
        .map(|message| read::body(snapshot, &message))
        .transpose()
}

fn one_page(page: MaildropPage) -> Pages {
    Box::pin(stream::once(async { Ok(page) }))
}

/// Where reading a maildrop stands.
struct Reader {
    snapshot: Box<dyn Snapshot>,
    account: String,
    mailbox_id: u64,
    uid_validity: u32,
    exists: u64,
    next_uid: u32,
    until: Instant,
    first: bool,
    _permit: OwnedSemaphorePermit,
}

impl Reader {
    /// The next page; the first one comes even if it is empty.
    fn page(&mut self) -> Result<Option<MaildropPage>, Status> {
        if Instant::now() > self.until {
            return Err(Status::deadline_exceeded(
                "the maildrop was read too slowly",
            ));
        }
        let messages = read::messages(
            &*self.snapshot,
            &self.account,
            self.mailbox_id,
            self.next_uid,
            PAGE_MESSAGES_MAX,
        )
        .map_err(|error| status::of_store(&error))?;
        match messages.last() {
            // UIDs end below the highest number, so there is a next one
            Some((last, _)) => self.next_uid = last.saturating_add(1),
            None if !self.first => return Ok(None),
            None => {}
        }
        let exists = match std::mem::take(&mut self.first) {
            true => self.exists,
            false => 0,
        };
        let messages = messages
            .into_iter()
            .map(|(uid, message)| {
                let email_id = EmailId::from_bytes(&message.email_id)
                    .ok_or_else(|| status::of_store(&StoreError::Corrupt("an email id")))?;
                Ok(MaildropMessage {
                    uid,
                    size: message.size,
                    email_id: email_id.to_string(),
                })
            })
            .collect::<Result<_, Status>>()?;
        Ok(Some(MaildropPage {
            mailbox_id: self.mailbox_id,
            uid_validity: self.uid_validity,
            messages,
            exists,
            ..MaildropPage::default()
        }))
    }
}
