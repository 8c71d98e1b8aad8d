//! A build without traces: it says so when it is asked for them.

use anyhow::{Result, bail};

use crate::config::Telemetry;
use crate::telemetry::Spans;

/// There is none.
pub enum Traces {}

impl Traces {
    /// Makes no traces.
    ///
    /// # Errors
    /// When `config` asks for them.
    pub fn start(config: &Telemetry, _host_name: &str) -> Result<Option<(Traces, Spans)>> {
        if config.otlp_endpoint.is_some() {
            bail!("telemetry.otlp_endpoint: this build has no traces (cargo feature `otlp`)");
        }
        Ok(None)
    }

    /// Nothing to end.
    pub async fn stop(self) {
        match self {}
    }
}
