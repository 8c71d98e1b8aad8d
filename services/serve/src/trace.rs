//! Traces across rooms: a span of one room becomes the parent of a span in another, by the W3C `traceparent` that travels in
//! records and requests.
//!
//! Rooms make spans with the target [`TARGET`] at trace level and know no tracing library beyond that. The binary says how a
//! span's place is written and read, if it exports traces; if not, nobody is interested in that target, a span is a single
//! atomic load, and no `traceparent` is written.

use std::sync::OnceLock;

use tracing::Span;

/// The target of every span that is part of a mail's trace.
pub const TARGET: &str = "trace";

/// How places in traces are written and read.
#[derive(Clone, Copy, Debug)]
pub struct Propagation {
    /// The `traceparent` of a span; empty if it is not recorded.
    pub write: fn(&Span) -> String,
    /// Makes the span with this `traceparent` the parent of a span that nobody has entered yet.
    pub read: fn(&Span, &str),
}

static PROPAGATION: OnceLock<Propagation> = OnceLock::new();

/// Says how, once for the process; later calls change nothing.
pub fn propagate(propagation: Propagation) {
    let _ = PROPAGATION.set(propagation);
}

/// The `traceparent` of `span`; empty without tracing.
pub fn traceparent(span: &Span) -> String {
    match PROPAGATION.get() {
        Some(propagation) if !span.is_disabled() => (propagation.write)(span),
        _ => String::new(),
    }
}

/// Makes the span that `traceparent` names, if any, the parent of `span`.
pub fn follow(span: &Span, traceparent: &str) {
    match PROPAGATION.get() {
        Some(propagation) if !span.is_disabled() && !traceparent.is_empty() => {
            (propagation.read)(span, traceparent);
        }
        _ => {}
    }
}
