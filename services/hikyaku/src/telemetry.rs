//! Log lines to standard error, with a filter that may change; traces to a collector, if they are asked for.

use anyhow::{Context, Result, bail};
use tracing_subscriber::filter::{EnvFilter, FilterExt, LevelFilter, filter_fn};
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::registry::Registry;
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::{LogFormat, Telemetry, log_filter};
use crate::lines::Lines;
use crate::traces::Traces;

/// Wins over `telemetry.log_filter`.
const ENVIRONMENT: &str = "HIKYAKU_LOG";

/// What makes spans into traces.
pub type Spans = Box<dyn Layer<Registry> + Send + Sync>;

/// The hold on the filter of the log. Clones share it.
#[derive(Clone)]
pub struct Logging {
    filter: reload::Handle<EnvFilter, Registry>,
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
        let log = tracing_subscriber::fmt::layer()
            .event_format(lines)
            .with_writer(std::io::stderr)
            .with_filter(filter.and(events))
            .boxed();
        let (traces, spans) = Traces::start(config, host_name)?.unzip();
        let layers: Vec<_> = [Some(log), spans].into_iter().flatten().collect();
        tracing_subscriber::registry()
            .with(layers)
            .try_init()
            .context("starting the log")?;
        Ok((Logging { filter: handle }, traces))
    }

    /// From now on `filter` decides which lines are written.
    pub fn set_filter(&self, filter: EnvFilter) {
        if let Err(error) = self.filter.reload(filter) {
            tracing::error!(%error, "the log filter cannot be changed");
        }
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
