//! The SMTP room's seam, implemented: what a session may begin, and what the postmaster reads about it.

use std::sync::Arc;

use hikyaku_blob::Blobs;
use hikyaku_blob::body::BodyWriter;
use hikyaku_directory::Directory;
use hikyaku_mail::id::MessageId;
use hikyaku_mail::maillog::{self, Queued, Rejected};
use hikyaku_mail::path::ForwardPath;
use hikyaku_mail::reply::{Rejection, Reply};
use hikyaku_mail::trace::Received;
use hikyaku_queue::intake::{Closed, Intake};
use hikyaku_queue::machine::QueueMachine;
use hikyaku_serve::metrics;
use hikyaku_serve::tasks::Tasks;
use hikyaku_shard::ambient::SharedAmbient;
use hikyaku_shard::runtime::Shard;
use hikyaku_smtp::backend::{Abort, Backend, End, Peer, Phase, Transaction};
use hikyaku_smtp::command::{MailParameters, RcptParameters};
use prost::Message as _;

use crate::accept::{self, Draft};
use crate::budget::{Memory, NoMemory, Reservation};
use crate::header::HeaderFilter;
use crate::observed::{self, Observed};
use crate::quota::Quotas;
use crate::recipient::{self, Accepted};

/// Octets of the recipients of one mail as they go into its record. With the states they come to, what they may be expanded to
/// and the content, a record that carries the mail on must stay under the log's limit.
const RECIPIENTS_BYTES_MAX: usize = 320 * 1024;

/// Everything the edge needs; shared by all sessions.
pub struct Edge {
    /// Our name in Received.
    pub host_name: String,
    /// Who recipients are.
    pub directory: Arc<dyn Directory>,
    /// Large bodies.
    pub blobs: Arc<dyn Blobs>,
    /// The `incoming` shards that mail may be accepted into.
    pub intakes: Vec<Intake>,
    /// Clock and randomness.
    pub ambient: SharedAmbient,
    /// The node.
    pub tasks: Tasks,
    /// Memory for mails being received.
    pub memory: Memory,
    /// Which mailboxes are full.
    pub quotas: Quotas,
}

impl Edge {
    /// A budget of `bytes` for [`Edge::memory`].
    pub fn memory_budget(bytes: usize) -> Memory {
        Memory::new(bytes)
    }

    /// The shard for a session's next mail: its own while that is well, else the next one that is.
    fn choose(&self, session: u64) -> Result<&Shard<QueueMachine>, Closed> {
        let count = self.intakes.len().max(1) as u64;
        let own = usize::try_from(session % count).unwrap_or(0);
        let (before, from) = self.intakes.split_at(own.min(self.intakes.len()));
        let mut refusal = Closed::NotApplying;
        for intake in from.iter().chain(before) {
            match intake.check() {
                Ok(()) => return Ok(intake.shard()),
                Err(closed) => refusal = closed,
            }
        }
        Err(refusal)
    }
}

/// So many recipients are named in the line about a refused content.
const LOGGED_RECIPIENTS_MAX: usize = 10;
const NOT_APPLYING: &str = "no incoming shard applies its log";

fn unavailable() -> Reply {
    Reply::new(421, (4, 3, 2), "not accepting mail now, try again later")
}

/// The edge as the SMTP room calls it.
#[derive(Clone)]
pub struct EdgeBackend(pub Arc<Edge>);

impl Backend for EdgeBackend {
    type Transaction = Incoming;

    async fn greet(&self, peer: &Peer) -> Option<Rejection> {
        // full shards are said at MAIL: they may have room by then
        let refusal = match self.0.choose(peer.session) {
            Err(Closed::NotApplying) => Some(Rejection::new(unavailable(), NOT_APPLYING)),
            Ok(_) | Err(Closed::Full(_)) => None,
        };
        let reply = refusal.as_ref().map(|refusal| &refusal.reply);
        maillog::connected(peer.session, peer.address, &peer.listener, reply);
        refusal
    }

