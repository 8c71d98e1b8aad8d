//! Power loss on the real files: a run is recorded call by call, and images of its data directory are rebuilt as a cut
//! could have left them. Each is started, balances, and never gives a UID twice.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use hikyaku_power::rebuild::Model;
use hikyaku_power::record::{Op, Record};
use hikyaku_tests::harness::load::Load;
use hikyaku_tests::harness::power::{Job, Recording, work_off};
use hikyaku_tests::harness::site::Plan;
use loadtest::random::Random;

/// How long the recorded run lasts, at least.
const RECORDED: Duration = Duration::from_secs(4);
/// Messages acknowledged in it, at least.
const RECORDED_MESSAGES: usize = 60;
/// Images that must have been examined.
const IMAGES_MIN: usize = 200;
/// Moments cut under every model.
const CUTS: usize = 24;
/// Crashes and recoveries that clients saw, each followed by a cut under each harsh model.
const OVER_CRASH: usize = 8;
/// Images examined at once.
const HANDS: usize = 2;
/// A start that takes longer has to be explained.
const START_MAX: Duration = Duration::from_secs(5);
/// Starts that may take longer all the same: of hundreds the machine itself may hold up one or two.
const SLOW_STARTS_MAX: usize = 2;

#[test]
fn power_cuts_lose_nothing_acknowledged_and_give_no_uid_twice() {
    let began = Instant::now();
    let load = Load {
        sessions: 3,
        size: "85:1K-30K,15:140K-260K".to_owned(),
        recipients: 2,
        deadline: Duration::from_secs(600),
        ..Load::default()
    };
    // so small that segments roll, stores flush and logs are cut all the time
    let plan = Plan::new(6)
        .set("log", "segment_bytes", "\"2 MiB\"")
        .set("log", "bytes_max", "\"16 MiB\"")
        .set("store", "memtable_bytes_max", "\"1 MiB\"");
    let recording = Recording::make(plan, &load, RECORDED, RECORDED_MESSAGES);
    let record = &recording.record;
    let mut dice = Random::new(20_261_124);
    let jobs = jobs(&recording, &mut dice);
    let acknowledged = record.acknowledged(record.lines()).count();
    println!(
        "recorded {} events, {} acknowledgements, {} looks at UIDs in {:.1} s",
        record.events.len(),
        acknowledged,
        recording.sightings(),
        began.elapsed().as_secs_f64()
    );
    assert!(
        acknowledged * 10 >= RECORDED_MESSAGES * 9,
        "only {acknowledged} messages in the recorded run"
    );

    let (examined, wrong) = work_off(&recording, &jobs, HANDS);

    let mut by_model: BTreeMap<Model, (usize, usize)> = BTreeMap::new();
    let mut starts = Vec::new();
    for (model, image) in &examined {
        let counts = by_model.entry(*model).or_default();
        counts.0 += 1;
        counts.1 += image.lost;
        starts.push(image.started_in);
    }
    starts.sort();
    let slowest = starts.last().copied().unwrap_or_default();
    let with_mail = examined
        .iter()
        .filter(|(_, image)| image.acknowledged > 0)
        .count();
    println!(
        "{} images ({with_mail} with acknowledged mail), {} wrong, slowest start {} ms, {:.0} s; images and losses by model: {by_model:?}",
        examined.len(),
        wrong.len(),
        slowest.as_millis(),
        began.elapsed().as_secs_f64()
    );
    assert!(
        wrong.is_empty(),
        "{} images are wrong:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    assert!(
        examined.len() >= IMAGES_MIN,
        "only {} images",
        examined.len()
    );
    assert!(
        with_mail * 2 > examined.len(),
        "hardly any image had mail to lose"
    );
    for model in Model::ALL {
        let lost = by_model.get(&model).map_or(0, |counts| counts.1);
        assert!(
            lost > 0 || model == Model::Kill,
            "{model:?} never lost anything"
        );
    }
    let slow = starts.iter().filter(|&&start| start >= START_MAX).count();
    assert!(
        slow <= SLOW_STARTS_MAX,
        "{slow} images took long to start, the slowest {slowest:?}"
    );
}

/// Cuts around each switch of a store's version and of a log segment, and at random.
fn jobs(recording: &Recording, dice: &mut Random) -> Vec<Job> {
    let record = &recording.record;
    let mut aimed = Vec::new();
    for event in &record.events {
        if let Op::Rename { to, .. } = &event.op
            && (to == "current" || to.ends_with(".wal"))
        {
            aimed.extend([
                event.end.saturating_sub(1),
                event.end,
                event.end + 1 + dice.below(40),
            ]);
        }
    }
    let mut cuts = Vec::new();
    while cuts.len() < CUTS {
        let aim = cuts.len() % 2 == 0 && !aimed.is_empty();
        let cut = if aim {
            aimed.swap_remove(dice.below(aimed.len()))
        } else {
            dice.below(record.lines())
        };
        cuts.push(cut);
    }
    let plain = cuts.iter().flat_map(|&cut| {
        Model::ALL.map(|model| Job {
            cut,
            models: vec![model],
            over_crash: false,
        })
    });
    over_crashes(record, dice)
        .into_iter()
        .chain(plain)
        .collect()
}

/// Kills in the middle of a switch, whose new name is not yet synced, and at random.
fn over_crashes(record: &Record, dice: &mut Random) -> Vec<Job> {
    let early = record.lines() / 8;
    let switches = record.events.iter().filter(|event| {
        event.end >= early
            && matches!(&event.op, Op::Rename { to, .. } if to == "current" || to.ends_with(".wal"))
    });
    let switches: Vec<usize> = switches.map(|event| event.end).collect();
    let kills = (0..OVER_CRASH).map(|at| match at % 2 {
        0 if !switches.is_empty() => switches[dice.below(switches.len())],
        _ => early + dice.below(record.lines() - early),
    });
    let harsh = [
        Model::Strict,
        Model::Random,
        Model::Ordered,
        Model::Removals,
        Model::LosePage,
    ];
    let jobs = kills.map(|cut| Job {
        cut,
        models: harsh.to_vec(),
        over_crash: true,
    });
    jobs.collect()
}
