//! Octets of any kind as messages of gRPC and of the log, and those as the trade's words: total, and back again the same.

use hikyaku_mail::id::ShardId;
use hikyaku_mail::reply::{EnhancedStatusCode, Reply};
use hikyaku_proto::{convert, v1};
use hikyaku_shard::stored::Stored;
use prost::Message;

use crate::memory::bounded;

/// The first octet chooses the message; the rest is its bytes, or what is to be converted.
pub fn run(data: &[u8]) {
    let [which, bytes @ ..] = data else { return };
    match which % 16 {
        0 => round_trip::<v1::Record>(bytes),
        1 => round_trip::<v1::DeliverRequest>(bytes),
        2 => round_trip::<v1::DeliverReply>(bytes),
        3 => round_trip::<v1::MaildropPage>(bytes),
        4 => round_trip::<v1::FetchReply>(bytes),
        5 => round_trip::<v1::ExpungeRequest>(bytes),
        6 => round_trip::<v1::StoredMailbox>(bytes),
        7 => round_trip::<v1::StoredEmail>(bytes),
        8 => round_trip::<v1::StoredBody>(bytes),
        9 => round_trip::<v1::StoredAccount>(bytes),
        10 => status(bytes),
        11 => ids(bytes),
        12 => text(bytes),
        13 => stored(bytes),
        14 => round_trip::<v1::StoredMessage>(bytes),
        _ => round_trip::<v1::Carry>(bytes),
    }
}

fn round_trip<M: Message + Default + PartialEq + std::fmt::Debug>(bytes: &[u8]) {
    // two octets make an empty nested message, whose Rust value is as big as its fields
    let Ok(message) = bounded(bytes.len(), 400, || M::decode(bytes)) else {
        return;
    };
    let encoded = message.encode_to_vec();
    assert_eq!(M::decode(&*encoded).as_ref(), Ok(&message));
    assert_eq!(message.encoded_len(), encoded.len());
}

fn status(bytes: &[u8]) {
    let Ok(status) = v1::Status::decode(bytes) else {
        return;
    };
    let reply = Reply::from(&status);
    let again = Reply::from(&v1::Status::from(&reply));
    assert_eq!(again, reply);
    if let Some(enhanced) = reply.enhanced {
        let written = enhanced.to_string();
        assert_eq!(EnhancedStatusCode::parse(&written), Some(enhanced));
        assert_eq!(written, status.enhanced, "one code has one spelling");
    }
}

fn ids(bytes: &[u8]) {
    if let Ok(id) = convert::message_id(bytes) {
        assert_eq!(id.to_bytes(), bytes);
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!(id.shard().to_string().parse(), Ok(id.shard()));
    }
    if let Ok(id) = convert::delivery_id(bytes) {
        assert_eq!(id.to_bytes(), bytes);
    }
    if let Ok(number) = bytes.try_into().map(u32::from_le_bytes)
        && let Some(shard) = ShardId::from_number(number)
    {
        assert_eq!(shard.number(), number);
    }
}

fn text(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    if let Ok(id) = convert::account_id(text) {
        assert_eq!(id.as_str(), text);
        assert!(text.len() <= 64 && !text.contains(['/', ' ']));
    }
    if let Ok(mailbox) = convert::mailbox(text) {
        assert_eq!(convert::mailbox(mailbox.as_str()), Ok(mailbox));
    }
    if let Ok(path) = convert::reverse_path(text) {
        assert_eq!(convert::reverse_path(path.as_str()), Ok(path));
    }
    if let Ok(shard) = text.parse::<ShardId>() {
        assert_eq!(shard.to_string(), text, "one shard has one name");
    }
}

/// What a store keeps with its position.
fn stored(bytes: &[u8]) {
    let bytes = bytes::Bytes::copy_from_slice(bytes);
    if let Some(stored) = Stored::decode(&bytes) {
        assert!(Stored::decode(&stored.encode()).is_some_and(|again| again == stored));
    }
}
