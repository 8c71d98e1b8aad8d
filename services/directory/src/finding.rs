//! What is wrong with a directory file: what `hikyaku check` prints and a reload logs.

use std::fmt;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Works, and is probably not what was meant.
    Warning,
    /// Refuses the file, or makes an entry, an address or a login unavailable.
    Error,
}

/// Something wrong with the file, for `hikyaku check` and the log. Printable, on one line, without secrets.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// From 1; 0 is about the settings or the file as a whole.
    pub line: u32,
    /// The entry, if it is about one.
    pub dn: Option<String>,
    /// What is wrong.
    pub what: String,
    /// How bad.
    pub severity: Severity,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.line > 0 {
            write!(f, "line {}: ", self.line)?;
        }
        f.write_str(if self.severity == Severity::Error {
            "error: "
        } else {
            "warning: "
        })?;
        if let Some(dn) = &self.dn {
            write!(f, "{dn}: ")?;
        }
        f.write_str(&self.what)
    }
}

/// Findings while they are made: a bounded number of each severity, so that warnings hide no error.
pub(crate) struct Findings {
    list: Vec<Finding>,
    /// Of each severity.
    list_max: usize,
    warnings: Counts,
    errors: Counts,
    refuses: bool,
}

#[derive(Default)]
struct Counts {
    listed: usize,
    left_out: usize,
}

impl Findings {
    pub(crate) fn new(list_max: usize) -> Findings {
        Findings {
            list: Vec::new(),
            list_max,
            warnings: Counts::default(),
            errors: Counts::default(),
            refuses: false,
        }
    }

    pub(crate) fn find(
        &mut self,
        severity: Severity,
        line: u32,
        dn: Option<&str>,
        what: impl Into<String>,
    ) {
        let counts = match severity {
            Severity::Warning => &mut self.warnings,
            Severity::Error => &mut self.errors,
        };
        if counts.listed >= self.list_max {
            counts.left_out += 1;
            return;
        }
        counts.listed += 1;
        self.list.push(Finding {
            line,
            dn: dn.map(str::to_owned),
            what: what.into(),
            severity,
        });
    }

    /// The whole file is refused.
    pub(crate) fn refuse(&mut self, line: u32, what: impl Into<String>) {
        // Never left out: without it nobody would know why nothing starts.
        self.list.push(Finding {
            line,
            dn: None,
            what: what.into(),
            severity: Severity::Error,
        });
        self.refuses = true;
    }

    pub(crate) fn refuses(&self) -> bool {
        self.refuses
    }

    /// All of them in the order of the file.
    pub(crate) fn finish(&mut self) -> Vec<Finding> {
        let mut list = std::mem::take(&mut self.list);
        list.sort();
        for (severity, counts) in [
            (Severity::Warning, &self.warnings),
            (Severity::Error, &self.errors),
        ] {
            if counts.left_out > 0 {
                list.push(Finding {
                    line: 0,
                    dn: None,
                    what: format!("{} more findings are not listed", counts.left_out),
                    severity,
                });
            }
        }
        list
    }
}
