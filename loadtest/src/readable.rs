//! When could the last message be read? Polls the maildrops after the load, and does all of `run --pop3`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;

use crate::equation::Class;
use crate::ledger::Book;
use crate::maildrops::{VerifyOptions, parallel, places};
use crate::pop3::Maildrop;
use crate::report::{Readable, RunReport};
use crate::run::{RunOptions, Watch};
use crate::verify::verify;
use crate::watched::{Watching, run_watched, sample_syncs};

/// Between two rounds of questions to maildrops that lack something.
const ROUND_EVERY: Duration = Duration::from_millis(5);

/// Load, then wait, then sweep: what `run --pop3` does.
pub fn run_and_verify(
    options: &RunOptions,
    watch: &Arc<Watch>,
    watching: &Watching,
    verify_options: &VerifyOptions,
) -> anyhow::Result<RunReport> {
    verify_options.pop3.ensure_loopback()?;
    let mut report = run_watched(options, watch, watching)?;
    let began = watch.began.get().copied().context("the load never began")?;
    let mut readable = wait_readable(verify_options, began)?;
    let idle_at_s = report.server.as_ref().and_then(|costs| costs.idle_at_s);
    if let Some(readable) = &mut readable
        && readable.not_before_s == 0.0
    {
        // Nobody looked while the server worked, and when somebody did, nothing was lacking.
        readable.idle_at_s = idle_at_s;
    }
    sample_syncs(options, watching, &mut report)?;
    let sweep = verify(verify_options).context("verifying")?;
    let why = if !sweep.balanced() {
        Some("the ledger does not balance".to_owned())
    } else if report.recipients.unk > 0 || sweep.appeared > 0 || sweep.dsns > 0 {
        // A maildrop is seen complete by the number of its mails; these would be counted for others, also those that
        // earlier runs have left in the ledger.
        Some(format!(
            "{} outcomes unknown, {} mails there of unknown ones, {} DSNs",
            report.recipients.unk, sweep.appeared, sweep.dsns
        ))
    } else {
        None
    };
    match (readable, why) {
        (_, Some(why)) => report.withheld.push(format!("end-to-end rate: {why}")),
        (None, None) => report.withheld.push(format!(
            "end-to-end rate: {} copies were not readable in time",
            report.recipients.ack
        )),
        (Some(mut readable), None) => {
            let until = readable.idle_at_s.unwrap_or(readable.by_s);
            match report.conditions.rate(report.acknowledged, until) {
                Ok(rate) => readable.rate = Some(rate),
                Err(why) => report.withheld.push(format!("end-to-end rate: {why}")),
            }
            report.readable = Some(readable);
        }
    }
    report.verify = Some(sweep);
    Ok(report)
}

/// Polls until all that was acknowledged can be read, without reading it. `began` is when the first message was sent.
pub(crate) fn wait_readable(
    options: &VerifyOptions,
    began: Instant,
) -> anyhow::Result<Option<Readable>> {
    options.pop3.ensure_loopback()?;
    let book = Book::read(&options.ledger)?;
    let places = places(&options.users);
    let mut expected: BTreeMap<usize, (u64, u64)> = BTreeMap::new();
    for attempt in book.attempts.values() {
        for rcpt in attempt
            .rcpts
            .iter()
            .filter(|r| r.class == Class::Ack && r.copies_collected == 0)
        {
            let Some(place) = places.get(&rcpt.address.to_ascii_lowercase()) else {
                continue;
            };
            let (count, latest) = expected.entry(*place).or_default();
            *count += 1;
            *latest = attempt.order.max(*latest);
        }
    }
    // The maildrops that got mail last are asked first: they are the ones that may lack some.
    let mut todo: Vec<(u64, usize, u64)> = expected
        .into_iter()
        .map(|(p, (count, at))| (at, p, count))
        .collect();
    todo.sort_unstable_by(|a, b| b.cmp(a));
    let deadline = Instant::now() + options.wait;
    let (mut not_before, mut by) = (Duration::ZERO, Duration::ZERO);
    while !todo.is_empty() {
        if Instant::now() >= deadline {
            return Ok(None);
        }
        let asked = parallel(options.sessions, &todo, |(_, place, count)| {
            let user = &options.users[*place];
            let asked = began.elapsed();
            let complete = Maildrop::of(&options.pop3, user, options.timeout)
                .and_then(|mut maildrop| Ok((maildrop.count()?, maildrop.quit()?)))
                .is_ok_and(|(found, ())| found >= *count);
            (complete, asked, began.elapsed())
        });
        let mut lacking = Vec::new();
        for (entry, (complete, asked, answered)) in todo.into_iter().zip(asked) {
            if complete {
                by = by.max(answered);
            } else {
                not_before = not_before.max(asked);
                lacking.push(entry);
            }
        }
        todo = lacking;
        if !todo.is_empty() {
            std::thread::sleep(ROUND_EVERY);
        }
    }
    Ok(Some(Readable {
        not_before_s: not_before.as_secs_f64(),
        by_s: by.as_secs_f64(),
        ..Readable::default()
    }))
}
