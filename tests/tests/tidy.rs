//! The tree keeps its shape: arrows between rooms, file headers, lengths, links in the docs.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// What each room may depend on, by docs/ARCHITECTURE.md. The binary, tests and loadtest are at the top.
const ARROWS: [(&str, &[&str]); 17] = [
    ("mail", &[]),
    ("proto", &["mail"]),
    ("log", &["mail"]),
    ("serve", &[]),
    ("engine", &[]),
    ("shard", &["mail", "proto", "log", "serve"]),
    ("blob", &["mail", "proto"]),
    ("directory", &["mail"]),
    ("smtp", &["mail", "serve"]),
    ("home", &["mail", "proto", "log", "shard", "engine"]),
    ("queue", &["mail", "proto", "log", "serve", "shard"]),
    ("store", &["mail", "proto", "log", "shard", "engine"]),
    (
        "edge",
        &[
            "mail",
            "proto",
            "log",
            "serve",
            "shard",
            "blob",
            "directory",
            "smtp",
            "queue",
        ],
    ),
    (
        "delivery",
        &[
            "mail",
            "proto",
            "log",
            "serve",
            "shard",
            "blob",
            "directory",
            "home",
            "queue",
        ],
    ),
    (
        "mbox",
        &[
            "mail", "proto", "log", "serve", "shard", "engine", "home", "store",
        ],
    ),
    (
        "access",
        &[
            "mail",
            "proto",
            "serve",
            "shard",
            "blob",
            "directory",
            "home",
        ],
    ),
    (
        "control",
        &[
            "mail",
            "proto",
            "log",
            "serve",
            "shard",
            "directory",
            "home",
            "queue",
            "store",
        ],
    ),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap()
        .to_owned()
}

fn files(directory: &Path, ending: &str, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() && name != "target" && !name.starts_with('.') && name != "hikyaku-demo" {
            files(&path, ending, found);
        } else if name.ends_with(ending) {
            found.push(path);
        }
    }
}

#[test]
fn arrows_between_rooms_point_one_way() {
    let allowed: BTreeMap<_, _> = ARROWS.into_iter().collect();
    for (room, may) in &allowed {
        let manifest = root().join("services").join(room).join("Cargo.toml");
        let text = fs::read_to_string(&manifest).unwrap();
        // what tests of a room use beside it is not an arrow
        let dependencies = text.split("[dev-dependencies]").next().unwrap();
        for line in dependencies.lines() {
            let Some(rest) = line.strip_prefix("hikyaku-") else {
                continue;
            };
            let other = rest.split(['.', ' ', '=']).next().unwrap();
            assert!(
                may.contains(&other),
                "{room} must not depend on {other}; see docs/ARCHITECTURE.md"
            );
        }
    }
    let rooms = fs::read_dir(root().join("services")).unwrap().count();
    assert_eq!(
        rooms,
        allowed.len() + 1,
        "a new room belongs into this test and docs/ARCHITECTURE.md"
    );
}

#[test]
fn every_source_file_says_what_it_is() {
    let mut sources = Vec::new();
    files(&root(), ".rs", &mut sources);
    assert!(sources.len() > 100);
    for path in sources {
        let text = fs::read_to_string(&path).unwrap();
        let first = text
            .lines()
            .find(|line| !line.starts_with("#!"))
            .unwrap_or_default();
        assert!(
            first.starts_with("//!"),
            "{} has no //! header",
            path.display()
        );
    }
}

#[test]
fn links_in_the_docs_lead_somewhere() {
    let mut pages = Vec::new();
    files(&root(), ".md", &mut pages);
    let mut links = 0;
    for page in pages {
        let text = fs::read_to_string(&page).unwrap();
        for part in text.split("](").skip(1) {
            let target = part.split([')', '#']).next().unwrap();
            if target.is_empty() || target.contains("://") {
                continue;
            }
            links += 1;
            assert!(
                page.parent().unwrap().join(target).exists(),
                "{}: {target} does not exist",
                page.display()
            );
        }
    }
    assert!(links > 5);
}

#[test]
fn files_named_in_the_flow_exist() {
    let flow = fs::read_to_string(root().join("docs/FLOW.md")).unwrap();
    let mut named = 0;
    for word in flow
        .split('`')
        .skip(1)
        .step_by(2)
        .filter(|word| word.ends_with(".rs") && word.contains('/'))
    {
        let path = root().join(if word.starts_with("services/") {
            word.to_owned()
        } else {
            format!("services/{word}")
        });
        if word.starts_with("wal/") {
            continue;
        }
        assert!(
            path.exists(),
            "docs/FLOW.md names {word}, which does not exist"
        );
        named += 1;
    }
    assert!(named > 20);
}

