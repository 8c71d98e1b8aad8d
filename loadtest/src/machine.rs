//! What a figure was measured on: processor, load by others, the disk under the server's data. Linux only.

use std::fmt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};

/// Ticks per second in `/proc/*/stat`. The kernel shows them to user space in this unit on every machine Rust knows.
pub(crate) const TICKS_PER_SECOND: f64 = 100.0;
/// Bytes of a sector in the disk's statistics, whatever the disk's own sectors are.
const SECTOR: u64 = 512;

/// The machine, shared by client and server.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// The processor's name.
    pub cpu: String,
    /// Cores this process may use.
    pub cores: usize,
    /// The kernel's release.
    pub kernel: String,
    /// Load average of the last minute, before.
    pub load_before: f64,
    /// The same, after.
    pub load_after: f64,
}

impl Machine {
    /// This machine, now.
    pub fn here() -> Machine {
        let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let named = |name: &str| {
            info.lines()
                .filter_map(|line| line.split_once(':'))
                .find(|(key, _)| key.trim() == name)
                .map(|(_, value)| value.trim().to_owned())
        };
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        Machine {
            cpu: named("model name")
                .or_else(|| named("CPU implementer"))
                .unwrap_or_default(),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            kernel: kernel.trim().to_owned(),
            load_before: load_average(),
            load_after: 0.0,
        }
    }

    /// Notes the load average afterwards.
    pub fn ended(&mut self) {
        self.load_after = load_average();
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}, {} cores, Linux {}, load average {:.2} before and {:.2} after",
            self.cpu, self.cores, self.kernel, self.load_before, self.load_after
        )
    }
}

fn load_average() -> f64 {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ')
        .next()
        .and_then(|word| word.parse().ok())
        .unwrap_or(0.0)
}

/// CPU-seconds that all cores together have spent on work since the machine started, interrupts included, and what the
/// hypervisor kept from them meanwhile (steal).
pub(crate) fn busy_seconds() -> Option<f64> {
    let text = std::fs::read_to_string("/proc/stat").ok()?;
    let ticks: Vec<u64> = text
        .lines()
        .next()?
        .split_whitespace()
        .skip(1)
        .map_while(|word| word.parse().ok())
        .collect();
    // user, nice, system, idle, iowait, irq, softirq, steal
    let [user, nice, system, _, _, irq, softirq, steal, ..] = ticks[..] else {
        return None;
    };
    Some((user + nice + system + irq + softirq + steal) as f64 / TICKS_PER_SECOND)
}

/// CPU-seconds of this process so far.
pub(crate) fn own_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let words: Vec<&str> = stat
        .rsplit(')')
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .collect();
    let ticks = |at: usize| {
        words
            .get(at)
            .and_then(|w| w.parse::<f64>().ok())
            .unwrap_or(0.0)
    };
    // proc(5): utime and stime are the 14th and 15th field, the third is the first one behind the name
    (ticks(11) + ticks(12)) / TICKS_PER_SECOND
}

/// Where the server keeps its data.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Storage {
    /// The directory.
    pub directory: PathBuf,
    /// Its file system.
    pub filesystem: String,
    /// What is mounted there.
    pub source: String,
    /// The disk, as far as the kernel knows it: model, kind, write cache.
    pub disk: String,
    /// The disk's number, for its statistics.
    #[serde(skip)]
    device: Option<String>,
}

/// What a disk has done since the machine started, for everybody.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct DiskCounters {
    pub(crate) written_bytes: u64,
    pub(crate) flushes: u64,
}

impl Storage {
    /// The disk and file system under `directory`.
    pub fn under(directory: &Path) -> anyhow::Result<Storage> {
        let naming = || format!("data directory {}", directory.display());
        let path = directory.canonicalize().with_context(naming)?;
        ensure!(path.is_dir(), "{} is no directory", path.display());
        let number = path.metadata().with_context(naming)?.dev();
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").context("mountinfo")?;
        let (filesystem, source) =
            mount_of(&mounts, &path, number).context("no mount holds the data directory")?;
        // A file system that is not simply one disk has a number of its own; then its source may name the disk.
        let device = [
            Some(number),
            std::fs::metadata(&source).ok().map(|m| m.rdev()),
        ]
        .into_iter()
        .flatten()
        .map(numbers)
        .find(|name| Path::new("/sys/dev/block").join(name).exists());
        Ok(Storage {
            directory: path,
            filesystem,
            source,
            disk: device.as_deref().map(describe).unwrap_or_default(),
            device,
        })
    }

    /// The disk's counters, if there is a disk.
    pub(crate) fn counters(&self) -> Option<DiskCounters> {
        let device = Path::new("/sys/dev/block").join(self.device.as_ref()?);
        let column = |path: &Path, at: usize| {
            let text = std::fs::read_to_string(path.join("stat")).ok()?;
            text.split_whitespace().nth(at)?.parse::<u64>().ok()
        };
        // Documentation/block/stat.rst: write sectors, flush I/Os; partitions do not count the latter
        Some(DiskCounters {
            written_bytes: column(&device, 6)? * SECTOR,
            flushes: column(&whole_disk(&device), 15).unwrap_or(0),
        })
    }
}

