//! The runtime under a small machine: who hears what, when, and what the log may forget.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::collections::BTreeSet;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{join, join_all};
use hikyaku_log::sim::{SimDisk, SimFaults, SimLog};
use hikyaku_log::{AppendError, Applied, Bounds, Class, Log, Position, ShardId, Stamp};
use hikyaku_proto::VERSION;
use hikyaku_proto::v1::record::Command;
use hikyaku_proto::v1::{HashReport, Record, Tick};
use hikyaku_serve::tasks::Tasks;
use hikyaku_shard::ambient::Ambient;
use hikyaku_shard::lead;
use hikyaku_shard::machine::{Machine, Trouble, resume_after};
use hikyaku_shard::runtime::{Committed, ProposeError, Shard, ShardOptions};
use prost::Message as _;

const ID: ShardId = ShardId::new(Class::Mbox, 0);
/// Longer than the runtime waits between two looks at what the log may forget.
const A_WHILE: Duration = Duration::from_secs(3);

/// What a machine is told, and what it answers. The test and the machine share it.
#[derive(Default)]
struct Book {
    resumed: Vec<Bounds>,
    /// Where it goes on, before it says what the log's start says.
    resume_at: Vec<Position>,
    applied: Applied,
    /// Records applied, those of unfinished batches included.
    seen: Vec<Position>,
    quarantined: Vec<Position>,
    keep_from: Position,
    log_starts: Vec<Position>,
    pressed: u64,
    trouble_at: Option<(Position, Trouble)>,
    panic_at: Option<Position>,
    is_partial: bool,
    at_batch_end: Option<Look>,
}

/// What a test looks at when a batch ends, before it is visible.
type Look = Box<dyn FnMut(Applied) + Send>;

#[derive(Clone, Default)]
struct Recorder {
    book: Arc<Mutex<Book>>,
}

impl Recorder {
    fn book<R>(&self, look: impl FnOnce(&mut Book) -> R) -> R {
        look(&mut self.book.lock().unwrap())
    }
}

impl Machine for Recorder {
    type Answer = Position;

    fn resume(&mut self, _: u64, bounds: Bounds) -> Result<Position, Trouble> {
        Ok(self.book(|book| {
            book.resumed.push(bounds);
            book.resume_at.pop().unwrap_or(bounds.start)
        }))
    }

    fn applied(&self) -> Applied {
        self.book(|book| book.applied)
    }

    fn apply(&mut self, stamp: Stamp, _: Record) -> Result<Position, Trouble> {
        let panics = self.book(|book| book.panic_at == Some(stamp.position));
        assert!(!panics, "as the test wants it");
        self.book(|book| {
            book.seen.push(stamp.position);
            match &book.trouble_at {
                Some((at, trouble)) if *at == stamp.position => Err(trouble.clone()),
                _ => Ok(stamp.position),
            }
        })
    }

    fn quarantine(&mut self, stamp: Stamp) -> Result<(), Trouble> {
        self.book(|book| book.quarantined.push(stamp.position));
        Ok(())
    }

    fn batch_end(&mut self, applied: Applied) -> Result<(), Trouble> {
        let look = self.book(|book| book.at_batch_end.take());
        if let Some(mut look) = look {
            look(applied);
            self.book(|book| book.at_batch_end = Some(look));
        }
        self.book(|book| book.applied = applied);
        Ok(())
    }

    fn keep_from(&self) -> Position {
        self.book(|book| book.keep_from)
    }

    fn log_start(&mut self, start: Position) {
        self.book(|book| book.log_starts.push(start));
    }

    fn pressed(&mut self) {
        self.book(|book| book.pressed += 1);
    }

    fn state_hash(&self) -> [u8; 32] {
        let count = self.book(|book| book.seen.len());
        [u8::try_from(count).unwrap(); 32]
    }

    fn is_whole(&self) -> bool {
        self.book(|book| !book.is_partial)
    }
}

/// A clock that stands still, and numbers of which none comes twice.
#[derive(Default)]
struct Counting(AtomicU64);

impl Ambient for Counting {
    fn now_ms(&self) -> u64 {
        1_000
    }

    fn random(&self) -> u64 {
        self.0.fetch_add(1, Ordering::Relaxed)
    }
}

struct Node {
    log: Arc<dyn Log>,
    machine: Recorder,
    shard: Shard<Recorder>,
    _tasks: Tasks,
}

impl Node {
    fn start(machine: Recorder) -> Node {
        Node::start_on(Arc::new(sim(SimFaults::none())), machine)
    }

