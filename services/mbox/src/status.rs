//! Errors as gRPC says them: each means "ask again", but for a call that can never succeed.

use std::future::Future;
use std::time::Duration;

use hikyaku_engine::EngineError;
use hikyaku_log::AppendError;
use hikyaku_shard::runtime::{Committed, ProposeError};
use hikyaku_store::StoreError;
use tonic::Status;

/// What the caller hears when its command has no answer.
pub(crate) fn of_propose(error: &ProposeError) -> Status {
    match error {
        // no repeat will ever be logged
        ProposeError::Refused(AppendError::TooLarge) => Status::invalid_argument(error.to_string()),
        ProposeError::Unknown | ProposeError::Refused(AppendError::Unknown) => {
            Status::unknown("outcome unknown: ask again with the same command id")
        }
        ProposeError::Refused(AppendError::Full | AppendError::Unavailable) => {
            Status::unavailable(error.to_string())
        }
    }
}

/// The store cannot be read. The peer hears a generic sentence, the log hears why.
pub(crate) fn of_store(error: &StoreError) -> Status {
    tracing::error!(%error, "a shard's store cannot be read");
    Status::unavailable("the store cannot be read")
}

/// As [`of_store`].
pub(crate) fn of_engine(error: &EngineError) -> Status {
    tracing::error!(%error, "a shard's store cannot be read");
    Status::unavailable("the store cannot be read")
}

/// Waits for a proposal no longer than `patience`; then its outcome is unknown.
pub(crate) async fn within<A>(
    patience: Duration,
    proposal: impl Future<Output = Result<Committed<A>, ProposeError>>,
) -> Result<A, ProposeError> {
    match tokio::time::timeout(patience, proposal).await {
        Ok(committed) => Ok(committed?.answer),
        Err(_) => Err(ProposeError::Unknown),
    }
}

/// The command id in a request.
pub(crate) fn command_id(bytes: &[u8]) -> Result<[u8; 16], Status> {
    bytes
        .try_into()
        .map_err(|_| Status::invalid_argument("a command id has 16 bytes"))
}
