//! A build without traces: it says so when it is asked for them.

use anyhow::{Result, bail};
use tracing_subscriber::layer::Layer;
use tracing_subscriber::registry::Registry;

use crate::config::Telemetry;

/// There is none.
pub enum Traces {}

impl Traces {
    /// Makes no traces.
    ///
    /// # Errors
    /// When `config` asks for them.
    pub fn start(
        config: &Telemetry,
        _host_name: &str,
    ) -> Result<Option<(Traces, Box<dyn Layer<Registry> + Send + Sync>)>> {
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