    async fn mail(&self, peer: &Peer, mail: &MailParameters) -> Result<Incoming, Rejection> {
        let edge = &self.0;
        let shard = match edge.choose(peer.session) {
            Ok(shard) => shard,
            Err(Closed::NotApplying) => {
                return Err(Rejection::new(accept::temporary(), NOT_APPLYING));
            }
            Err(Closed::Full(what)) => return Err(Rejection::new(accept::no_space(), what)),
        };
        let reservation = Reservation::begin(&edge.memory, peer.address.ip()).map_err(no_memory)?;
        let id = MessageId::new(shard.id(), edge.ambient.now_ms(), edge.ambient.random());
        let helo = peer
            .client
            .as_ref()
            .map(|client| client.name.as_str())
            .unwrap_or_default();
        let envelope = accept::envelope(peer.address, helo, mail);
        Ok(Incoming {
            edge: edge.clone(),
            peer: peer.clone(),
            shard: shard.clone(),
            draft: Draft {
                id,
                envelope,
                tenant: String::new(),
                recipients: Vec::new(),
                observed: Observed::new(),
            },
            declared_bytes: mail.size,
            recipients_bytes: 0,
            paths: Vec::new(),
            filter: HeaderFilter::default(),
            body: None,
            reservation,
        })
    }

    fn rejected(&self, peer: &Peer, phase: Phase<'_>, rejection: &Rejection) {
        let mut line = Rejected {
            session: peer.session,
            peer: peer.address,
            phase: "command",
            queue_id: rejection.queue_id,
            reverse_path: &rejection.reverse_path,
            recipient: &rejection.recipients,
            tenant: &rejection.tenant,
            reply: &rejection.reply,
            reason: &rejection.reason,
        };
        let recipient;
        match phase {
            Phase::Connect => line.phase = "connect",
            Phase::Command => {}
            Phase::Mail(mail) => {
                line.phase = "mail";
                line.reverse_path = mail.reverse_path.as_str();
            }
            Phase::Rcpt(path) => {
                line.phase = "rcpt";
                recipient = path.to_string();
                // as in the other lines, without brackets
                line.recipient = recipient.trim_matches(['<', '>']);
            }
            Phase::Data => line.phase = "data",
        }
        metrics::rejected(line.phase, line.reply.code);
        maillog::rejected(line);
    }

    fn tolerated(&self, peer: &Peer, what: &str, line: &str) {
        observed::tolerated(peer, what, line);
    }

    fn handshake_failed(&self, peer: &Peer, cause: &str) {
        observed::handshake_failed(peer, cause);
    }

    fn ended(&self, peer: &Peer, end: End) {
        observed::ended(end);
        tracing::debug!(session = peer.session, ?end, "session ended");
    }
}

/// One mail being received. Dropping it leaves nothing behind.
pub struct Incoming {
    edge: Arc<Edge>,
    peer: Peer,
    shard: Shard<QueueMachine>,
    draft: Draft,
    declared_bytes: Option<u64>,
    recipients_bytes: usize,
    paths: Vec<ForwardPath>,
    filter: HeaderFilter,
    body: Option<BodyWriter>,
    reservation: Reservation,
}

impl Incoming {
    fn take(&mut self, path: &ForwardPath, accepted: Accepted) -> Reply {
        if self.draft.recipients.is_empty() {
            self.draft.tenant.clone_from(&accepted.tenant);
        }
        self.draft.recipients.push(accepted);
        self.paths.push(path.clone());
        Reply::new(250, (2, 1, 5), "recipient ok")
    }

    async fn accept_recipient(&mut self, rcpt: &RcptParameters) -> Result<Accepted, Rejection> {
        let directory = &*self.edge.directory;
        let mut accepted = recipient::decide(directory, &rcpt.forward_path).await?;
        // reports must arrive, or nobody hears of what went wrong
        if !self.draft.envelope.reverse_path.is_empty() {
            let (path, size) = (&rcpt.forward_path, self.declared_bytes);
            self.edge.quotas.admit(path, &accepted, size).await?;
        }
        accepted.mailbox = None;
        recipient::note(&mut accepted, rcpt);
        let bytes = self.recipients_bytes + accepted.recipient.encoded_len();
        if bytes > RECIPIENTS_BYTES_MAX {
            let reply = Reply::new(452, (4, 5, 3), "too many recipients for one mail");
            let rejection = Rejection::new(reply, "the recipients' addresses are too long in all");
            return Err(rejection.of_tenant(&accepted.tenant));
        }
        self.reservation
            .add_recipient(&accepted)
            .map_err(|why| no_memory(why).of_tenant(&accepted.tenant))?;
        self.recipients_bytes = bytes;
        Ok(accepted)
    }

