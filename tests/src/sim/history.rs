//! Everything that was ever durable, and what it means: a second, undisturbed application of every record from the first one
//! on. It says what each replica's state must be at each position, what became of every recipient, and which mail got which
//! UID. What holds at every position (PROTOCOLS 2.9 and 3.4) is checked as the records come.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures_util::FutureExt as _;
use hikyaku_engine::Engine;
use hikyaku_engine::memory::{MemoryDisk, MemoryEngine};
use hikyaku_home::machine::{Answer as HomeAnswer, HomeMachine, Owner};
use hikyaku_log::sim::{SimDisk, SimLog};
use hikyaku_log::{Applied, Bounds, Class, Log, LogRecord, Position, ShardId};
use hikyaku_proto::v1::ingest::Piece;
use hikyaku_proto::v1::{Claim, Ingest, Record, StoredMailbox, record::Command};
use hikyaku_queue::machine::{Answer as QueueAnswer, QueueMachine, QueueOptions};
use hikyaku_shard::machine::Machine;
use hikyaku_store::machine::{Answer, MailboxMachine, StoredAt};
use hikyaku_store::read::{self, Account};
use prost::Message as _;

use super::quota::Usage;
use super::site::SPARE_SHARD;
use super::truth::Truth;
use super::world::{World, lock};

/// The queue shards of the site.
pub const INCOMING: ShardId = ShardId::new(Class::Incoming, 0);
/// The home shard.
pub const HOME: ShardId = ShardId::new(Class::Home, 0);

/// A mailbox shard.
pub fn mbox(index: u16) -> ShardId {
    ShardId::new(Class::Mbox, index)
}

/// All shards of the site.
pub fn shards() -> Vec<ShardId> {
    let mailboxes = (0..=SPARE_SHARD).map(mbox);
    [INCOMING, HOME].into_iter().chain(mailboxes).collect()
}

enum Reference {
    Queue(Box<QueueMachine>),
    Home(Box<HomeMachine>),
    Mailbox(Box<MailboxMachine>, Arc<MemoryEngine>),
}

struct ShardHistory {
    id: ShardId,
    reference: Reference,
    /// The state's hash after each record; `[0]` is before the first.
    hashes: Vec<[u8; 32]>,
    /// Orders to the queue that did nothing: repeats, perhaps.
    void_orders: Vec<Position>,
    /// Who was first to claim each account.
    owners: BTreeMap<String, u32>,
    mail: MailHistory,
}

/// Which mail got which UID in one shard.
#[derive(Default)]
struct MailHistory {
    last_uid: BTreeMap<(String, u32), u32>,
    delivered: BTreeMap<(String, Bytes), StoredAt>,
    /// UIDNEXT and HIGHESTMODSEQ of INBOX, by account and UIDVALIDITY.
    numbers: BTreeMap<(String, u32), (u32, u64)>,
    /// The last UIDVALIDITY of INBOX, by account.
    validities: BTreeMap<String, u32>,
    /// What restores under way have brought so far: UID, delivery id, octets.
    staged: BTreeMap<String, Vec<(u32, Bytes, u64)>>,
    usage: Usage,
}

struct State {
    shards: Vec<ShardHistory>,
    truth: Truth,
}

/// The history of one run. Clones share it.
#[derive(Clone)]
pub struct History {
    /// The run.
    pub world: World,
    disk: SimDisk,
    observer: Arc<Mutex<Arc<SimLog>>>,
    state: Arc<Mutex<State>>,
}

/// The reference's options: nothing that `apply` depends on.
fn queue_options() -> QueueOptions {
    QueueOptions {
        body_cache_bytes_max: 0,
        ..QueueOptions::default()
    }
}

