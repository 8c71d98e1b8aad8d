//! What access asks of Home and of mailbox shards: who owns an account, what is in its INBOX, one message, an expunge.
//!
//! A gRPC error is "unknown", never "empty" or "gone". Opening is linearizable, so deleted mail never comes back; a wrong
//! shard says who is right and is followed a few times. An expunge is one command with one id, repeated until it is answered
//! or its time is over. Every question has a deadline.

use std::collections::VecDeque;
use std::fmt::Display;
use std::time::Duration;

use bytes::Bytes;
use hikyaku_mail::id::AccountId;
use hikyaku_proto::transport::Transport;
use hikyaku_proto::v1::home_client::HomeClient;
use hikyaku_proto::v1::mailbox_client::MailboxClient;
use hikyaku_proto::v1::{
    Body, Expunge, ExpungeRequest, FetchRequest, LookupRequest, MaildropPage, NotOwner,
    OpenMaildropRequest,
};
use hikyaku_shard::ambient::SharedAmbient;
use tokio::time::{Instant, sleep, timeout};
use tonic::{Response, Status, Streaming};

use crate::memory::Memory;
use crate::pop3::maildrop::{MailboxRef, Maildrop, MaildropBuilder};
use crate::truncated::Truncated;

/// How often a wrong shard's hint is followed before the question counts as unanswered.
const REDIRECTS_MAX: usize = 4;
/// Messages that one call expunges: a call is answered well within its deadline.
const EXPUNGE_UIDS_MAX: usize = 10_000;
/// Pauses between repeats of an expunge: the first, and the longest.
const REPEAT_PAUSE: Duration = Duration::from_millis(50);
const REPEAT_PAUSE_MAX: Duration = Duration::from_secs(1);

/// Deadlines and limits.
#[derive(Clone, Copy, Debug)]
pub struct MailboxesOptions {
    /// For one call, and for one page of a maildrop.
    pub call_timeout: Duration,
    /// For an expunge of some thousand messages with all its repeats.
    pub expunge_timeout: Duration,
    /// Memory for open maildrops, all together; see [`Memory`].
    pub memory_bytes_max: usize,
}

impl Default for MailboxesOptions {
    fn default() -> MailboxesOptions {
        MailboxesOptions {
            call_timeout: Duration::from_secs(15),
            expunge_timeout: Duration::from_secs(15),
            memory_bytes_max: 8 << 20,
        }
    }
}

/// No answer: the mail is where it is, and nobody knows what is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("mailbox: {0}")]
pub struct Unavailable(String);

impl Unavailable {
    fn new(reason: impl Display) -> Unavailable {
        Unavailable(reason.to_string())
    }
}

/// Why a maildrop is not open.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// The account may not log in.
    #[error("account is closed")]
    Closed,
    /// Not known now.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

/// One message as its shard keeps it.
#[derive(Clone, Debug, PartialEq)]
pub struct Fetched {
    /// What goes in front of the body for this recipient.
    pub prefix: Bytes,
    /// The content, or where it is.
    pub body: Body,
}

/// What one question brought.
#[derive(Clone, Debug, PartialEq)]
pub struct FetchedMails {
    /// The message asked for; `None` if it was expunged meanwhile.
    pub message: Option<Fetched>,
    /// Others that are wanted next, by UID, in that order.
    pub ahead: VecDeque<(u32, Fetched)>,
}

fn fetched(prefix: Bytes, body: Option<Body>) -> Result<Fetched, Unavailable> {
    let body = body.ok_or_else(|| Unavailable::new("a message without body"))?;
    Ok(Fetched { prefix, body })
}

/// The mailboxes of all accounts.
#[derive(Clone)]
pub struct Mailboxes {
    home: HomeClient<Transport>,
    shards: MailboxClient<Transport>,
    ambient: SharedAmbient,
    options: MailboxesOptions,
    memory: Memory,
    truncated: Truncated,
}

/// What a shard said to OpenMaildrop.
enum Opened {
    Maildrop(Box<Maildrop>),
    Absent,
    NotOwner(Option<u32>),
}

