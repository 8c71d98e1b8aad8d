//! Short words for the records that tests write.

use hikyaku_log::Position;
use hikyaku_mail::id::{Class, MessageId, ShardId};
use hikyaku_proto::v1::operate::Order;
use hikyaku_proto::v1::outcome::Result as Attempt;
use hikyaku_proto::v1::recipient::Target;
use hikyaku_proto::v1::{
    Accept, Body, Deferred, Delivered, Envelope, ExpandTarget, LocalTarget, Operate, Outcome,
    Recipient, RemoteTarget, Routed, Status, body::Content,
};

use crate::kept::Fact;
use crate::recipient::{Message, Slot, Stand};

pub fn id(n: u64) -> MessageId {
    MessageId::new(ShardId::new(Class::Incoming, 0), 1_000_000, n)
}

fn recipient(address: &str, target: Target) -> Recipient {
    Recipient {
        address: format!("{address}@example.jp"),
        target: Some(target),
        ..Recipient::default()
    }
}

pub fn local(account: &str) -> Recipient {
    let target = LocalTarget {
        account: account.into(),
        tenant: "example".into(),
        mbox: "mbox1".into(),
    };
    recipient(account, Target::Local(target))
}

pub fn expand(name: &str) -> Recipient {
    recipient(name, Target::Expand(ExpandTarget::default()))
}

pub fn remote(name: &str) -> Recipient {
    let target = RemoteTarget {
        domain: "elsewhere.example".into(),
    };
    recipient(name, Target::Remote(target))
}

pub fn accept(id: MessageId, recipients: Vec<Recipient>) -> Accept {
    Accept {
        message_id: id.to_bytes().to_vec().into(),
        envelope: Some(Envelope {
            reverse_path: "sender@example.jp".into(),
            received_ms: 1_000_000,
            ..Envelope::default()
        }),
        recipients,
        body: Some(Body {
            content: Some(Content::Zstd(vec![7; 300].into())),
            size: 900,
            blake3: vec![9; 32].into(),
        }),
        tenant: "example".into(),
        ..Accept::default()
    }
}

pub fn message(slots: Vec<Slot>) -> Message {
    let accept = accept(id(1), Vec::new());
    Message::new(&accept, slots, "", Position(1), (Position(1), 0))
}

pub fn state_words(message: &Message) -> String {
    let words = message.slots.iter().map(|slot| match slot.stand() {
        Stand::Pending(_) => "pending".to_owned(),
        Stand::Held(_) => "held".to_owned(),
        Stand::Terminal(terminal) => terminal.how().as_str_name()[4..].to_lowercase(),
    });
    words.collect::<Vec<_>>().join(" ")
}

pub fn outcome(recipient: u32, result: Attempt) -> Outcome {
    Outcome {
        recipient,
        result: Some(result),
    }
}

pub fn delivered_outcome(recipient: u32, uid: u32) -> Outcome {
    let delivered = Delivered {
        shard: 0,
        uid_validity: 1,
        uid,
    };
    outcome(recipient, Attempt::Delivered(delivered))
}

pub fn deferred_outcome(recipient: u32, due_ms: u64) -> Outcome {
    let status = Status {
        code: 452,
        enhanced: "4.2.2".into(),
        text: "mailbox full".into(),
    };
    let deferred = Deferred {
        status: Some(status),
        due_ms,
    };
    outcome(recipient, Attempt::Deferred(deferred))
}

pub fn delivered(recipient: u32, uid: u32) -> Fact {
    Fact::Attempted(vec![delivered_outcome(recipient, uid)])
}

pub fn deferred(recipient: u32, due_ms: u64) -> Fact {
    Fact::Attempted(vec![deferred_outcome(recipient, due_ms)])
}

pub fn routed(recipient: u32, children: Vec<Recipient>) -> Fact {
    Fact::Routed(Box::new(Routed {
        recipient,
        children,
        ..Routed::default()
    }))
}

pub fn operate(order: Order, recipients: &[u32]) -> Fact {
    Fact::Operated(Box::new(Operate {
        order: order.into(),
        recipients: recipients.to_vec(),
        reason: "test".into(),
        ..Operate::default()
    }))
}