    fn start_on(log: Arc<dyn Log>, machine: Recorder) -> Node {
        let tasks = Tasks::new();
        let shard = Shard::start(
            &tasks,
            ID,
            "one",
            log.clone(),
            Arc::new(Counting::default()),
            machine.clone(),
            ShardOptions::default(),
        );
        Node {
            log,
            machine,
            shard,
            _tasks: tasks,
        }
    }

    /// A proposal that does not borrow the node.
    fn proposal(&self) -> Proposal {
        let shard = self.shard.clone();
        Box::pin(async move { shard.propose(tick()).await })
    }
}

type Outcome = Result<Committed<Position>, ProposeError>;
type Proposal = Pin<Box<dyn Future<Output = Outcome> + Send>>;

fn sim(faults: SimFaults) -> SimLog {
    SimLog::open(&SimDisk::new(1), faults)
}

fn tick() -> Command {
    Command::Tick(Tick { log_time_ms: 1 })
}

fn record(version: u32) -> Bytes {
    let record = Record {
        version,
        cmd_id: Bytes::new(),
        time_ms: 1,
        command: Some(tick()),
    };
    record.encode_to_vec().into()
}

fn positions(positions: impl IntoIterator<Item = u64>) -> Vec<Position> {
    positions.into_iter().map(Position).collect()
}

fn bounds(start: u64, end: u64) -> Bounds {
    Bounds {
        start: Position(start),
        end: Position(end),
    }
}

/// Polls without being woken: what is ready is ready now.
fn poll(proposal: &mut Proposal) -> Poll<Outcome> {
    let mut context = Context::from_waker(Waker::noop());
    proposal.as_mut().poll(&mut context)
}