impl History {
    /// Watches `disk`.
    pub fn new(world: World, disk: SimDisk) -> History {
        let observer = Arc::new(SimLog::open(&disk, disk.faults()));
        let incarnation = observer.incarnation();
        let empty = Bounds {
            start: Position(1),
            end: Position(1),
        };
        let stores = MemoryDisk::new();
        let begin = |id: ShardId| {
            let open = || MemoryEngine::open(&stores, &id.to_string());
            let mut reference = match id.class {
                Class::Home => Reference::Home(Box::new(HomeMachine::open(open()).unwrap())),
                Class::Mbox => {
                    let engine = open();
                    let machine = MailboxMachine::open(engine.clone()).unwrap();
                    Reference::Mailbox(Box::new(machine), engine)
                }
                _ => Reference::Queue(Box::new(QueueMachine::new(queue_options()))),
            };
            let resumed = match &mut reference {
                Reference::Queue(machine) => machine.resume(incarnation, empty),
                Reference::Home(machine) => machine.resume(incarnation, empty),
                Reference::Mailbox(machine, _) => machine.resume(incarnation, empty),
            };
            assert_eq!(resumed, Ok(Position(1)));
            let hashes = vec![reference.hash()];
            ShardHistory {
                id,
                reference,
                hashes,
                void_orders: Vec::new(),
                owners: BTreeMap::new(),
                mail: MailHistory::default(),
            }
        };
        let shards = shards().into_iter().map(begin).collect();
        History {
            disk,
            observer: Arc::new(Mutex::new(observer)),
            state: Arc::new(Mutex::new(State {
                shards,
                truth: Truth::new(world.clone()),
            })),
            world,
        }
    }

    /// Opens the log anew after all handles on it have died.
    pub fn reopen(&self) {
        *lock(&self.observer) = Arc::new(SimLog::open(&self.disk, self.disk.faults()));
    }

    /// Applies what has become durable since the last look.
    pub fn collect(&self) {
        let state = &mut *lock(&self.state);
        for index in 0..state.shards.len() {
            self.collect_shard(state, index);
        }
    }

    /// Applies what has become durable of a shard whose log is about to be cut.
    pub fn collect_before_truncation(&self, shard: ShardId) {
        let state = &mut *lock(&self.state);
        if let Some(index) = state.shards.iter().position(|known| known.id == shard) {
            self.collect_shard(state, index);
        }
    }

    fn collect_shard(&self, state: &mut State, index: usize) {
        let observer = lock(&self.observer).clone();
        let State { shards, truth } = state;
        let history = &mut shards[index];
        let end = observer.bounds(history.id).end;
        while (history.hashes.len() as u64) < end.0 {
            let position = Position(history.hashes.len() as u64);
            let found = observer.read_at(history.id, position).now_or_never();
            let Some(Ok(record)) = found else {
                let id = history.id;
                self.world.violate(format_args!(
                    "the log lost a record nobody allowed it to forget: {id} {position} {found:?}"
                ));
                return;
            };
            history.apply(&self.world, truth, observer.incarnation(), record);
        }
    }

    /// The hash a replica of `shard` must have once it has applied `position`; `None` beyond what is durable.
    pub fn hash_at(&self, shard: ShardId, position: Position) -> Option<[u8; 32]> {
        let state = lock(&self.state);
        let history = state.shards.iter().find(|known| known.id == shard)?;
        history.hashes.get(position.0 as usize).copied()
    }

    /// A queue that begins with what the log still has, and the orders in it that may repeat earlier ones.
    pub fn replayed(&self) -> (QueueMachine, usize) {
        let observer = lock(&self.observer).clone();
        let incarnation = observer.incarnation();
        let bounds = observer.bounds(INCOMING);
        let mut machine = QueueMachine::new(queue_options());
        machine.resume(incarnation, bounds).unwrap();
        for LogRecord { stamp, payload } in self.disk.records(INCOMING) {
            let record = Record::decode(payload).unwrap();
            machine.apply(stamp, record).unwrap();
        }
        let state = lock(&self.state);
        let queues = state.shards.iter().filter(|known| known.id == INCOMING);
        let orders = queues.flat_map(|known| &known.void_orders);
        let repeats = orders.filter(|at| **at >= bounds.start).count();
        (machine, repeats)
    }

    /// One past the last durable record seen of `shard`.
    pub fn end(&self, shard: ShardId) -> u64 {
        let state = lock(&self.state);
        let history = state.shards.iter().find(|known| known.id == shard);
        history.map_or(1, |history| history.hashes.len() as u64)
    }

    /// Looks at what became of every message.
    pub fn look<T>(&self, look: impl FnOnce(&Truth) -> T) -> T {
        look(&lock(&self.state).truth)
    }
}

impl Reference {
    fn hash(&self) -> [u8; 32] {
        match self {
            Reference::Queue(machine) => machine.state_hash(),
            Reference::Home(machine) => machine.state_hash(),
            Reference::Mailbox(machine, _) => machine.state_hash(),
        }
    }
}

