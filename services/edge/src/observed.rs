//! What one mail leaves in figures and traces on its way in, and what a session that never came to mail leaves.

use std::time::Duration;

use hikyaku_mail::id::MessageId;
use hikyaku_serve::sparing::Sparing;
use hikyaku_serve::{metrics, trace};
use hikyaku_smtp::backend::{End, Peer};
use tokio::time::Instant;
use tracing::Span;

/// One mail, from the go-ahead for its content on.
#[derive(Debug)]
pub(crate) struct Observed {
    began: Option<Instant>,
    span: Span,
}

impl Observed {
    /// Its content has not begun.
    pub(crate) fn new() -> Observed {
        Observed {
            began: None,
            span: Span::none(),
        }
    }

    /// The content may come.
    pub(crate) fn begin(&mut self, id: MessageId) {
        self.began = Some(Instant::now());
        self.span = tracing::trace_span!(target: trace::TARGET, "edge", queue_id = %id);
    }

    /// The span for the record's way into the log.
    pub(crate) fn append(&self) -> Span {
        if self.span.is_disabled() {
            return Span::none();
        }
        tracing::trace_span!(target: trace::TARGET, parent: &self.span, "log append")
    }

    /// What the record carries.
    pub(crate) fn traceparent(&self) -> String {
        trace::traceparent(&self.span)
    }

    /// It is durable; that took `committing`.
    pub(crate) fn accepted(&self, size: u64, committing: Duration) {
        metrics::SMTP_ACCEPTED.add(1);
        metrics::SMTP_ACCEPTED_BYTES.add(size);
        metrics::SMTP_COMMIT_SECONDS.observe(committing);
        if let Some(began) = self.began {
            metrics::SMTP_DATA_SECONDS.observe(began.elapsed());
        }
    }
}

/// Lines about handshakes that failed, which anybody can cause by connecting.
static HANDSHAKES: Sparing = Sparing::new(10, Duration::from_secs(1));

/// Lines about what breaks the grammar and does no harm, which anybody can send.
static TOLERATED: Sparing = Sparing::new(10, Duration::from_secs(1));

/// Says what was put up with, so that a postmaster can tell whoever sends it.
pub(crate) fn tolerated(peer: &Peer, what: &str, line: &str) {
    if let Some(left_out) = TOLERATED.line() {
        tracing::info!(
            session = peer.session,
            peer = %peer.address,
            what,
            line,
            left_out,
            "put up with bad syntax"
        );
    }
}

/// Says that a peer and we did not come to TLS, and why: a certificate that a client does not trust is seen here only.
pub(crate) fn handshake_failed(peer: &Peer, cause: &str) {
    if let Some(left_out) = HANDSHAKES.line() {
        tracing::info!(
            session = peer.session,
            peer = %peer.address,
            listener = %peer.listener,
            cause,
            left_out,
            "TLS handshake failed"
        );
    }
}

/// Counts how a session ended.
pub(crate) fn ended(end: End) {
    metrics::SMTP_ENDED.count_value(match end {
        End::Quit => "quit",
        End::Disconnected => "disconnected",
        End::TimedOut => "timed-out",
        End::Refused => "refused",
        End::Drained => "drained",
        End::HandshakeFailed => "handshake-failed",
    });
}
