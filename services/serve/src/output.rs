//! Lines to a place that may stop taking them, such as standard error in a pipe. Nobody waits for
//! it.
//!
//! A line goes into a bounded buffer, and a thread of its own writes the buffer out. A line that
//! finds no room is left out and counted. Once there is room again a note stands where the lines
//! are missing. Lines stay whole and in order. An error of the place is treated like a reader that
//! does not read: the thread tries again where it stopped.
//!
//! tracing-appender has a similar thread. Its buffer counts lines and not octets, it says nothing
//! of lost lines by itself, and it gives up the rest of a line after an error. So this is our own.

use std::io::{self, ErrorKind, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::metrics;

/// How long the thread waits after an error before it tries again.
const RETRY_INTERVAL: Duration = Duration::from_millis(100);
/// Room for a note beside the octets of a full buffer.
const NOTE_BYTES: usize = 1 << 10;

/// Makes the line that says how many lines were left out.
pub type Note = Box<dyn Fn(u64) -> String + Send>;

/// The way to one such place. Clones share it.
#[derive(Clone)]
pub struct Output(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    /// There is something to write, or all is written.
    changed: Condvar,
    bytes_max: usize,
}

struct State {
    /// Whole lines that the thread has not taken yet.
    waiting: Vec<u8>,
    /// Lines that found no room behind those.
    left_out: u64,
    /// The thread waits for lines.
    idle: bool,
}

impl Output {
    /// Writes to `place` from a thread called `name`. At most `bytes_max` octets wait, and as many
    /// are being written. Lines left out are counted in the metrics, and `note` tells of them.
    ///
    /// # Errors
    /// When there is no thread to be had.
    pub fn start(
        name: &str,
        place: impl Write + Send + 'static,
        bytes_max: usize,
        note: Note,
    ) -> io::Result<Output> {
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                waiting: Vec::with_capacity(bytes_max),
                left_out: 0,
                idle: false,
            }),
            changed: Condvar::new(),
            bytes_max,
        });
        let taken = Vec::with_capacity(bytes_max + NOTE_BYTES);
        let writer = shared.clone();
        std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || writer.write_lines(place, taken, &note))?;
        Ok(Output(shared))
    }

    /// Adds a line, with its end, or leaves it out. Never waits for the place.
    pub fn line(&self, line: &[u8]) {
        let mut state = self.0.state();
        // after a gap nothing is taken before its note: the note stands where lines are missing
        if state.left_out > 0 || state.waiting.len() + line.len() > self.0.bytes_max {
            state.left_out += 1;
            metrics::LINES_LEFT_OUT.add(1);
        } else {
            state.waiting.extend_from_slice(line);
        }
        if state.idle {
            self.0.changed.notify_all();
        }
    }

    /// How many lines have been left out since the place last took some; 0 while it takes them.
    pub fn left_out(&self) -> u64 {
        self.0.state().left_out
    }

    /// Waits until everything is written, at most for `patience`; says whether it is. Blocks.
    pub fn finish(&self, patience: Duration) -> bool {
        let unwritten =
            |state: &mut State| !(state.idle && state.waiting.is_empty() && state.left_out == 0);
        let waited = self
            .0
            .changed
            .wait_timeout_while(self.0.state(), patience, unwritten);
        let (_state, waited) = waited.unwrap_or_else(PoisonError::into_inner);
        !waited.timed_out()
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The thread. `taken` is swapped with the waiting lines, so neither grows again.
    fn write_lines(&self, mut place: impl Write, mut taken: Vec<u8>, note: &Note) {
        loop {
            let left_out = self.take(&mut taken);
            if left_out > 0 {
                taken.extend_from_slice(note(left_out).as_bytes());
            }
            write_whole(&mut place, &taken);
            taken.clear();
        }
    }

    /// Waits for lines and takes all; answers how many are missing behind them.
    fn take(&self, taken: &mut Vec<u8>) -> u64 {
        let mut state = self.state();
        state.idle = true;
        // everything before is written: whoever waits for that looks again
        self.changed.notify_all();
        let nothing = |state: &mut State| state.waiting.is_empty() && state.left_out == 0;
        state = self
            .changed
            .wait_while(state, nothing)
            .unwrap_or_else(PoisonError::into_inner);
        state.idle = false;
        std::mem::swap(taken, &mut state.waiting);
        std::mem::take(&mut state.left_out)
    }
}