impl ShardHistory {
    fn apply(&mut self, world: &World, truth: &mut Truth, incarnation: u64, logged: LogRecord) {
        let stamp = logged.stamp;
        world.digest(&self.id.number().to_be_bytes());
        world.digest(&stamp.position.0.to_be_bytes());
        world.digest(&stamp.crc.to_be_bytes());
        let Ok(record) = Record::decode(logged.payload) else {
            world.violate(format_args!(
                "{} {} does not decode",
                self.id, stamp.position
            ));
            return;
        };
        let word = record.command.as_ref().map_or("none", word);
        world.count(format!("record/{}/{word}", self.id.class.word()));
        if world.is_verbose() {
            world.note(format_args!(
                "{} {} {}",
                self.id,
                stamp.position,
                brief(&record)
            ));
        }
        let applied = Applied { incarnation, stamp };
        match &mut self.reference {
            Reference::Queue(machine) => {
                let command = record.command.clone();
                let answer = machine.apply(stamp, record).unwrap();
                machine.batch_end(applied).unwrap();
                if matches!(
                    (&command, &answer),
                    (Some(Command::Operate(_)), QueueAnswer::Void)
                ) {
                    self.void_orders.push(stamp.position);
                }
                truth.queue(machine, command, answer, stamp.position);
            }
            Reference::Home(machine) => {
                let command = record.command.clone();
                let answer = machine.apply(stamp, record).unwrap();
                machine.batch_end(applied).unwrap();
                if let (Some(Command::Claim(claim)), HomeAnswer::Owner(owner)) = (command, answer) {
                    check_owner(&mut self.owners, world, claim, owner);
                }
            }
            Reference::Mailbox(machine, engine) => {
                let command = record.command.clone();
                let answer = machine.apply(stamp, record).unwrap();
                machine.batch_end(applied).unwrap();
                if let Some(command) = &command {
                    self.mail.usage.apply(world, command, &answer);
                    let unchanged = self.hashes.last() == Some(&machine.state_hash());
                    check_stale(world, &**engine, command, unchanged);
                }
                if let Some(Command::Ingest(ingest)) = &command
                    && matches!(answer, Answer::Ingested | Answer::Discarding)
                {
                    self.mail.ingested(world, truth, self.id, &**engine, ingest);
                }
                if let Some(account) = command.as_ref().and_then(account_in) {
                    self.mail.check_numbers(world, &**engine, account);
                }
                self.mail.check(world, truth, self.id, command, &answer);
            }
        }
        self.hashes.push(self.reference.hash());
    }
}

/// The first claim of an account decides for ever who owns it.
fn check_owner(owners: &mut BTreeMap<String, u32>, world: &World, claim: Claim, owner: Owner) {
    let Claim { account, shard } = claim;
    let first = *owners.entry(account.clone()).or_insert(shard);
    if first != shard {
        world.count("claim/by a second shard");
    }
    if u32::from(owner.shard) != first {
        world.violate(format_args!(
            "M8: {account} was claimed by shard {first} first, and {owner:?} owns it"
        ));
    }
}

/// RFC 9051 section 2.3.1.1: UIDs of another UIDVALIDITY name nothing, so a command that has them changes nothing.
fn check_stale(world: &World, engine: &dyn Engine, command: &Command, unchanged: bool) {
    let (account, uid_validity) = match command {
        Command::Expunge(expunge) => (&expunge.account, expunge.uid_validity),
        Command::StoreFlags(store) => (&store.account, store.uid_validity),
        _ => return,
    };
    let Some(inbox) = inbox_of(engine, account) else {
        return;
    };
    if inbox.uid_validity == uid_validity {
        return;
    }
    world.count(format!("stale/{}", word(command)));
    if !unchanged {
        world.violate(format_args!(
            "M2: {account} was changed by UIDs of {uid_validity}, and has {}: {command:?}",
            inbox.uid_validity
        ));
    }
}

/// The account whose mailboxes a command can change.
fn account_in(command: &Command) -> Option<&str> {
    Some(match command {
        Command::Deliver(deliver) => &deliver.account,
        Command::Expunge(expunge) => &expunge.account,
        Command::StoreFlags(store) => &store.account,
        Command::Void(void) => &void.account,
        Command::SetAccount(set) => &set.account,
        _ => return None,
    })
}

