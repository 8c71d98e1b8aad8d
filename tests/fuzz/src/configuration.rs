//! The configuration: whatever a file holds it is taken or refused with a line that is in it, and sizes and times are what a plain
//! reading makes of them.

use std::path::Path;
use std::time::Duration;

use crate::config::Config;
use crate::memory::bounded;

/// The first octet says whether the rest is a file, a size or a time.
pub fn run(data: &[u8]) {
    let [which, rest @ ..] = data else { return };
    let Ok(text) = std::str::from_utf8(rest) else {
        return;
    };
    match which % 3 {
        0 => file(text),
        1 => size(text),
        _ => time(text),
    }
}

/// What is wrong with the file `text`, or the configuration.
fn parse(text: &str) -> Result<Config, Vec<(usize, String)>> {
    // a table of TOML costs its keys, spans and the default of every setting
    let config = bounded(text.len() + 1024, 600, || {
        Config::parse(Path::new("f"), text)
    });
    config.map_err(|problems| {
        let problems = problems.into_iter();
        problems
            .map(|problem| (problem.line, problem.what))
            .collect()
    })
}

fn file(text: &str) {
    if let Err(problems) = parse(text) {
        assert!(!problems.is_empty(), "a file is refused for a reason");
        for (line, what) in problems {
            assert!(line <= text.lines().count() + 1, "line {line}: {what}");
            assert!(!what.is_empty());
        }
    }
}

/// The file that sets `key` of `[section]` to `text`, and nothing else that could be wrong; `None` for text that TOML would
/// not give back as it is.
fn setting(section: &str, key: &str, text: &str) -> Option<String> {
    let plain = !text
        .chars()
        .any(|letter| letter.is_control() || "\"\\".contains(letter));
    plain.then(|| format!("[{section}]\n{key} = \"{text}\"\n"))
}

/// Whether the value itself was refused, which is said with what is allowed; a contradiction with others is another matter.
fn is_refused(found: &Result<Config, Vec<(usize, String)>>, allowed: &str) -> bool {
    matches!(found, Err(problems) if problems.iter().any(|(_, what)| what.contains(allowed)))
}

fn size(text: &str) {
    const UNITS: [(&str, u64); 6] = [
        ("TiB", 1 << 40),
        ("GiB", 1 << 30),
        ("MiB", 1 << 20),
        ("KiB", 1 << 10),
        ("B", 1),
        ("", 1),
    ];
    let Some(file) = setting("smtp", "message_bytes_max", text) else {
        return;
    };
    let value = UNITS.iter().find_map(|(unit, factor)| {
        let number = text.trim_end().strip_suffix(unit)?.trim_end();
        digits::<u64>(number)?.checked_mul(*factor)
    });
    let found = parse(&file);
    assert_eq!(
        is_refused(&found, "expected a size"),
        value.is_none(),
        "{text:?}"
    );
    if let (Ok(config), Some(value)) = (found, value) {
        assert_eq!(config.smtp.message_bytes_max.0, value, "{text:?}");
    }
}

fn time(text: &str) {
    const UNITS: [(&str, u64); 4] = [("s", 1), ("m", 60), ("h", 3600), ("d", 86400)];
    let Some(file) = setting("node", "drain_timeout", text) else {
        return;
    };
    let value = UNITS.iter().find_map(|(unit, seconds)| {
        let number = text.trim_end().strip_suffix(unit)?.trim_end();
        Some(u64::from(digits::<u32>(number)?) * seconds)
    });
    let found = parse(&file);
    assert_eq!(
        is_refused(&found, "expected a time"),
        value.is_none(),
        "{text:?}"
    );
    if let (Ok(config), Some(value)) = (found, value) {
        assert_eq!(
            config.node.drain_timeout.0,
            Duration::from_secs(value),
            "{text:?}"
        );
    }
}

fn digits<N: std::str::FromStr>(text: &str) -> Option<N> {
    let all = !text.is_empty() && text.bytes().all(|octet| octet.is_ascii_digit());
    text.parse().ok().filter(|_| all)
}
