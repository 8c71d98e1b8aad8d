//! Power cuts of the real binary: a recorded run under load, and images of what a cut could have left, each started,
//! held against the ledger of what had been acknowledged by then, crashed once more and held against it again.

use std::io::Write as _;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hikyaku_power::rebuild::{self, Model};
use hikyaku_power::record::{self, Life, Record};
use loadtest::ledger::Event;
use loadtest::random::Random;

use super::backup::{Places, gone, places, reused};
use super::binary::program;
use super::load::{Load, acknowledged, events, queue_id, verify_settled};
use super::post_mortem::scratch;
use super::server::{Server, Traced, listeners_of};
use super::site::{Plan, Site};

/// Mailbox shards of the recorded site.
const SHARDS: [u16; 2] = [0, 1];
/// Longest wait for an image's last mail.
const WAIT: Duration = Duration::from_secs(120);
/// How long an image is watched for a copy too many.
const SETTLE: Duration = Duration::from_millis(30);
/// Between two looks at the UIDs of the recorded run.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Longest recorded run, on a machine where little happens in the length asked for.
const LONGEST: Duration = Duration::from_secs(120);

/// What a client had seen of UIDs, and when, Unix seconds.
struct Sighting {
    at: f64,
    places: Places,
}

/// A run under load, recorded call by call.
pub struct Recording {
    /// Where it took place.
    pub site: Site,
    /// What happened to its data directory.
    pub record: Record,
    trace: String,
    ledger: Vec<Event>,
    sightings: Vec<Sighting>,
}

impl Recording {
    /// Records a run of about `length` under `load`, longer until `messages` are acknowledged, ended by a kill.
    ///
    /// # Panics
    /// When it does not come about.
    pub fn make(plan: Plan, load: &Load, length: Duration, messages: usize) -> Recording {
        let site = Site::new(plan);
        let trace = site.home().join("trace");
        std::fs::create_dir(site.data()).expect("the data directory");
        let mut server = start_recorded(&site, &trace);
        let loading = load.start(&site);
        let sightings = watch(&site, length, messages);
        server.kill();
        loading.end();
        let trace = std::fs::read_to_string(&trace).expect("the trace");
        let record = Record::parse(&trace, site.data());
        Recording {
            ledger: events(&site.ledger()),
            site,
            record,
            trace,
            sightings,
        }
    }

    /// How many looks at UIDs there were.
    pub fn sightings(&self) -> usize {
        self.sightings.len()
    }

    /// An image of a cut, ready to be started.
    fn image(&self, record: &Record, cut: usize, model: Model, dice: &mut Random) -> (Site, usize) {
        let site = self.site.twin(&scratch());
        std::fs::create_dir(site.data()).expect("the image's directory");
        let lost = rebuild::write(
            record,
            cut,
            model,
            &mut |sides| dice.below(sides),
            site.data(),
        );
        (site, lost)
    }

    /// The ledger as it stood at a cut: whoever had not been answered by then knows nothing.
    fn write_ledger(&self, cut: usize, path: &Path) -> usize {
        let known: std::collections::BTreeSet<&str> = self.record.acknowledged(cut).collect();
        let mut text = Vec::new();
        for event in &self.ledger {
            if let Event::Outcome {
                reply: Some(reply), ..
            } = event
                && let Some(id) = queue_id(reply)
                && !known.contains(id)
            {
                continue;
            }
            serde_json::to_writer(&mut text, event).expect("a line");
            text.push(b'\n');
        }
        std::fs::write(path, text).expect("the ledger");
        known.len()
    }

    /// What clients had seen by a cut.
    fn seen_by(&self, cut: usize) -> Option<&Places> {
        let time = self.record.time(cut);
        self.sightings
            .iter()
            .rev()
            .find(|sighting| sighting.at <= time)
            .map(|sighting| &sighting.places)
    }
}

/// What examining one image took.
#[derive(Clone, Copy, Debug, Default)]
pub struct Examined {
    /// Acknowledged messages that had to be there.
    pub acknowledged: usize,
    /// Names and pages that the cut took away.
    pub lost: usize,
    /// The first start.
    pub started_in: Duration,
}

/// Cuts the power at `cut`, starts what is left, holds it against the ledger, sends a few mails, crashes it, and holds
/// it against the ledger again.
///
/// # Errors
/// What is wrong.
pub fn examine(
    recording: &Recording,
    cut: usize,
    model: Model,
    dice: &mut Random,
) -> Result<Examined, String> {
    let (site, lost) = recording.image(&recording.record, cut, model, dice);
    let acknowledged = recording.write_ledger(cut, &site.ledger());
    let mut server = Server::try_start(&site).map_err(|why| format!("does not open: {why}"))?;
    let examined = Examined {
        acknowledged,
        lost,
        started_in: server.started_in,
    };
    let empty = Places::new();
    let first = hold(&site, recording.seen_by(cut).unwrap_or(&empty))?;
    few_mails(&site, dice)?;
    let second = hold(&site, &first)?;
    server.kill();
    let mut server =
        Server::try_start(&site).map_err(|why| format!("does not open again: {why}"))?;
    hold(&site, &second).map_err(|why| format!("after the second crash: {why}"))?;
    server.kill();
    Ok(examined)
}