/// Writes all of `bytes`, however often it fails in between.
fn write_whole(place: &mut impl Write, bytes: &[u8]) {
    let mut rest = bytes;
    while !rest.is_empty() {
        match place.write(rest) {
            Ok(written) if written > 0 => rest = rest.get(written..).unwrap_or_default(),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Ok(_) | Err(_) => std::thread::sleep(RETRY_INTERVAL),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{self, BufRead, BufReader, Write};
    use std::sync::mpsc::{Sender, channel};
    use std::time::Duration;

    use super::Output;

    const PATIENCE: Duration = Duration::from_secs(60);

    fn output(place: impl Write + Send + 'static, bytes_max: usize) -> Output {
        let note = Box::new(|lost| format!("{lost} are missing\n"));
        Output::start("test", place, bytes_max, note).unwrap()
    }

    fn say(output: &Output, number: usize) {
        output.line(format!("line {number}\n").as_bytes());
    }

    /// The number of the line that comes after `line`, which must be the one `expected` or a note.
    fn after(line: &str, expected: usize) -> usize {
        if let Some(missing) = line.strip_suffix(" are missing") {
            return expected + missing.parse::<usize>().unwrap();
        }
        assert_eq!(line, format!("line {expected}"));
        expected + 1
    }

    #[test]
    fn a_reader_that_stops_costs_lines_and_each_gap_is_told_in_its_place() {
        let (reader, writer) = io::pipe().unwrap();
        let output = output(writer, 10_000);
        // far more than a pipe and the buffers hold, and nobody reads
        const LINES: usize = 100_000;
        for number in 0..LINES {
            say(&output, number);
        }
        assert!(output.left_out() > 0);
        assert!(!output.finish(Duration::from_millis(1)));
        let mut lines = BufReader::new(reader).lines().map(Result::unwrap);
        let mut expected = 0;
        while expected < LINES {
            expected = after(&lines.next().unwrap(), expected);
        }
        assert!(output.finish(PATIENCE));
        assert_eq!(output.left_out(), 0);
        say(&output, LINES);
        assert_eq!(after(&lines.next().unwrap(), expected), LINES + 1);
    }

    /// A place that takes a few octets at a time and fails in between.
    struct Moody {
        turn: usize,
        taken: Sender<Vec<u8>>,
    }

    impl Write for Moody {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.turn += 1;
            if self.turn.is_multiple_of(3) {
                return Err(io::ErrorKind::StorageFull.into());
            }
            let some = bytes.get(..7).unwrap_or(bytes);
            let _ = self.taken.send(some.to_vec());
            Ok(some.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_are_whole_and_in_order_over_errors() {
        let (sender, taken) = channel();
        let output = output(
            Moody {
                turn: 0,
                taken: sender,
            },
            80,
        );
        for number in 0..5 {
            say(&output, number);
        }
        assert!(output.finish(PATIENCE));
        // longer than all the room there is
        output.line(&[b'x'; 100]);
        assert!(output.finish(PATIENCE));
        say(&output, 6);
        assert!(output.finish(PATIENCE));
        let octets: Vec<u8> = taken.try_iter().flatten().collect();
        let text = String::from_utf8(octets).unwrap();
        let end = text.lines().fold(0, |expected, line| after(line, expected));
        assert_eq!(end, 7, "{text}");
        assert_eq!(text.matches("missing").count(), 1, "{text}");
    }
}
