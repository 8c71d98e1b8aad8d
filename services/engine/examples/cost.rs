//! What storing mail costs: CPU seconds per 1,000 messages and bytes written per byte of payload.
//!
//! One message is a 10 KiB body and five small keys; batches of 16. Both threads in the background are included.
//! `cargo run --release -p hikyaku-engine --example cost -- <directory> [messages]`
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use hikyaku_engine::contract::{Dice, put};
use hikyaku_engine::disk::{DiskEngine, Options, Shared};
use hikyaku_engine::{Engine, Write};

const BODY_BYTES: usize = 10 << 10;
const BATCH: u64 = 16;

fn main() {
    let mut args = std::env::args().skip(1);
    let dir = args.next().expect("a directory to write in");
    let messages: u64 = args
        .next()
        .map_or(50_000, |text| text.parse().expect("a number of messages"));
    let dir = Path::new(&dir).join("cost-store");
    let mut dice = Dice::new(1);
    // made beforehand: the bodies' making is not the store's cost
    let bodies: Vec<Bytes> = (0..64)
        .map(|_| {
            (0..BODY_BYTES)
                .map(|_| dice.below(256) as u8)
                .collect::<Vec<u8>>()
                .into()
        })
        .collect();
    let (cpu, written) = (cpu_seconds(), written_bytes());
    let payload = {
        let shared = Shared::start(Options::default()).unwrap();
        let engine = DiskEngine::open(&dir, &shared).unwrap();
        let payload = fill(&engine, &bodies, messages);
        engine.flush().unwrap();
        payload
    };
    let (cpu, written) = (cpu_seconds() - cpu, written_bytes() - written);
    println!(
        "{messages} messages: {:.4} CPU s per 1,000, {:.3} bytes written per byte, {} MB resident at most",
        cpu * 1_000.0 / messages as f64,
        written as f64 / payload as f64,
        status_kib("VmHWM:") / 1024,
    );
    let cpu = cpu_seconds();
    let shared = Shared::start(Options::default()).unwrap();
    let engine = DiskEngine::open(&dir, &shared).unwrap();
    println!(
        "reopened at {:?} with {:.1} ms of CPU",
        engine.position(),
        (cpu_seconds() - cpu) * 1_000.0
    );
    drop(engine);
    std::fs::remove_dir_all(&dir).unwrap();
}

fn fill(engine: &DiskEngine, bodies: &[Bytes], messages: u64) -> u64 {
    let mut payload = 0;
    for uid in 1..=messages {
        let writes = message(uid, bodies[(uid % 64) as usize].clone());
        payload += writes
            .iter()
            .map(|w| w.key.len() + w.value.as_ref().map_or(0, Bytes::len))
            .sum::<usize>() as u64;
        engine.write(writes).unwrap();
        if uid % BATCH == 0 || uid == messages {
            engine
                .commit(Bytes::copy_from_slice(&uid.to_be_bytes()))
                .unwrap();
            while engine.stalled() {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
    payload
}

fn message(uid: u64, body: Bytes) -> Vec<Write> {
    let account = uid * 2_654_435_761 % 1_000;
    let key = |kind: &str, tail: u64| format!("{kind}/{account:08}/{tail:016x}").into_bytes();
    let value = [7; 48];
    vec![
        Write {
            key: [&b"b/"[..], &uid.to_be_bytes()].concat(),
            value: Some(body),
        },
        put(&key("u", uid), &value),
        put(&key("e", uid * 31), &[7; 200]),
        put(&key("c", uid), &value),
        put(format!("x/{account:08}").as_bytes(), &value),
        put(format!("a/{account:08}").as_bytes(), &value),
    ]
}

fn cpu_seconds() -> f64 {
    // user and system ticks of all threads, 100 a second: fields 14 and 15, counted after the name in parentheses
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat
        .rsplit_once(')')
        .unwrap()
        .1
        .split_whitespace()
        .collect();
    (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / 100.0
}

fn written_bytes() -> u64 {
    let io = std::fs::read_to_string("/proc/self/io").unwrap();
    let line = io
        .lines()
        .find_map(|line| line.strip_prefix("wchar: "))
        .unwrap();
    line.parse().unwrap()
}

fn status_kib(name: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix(name))
        .unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}