/// Kills the recorded process at `cut`, lets another one recover what is left in the page cache, lets clients see its
/// UIDs, and then cuts the power, with all that neither of them had synced at stake.
///
/// # Errors
/// What is wrong.
pub fn examine_over_crash(
    recording: &Recording,
    cut: usize,
    models: &[Model],
    dice: &mut Random,
) -> Result<Vec<Examined>, String> {
    let (site, _) = recording.image(&recording.record, cut, Model::Kill, dice);
    recording.write_ledger(cut, &site.ledger());
    let trace = site.home().join("trace");
    let mut server = start_recorded(&site, &trace);
    let empty = Places::new();
    let first = hold(&site, recording.seen_by(cut).unwrap_or(&empty))?;
    let seen_at = now();
    few_mails(&site, dice)?;
    server.kill();
    let ledger = events(&site.ledger());
    let trace = std::fs::read_to_string(&trace).map_err(|error| error.to_string())?;
    let record = Record::parse_lives(&[
        Life {
            trace: &recording.trace,
            root: recording.site.data(),
            marks: None,
            killed_at: Some(cut),
        },
        Life {
            trace: &trace,
            root: site.data(),
            marks: None,
            killed_at: None,
        },
    ]);
    let mut all = Vec::new();
    for model in models {
        // not before the recovered process has shown the UIDs
        let from = record.line_after(seen_at);
        let second_cut = from + dice.below(record.lines() - from + 1);
        let over = Recording {
            site: site.twin(&scratch()),
            record: record.clone(),
            trace: String::new(),
            ledger: ledger.clone(),
            sightings: vec![Sighting {
                at: 0.0,
                places: first.clone(),
            }],
        };
        // what the first run had acknowledged stays acknowledged
        let examined = examine(&over, second_cut, *model, dice).map_err(|why| {
            format!(
                "recovered, seen, then cut at {second_cut} of {} ({model:?}): {why}",
                record.lines()
            )
        })?;
        all.push(examined);
    }
    Ok(all)
}

/// The ledger balances, and no place that was `seen` holds anything else now; answers what is where.
fn hold(site: &Site, seen: &Places) -> Result<Places, String> {
    let report = verify_settled(site, WAIT, SETTLE);
    if !report.balanced() {
        return Err(format!("the ledger does not balance: {report}"));
    }
    let now = places(site, &SHARDS);
    let (reused, gone) = (reused(seen, &now), gone(seen, &now));
    if !reused.is_empty() || !gone.is_empty() {
        return Err(format!("UIDs given twice: {reused:?}; gone: {gone:?}"));
    }
    Ok(now)
}

fn few_mails(site: &Site, dice: &mut Random) -> Result<(), String> {
    let load = Load {
        messages: 4,
        sessions: 2,
        size: "80:1K-20K,20:150K-200K".to_owned(),
        recipients: 2,
        deadline: Duration::from_secs(120),
        seed: dice.bits(),
        senders: "users",
    };
    let said = load.run(site);
    if said.ok {
        Ok(())
    } else {
        Err(format!("it takes no mail: {}{}", said.out, said.err))
    }
}

fn start_recorded(site: &Site, trace: &Path) -> Server {
    let mut command = Command::new("strace");
    command.args([
        "-f",
        "--seccomp-bpf",
        "-qq",
        "-xx",
        "-ttt",
        "-s",
        "16777216",
        "-e",
        "signal=none",
        "-e",
    ]);
    command
        .arg(format!("trace={}", record::SYSCALLS))
        .arg("-o")
        .arg(trace);
    command
        .arg(program("hikyaku"))
        .arg("all")
        .arg("--config")
        .arg(site.config());
    Server::spawn(command, &site.log_file(), Traced::Yes, listeners_of(site))
        .unwrap_or_else(|why| panic!("{why}"))
}

/// Looks at the UIDs of a running site now and then.
fn watch(site: &Site, length: Duration, messages: usize) -> Vec<Sighting> {
    let began = std::time::Instant::now();
    let mut sightings = Vec::new();
    let enough = || acknowledged(&site.ledger()).len() >= messages;
    while began.elapsed() < length || (!enough() && began.elapsed() < LONGEST) {
        std::thread::sleep(LOOK_EVERY);
        let places = places(site, &SHARDS);
        sightings.push(Sighting { at: now(), places });
    }
    sightings
}

fn now() -> f64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("after 1970")
        .as_secs_f64()
}

/// Images to be examined, one for each model.
#[derive(Clone, Debug)]
pub struct Job {
    /// The line to cut at.
    pub cut: usize,
    /// What the disk forgets.
    pub models: Vec<Model>,
    /// Kill and recover first, then cut.
    pub over_crash: bool,
}

/// Works off `jobs` with so many `hands`; answers what was examined, and what was wrong. Stops early when ten are wrong.
pub fn work_off(
    recording: &Recording,
    jobs: &[Job],
    hands: usize,
) -> (Vec<(Model, Examined)>, Vec<String>) {
    let next = std::sync::atomic::AtomicUsize::new(0);
    let stop = AtomicBool::new(false);
    let done = std::sync::Mutex::new((Vec::new(), Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..hands {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let Some(job) = jobs.get(at) else { return };
                    let mut dice = Random::new(at as u64 + 1);
                    let outcome = if job.over_crash {
                        examine_over_crash(recording, job.cut, &job.models, &mut dice)
                    } else {
                        let models = job.models.iter();
                        models
                            .map(|&model| examine(recording, job.cut, model, &mut dice))
                            .collect()
                    };
                    let mut done = done.lock().expect("no hand panicked");
                    match outcome {
                        Ok(examined) => done.0.extend(job.models.iter().copied().zip(examined)),
                        Err(why) => {
                            let text = format!("image {at}, {job:?}: {why}");
                            let _ = writeln!(std::io::stderr(), "{text}");
                            done.1.push(text);
                            stop.store(done.1.len() >= 10, Ordering::Relaxed);
                        }
                    }
                }
            });
        }
    });
    done.into_inner().expect("no hand panicked")
}