#[test]
fn machines_read_no_clock_and_no_randomness() {
    for room in ["home", "queue", "store"] {
        let mut sources = Vec::new();
        files(
            &root().join("services").join(room).join("src"),
            ".rs",
            &mut sources,
        );
        for path in sources {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            // the intake is read by edges, outside apply
            if name.contains("test") || name == "intake.rs" {
                continue;
            }
            let text = fs::read_to_string(&path).unwrap();
            for word in [
                "SystemTime",
                "Instant::now",
                "now_ms()",
                "getrandom",
                "HashMap",
                "HashSet",
                "f64",
                "f32",
            ] {
                assert!(!text.contains(word), "{} has {word}", path.display());
            }
        }
    }
}

/// Lines of a function at most. Aim at 70: a parent decides, leaves do; the arms of one `match` may need more.
const FUNCTION_LINES_MAX: usize = 120;
/// Lines of a file at most, its tests left out. Aim at 500, one subject each.
const FILE_LINES_MAX: usize = 750;

/// Production code, and the code that tests stand on: everything but tests.
fn sources() -> Vec<PathBuf> {
    let mut found = Vec::new();
    for place in ["services", "loadtest", "tests/src", "tests/power"] {
        files(&root().join(place), ".rs", &mut found);
    }
    found.retain(|path| {
        let inside = path.strip_prefix(root()).unwrap();
        !inside
            .components()
            .skip(1)
            .any(|part| part.as_os_str() == "tests" || part.as_os_str() == "tests.rs")
    });
    assert!(found.len() > 100);
    found
}

/// The lines of a file before its tests.
fn before_tests(path: &Path) -> Vec<String> {
    let text = fs::read_to_string(path).unwrap();
    text.lines()
        .take_while(|line| *line != "#[cfg(test)]")
        .map(str::to_owned)
        .collect()
}

/// Name and length of each function, by rustfmt's indentation.
fn functions(lines: &[String]) -> Vec<(String, usize)> {
    let mut found = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        let bare = line.trim_start();
        let Some((before, name)) = bare.split_once("fn ") else {
            continue;
        };
        let is_item = before
            .split_whitespace()
            .all(|word| word.starts_with("pub") || ["async", "const"].contains(&word));
        let mut signature = lines.iter().skip(at);
        let has_body = signature
            .find(|line| line.ends_with(['{', ';', '}']))
            .is_some_and(|line| line.ends_with('{'));
        if !is_item || !has_body {
            continue;
        }
        let end = format!("{}}}", " ".repeat(line.len() - bare.len()));
        let length = lines.iter().skip(at).position(|line| *line == end);
        let name = name.split(['(', '<']).next().unwrap_or_default().to_owned();
        found.push((name, length.unwrap_or(0) + 1));
    }
    found
}

#[test]
fn files_and_functions_can_be_read() {
    let mut seen = 0;
    for path in sources() {
        let lines = before_tests(&path);
        assert!(
            lines.len() <= FILE_LINES_MAX,
            "{} has {} lines: split it by subject",
            path.display(),
            lines.len()
        );
        for (name, length) in functions(&lines) {
            seen += 1;
            assert!(
                length <= FUNCTION_LINES_MAX,
                "{}: {name} has {length} lines: split it by sense",
                path.display()
            );
        }
    }
    assert!(seen > 1000, "only {seen} functions were found");
}

#[test]
fn nothing_is_left_half_done() {
    for path in sources() {
        for (number, line) in before_tests(&path).iter().enumerate() {
            for word in ["todo!", "unimplemented!", "dbg!", "FIXME", "XXX"] {
                assert!(
                    !line.contains(word),
                    "{}:{}: {word}",
                    path.display(),
                    number + 1
                );
            }
        }
    }
}

#[test]
fn nothing_prints_that_could_panic_over_a_closed_pipe() {
    let own = |path: &PathBuf| {
        let inside = path.strip_prefix(root()).unwrap();
        let name = path.file_name().unwrap().to_string_lossy();
        let is_test = name.contains("test") || name == "build.rs";
        inside.starts_with("services") && !is_test && !inside.iter().any(|part| part == "examples")
    };
    for path in sources().iter().filter(|path| own(path)) {
        for (number, line) in before_tests(path).iter().enumerate() {
            for word in ["println!", "print!(", "eprintln!", "eprint!("] {
                assert!(
                    !line.contains(word),
                    "{}:{}: {word} panics when nobody reads; see services/hikyaku/src/printing.rs",
                    path.display(),
                    number + 1
                );
            }
        }
    }
}
