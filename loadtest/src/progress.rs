//! How far a long piece of work is, on stderr: a bar on a terminal, a line now and then anywhere else.

use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How often a bar is drawn.
const DRAW_EVERY: Duration = Duration::from_millis(200);
/// How often a line is written where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(5);
/// Characters between the brackets.
const WIDTH: usize = 30;

/// Draws until it is told to stop.
pub(crate) struct Progress {
    /// What is being counted.
    pub(crate) what: &'static str,
    /// How many there will be.
    pub(crate) total: u64,
}

impl Progress {
    /// Shows `now()` (how many are done, and a remark) while `work` runs.
    pub(crate) fn during<T>(
        &self,
        shown: bool,
        now: impl Fn() -> (u64, String) + Sync,
        work: impl FnOnce() -> T,
    ) -> T {
        if !shown {
            return work();
        }
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let drawing = scope.spawn(|| self.draw(&done, &now));
            // also when `work` panics: the scope waits for the thread
            let _stop = Stop(&done, drawing.thread().clone());
            work()
        })
    }

    fn draw(&self, done: &AtomicBool, now: &impl Fn() -> (u64, String)) {
        let terminal = std::io::stderr().is_terminal();
        let every = if terminal { DRAW_EVERY } else { LINE_EVERY };
        let began = Instant::now();
        let mut last = (Instant::now(), now().0);
        loop {
            let over = done.load(Ordering::Acquire);
            if over && !terminal {
                return;
            }
            let (count, remark) = now();
            let since = last.0.elapsed().as_secs_f64();
            let rate = count.saturating_sub(last.1) as f64 / since.max(1e-3);
            let line = self.line(count, rate, began.elapsed(), &remark);
            let mut out = std::io::stderr().lock();
            // Progress that cannot be shown is no reason to stop.
            let _ = match (terminal, over) {
                (true, false) => write!(out, "\r\x1b[K{line}"),
                (true, true) => write!(out, "\r\x1b[K"),
                (false, _) if last.0.elapsed() >= every => writeln!(out, "{line}"),
                (false, _) => Ok(()),
            };
            let _ = out.flush();
            drop(out);
            if over {
                return;
            }
            if last.0.elapsed() >= Duration::from_secs(1) {
                last = (Instant::now(), count);
            }
            std::thread::park_timeout(every);
        }
    }

    fn line(&self, count: u64, rate: f64, elapsed: Duration, remark: &str) -> String {
        let share = if self.total == 0 {
            1.0
        } else {
            (count as f64 / self.total as f64).min(1.0)
        };
        let full = (share * WIDTH as f64) as usize;
        format!(
            "[{}{}] {count}/{} {} {:3.0} % {rate:.0}/s {:.0} s {remark}",
            "#".repeat(full),
            ".".repeat(WIDTH - full),
            self.total,
            self.what,
            share * 100.0,
            elapsed.as_secs_f64(),
        )
    }
}

struct Stop<'a>(&'a AtomicBool, std::thread::Thread);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
        self.1.unpark();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bar_fills_up() {
        let bar = Progress {
            what: "sent",
            total: 200,
        };
        let half = bar.line(100, 12.0, Duration::from_secs(8), "x");
        assert!(
            half.starts_with("[###############...............] 100/200 sent  50 % 12/s 8 s x"),
            "{half}"
        );
        assert!(bar.line(500, 0.0, Duration::ZERO, "").contains("100 %"));
        let nothing = Progress {
            what: "sent",
            total: 0,
        };
        assert!(nothing.line(0, 0.0, Duration::ZERO, "").contains("100 %"));
    }

    #[test]
    fn the_work_is_done_with_and_without_an_audience() {
        for shown in [true, false] {
            let bar = Progress {
                what: "done",
                total: 1,
            };
            assert_eq!(bar.during(shown, || (0, String::new()), || 7), 7);
        }
    }
}