impl MailHistory {
    /// M3: UIDNEXT and HIGHESTMODSEQ never go back; M9: the account holds what was stored in it.
    fn check_numbers(&mut self, world: &World, engine: &dyn Engine, account: &str) {
        let snapshot = engine.snapshot();
        let Ok(Account::Open(open)) = read::account(&*snapshot, account) else {
            return;
        };
        let used_bytes = self.usage.of(account);
        if open.used_bytes != used_bytes {
            world.violate(format_args!(
                "M9: {account} holds {used_bytes} octets, not {}",
                open.used_bytes
            ));
        }
        let Ok(Some(inbox)) = read::mailbox(&*snapshot, account, open.inbox) else {
            world.violate(format_args!("{account} has no INBOX"));
            return;
        };
        let key = (account.to_owned(), inbox.uid_validity);
        let known = self.numbers.entry(key).or_default();
        if inbox.uid_next < known.0 || inbox.highest_modseq < known.1 {
            world.violate(format_args!(
                "M3: {account} goes back from {known:?} to {inbox:?}"
            ));
        }
        *known = (inbox.uid_next, inbox.highest_modseq);
        self.validities
            .insert(account.to_owned(), inbox.uid_validity);
    }

    /// A piece of an account was taken: when all are there, the account is what they say, under a UIDVALIDITY above all before.
    fn ingested(
        &mut self,
        world: &World,
        truth: &mut Truth,
        shard: ShardId,
        engine: &dyn Engine,
        ingest: &Ingest,
    ) {
        let account = &ingest.account;
        match &ingest.piece {
            Some(Piece::Begin(begin)) => {
                self.usage.cleared(account, begin.quota_bytes);
                self.staged.insert(account.clone(), Vec::new());
            }
            Some(Piece::Message(message)) => {
                let Some(staged) = self.staged.get_mut(account) else {
                    return;
                };
                if staged.iter().all(|(uid, _, _)| *uid != message.uid) {
                    let body = message.body.as_ref().map_or(0, |body| body.size);
                    let size = body + message.prefix.len() as u64;
                    staged.push((message.uid, message.delivery_id.clone(), size));
                }
            }
            // a repeat of the end finds nothing
            Some(Piece::End(_)) => {
                let Some(staged) = self.staged.remove(account) else {
                    return;
                };
                let Some(inbox) = inbox_of(engine, account) else {
                    world.violate(format_args!("{account} was restored and is not there"));
                    return;
                };
                let last = self.validities.get(account).copied().unwrap_or_default();
                if inbox.uid_validity <= last || inbox.exists != staged.len() as u64 {
                    world.violate(format_args!(
                        "M2: {account} had UIDVALIDITY {last} and {} mails, and is restored as {inbox:?}",
                        staged.len()
                    ));
                }
                let uid_validity = inbox.uid_validity;
                let place = |uid| (account.clone(), uid_validity, uid);
                for (uid, _, size) in &staged {
                    self.usage.restored(place(*uid), *size);
                }
                if shard.index != SPARE_SHARD {
                    let mails = staged.into_iter().map(|(uid, id, _)| (place(uid), id));
                    truth.restored(account, mails);
                }
                self.check_numbers(world, engine, account);
            }
            _ => {}
        }
    }

    /// M2: UIDs rise; M5: a delivery id gets one UID.
    fn check(
        &mut self,
        world: &World,
        truth: &mut Truth,
        shard: ShardId,
        command: Option<Command>,
        answer: &Answer,
    ) {
        let kind = match answer {
            Answer::Delivered(_) => "delivered",
            Answer::AlreadyDelivered(_) => "already delivered",
            Answer::OverQuota => "over quota",
            Answer::Disabled => "disabled",
            Answer::NotOwner => "not owner",
            Answer::Voided => "voided",
            _ => "",
        };
        if !kind.is_empty() {
            world.count(format!("answer/{kind}"));
        }
        let (Some(Command::Deliver(deliver)), Answer::Delivered(at)) = (command, answer) else {
            return;
        };
        let last = self
            .last_uid
            .entry((deliver.account.clone(), at.uid_validity))
            .or_default();
        if at.uid <= *last {
            let (account, uid) = (&deliver.account, at.uid);
            world.violate(format_args!(
                "M2: {shard} {account} gives UID {uid} after {last}"
            ));
        }
        *last = at.uid;
        let key = (deliver.account.clone(), deliver.delivery_id.clone());
        if self.delivered.insert(key, *at).is_some() {
            let account = &deliver.account;
            world.violate(format_args!(
                "M5: {shard} {account} stores a delivery id twice"
            ));
        }
        truth.stored(shard.index, &deliver, *at);
    }
}

