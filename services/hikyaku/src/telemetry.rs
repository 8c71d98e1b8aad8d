//! Log lines to standard error, with a filter that may change; traces to a collector, if they are
//! asked for. Mail waits for neither.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use hikyaku_serve::output::Output;
use tracing_subscriber::filter::{EnvFilter, FilterExt, LevelFilter, filter_fn};
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::registry::Registry;
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::{LogFormat, Telemetry, log_filter};
use crate::lines::{Lines, Value};
use crate::traces::Traces;

/// Wins over `telemetry.log_filter`.
const ENVIRONMENT: &str = "HIKYAKU_LOG";
/// Octets of lines that wait for whoever reads standard error, and as many again that are being
/// written: some thousand mails.
const BYTES_MAX: usize = 2 << 20;
/// For the last lines to be read at the end.
const LAST_LINES_TIMEOUT: Duration = Duration::from_secs(5);

/// What makes spans into traces.
pub type Spans = Box<dyn Layer<Registry> + Send + Sync>;

/// The hold on the filter of the log. Clones share it.
#[derive(Clone)]
pub struct Logging {
    filter: reload::Handle<EnvFilter, Registry>,
    output: Output,
}

impl Logging {
    /// Starts writing lines as `config` asks for; and traces, that want to be ended.
    ///
    /// # Errors
    /// When the filter is malformed or traces cannot be made.
    pub fn start(config: &Telemetry, host_name: &str) -> Result<(Logging, Option<Traces>)> {
        let (filter, handle) = reload::Layer::new(filter(config)?);
        // spans belong to traces, not to lines
        let events =
            filter_fn(|metadata| metadata.is_event()).with_max_level_hint(LevelFilter::TRACE);
        let lines = match config.log_format {
            LogFormat::Logfmt => Lines::Logfmt,
            LogFormat::Json => Lines::Json,
        };
        let output = to_standard_error(lines)?;
        report_panics(output.clone(), lines);
        let writer = output.clone();
        let log = tracing_subscriber::fmt::layer()
            .event_format(lines)
            .with_writer(move || Line(writer.clone()))
            .with_filter(filter.and(events))
            .boxed();
        let (traces, spans) = Traces::start(config, host_name)?.unzip();
        let layers: Vec<_> = [Some(log), spans].into_iter().flatten().collect();
        tracing_subscriber::registry()
            .with(layers)
            .try_init()
            .context("starting the log")?;
        let logging = Logging {
            filter: handle,
            output,
        };
        Ok((logging, traces))
    }

    /// Writes `text` as it is, whatever the filter.
    pub fn write(&self, text: &str) {
        self.output.line(text.as_bytes());
    }

    /// An alarm while nobody reads the log.
    pub fn alarm(&self) -> Option<String> {
        let left_out = self.output.left_out();
        (left_out > 0).then(|| {
            format!(
                "standard error is not read: {left_out} lines of the log are left out until it is"
            )
        })
    }

    /// Waits a little until what was logged is written. Blocks.
    pub fn finish(&self) {
        self.output.finish(LAST_LINES_TIMEOUT);
    }

    /// From now on `filter` decides which lines are written.
    pub fn set_filter(&self, filter: EnvFilter) {
        if let Err(error) = self.filter.reload(filter) {
            tracing::error!(%error, "the log filter cannot be changed");
        }
    }
}

/// Standard error, which nobody waits for.
fn to_standard_error(lines: Lines) -> Result<Output> {
    let place = io::stderr().as_fd().try_clone_to_owned();
    let place = File::from(place.context("opening standard error")?);
    let note = move |left_out: u64| {
        let fields = [("left_out", Value::Number(left_out))];
        let message =
            format!("{left_out} lines were left out: standard error was not read in time");
        lines.line("warn", &message, &fields)
    };
    Output::start("log lines", place, BYTES_MAX, Box::new(note)).context("starting the log")
}

/// A panic is a line of the log: written in the usual way it would wait for whoever reads standard
/// error.
fn report_panics(output: Output, lines: Lines) {
    std::panic::set_hook(Box::new(move |panic| {
        let thread = std::thread::current();
        let why = panic.payload_as_str().unwrap_or("unknown");
        let place = panic
            .location()
            .map(ToString::to_string)
            .unwrap_or_default();
        let mut fields = vec![
            ("thread", Value::Text(thread.name().unwrap_or_default())),
            ("place", Value::Text(&place)),
            ("why", Value::Text(why)),
        ];
        let backtrace = Backtrace::capture();
        let backtrace = match backtrace.status() {
            BacktraceStatus::Captured => backtrace.to_string(),
            _ => String::new(),
        };
        if !backtrace.is_empty() {
            fields.push(("backtrace", Value::Text(&backtrace)));
        }
        output.line(lines.line("error", "panicked", &fields).as_bytes());
    }));
}

/// One event for the log: the layer writes each with one call.
struct Line(Output);

impl Write for Line {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.line(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The filter that `config` and the environment ask for.
///
/// # Errors
/// What is wrong with it.
pub fn filter(config: &Telemetry) -> Result<EnvFilter> {
    let (from, text) = match std::env::var(ENVIRONMENT) {
        Ok(text) if !text.is_empty() => (ENVIRONMENT, text),
        _ => ("telemetry.log_filter", config.log_filter.clone()),
    };
    if let Some(why) = log_filter::fault(&text) {
        bail!("{from}: {why}");
    }
    EnvFilter::try_new(log_filter::normal(&text)).context(from)
}
