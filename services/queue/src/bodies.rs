//! Bodies of fresh mail, in memory until delivered. Everything else is read back from the log.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use hikyaku_mail::id::MessageId;
use hikyaku_proto::v1::{Accept, BlobRef, Body, Record, body::Content, record::Command};

/// A bounded cache of bodies, oldest out first. Not part of the state: a miss costs one read of the log.
#[derive(Debug, Default)]
pub struct Bodies {
    bytes_max: usize,
    bytes: usize,
    bodies: BTreeMap<MessageId, Body>,
    order: VecDeque<MessageId>,
}

impl Bodies {
    /// An empty cache for at most `bytes_max` octets of content as stored.
    pub fn new(bytes_max: usize) -> Bodies {
        Bodies {
            bytes_max,
            ..Bodies::default()
        }
    }

    /// Remembers a body, a copy of its own: what it was cut from can be much larger.
    pub fn insert(&mut self, id: MessageId, body: &Body) {
        let weight = weight(body);
        if weight > self.bytes_max || self.bodies.contains_key(&id) {
            return;
        }
        self.bytes += weight;
        self.bodies.insert(id, owned(body));
        self.order.push_back(id);
        while self.bytes > self.bytes_max {
            let Some(oldest) = self.order.pop_front() else {
                break;
            };
            self.forget(oldest);
        }
        // ids of bodies forgotten early pile up in the order
        if self.order.len() > 64 + 2 * self.bodies.len() {
            self.order.retain(|id| self.bodies.contains_key(id));
        }
    }

    /// The body, if it is still here.
    pub fn find(&self, id: MessageId) -> Option<Body> {
        self.bodies.get(&id).cloned()
    }

    /// Lets go of a body.
    pub fn remove(&mut self, id: MessageId) {
        self.forget(id);
    }

    /// Lets go of everything.
    pub fn clear(&mut self) {
        *self = Bodies::new(self.bytes_max);
    }

    fn forget(&mut self, id: MessageId) {
        if let Some(body) = self.bodies.remove(&id) {
            self.bytes -= weight(&body);
        }
    }
}

/// Octets a body costs in memory.
pub fn weight(body: &Body) -> usize {
    let content = match &body.content {
        Some(Content::Zstd(bytes)) => bytes.len(),
        Some(Content::Blob(blob)) => blob.id.len(),
        None => 0,
    };
    content + 128
}

/// The same body in memory of its own.
fn owned(body: &Body) -> Body {
    let content = body.content.as_ref().map(|content| match content {
        Content::Zstd(bytes) => Content::Zstd(Bytes::copy_from_slice(bytes)),
        Content::Blob(blob) => Content::Blob(BlobRef {
            id: Bytes::copy_from_slice(&blob.id),
        }),
    });
    Body {
        content,
        size: body.size,
        blake3: Bytes::copy_from_slice(&body.blake3),
    }
}

/// The body of message `id` in a record that holds one: its `Accept`, its `Carry`, or the record that it reports.
pub fn body_in(record: Record, id: MessageId) -> Option<Body> {
    let accept: Accept = match record.command? {
        Command::Accept(accept) => accept,
        Command::Carry(carry) => carry.accept?,
        Command::Bounce(bounce) => bounce.dsn?,
        Command::Attempted(attempted) => attempted.report?,
        Command::Routed(routed) => routed.report?,
        _ => return None,
    };
    (accept.message_id[..] == id.to_bytes()).then_some(accept.body)?
}

#[cfg(test)]
mod tests {
    use super::Bodies;
    use bytes::Bytes;
    use hikyaku_mail::id::{Class, MessageId, ShardId};
    use hikyaku_proto::v1::{Body, body::Content};

    #[test]
    fn the_oldest_go_first_and_the_budget_holds() {
        let mut bodies = Bodies::new(1000);
        let id = |n| MessageId::new(ShardId::new(Class::Incoming, 0), n, n);
        let body = Body {
            content: Some(Content::Zstd(Bytes::from(vec![7; 272]))),
            size: 1000,
            blake3: Bytes::new(),
        };
        for n in 0..1000 {
            bodies.insert(id(n), &body);
            if n.is_multiple_of(3) {
                bodies.remove(id(n));
            }
        }
        assert!(bodies.bytes <= 1000 && bodies.order.len() < 100);
        assert_eq!(bodies.find(id(998)), Some(body));
        assert_eq!(bodies.find(id(999)), None);
        assert_eq!(bodies.find(id(990)), None);
    }
}