impl Mailboxes {
    /// Over these clients.
    pub fn new(
        home: HomeClient<Transport>,
        shards: MailboxClient<Transport>,
        ambient: SharedAmbient,
        options: MailboxesOptions,
    ) -> Mailboxes {
        Mailboxes {
            home,
            shards,
            ambient,
            options,
            memory: Memory::new(options.memory_bytes_max),
            truncated: Truncated::default(),
        }
    }

    /// What an operator must hear: INBOXes of which not all mails are shown.
    pub fn alarms(&self) -> Vec<String> {
        self.truncated.alarms()
    }

    /// The INBOX of `account` as it is now.
    ///
    /// # Errors
    /// When the account may not log in, or when nobody knows.
    pub async fn open(&self, account: &AccountId) -> Result<Maildrop, OpenError> {
        let Some(mut shard) = self.owner(account).await? else {
            return Ok(Maildrop::empty());
        };
        for _ in 0..REDIRECTS_MAX {
            let next = match self.open_at(shard, account).await? {
                Opened::Maildrop(maildrop) => return Ok(*maildrop),
                Opened::NotOwner(Some(other)) if other != shard => other,
                // whoever does not know the account at all may do so by mistake of ours: Home has the last word
                Opened::Absent => match self.lookup(account, true).await? {
                    None => return Ok(Maildrop::empty()),
                    Some(owner) if owner == shard => return Ok(Maildrop::empty()),
                    Some(owner) => owner,
                },
                Opened::NotOwner(_) => match self.lookup(account, true).await? {
                    Some(owner) => owner,
                    None => {
                        return Err(Unavailable::new(
                            "a shard disowns an account that Home does not know",
                        )
                        .into());
                    }
                },
            };
            tracing::debug!(target: "access", %account, from = shard, to = next, "following the owner");
            shard = next;
        }
        Err(Unavailable::new("shards do not agree about the owner").into())
    }

    /// An owner is for ever, so a local answer is good; that there is none yet is said by Home's log only.
    async fn owner(&self, account: &AccountId) -> Result<Option<u32>, Unavailable> {
        match self.lookup(account, false).await? {
            Some(shard) => Ok(Some(shard)),
            None => self.lookup(account, true).await,
        }
    }

    async fn lookup(
        &self,
        account: &AccountId,
        linearizable: bool,
    ) -> Result<Option<u32>, Unavailable> {
        let request = LookupRequest {
            account: account.to_string(),
            linearizable,
        };
        let mut home = self.home.clone();
        Ok(self.answer(home.lookup(request)).await?.into_inner().shard)
    }

