//! `telemetry.log_filter`: `LEVEL`, `TARGET=LEVEL` or `TARGET`, separated by commas.
//!
//! The library behind it takes any word for the target of somebody's lines, so a level that is
//! misspelt filters everything out. Targets of libraries cannot all be known. So a word without a
//! level must be a level or a target of ours, and a filter must say something about ours.

/// Levels, from the fewest lines to the most.
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
/// Targets whose lines are for others than developers.
const TARGETS: [&str; 2] = ["maillog", "access"];
/// The crates of this workspace: a line about the node itself has the path of its module as target,
/// such as `hikyaku_log::wal`. The binary's own is `hikyaku`.
const ROOMS: [&str; 17] = [
    "access",
    "blob",
    "control",
    "delivery",
    "directory",
    "edge",
    "engine",
    "home",
    "log",
    "mail",
    "mbox",
    "proto",
    "queue",
    "serve",
    "shard",
    "smtp",
    "store",
];

/// The parts of `filter`, without the white space around them.
pub fn normal(filter: &str) -> String {
    parts(filter).collect::<Vec<_>>().join(",")
}

/// What is wrong with `filter`, and what is allowed.
pub fn fault(filter: &str) -> Option<String> {
    let why = first_fault(filter)?;
    Some(format!(
        "{why}; expected a level ({}) and levels of single targets, such as \"info,maillog=warn\"; targets are {}, and \
         hikyaku or hikyaku_ROOM for the node itself",
        LEVELS.join(", "),
        TARGETS.join(", ")
    ))
}

fn parts(filter: &str) -> impl Iterator<Item = &str> {
    filter
        .split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty())
}

fn first_fault(filter: &str) -> Option<String> {
    let mut concerns_us = false;
    for part in parts(filter) {
        let (target, level) = match part.split_once('=') {
            Some((target, level)) => (target, Some(level)),
            None => (part, None),
        };
        match level {
            None if is_level(part) => concerns_us = true,
            None if !is_ours(part) => {
                return Some(format!("{part:?} is no level and no target of ours"));
            }
            Some(level) if !is_level(level) => return Some(format!("{level:?} is no level")),
            _ if !is_target(target) => return Some(format!("{target:?} is no target")),
            _ => concerns_us |= is_ours(target),
        }
    }
    (!concerns_us).then(|| "no line of ours would be written".into())
}

fn is_level(word: &str) -> bool {
    LEVELS.iter().any(|level| word.eq_ignore_ascii_case(level))
}

/// A path of modules.
fn is_target(word: &str) -> bool {
    let is_part = |letter: char| letter.is_ascii_alphanumeric() || "_:.-".contains(letter);
    !word.is_empty() && word.chars().all(is_part)
}

fn is_ours(target: &str) -> bool {
    let root = target.split("::").next().unwrap_or_default();
    let room = root.strip_prefix("hikyaku_");
    is_target(target)
        && (TARGETS.contains(&target)
            || root == "hikyaku"
            || room.is_some_and(|room| ROOMS.contains(&room)))
}

#[cfg(test)]
mod tests {
    use super::{ROOMS, fault, normal};

    #[test]
    fn a_slip_is_refused_and_what_is_allowed_is_said() {
        for good in [
            "info",
            "INFO",
            "off",
            "info,maillog=warn",
            " warn , access=debug,",
            "maillog",
            "maillog=info,access=info",
            "warn,h2=debug",
            "hikyaku_log::wal=trace",
            "hikyaku=debug",
        ] {
            assert_eq!(fault(good), None, "{good}");
        }
        for (bad, why) in [
            ("inof", "\"inof\" is no level and no target of ours"),
            ("warning", "\"warning\" is no level"),
            ("info,mailog", "\"mailog\" is no level"),
            ("info,maillog=loud", "\"loud\" is no level"),
            ("info,maillog=", "\"\" is no level"),
            ("info,=warn", "\"\" is no target"),
            ("info maillog=warn", "\"info maillog\" is no target"),
            ("info,[span]=debug", "\"[span]\" is no target"),
            ("hikyaku_lgo=debug", "no line of ours would be written"),
            ("h2=debug", "no line of ours would be written"),
            ("", "no line of ours would be written"),
        ] {
            let said = fault(bad).unwrap_or_default();
            assert!(said.starts_with(why), "{bad}: {said}");
            assert!(
                said.contains("off, error, warn, info, debug, trace"),
                "{said}"
            );
        }
        assert_eq!(normal(" info , maillog=warn,"), "info,maillog=warn");
    }

    #[test]
    fn every_room_is_a_target() {
        let manifest = include_str!("../../Cargo.toml");
        let names = manifest
            .lines()
            .filter_map(|line| line.strip_prefix("hikyaku-")?.split_once('.'));
        let names: Vec<&str> = names.map(|(name, _)| name).collect();
        assert_eq!(names.len(), ROOMS.len());
        for name in names {
            assert!(ROOMS.contains(&name), "{name} is missing");
        }
    }
}
