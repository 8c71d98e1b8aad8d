//! The operator's side of the admin socket: asks, prints, and says plainly when nobody answers.

use std::fs::File;
use std::io::{self, ErrorKind, IsTerminal, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use hikyaku_mail::date;
use hikyaku_mail::id::MessageId;
use hikyaku_mail::reply::Reply;
use hikyaku_proto::v1::admin_client::AdminClient;
use hikyaku_proto::v1::operate::Order as Verb;
use hikyaku_proto::v1::recipient_state::State;
use hikyaku_proto::v1::shard_piece::Piece;
use hikyaku_proto::v1::terminal::How;
use hikyaku_proto::v1::{
    DirectoryAcceptRequest, QueueListRequest, QueueOperateRequest, QueueShowRequest, QueuedMessage,
    RecipientState, RouteExplainRequest, ShardPiece, ShardSnapshotRequest, StatusRequest,
};
use hikyaku_store::export::{PieceError, Verifier};
use hyper_util::rt::TokioIo;
use prost::Message;
use tokio::net::UnixStream;
use tokio_stream::StreamExt;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::cli::{Directory, Order, Queue, Route, Shard, Target};
use crate::config::Config;
use crate::printing::say;

/// The socket's name in the data directory.
pub const SOCKET: &str = "admin.sock";
/// One piece of a snapshot file at most: an inline body and its row fit many times over.
const PIECE_BYTES_MAX: usize = 4 << 20;
/// What a snapshot file begins with.
const SNAPSHOT_MAGIC: &[u8; 16] = b"hikyaku-shard-1\n";

/// How often a process that has not answered yet is asked whether it lives.
const PING_INTERVAL: Duration = Duration::from_secs(5);
/// How long it has for that.
const PING_TIMEOUT: Duration = Duration::from_secs(10);

type Client = AdminClient<Channel>;

async fn connect(target: &Target) -> Result<Client> {
    let socket = socket_of(target)?;
    let path = socket.clone();
    let connector = tower::service_fn(move |_: Uri| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    // the name is not looked up: the connector ignores it. However long an answer takes, a process that lives answers pings
    let channel = Endpoint::from_static("http://admin.invalid")
        .http2_keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .connect_with_connector(connector)
        .await
        .map_err(|error| unanswered(&socket, error.into()))?;
    Ok(AdminClient::new(channel).max_decoding_message_size(PIECE_BYTES_MAX * 4))
}

/// Why nobody answers at `socket`, and what the operator may do about it.
fn unanswered(socket: &Path, error: anyhow::Error) -> anyhow::Error {
    // the links above repeat one another
    let cause = error.root_cause();
    let hint = match cause
        .downcast_ref::<std::io::Error>()
        .map(std::io::Error::kind)
    {
        Some(ErrorKind::NotFound) => ". It does not run, or not with this configuration",
        Some(ErrorKind::ConnectionRefused) => ". It has ended without a farewell; start it again",
        Some(ErrorKind::PermissionDenied) => ". Ask as the user that it runs as",
        _ => "",
    };
    anyhow!(
        "no hikyaku process answers at {}: {cause}{hint}",
        socket.display()
    )
}

fn socket_of(target: &Target) -> Result<PathBuf> {
    if let Some(socket) = &target.socket {
        return Ok(socket.clone());
    }
    let candidates = ["hikyaku.toml", "hikyaku-demo/hikyaku.toml"];
    let found = || {
        candidates
            .iter()
            .map(PathBuf::from)
            .find(|path| path.exists())
    };
    let file = target.config.clone().or_else(found).with_context(|| {
        format!(
            "say which process is meant: --config FILE or --socket PATH (neither {} exists here)",
            candidates.join(" nor ")
        )
    })?;
    let config = Config::load(&file).map_err(|problems| {
        anyhow!(
            "{}\nthis file leads to no process; --socket DATA_DIR/{SOCKET} asks one that runs",
            join(&problems)
        )
    })?;
    Ok(config.node.data_dir.join(SOCKET))
}

/// One problem a line.
pub fn join<T: ToString>(problems: &[T]) -> String {
    problems
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join("\n")
}

fn refused(status: tonic::Status) -> anyhow::Error {
    let mut cause = std::error::Error::source(&status);
    while let Some(error) = cause {
        if error
            .downcast_ref::<hyper::Error>()
            .is_some_and(hyper::Error::is_timeout)
        {
            return anyhow!(
                "the process does not answer: it hangs, or the machine is too busy; whether it does what was asked is unknown"
            );
        }
        cause = error.source();
    }
    anyhow!("{}", status.message())
}

/// Who gives an order, for the record: the socket lets in its owner only, so nobody else is kept out by this.
fn who() -> String {
    ["SUDO_USER", "USER", "LOGNAME"]
        .iter()
        .find_map(|name| std::env::var(name).ok().filter(|user| !user.is_empty()))
        .unwrap_or_else(|| format!("uid {}", rustix::process::getuid().as_raw()))
}

/// `hikyaku route ...`
///
/// # Errors
/// When nobody answers or the answer is no.
pub async fn route(question: Route) -> Result<()> {
    let Route::Explain { address, target } = question;
    let request = RouteExplainRequest { address };
    let reply = connect(&target)
        .await?
        .route_explain(request)
        .await
        .map_err(refused)?
        .into_inner();
    for step in reply.steps {
        say(step)?;
    }
    if let Some(status) = reply.reply {
        say(format_args!("RCPT would hear: {}", Reply::from(&status)))?;
    }
    Ok(())
}

/// `hikyaku directory ...`
///
/// # Errors
/// When nobody answers or the file cannot be used.
pub async fn directory(order: Directory) -> Result<()> {
    let Directory::Accept { target } = order;
    let request = DirectoryAcceptRequest {};
    let reply = connect(&target)
        .await?
        .directory_accept(request)
        .await
        .map_err(refused)?;
    let reply = reply.into_inner();
    for finding in reply.findings {
        say(finding)?;
    }
    say(format_args!("{} entries answer now", reply.entries))?;
    Ok(())
}

/// `hikyaku status`
///
/// # Errors
/// When nobody answers.
pub async fn status(target: &Target) -> Result<()> {
    let reply = connect(target)
        .await?
        .status(StatusRequest {})
        .await
        .map_err(refused)?
        .into_inner();
    say(format_args!("hikyaku {}", reply.version))?;
    for listener in reply.listeners {
        say(format_args!("listener {listener}"))?;
    }
    say(format_args!(
        "{:<12} {:>9} {:>10} {:>10} {:>10} {:>10} {:>12}  trouble",
        "shard", "messages", "applied", "durable", "log start", "log end", "pinned bytes"
    ))?;
    for shard in reply.shards {
        let trouble = if shard.trouble.is_empty() {
            "-"
        } else {
            &shard.trouble
        };
        say(format_args!(
            "{:<12} {:>9} {:>10} {:>10} {:>10} {:>10} {:>12}  {trouble}",
            shard.shard,
            shard.messages,
            shard.applied,
            shard.durable,
            shard.log_start,
            shard.log_end,
            shard.pinned_bytes
        ))?;
    }
    for alarm in reply.alarms {
        say(format_args!("ALARM {alarm}"))?;
    }
    Ok(())
}

/// `hikyaku queue ...`
///
/// # Errors
/// When nobody answers or the answer is no.
pub async fn queue(order: Queue) -> Result<()> {
    match order {
        Queue::List {
            state,
            tenant,
            address,
            limit,
            target,
        } => {
            let request = QueueListRequest {
                state: state
                    .map(|state| state.word().to_owned())
                    .unwrap_or_default(),
                tenant: tenant.unwrap_or_default(),
                address: address.unwrap_or_default(),
                limit,
            };
            list(&target, request).await
        }
        Queue::Show { id, target } => show(&target, &id).await,
        Queue::Hold(order) => operate(Verb::Hold, "held", order).await,
        Queue::Release(order) => operate(Verb::Release, "released", order).await,
        Queue::Delete { order, yes } => {
            if order.all && !yes {
                confirm(&order.target).await?;
            }
            operate(Verb::Delete, "deleted", order).await
        }
        Queue::Retry(order) => operate(Verb::Retry, "to be tried now", order).await,
    }
}

async fn list(target: &Target, request: QueueListRequest) -> Result<()> {
    let mut pages = connect(target)
        .await?
        .queue_list(request)
        .await
        .map_err(refused)?
        .into_inner();
    let mut shown = 0u64;
    while let Some(page) = pages.next().await {
        let page = page.map_err(refused)?;
        for message in &page.messages {
            shown += 1;
            print_message(message)?;
        }
        if let Some(total) = page.total {
            say(format_args!("{shown} shown, {total} in the queue"))?;
        }
    }
    Ok(())
}

fn print_message(message: &QueuedMessage) -> Result<()> {
    let id = MessageId::from_bytes(&message.message_id)
        .map(|id| id.to_string())
        .unwrap_or_default();
    let envelope = message.envelope.clone().unwrap_or_default();
    let held = if message.held.is_empty() {
        String::new()
    } else {
        format!(" held: {}", message.held)
    };
    say(format_args!(
        "{id} {:>9} {} <{}>{held}",
        message.size,
        date::rfc5322(envelope.received_ms),
        envelope.reverse_path
    ))?;
    for (number, recipient) in message.recipients.iter().enumerate() {
        say(format_args!("    {number}: {}", describe(recipient)))?;
    }
    Ok(())
}

fn describe(state: &RecipientState) -> String {
    let address = state
        .recipient
        .as_ref()
        .map(|recipient| recipient.address.as_str())
        .unwrap_or_default();
    let what = match &state.state {
        None => "unknown".to_owned(),
        Some(State::Held(held)) => format!("held ({})", held.reason),
        Some(State::Pending(pending)) if pending.due_ms == 0 => "due now".to_owned(),
        Some(State::Pending(pending)) => {
            format!("deferred until {}", date::rfc5322(pending.due_ms))
        }
        Some(State::Terminal(terminal)) => match terminal.how() {
            How::Delivered => "delivered".to_owned(),
            How::Bounced if terminal.dsn_id.is_empty() => "bounced, not reported".to_owned(),
            How::Bounced => format!("bounced, reported by {}", hex(&terminal.dsn_id)),
            How::Expanded => "expanded".to_owned(),
            How::Collapsed => "same as another recipient".to_owned(),
            How::Deleted => "deleted by an operator".to_owned(),
            How::Cancelled => "cancelled".to_owned(),
            How::Unspecified => "done".to_owned(),
        },
    };
    let last = state
        .history
        .last()
        .and_then(|attempt| attempt.status.as_ref());
    let last = last
        .map(|status| format!("; last answer: {}", Reply::from(status)))
        .unwrap_or_default();
    format!("<{address}> {what}, {} attempts{last}", state.attempts)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

async fn show(target: &Target, id: &str) -> Result<()> {
    let message_id = parse_id(id)?;
    let reply = connect(target)
        .await?
        .queue_show(QueueShowRequest { message_id })
        .await
        .map_err(refused)?
        .into_inner();
    let Some(message) = reply.message else {
        bail!("{id} is not in the queue: delivered, bounced, deleted, or never accepted")
    };
    print_message(&message)?;
    let envelope = message.envelope.unwrap_or_default();
    say(format_args!(
        "from client {} helo {}, tenant {}, log position {}",
        envelope.client, envelope.helo, message.tenant, message.position
    ))?;
    for (number, recipient) in message.recipients.iter().enumerate() {
        for attempt in &recipient.history {
            let status = attempt
                .status
                .as_ref()
                .map(|status| Reply::from(status).to_string())
                .unwrap_or_default();
            say(format_args!(
                "    {number}: {} {status}",
                date::rfc5322(attempt.time_ms)
            ))?;
        }
    }
    for line in reply.activity {
        say(format_args!("now: {line}"))?;
    }
    Ok(())
}

fn parse_id(id: &str) -> Result<bytes::Bytes> {
    let id: MessageId = id.parse().with_context(|| id.to_owned())?;
    Ok(bytes::Bytes::copy_from_slice(&id.to_bytes()))
}

/// Asks whether the whole queue is to be deleted.
async fn confirm(target: &Target) -> Result<()> {
    if !std::io::stdin().is_terminal() {
        bail!("this deletes every mail in the queue and tells nobody; if that is meant, add --yes");
    }
    let total = total(target).await?;
    let mut terminal = std::io::stderr();
    write!(terminal, "delete {total} mails and tell nobody? [y/N] ")?;
    terminal.flush()?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    match answer.trim() {
        "y" | "Y" | "yes" => Ok(()),
        _ => bail!("nothing is deleted"),
    }
}

/// How many mails are in the queue.
async fn total(target: &Target) -> Result<u64> {
    let request = QueueListRequest {
        limit: 1,
        ..QueueListRequest::default()
    };
    let pages = connect(target).await?.queue_list(request).await;
    let mut pages = pages.map_err(refused)?.into_inner();
    let mut total = 0;
    while let Some(page) = pages.next().await {
        total = page.map_err(refused)?.total.unwrap_or(total);
    }
    Ok(total)
}

async fn operate(verb: Verb, done: &str, order: Order) -> Result<()> {
    let message_ids = order
        .ids
        .iter()
        .map(|id| parse_id(id))
        .collect::<Result<Vec<_>>>()?;
    let request = QueueOperateRequest {
        order: verb.into(),
        message_ids,
        all: order.all,
        reason: order.reason,
        operator: who(),
    };
    let reply = connect(&order.target)
        .await?
        .queue_operate(request)
        .await
        .map_err(refused)?
        .into_inner();
    say(format_args!("{} {done}", reply.changed))?;
    if !reply.unknown.is_empty() {
        let unknown: Vec<String> = reply.unknown.iter().map(|id| hex(id)).collect();
        bail!("not in the queue: {}", unknown.join(" "));
    }
    Ok(())
}

/// `hikyaku shard ...`
///
/// # Errors
/// When nobody answers, the answer is no, or the file cannot be written or read.
pub async fn shard(order: Shard) -> Result<()> {
    match order {
        Shard::Snapshot {
            shard,
            file,
            target,
        } => snapshot(&target, shard, &file).await,
        Shard::Restore { file, target } => restore(&target, &file).await,
    }
}

/// A snapshot file is the magic, then pieces: length (4 bytes, big endian), protobuf. The trailer piece proves it whole.
async fn snapshot(target: &Target, shard: String, file: &Path) -> Result<()> {
    if file.exists() {
        bail!("{} exists; snapshots are never overwritten", file.display());
    }
    let mut pieces = connect(target)
        .await?
        .shard_snapshot(ShardSnapshotRequest {
            shard: shard.clone(),
        })
        .await
        .map_err(|status| {
            anyhow!(
                "{shard}: {}; `hikyaku status` lists the shards",
                status.message()
            )
        })?
        .into_inner();
    let beside = part_of(file);
    // it holds mail, whatever the operator's umask; one that an interrupted call left behind goes
    let _ = std::fs::remove_file(&beside);
    let made = std::fs::File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&beside);
    let mut out = std::io::BufWriter::new(made.with_context(|| beside.display().to_string())?);
    out.write_all(SNAPSHOT_MAGIC)?;
    let mut trailer = None;
    while let Some(piece) = pieces.next().await {
        let piece = piece.map_err(refused)?;
        out.write_all(&u32::try_from(piece.encoded_len())?.to_be_bytes())?;
        out.write_all(&piece.encode_to_vec())?;
        if let Some(Piece::Trailer(found)) = piece.piece {
            trailer = Some(found);
        }
    }
    let Some(trailer) = trailer else {
        bail!(
            "the snapshot ended early; {} is not usable",
            beside.display()
        )
    };
    out.into_inner()
        .map_err(|error| anyhow!("{error}"))?
        .sync_all()?;
    keep(&beside, file).with_context(|| file.display().to_string())?;
    say(format_args!(
        "{}: {} accounts, {} messages",
        file.display(),
        trailer.accounts,
        trailer.messages
    ))?;
    Ok(())
}

/// Gives the finished file `beside` its name, which outlives a power cut.
fn keep(beside: &Path, file: &Path) -> io::Result<()> {
    std::fs::rename(beside, file)?;
    let parent = file
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
}

/// Where `file` grows. Its whole name is in it: `backup.mbox-0` and `backup.mbox-1` may be made at once.
fn part_of(file: &Path) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(".part");
    PathBuf::from(name)
}

async fn restore(target: &Target, file: &Path) -> Result<()> {
    check_snapshot(file)?;
    let mut client = connect(target).await?;
    let (sender, receiver) = tokio::sync::mpsc::channel(16);
    let path = file.to_owned();
    let reader = tokio::task::spawn_blocking(move || {
        for_each_piece(&path, |piece| {
            sender
                .blocking_send(piece)
                .map_err(|_| anyhow!("the process stopped listening"))
        })
    });
    let sent = client
        .shard_restore(tokio_stream::wrappers::ReceiverStream::new(receiver))
        .await;
    let read = reader.await?;
    let reply = sent.map_err(refused)?.into_inner();
    read?;
    say(format_args!(
        "{} accounts and {} messages restored, {} accounts skipped",
        reply.accounts_restored, reply.messages_restored, reply.accounts_skipped
    ))?;
    for note in reply.notes {
        say(format_args!("    {note}"))?;
    }
    if reply.accounts_skipped > 0 {
        bail!(
            "{} accounts of {} were left as they are; docs/OPERATIONS.md says how to restore all of a snapshot",
            reply.accounts_skipped,
            file.display()
        );
    }
    Ok(())
}

/// Reads the whole file once before anything is sent: a damaged backup changes nothing.
fn check_snapshot(file: &Path) -> Result<()> {
    let damaged = |error: PieceError| anyhow!("{}: {error}", file.display());
    let mut verifier = Verifier::default();
    for_each_piece(file, |piece| verifier.piece(&piece).map_err(damaged))?;
    verifier.end().map_err(damaged)
}

fn for_each_piece(file: &Path, mut take: impl FnMut(ShardPiece) -> Result<()>) -> Result<()> {
    use std::io::Read;
    let name = || file.display().to_string();
    let mut input = std::io::BufReader::new(std::fs::File::open(file).with_context(name)?);
    let mut magic = Vec::new();
    let most = SNAPSHOT_MAGIC.len() as u64;
    input
        .by_ref()
        .take(most)
        .read_to_end(&mut magic)
        .with_context(name)?;
    if magic != SNAPSHOT_MAGIC {
        bail!("{}: not a snapshot of a shard", file.display());
    }
    let mut length = [0; 4];
    loop {
        match input.read_exact(&mut length) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(error) => return Err(error).with_context(name),
        }
        let length = u32::from_be_bytes(length) as usize;
        if length > PIECE_BYTES_MAX {
            bail!("{}: damaged", file.display());
        }
        let mut bytes = vec![0; length];
        match input.read_exact(&mut bytes) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => {
                bail!("{}: cut short", file.display())
            }
            Err(error) => return Err(error).with_context(name),
        }
        take(ShardPiece::decode(bytes.as_slice()).with_context(name)?)?;
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use clap::Parser;

    use super::{part_of, socket_of};
    use crate::cli::{Cli, Command, Target};

    #[test]
    fn two_snapshots_at_once_do_not_grow_in_one_file() {
        let part = |name: &str| part_of(Path::new(name));
        assert_ne!(part("/b/day.mbox-0"), part("/b/day.mbox-1"));
        assert_eq!(part("/b/mbox-0"), Path::new("/b/mbox-0.part"));
    }

    #[test]
    fn a_socket_counts_before_a_configuration_that_the_environment_names() {
        // as HIKYAKU_CONFIG in the environment would
        let line = [
            "hikyaku",
            "status",
            "--config",
            "none.toml",
            "--socket",
            "s",
        ];
        let Command::Status { target } = Cli::try_parse_from(line).unwrap().command else {
            panic!()
        };
        assert_eq!(socket_of(&target).unwrap(), PathBuf::from("s"));
    }

    #[test]
    fn a_configuration_that_leads_nowhere_says_what_else_there_is() {
        let target = Target {
            config: Some("none.toml".into()),
            socket: None,
        };
        let why = socket_of(&target).unwrap_err().to_string();
        assert!(
            why.starts_with("none.toml: ") && why.contains("--socket"),
            "{why}"
        );
    }
}