fn inbox_of(engine: &dyn Engine, account: &str) -> Option<StoredMailbox> {
    let snapshot = engine.snapshot();
    let Ok(Account::Open(open)) = read::account(&*snapshot, account) else {
        return None;
    };
    read::mailbox(&*snapshot, account, open.inbox).ok()?
}

/// A command in one word.
pub fn word(command: &Command) -> &'static str {
    match command {
        Command::LeaderBegin(_) => "LeaderBegin",
        Command::Barrier(_) => "Barrier",
        Command::Tick(_) => "Tick",
        Command::HashMark(_) => "HashMark",
        Command::HashReport(_) => "HashReport",
        Command::Accept(_) => "Accept",
        Command::Cancel(_) => "Cancel",
        Command::Routed(_) => "Routed",
        Command::Attempted(_) => "Attempted",
        Command::Bounce(_) => "Bounce",
        Command::Carry(_) => "Carry",
        Command::Operate(_) => "Operate",
        Command::Claim(_) => "Claim",
        Command::OpenAccount(_) => "OpenAccount",
        Command::Deliver(_) => "Deliver",
        Command::Void(_) => "Void",
        Command::Expunge(_) => "Expunge",
        Command::StoreFlags(_) => "StoreFlags",
        Command::CreateMailbox(_) => "CreateMailbox",
        Command::SetAccount(_) => "SetAccount",
        Command::Ingest(_) => "Ingest",
    }
}

/// A record on one line, for a trace that is read.
fn brief(record: &Record) -> String {
    let hex = |octets: &[u8]| {
        let tail = octets.iter().rev().take(8).rev();
        tail.map(|octet| format!("{octet:02x}")).collect::<String>()
    };
    let Some(command) = &record.command else {
        return "none".to_owned();
    };
    let detail = match command {
        Command::Accept(accept) => hex(&accept.message_id),
        Command::Cancel(cancel) => hex(&cancel.message_id),
        Command::Routed(routed) => format!(
            "{} {} -> {}",
            hex(&routed.message_id),
            routed.recipient,
            routed.children.len()
        ),
        Command::Attempted(attempted) => {
            format!("{} {:?}", hex(&attempted.message_id), attempted.outcomes)
        }
        Command::Bounce(bounce) => format!(
            "{} {:?} dsn {}",
            hex(&bounce.message_id),
            bounce.recipients,
            bounce
                .dsn
                .as_ref()
                .map_or_else(String::new, |dsn| hex(&dsn.message_id))
        ),
        Command::Carry(carry) => format!(
            "{} as of {}",
            carry
                .accept
                .as_ref()
                .map_or_else(String::new, |accept| hex(&accept.message_id)),
            carry.as_of
        ),
        Command::Operate(operate) => {
            format!("{} {:?}", hex(&operate.message_id), operate.order())
        }
        Command::Deliver(deliver) => format!(
            "{} {} for {}",
            hex(&deliver.delivery_id[..16.min(deliver.delivery_id.len())]),
            hex(&deliver.delivery_id[16.min(deliver.delivery_id.len())..]),
            deliver.account
        ),
        Command::Void(void) => format!(
            "{} {} for {}",
            hex(&void.delivery_id[..16.min(void.delivery_id.len())]),
            hex(&void.delivery_id[16.min(void.delivery_id.len())..]),
            void.account
        ),
        Command::Expunge(expunge) => format!("{} {:?}", expunge.account, expunge.uids),
        Command::SetAccount(set) => format!("{set:?}"),
        Command::Claim(claim) => format!("{claim:?}"),
        Command::LeaderBegin(begin) => begin.node.clone(),
        Command::Tick(tick) => tick.log_time_ms.to_string(),
        _ => String::new(),
    };
    format!("{} {detail}", word(command))
}
