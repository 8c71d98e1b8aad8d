//! Conversions between generated messages and the trade's vocabulary. What does not convert is malformed, said once here.

use hikyaku_mail::id::{AccountId, DeliveryId, MessageId};
use hikyaku_mail::path::{Mailbox, ReversePath};
use hikyaku_mail::reply::{EnhancedStatusCode, Reply};

use crate::v1;

/// A message that does not hold what its schema promises.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed {0}")]
pub struct Malformed(pub &'static str);

/// The message id in `bytes`.
pub fn message_id(bytes: &[u8]) -> Result<MessageId, Malformed> {
    MessageId::from_bytes(bytes).ok_or(Malformed("message id"))
}

/// The delivery id in `bytes`.
pub fn delivery_id(bytes: &[u8]) -> Result<DeliveryId, Malformed> {
    DeliveryId::from_bytes(bytes).ok_or(Malformed("delivery id"))
}

/// The account id in `text`.
pub fn account_id(text: &str) -> Result<AccountId, Malformed> {
    text.parse().map_err(|_| Malformed("account id"))
}

/// The mailbox address in `text`.
pub fn mailbox(text: &str) -> Result<Mailbox, Malformed> {
    text.parse().map_err(|_| Malformed("address"))
}

/// The reverse-path in `text`; empty is the null reverse-path.
pub fn reverse_path(text: &str) -> Result<ReversePath, Malformed> {
    ReversePath::parse(text).map_err(|_| Malformed("reverse-path"))
}

impl From<&Reply> for v1::Status {
    fn from(reply: &Reply) -> v1::Status {
        v1::Status {
            code: u32::from(reply.code),
            enhanced: reply
                .enhanced
                .map(|code| code.to_string())
                .unwrap_or_default(),
            text: reply.text.clone(),
        }
    }
}

impl From<&v1::Status> for Reply {
    fn from(status: &v1::Status) -> Reply {
        Reply {
            code: u16::try_from(status.code).unwrap_or(451),
            enhanced: EnhancedStatusCode::parse(&status.enhanced),
            text: status.text.clone(),
        }
    }
}