    async fn answer<T>(
        &self,
        call: impl Future<Output = Result<T, Status>>,
    ) -> Result<T, Unavailable> {
        match timeout(self.options.call_timeout, call).await {
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(status)) => Err(Unavailable::new(status)),
            Err(_) => Err(Unavailable::new("no answer in time")),
        }
    }

    async fn open_at(&self, shard: u32, account: &AccountId) -> Result<Opened, OpenError> {
        let request = OpenMaildropRequest {
            shard,
            account: account.to_string(),
        };
        let mut shards = self.shards.clone();
        let reply: Response<Streaming<MaildropPage>> =
            self.answer(shards.open_maildrop(request)).await?;
        let mut pages = reply.into_inner();
        let Some(first) = self.answer(pages.message()).await? else {
            return Err(Unavailable::new("no page of the maildrop").into());
        };
        if let Some(NotOwner { shard, .. }) = first.not_owner {
            return Ok(Opened::NotOwner(shard));
        }
        if first.closed {
            return Err(OpenError::Closed);
        }
        if first.absent {
            return Ok(Opened::Absent);
        }
        let mailbox = MailboxRef {
            shard,
            account: account.clone(),
            mailbox_id: first.mailbox_id,
            uid_validity: first.uid_validity,
        };
        let mails = usize::try_from(first.exists).unwrap_or(usize::MAX);
        let shown = mails.min(self.memory.mails_max());
        let memory = self.memory.reserve(account, shown);
        let memory = memory.map_err(Unavailable::new)?;
        let builder = MaildropBuilder::new(mailbox, shown).within(memory);
        let is_cut = mails > shown;
        let maildrop = self.read_pages(builder, is_cut, first, pages).await?;
        self.truncated.note(account, mails, shown);
        if is_cut {
            tracing::warn!(target: "access", %account, mails, shown, "maildrop is larger than is shown");
        }
        Ok(Opened::Maildrop(Box::new(maildrop)))
    }

    /// Takes all messages, or the oldest of them if it `is_cut`.
    async fn read_pages(
        &self,
        mut builder: MaildropBuilder,
        is_cut: bool,
        first: MaildropPage,
        mut pages: Streaming<MaildropPage>,
    ) -> Result<Maildrop, Unavailable> {
        let mut page = Some(first);
        while let Some(MaildropPage { messages, .. }) = page.take() {
            for message in messages {
                if is_cut && builder.is_full() {
                    return Ok(builder.finish());
                }
                builder
                    .push(message.uid, message.size, &message.email_id)
                    .map_err(Unavailable::new)?;
            }
            page = self.answer(pages.message()).await?;
        }
        Ok(builder.finish())
    }

    /// The message `uid`; `None` if it was expunged meanwhile.
    ///
    /// # Errors
    /// When nobody knows.
    pub async fn fetch(
        &self,
        mailbox: &MailboxRef,
        uid: u32,
    ) -> Result<Option<Fetched>, Unavailable> {
        Ok(self.fetch_with(mailbox, uid, Vec::new()).await?.message)
    }

    /// The message `uid`, and some of those that are wanted next.
    ///
    /// # Errors
    /// When nobody knows.
    pub async fn fetch_with(
        &self,
        mailbox: &MailboxRef,
        uid: u32,
        ahead: Vec<u32>,
    ) -> Result<FetchedMails, Unavailable> {
        let request = FetchRequest {
            shard: mailbox.shard,
            account: mailbox.account.to_string(),
            mailbox_id: mailbox.mailbox_id,
            uid_validity: mailbox.uid_validity,
            uid,
            ahead,
        };
        let mut shards = self.shards.clone();
        let reply = self.answer(shards.fetch(request)).await?.into_inner();
        let message = match reply.found {
            true => Some(fetched(reply.prefix, reply.body)?),
            false => None,
        };
        let ahead = reply.ahead.into_iter();
        let ahead = ahead.map(|next| Ok((next.uid, fetched(next.prefix, next.body)?)));
        Ok(FetchedMails {
            message,
            ahead: ahead.collect::<Result<_, Unavailable>>()?,
        })
    }

    /// Expunges `uids`; returns only when that is applied. What was expunged already stays so.
    ///
    /// # Errors
    /// When it was not confirmed in time: some of them may be gone, and the others may yet go.
    pub async fn expunge(&self, mailbox: &MailboxRef, uids: Vec<u32>) -> Result<u32, Unavailable> {
        let mut expunged = 0;
        for some in uids.chunks(EXPUNGE_UIDS_MAX) {
            expunged += self.expunge_some(mailbox, some.to_vec()).await?;
        }
        Ok(expunged)
    }

    async fn expunge_some(&self, mailbox: &MailboxRef, uids: Vec<u32>) -> Result<u32, Unavailable> {
        let request = ExpungeRequest {
            shard: mailbox.shard,
            cmd_id: Bytes::copy_from_slice(&self.ambient.command_id()),
            expunge: Some(Expunge {
                account: mailbox.account.to_string(),
                mailbox_id: mailbox.mailbox_id,
                uid_validity: mailbox.uid_validity,
                uids,
            }),
        };
        let deadline = Instant::now() + self.options.expunge_timeout;
        let mut pause = REPEAT_PAUSE;
        loop {
            let mut shards = self.shards.clone();
            let left = deadline
                .saturating_duration_since(Instant::now())
                .min(self.options.call_timeout);
            let unanswered = match timeout(left, shards.expunge(request.clone())).await {
                Ok(Ok(reply)) => return Ok(reply.into_inner().expunged),
                Ok(Err(status)) => Unavailable::new(status),
                Err(_) => Unavailable::new("no answer in time"),
            };
            if Instant::now() + pause >= deadline {
                return Err(unanswered);
            }
            tracing::debug!(target: "access", account = %mailbox.account, error = %unanswered, "expunge again");
            sleep(pause).await;
            pause = (pause * 2).min(REPEAT_PAUSE_MAX);
        }
    }
}