impl fmt::Display for Storage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let disk = if self.disk.is_empty() {
            "no disk of its own"
        } else {
            &self.disk
        };
        write!(
            f,
            "{} on {} ({}; {disk})",
            self.directory.display(),
            self.filesystem,
            self.source
        )
    }
}

/// `major:minor` of a device number, as in the kernel's `new_decode_dev`.
fn numbers(device: u64) -> String {
    let major = (device >> 8) & 0xfff | (device >> 32) & !0xfff;
    let minor = device & 0xff | (device >> 12) & !0xff;
    format!("{major}:{}", minor & 0xffff_ffff)
}

/// File system and source of the mount that holds `path`. The last mount of several on one point is the visible one.
fn mount_of(mountinfo: &str, path: &Path, device: u64) -> Option<(String, String)> {
    let device = numbers(device);
    let mut best: Option<(bool, usize, String, String)> = None;
    for line in mountinfo.lines() {
        let (front, back) = line.split_once(" - ")?;
        let front: Vec<&str> = front.split(' ').collect();
        let back: Vec<&str> = back.split(' ').collect();
        let (Some(number), Some(point), [kind, source, ..]) =
            (front.get(2), front.get(4), &back[..])
        else {
            continue;
        };
        if !path.starts_with(point) {
            continue;
        }
        let rank = (*number == device, point.len());
        if best.as_ref().is_none_or(|b| (b.0, b.1) <= rank) {
            best = Some((rank.0, rank.1, (*kind).to_owned(), (*source).to_owned()));
        }
    }
    best.map(|(_, _, kind, source)| (kind, source))
}

fn whole_disk(device: &Path) -> PathBuf {
    if device.join("partition").exists() {
        // the link leads to the partition's place below its disk
        device
            .canonicalize()
            .ok()
            .and_then(|place| place.parent().map(Path::to_owned))
            .unwrap_or_else(|| device.to_owned())
    } else {
        device.to_owned()
    }
}

fn describe(device: &str) -> String {
    let disk = whole_disk(&Path::new("/sys/dev/block").join(device));
    let read = |name: &str| {
        std::fs::read_to_string(disk.join(name))
            .map(|text| text.trim().to_owned())
            .unwrap_or_default()
    };
    let name = disk
        .canonicalize()
        .ok()
        .and_then(|place| place.file_name().map(|n| n.to_string_lossy().into_owned()))
        .unwrap_or_else(|| device.to_owned());
    let kind = match read("queue/rotational").as_str() {
        "1" => "rotating, says the kernel",
        "0" => "solid state, says the kernel",
        _ => "kind unknown",
    };
    [
        name,
        read("device/model"),
        kind.to_owned(),
        read("queue/write_cache"),
    ]
    .into_iter()
    .filter(|part| !part.is_empty())
    .collect::<Vec<_>>()
    .join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_is_known() {
        let machine = Machine::here();
        assert!(machine.cores > 0 && !machine.cpu.is_empty() && !machine.kernel.is_empty());
        assert!(busy_seconds().unwrap() > 0.0);
    }

    #[test]
    fn the_file_system_of_a_directory_is_known() {
        let storage = Storage::under(&std::env::temp_dir()).unwrap();
        assert!(!storage.filesystem.is_empty(), "{storage}");
        assert_eq!(
            Storage::under(Path::new("/proc")).unwrap().filesystem,
            "proc"
        );
        assert!(Storage::under(Path::new("/nowhere/at/all")).is_err());
        assert!(Storage::under(Path::new("/proc/self/stat")).is_err());
    }

    #[test]
    fn the_nearest_mount_of_the_same_device_counts() {
        let text = "21 1 8:1 / / rw - ext4 /dev/sda1 rw\n\
                    22 21 8:17 / /var rw,noatime shared:1 - xfs /dev/sdb1 rw\n\
                    23 21 0:5 / /var/lib rw - tmpfs tmpfs rw\n";
        let found = |path: &str, device: u64| mount_of(text, Path::new(path), device).unwrap();
        assert_eq!(found("/var/lib/mail", 5).0, "tmpfs");
        assert_eq!(
            found("/var/spool", 8 << 8 | 17),
            ("xfs".into(), "/dev/sdb1".into())
        );
        assert_eq!(found("/home", 8 << 8 | 1).0, "ext4");
        assert_eq!(numbers(259 << 8 | 3), "259:3");
    }

    #[test]
    fn own_time_grows_with_work() {
        let before = own_seconds();
        let mut random = crate::random::Random::new(1);
        // ends by work done, not by the clock
        while own_seconds() - before < 0.03 {
            std::hint::black_box(random.bits());
        }
    }
}
