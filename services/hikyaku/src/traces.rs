//! Traces to an OTLP collector: what one mail takes where, from the edge to its mailbox.
//!
//! Spans wait in a bounded queue for a thread of their own; when it is full, or nobody answers, they are dropped. Mail never
//! waits for a trace.

use std::time::Duration;

use anyhow::{Context as _, Result};
use hikyaku_serve::trace::{self, Propagation, TARGET};
use opentelemetry::KeyValue;
use opentelemetry::propagation::TextMapPropagator;
use opentelemetry::trace::{TraceContextExt, TracerProvider};
use opentelemetry_otlp::{SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracerProvider,
};
use tracing::{Level, Span};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::Layer;

use crate::config::Telemetry;
use crate::telemetry::Spans;

/// Spans that wait for the collector; more are dropped.
const SPANS_MAX: usize = 8192;
/// Spans in one request.
const BATCH_SPANS_MAX: usize = 512;
/// How often they are sent.
const INTERVAL: Duration = Duration::from_secs(2);
/// For the collector to answer.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(5);
/// The header that a place in a trace is written in (W3C Trace Context).
const TRACEPARENT: &str = "traceparent";

/// The way to the collector.
pub struct Traces {
    provider: SdkTracerProvider,
}

impl Traces {
    /// Exports traces if `config` asks for them, and the layer that makes them. Needs a runtime around it.
    ///
    /// # Errors
    /// When the endpoint is malformed. Whether somebody answers there does not matter.
    pub fn start(config: &Telemetry, host_name: &str) -> Result<Option<(Traces, Spans)>> {
        let Some(endpoint) = &config.otlp_endpoint else {
            return Ok(None);
        };
        let exporter = SpanExporter::builder()
            .with_tonic()
            .with_endpoint(endpoint)
            .with_timeout(EXPORT_TIMEOUT)
            .build()
            .with_context(|| format!("telemetry.otlp_endpoint: {endpoint}"))?;
        let batches = BatchSpanProcessor::builder(exporter).with_batch_config(
            BatchConfigBuilder::default()
                .with_max_queue_size(SPANS_MAX)
                .with_max_export_batch_size(BATCH_SPANS_MAX)
                .with_scheduled_delay(INTERVAL)
                .build(),
        );
        let sampler = Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(config.otlp_ratio)));
        let resource = Resource::builder_empty()
            .with_service_name("hikyaku")
            .with_attributes([
                KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
                KeyValue::new("host.name", host_name.to_owned()),
            ])
            .build();
        let provider = SdkTracerProvider::builder()
            .with_span_processor(batches.build())
            .with_sampler(sampler)
            .with_resource(resource)
            .build();
        trace::propagate(Propagation { write, read });
        let layer = tracing_opentelemetry::layer()
            .with_tracer(provider.tracer("hikyaku"))
            .with_location(false)
            .with_threads(false)
            .with_target(false)
            .with_tracked_inactivity(false)
            .with_filter(Targets::new().with_target(TARGET, Level::TRACE))
            .boxed();
        Ok(Some((Traces { provider }, layer)))
    }

    /// Sends what waits, if somebody takes it soon.
    pub async fn stop(self) {
        // it blocks, and the exporter needs this runtime meanwhile
        let stopped = tokio::task::spawn_blocking(move || {
            self.provider.shutdown_with_timeout(EXPORT_TIMEOUT)
        });
        if let Ok(Err(error)) = stopped.await {
            tracing::info!(%error, "the last traces were not taken");
        }
    }
}

/// The `traceparent` of `span`; empty if its mail is not among those traced, so that nobody goes on with it.
fn write(span: &Span) -> String {
    let context = span.context();
    if !context.span().span_context().is_sampled() {
        return String::new();
    }
    let mut carrier = std::collections::HashMap::new();
    TraceContextPropagator::new().inject_context(&context, &mut carrier);
    carrier.remove(TRACEPARENT).unwrap_or_default()
}

fn read(span: &Span, traceparent: &str) {
    let carrier =
        std::collections::HashMap::from([(TRACEPARENT.to_owned(), traceparent.to_owned())]);
    let parent = TraceContextPropagator::new().extract(&carrier);
    // what comes from a record of long ago need not be well-formed: then it is a trace of its own
    let _ = span.set_parent(parent);
}
