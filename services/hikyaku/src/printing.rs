//! Standard output. A command ends quietly when nobody reads on, as any program in a pipe does; a
//! server goes on whatever becomes of its output.

use std::fmt::{self, Display};
use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::os::fd::AsFd;
use std::process::ExitCode;

use anyhow::{Context, Result};
use hikyaku_serve::output::Output;

/// What a shell says of a program that SIGPIPE has ended.
const ENDED_BY_SIGPIPE: u8 = 128 + 13;
/// Far more than a server prints.
const SERVER_BYTES_MAX: usize = 64 << 10;

/// A line of a command could not be printed.
#[derive(Debug)]
struct Unprinted(io::Error);

impl Display for Unprinted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "standard output: {}", self.0)
    }
}

impl std::error::Error for Unprinted {}

/// Prints a line of a command.
///
/// # Errors
/// When standard output does not take it: the command ends.
pub fn say(line: impl Display) -> Result<()> {
    writeln!(io::stdout(), "{line}").map_err(|error| Unprinted(error).into())
}

/// Says on standard error why a command has failed; answers its exit status. A reader that has gone
/// is no failure to tell of.
pub fn failure(error: &anyhow::Error) -> ExitCode {
    if let Some(Unprinted(why)) = error.downcast_ref()
        && why.kind() == ErrorKind::BrokenPipe
    {
        return ExitCode::from(ENDED_BY_SIGPIPE);
    }
    // there is nobody else to tell
    let _ = writeln!(io::stderr(), "hikyaku: {error:#}");
    ExitCode::FAILURE
}

/// Standard output of a server, which nobody need read.
///
/// # Errors
/// When the process has no descriptor or thread left.
pub fn unread() -> Result<Output> {
    let place = io::stdout().as_fd().try_clone_to_owned();
    let place = File::from(place.context("opening standard output")?);
    let note = Box::new(|_| String::new());
    Output::start("standard output", place, SERVER_BYTES_MAX, note)
        .context("starting to write to standard output")
}
