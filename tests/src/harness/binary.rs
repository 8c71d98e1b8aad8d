//! Where the programs under test are, and running them to their end.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::{Command, Output};

/// A program of this workspace, beside the directory of the running test.
///
/// # Panics
/// When it was not built.
pub fn program(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("the test's own path");
    let profile = test
        .ancestors()
        .nth(2)
        .expect("tests run from target/PROFILE/deps");
    let path = profile.join(name);
    assert!(
        path.is_file(),
        "{} is missing: build it first with `cargo build -p {name}`",
        path.display()
    );
    path
}

/// What a program said when it ended.
#[derive(Debug)]
pub struct Said {
    /// Its exit status was 0.
    pub ok: bool,
    /// The exit status, unless a signal ended it.
    pub code: Option<i32>,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl From<Output> for Said {
    fn from(output: Output) -> Said {
        Said {
            ok: output.status.success(),
            code: output.status.code(),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

impl Said {
    /// Standard output of a program that must have succeeded.
    ///
    /// # Panics
    /// When it did not.
    #[track_caller]
    pub fn must(self) -> String {
        assert!(self.ok, "it failed:\n{}{}", self.out, self.err);
        self.out
    }

    /// Standard error of a program that must have refused.
    ///
    /// # Panics
    /// When it did not.
    #[track_caller]
    pub fn refusal(self) -> String {
        assert!(
            !self.ok,
            "it should have failed, but said:\n{}{}",
            self.out, self.err
        );
        self.err
    }
}

/// Runs `hikyaku` with `arguments` to its end.
///
/// # Panics
/// When it cannot be started.
pub fn hikyaku<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Said {
    run(Command::new(program("hikyaku")).args(arguments))
}

/// Runs a command to its end.
///
/// # Panics
/// When it cannot be started.
pub fn run(command: &mut Command) -> Said {
    match command.output() {
        Ok(output) => output.into(),
        Err(error) => panic!("{:?} cannot be started: {error}", command.get_program()),
    }
}

/// Whether a program is on the path.
pub fn installed(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(name).is_file())
}

/// A program from a package of Debian.
///
/// # Panics
/// When it is not installed; names the package.
pub fn tool(name: &str, package: &str) -> Command {
    assert!(
        installed(name),
        "{name} is missing: apt-get install {package} (tests/run does it)"
    );
    Command::new(name)
}
