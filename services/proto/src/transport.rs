//! One transport type for all gRPC clients: a server in the same process, or a channel to another.
//!
//! A tonic server is a valid transport for its own generated client, so a single process has no second code path.

use std::convert::Infallible;
use std::error::Error;

use tonic::body::Body;
use tower::ServiceExt;
use tower::util::BoxCloneSyncService;

/// What every generated client runs on.
pub type Transport = BoxCloneSyncService<http::Request<Body>, http::Response<Body>, TransportError>;

/// Why the other side was not reached.
///
/// A type with a name: over a bare `Box<dyn Error>` the compiler cannot show that a task with such a call in it is `Send`.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct TransportError(#[from] Box<dyn Error + Send + Sync>);

/// A transport that calls `server` directly.
pub fn in_process<S>(server: S) -> Transport
where
    S: tower::Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>
        + Clone
        + Send
        + Sync
        + 'static,
    S::Future: Send + 'static,
{
    BoxCloneSyncService::new(server.map_err(|never| -> TransportError { match never {} }))
}