#[tokio::test(start_paused = true)]
async fn nobody_hears_of_a_batch_before_it_is_visible() {
    let node = Node::start(Recorder::default());
    let mut proposal = node.proposal();
    assert!(poll(&mut proposal).is_pending());
    let proposal = Arc::new(Mutex::new(proposal));
    let early = Arc::new(Mutex::new(Vec::new()));
    let (watched, found, applied) = (proposal.clone(), early.clone(), node.shard.applied());
    node.machine.book(|book| {
        book.at_batch_end = Some(Box::new(move |batch| {
            if poll(&mut watched.lock().unwrap()).is_ready() {
                found.lock().unwrap().push("the proposer was answered");
            }
            if *applied.borrow() >= batch.stamp.position {
                found.lock().unwrap().push("the batch counted as applied");
            }
        }));
    });
    assert!(node.shard.wait_applied(Position(1)).await);
    assert_eq!(*early.lock().unwrap(), [""; 0]);
    // the same look sees the answer once the batch is visible
    match poll(&mut proposal.lock().unwrap()) {
        Poll::Ready(Ok(committed)) => assert_eq!(committed.position, Position(1)),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn each_proposer_hears_of_its_own_record() {
    let node = Node::start(Recorder::default());
    let outcomes = join_all((0..100).map(|_| node.proposal())).await;
    let mut heard = BTreeSet::new();
    for outcome in outcomes {
        let committed = outcome.unwrap();
        assert_eq!(committed.answer, committed.position);
        assert!(heard.insert(committed.position), "heard twice");
    }
    assert_eq!(heard.into_iter().collect::<Vec<_>>(), positions(1..=100));
}

#[tokio::test(start_paused = true)]
async fn repeats_of_a_command_hear_an_answer_or_ask_again() {
    let node = Node::start(Recorder::default());
    let repeat = || node.shard.propose_as([7; 16], tick());
    let (one, other) = join(repeat(), repeat()).await;
    assert!(one.is_ok() || other.is_ok());
    for outcome in [one, other] {
        match outcome {
            Ok(committed) => assert_eq!(committed.answer, committed.position),
            Err(error) => assert_eq!(error, ProposeError::Unknown),
        }
    }
    assert_eq!(repeat().await.unwrap().position, Position(3));
}

#[tokio::test(start_paused = true)]
async fn a_barrier_waits_for_all_that_was_logged_before() {
    let node = Node::start(Recorder::default());
    for _ in 0..20 {
        node.log.append(ID, record(VERSION)).await.unwrap();
    }
    let position = node.shard.barrier().await.unwrap();
    assert_eq!(position, Position(21));
    assert_eq!(node.machine.book(|book| book.seen.len()), 21);
}

#[tokio::test(start_paused = true)]
async fn the_log_is_cut_at_what_the_machine_keeps_and_no_further() {
    let node = Node::start(Recorder::default());
    for _ in 0..9 {
        node.shard.propose(tick()).await.unwrap();
    }
    for keep_from in [0, 1, 4, 5, 3, 10] {
        node.machine
            .book(|book| book.keep_from = Position(keep_from));
        let before = node.log.bounds(ID).start.0;
        tokio::time::sleep(A_WHILE).await;
        let start = before.max(keep_from);
        assert_eq!(node.log.bounds(ID), bounds(start, 10));
        let told = node.machine.book(|book| book.log_starts.pop());
        assert_eq!(told, Some(Position(start)));
    }
}

#[tokio::test(start_paused = true)]
async fn a_shard_that_stopped_cuts_nothing_any_more() {
    let node = Node::start(Recorder::default());
    node.shard.propose(tick()).await.unwrap();
    node.shard.propose(tick()).await.unwrap();
    let trouble = Trouble::Store("broken".to_owned());
    node.machine.book(|book| {
        book.trouble_at = Some((Position(3), trouble.clone()));
        book.keep_from = Position(4);
    });
    assert!(matches!(
        node.shard.propose(tick()).await,
        Err(ProposeError::Unknown)
    ));
    assert_eq!(node.shard.trouble(), Some(trouble));
    tokio::time::sleep(A_WHILE).await;
    assert_eq!(node.log.bounds(ID), bounds(1, 4));
    assert!(!node.shard.wait_applied(Position(3)).await);
    assert!(node.shard.wait_applied(Position(2)).await);
    let refused = node.shard.propose(tick()).await.err();
    let unavailable = ProposeError::Refused(AppendError::Unavailable);
    assert_eq!(refused, Some(unavailable));
    assert_eq!(node.log.bounds(ID), bounds(1, 4), "nothing more is logged");
}

#[tokio::test(start_paused = true)]
async fn a_panic_of_apply_parks_the_shard_at_that_record() {
    let node = Node::start(Recorder::default());
    node.machine.book(|book| book.panic_at = Some(Position(2)));
    node.shard.propose(tick()).await.unwrap();
    let panicked = node.shard.propose(tick()).await.err();
    assert_eq!(panicked, Some(ProposeError::Unknown));
    assert_eq!(node.shard.trouble(), Some(Trouble::Poison(Position(2))));
    assert_eq!(*node.shard.applied().borrow(), Position(1));
}

#[tokio::test(start_paused = true)]
async fn what_does_not_decode_is_passed_over_and_what_is_newer_is_not() {
    let node = Node::start(Recorder::default());
    node.log.append(ID, record(VERSION)).await.unwrap();
    let unreadable = Bytes::from_static(b"\xff\xff\xff");
    node.log.append(ID, unreadable).await.unwrap();
    node.log.append(ID, Bytes::new()).await.unwrap();
    node.log.append(ID, record(VERSION)).await.unwrap();
    assert!(node.shard.wait_applied(Position(4)).await);
    node.machine.book(|book| {
        assert_eq!(book.seen, positions([1, 4]));
        assert_eq!(book.quarantined, positions([2, 3]));
    });
    node.log.append(ID, record(VERSION + 1)).await.unwrap();
    assert!(!node.shard.wait_applied(Position(5)).await);
    let newer = Trouble::NewerVersion {
        position: Position(5),
        version: VERSION + 1,
        known: VERSION,
    };
    assert_eq!(node.shard.trouble(), Some(newer));
}

#[tokio::test(start_paused = true)]
async fn a_start_applies_what_follows_its_state_once() {
    let log: Arc<dyn Log> = Arc::new(sim(SimFaults::none()));
    let mut stamps = Vec::new();
    for _ in 0..5 {
        stamps.push(log.append(ID, record(VERSION)).await.unwrap());
    }
    let machine = Recorder::default();
    machine.book(|book| {
        book.applied.stamp = stamps[2];
        book.resume_at = positions([4]);
    });
    let node = Node::start_on(log.clone(), machine);
    assert!(node.shard.wait_applied(Position(5)).await);
    node.machine.book(|book| {
        assert_eq!(book.resumed, [bounds(1, 6)]);
        assert_eq!(book.seen, positions([4, 5]));
    });

    // the same position, another record
    let machine = Recorder::default();
    machine.book(|book| {
        book.applied.stamp = stamps[2];
        book.applied.stamp.crc ^= 1;
        book.resume_at = positions([4]);
    });
    let node = Node::start_on(log, machine);
    assert!(!node.shard.wait_applied(Position(5)).await);
    assert!(matches!(
        node.shard.trouble(),
        Some(Trouble::LogMismatch(_))
    ));
    assert!(node.machine.book(|book| book.seen.is_empty()));
}

#[tokio::test(start_paused = true)]
async fn a_log_cut_above_what_was_applied_is_begun_anew() {
    let log = sim(SimFaults::none());
    for _ in 0..5 {
        log.append(ID, record(VERSION)).await.unwrap();
    }
    log.truncate(ID, Position(4)).await.unwrap();
    let machine = Recorder::default();
    machine.book(|book| book.resume_at = positions([2]));
    let node = Node::start_on(Arc::new(log), machine);
    assert!(node.shard.wait_applied(Position(5)).await);
    node.machine.book(|book| {
        assert_eq!(book.resumed, [bounds(4, 6); 2]);
        assert_eq!(book.seen, positions([4, 5]));
    });
}

#[tokio::test(start_paused = true)]
async fn the_pressure_of_a_log_that_fills_up_reaches_the_machine() {
    let full = SimFaults {
        bytes_max: 1_000,
        ..SimFaults::none()
    };
    let log = Arc::new(sim(full));
    let node = Node::start_on(log.clone(), Recorder::default());
    tokio::time::sleep(A_WHILE).await;
    assert_eq!(node.machine.book(|book| book.pressed), 0);
    while !log.pinned(ID).pressed {
        node.shard.propose(tick()).await.unwrap();
    }
    tokio::time::sleep(A_WHILE).await;
    assert!(node.machine.book(|book| book.pressed) > 0);
}

async fn report(node: &Node, replica: &str, mark: Position, hash: [u8; 32]) -> Outcome {
    let report = HashReport {
        mark_position: mark.0,
        replica: replica.to_owned(),
        hash: hash.to_vec().into(),
    };
    node.shard.propose(Command::HashReport(report)).await
}

#[tokio::test(start_paused = true)]
async fn another_hash_at_the_same_mark_parks_the_shard() {
    let node = Node::start(Recorder::default());
    node.shard.propose(tick()).await.unwrap();
    let mark = lead::mark(&node.shard).await.unwrap();
    // the mark itself is applied when its hash is taken
    assert_eq!(node.shard.hash_at(mark), Some([2; 32]));
    report(&node, "two", mark, [2; 32]).await.unwrap();
    report(&node, "one", mark, [9; 32]).await.unwrap();
    // of another moment, of which nothing is remembered
    report(&node, "two", Position(1), [9; 32]).await.unwrap();
    let diverged = report(&node, "two", mark, [9; 32]).await;
    assert_eq!(diverged.err(), Some(ProposeError::Unknown));
    let trouble = Trouble::Diverged {
        position: mark,
        replica: "two".to_owned(),
    };
    assert_eq!(node.shard.trouble(), Some(trouble));
}

#[tokio::test(start_paused = true)]
async fn a_state_that_is_not_whole_is_not_compared() {
    let node = Node::start(Recorder::default());
    node.machine.book(|book| book.is_partial = true);
    let mark = lead::mark(&node.shard).await.unwrap();
    assert_eq!(node.shard.hash_at(mark), None);
    report(&node, "two", mark, [9; 32]).await.unwrap();
    assert_eq!(node.shard.trouble(), None);
}

#[test]
fn a_state_goes_on_only_in_the_log_it_was_made_of() {
    let at = |position| Applied {
        incarnation: 7,
        stamp: Stamp {
            position: Position(position),
            crc: 0,
        },
    };
    let resume = |applied, start, end| resume_after(at(applied), 7, bounds(start, end));
    // a new state, a new log; and the whole of an old one
    assert_eq!(resume(0, 1, 1), Ok(Position(1)));
    assert_eq!(resume(0, 1, 5), Ok(Position(1)));
    // in the middle; all of it; and where the log begins right after what was applied
    assert_eq!(resume(3, 1, 5), Ok(Position(4)));
    assert_eq!(resume(4, 1, 5), Ok(Position(5)));
    assert_eq!(resume(4, 5, 5), Ok(Position(5)));
    assert_eq!(resume(4, 5, 9), Ok(Position(5)));
    // the log is shorter, or a record is gone
    for (applied, start, end) in [(5, 1, 5), (1, 1, 1), (4, 6, 9), (0, 2, 5)] {
        let resumed = resume(applied, start, end);
        assert!(
            matches!(resumed, Err(Trouble::LogMismatch(_))),
            "{applied} in {start}..{end}: {resumed:?}"
        );
    }
    // another log, unless nothing was applied
    let other = |position| resume_after(at(position), 8, bounds(1, 5));
    assert!(matches!(other(3), Err(Trouble::LogMismatch(_))));
    assert_eq!(other(0), Ok(Position(1)));
}