    async fn write(&mut self, piece: &[u8]) -> Result<(), Rejection> {
        let Some(body) = &mut self.body else {
            return Err(lost_body());
        };
        let size = body.size() + piece.len() as u64;
        let written = match self.reservation.hold_content(size) {
            Ok(()) => body
                .write(piece)
                .await
                .map_err(|error| accept::blob_refusal(&error)),
            Err(why) => Err(no_memory(why)),
        };
        if written.is_err() {
            self.body = None;
            self.reservation.drop_content();
        }
        written
    }
}

impl Transaction for Incoming {
    async fn rcpt(&mut self, rcpt: &RcptParameters) -> Result<Reply, Rejection> {
        match self.accept_recipient(rcpt).await {
            Ok(accepted) => Ok(self.take(&rcpt.forward_path, accepted)),
            Err(rejection) => Err(rejection.from_sender(&self.draft.envelope.reverse_path)),
        }
    }

    async fn data(&mut self) -> Result<(), Rejection> {
        self.reservation
            .begin_content(self.declared_bytes)
            .map_err(no_memory)?;
        self.draft.observed.begin(self.draft.id);
        let time_ms = self.edge.ambient.now_ms();
        self.draft.envelope.received_ms = time_ms;
        let tls = self
            .peer
            .tls
            .as_ref()
            .map(|tls| (tls.version.as_str(), tls.cipher.as_str()));
        let field = Received {
            client_name: &self.draft.envelope.helo,
            client_address: self.peer.address.ip(),
            by: &self.edge.host_name,
            protocol: self.peer.protocol(self.draft.envelope.smtputf8),
            tls,
            id: self.draft.id,
            recipient: accept::sole(&self.paths),
            time_ms,
        }
        .to_field();
        let body = self
            .body
            .insert(BodyWriter::new(self.edge.blobs.clone(), self.draft.id));
        body.write(field.as_bytes())
            .await
            .map_err(|error| accept::blob_refusal(&error))
    }

    async fn chunk(&mut self, chunk: &[u8]) -> Result<(), Rejection> {
        if self.filter.is_over() {
            return self.write(chunk).await;
        }
        for piece in self.filter.push(chunk) {
            self.write(&piece).await?;
        }
        Ok(())
    }

    fn about(&self, rejection: Rejection) -> Rejection {
        let sender = &self.draft.envelope.reverse_path;
        rejection
            .from_sender(sender)
            .of_tenant(&self.draft.tenant)
            .of_mail(self.draft.id, addresses(&self.paths))
    }

    async fn finish(mut self) -> Result<Reply, Rejection> {
        let held = self.filter.end();
        if let Err(rejection) = self.write(&held).await {
            return Err(self.about(rejection));
        }
        let Some(body) = self.body.take() else {
            return Err(self.about(lost_body()));
        };
        let size = body.size();
        let recipients = self.draft.recipients.len();
        let (id, tenant) = (self.draft.id, self.draft.tenant.clone());
        let reverse_path = self.draft.envelope.reverse_path.clone();
        let accepted = accept::accept(&self.edge, &self.shard, self.draft, body).await;
        let reply = accepted.map_err(|rejection| {
            rejection
                .from_sender(&reverse_path)
                .of_tenant(&tenant)
                .of_mail(id, addresses(&self.paths))
        })?;
        maillog::queued(Queued {
            queue_id: id,
            session: self.peer.session,
            tenant: &tenant,
            reverse_path: &reverse_path,
            recipients,
            size,
            reports_on: None,
        });
        Ok(reply)
    }

    fn abort(self, reason: Abort) {
        tracing::debug!(session = self.peer.session, queue_id = %self.draft.id, ?reason, "mail dropped before its end");
    }
}

/// Paths as the log has them: without brackets, the first few of many.
fn addresses(paths: &[ForwardPath]) -> String {
    let mut text = String::new();
    for path in paths.iter().take(LOGGED_RECIPIENTS_MAX) {
        if !text.is_empty() {
            text.push(',');
        }
        text.push_str(path.to_string().trim_matches(['<', '>']));
    }
    match paths.len().saturating_sub(LOGGED_RECIPIENTS_MAX) {
        0 => text,
        more => format!("{text} and {more} more"),
    }
}

fn no_memory(why: NoMemory) -> Rejection {
    Rejection::new(accept::no_space(), why.0)
}

fn lost_body() -> Rejection {
    Rejection::new(accept::temporary(), "the body could not be kept")
}
