//! Which UIDs a running process has given to which mail, as `hikyaku shard snapshot` tells: POP3 shows ids that follow
//! from the delivery, so a UID given twice would not be seen there.

use std::collections::BTreeMap;

use hikyaku_proto::v1::ShardPiece;
use hikyaku_proto::v1::ingest::Piece as Ingest;
use hikyaku_proto::v1::shard_piece::Piece;
use prost::Message as _;

use super::site::Site;

/// Bytes that a snapshot begins with.
const MAGIC: usize = 16;

/// One message's place for all time.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The account.
    pub account: String,
    /// The mailbox in it.
    pub mailbox: u64,
    /// The mailbox's UIDVALIDITY.
    pub uid_validity: u32,
    /// The UID.
    pub uid: u32,
}

/// What is where, by BLAKE3 of the content behind the delivery's own header.
pub type Places = BTreeMap<Place, Vec<u8>>;

/// Asks the running process of `site` for all messages of `shards`.
///
/// # Panics
/// When it does not answer.
pub fn places(site: &Site, shards: &[u16]) -> Places {
    let mut places = Places::new();
    for shard in shards {
        let file = site.home().join(format!("places-{shard}"));
        let _ = std::fs::remove_file(&file);
        let name = format!("mbox-{shard}");
        site.ask(&["shard", "snapshot", &name, file.to_str().expect("UTF-8")])
            .must();
        read(&std::fs::read(&file).expect("the snapshot"), &mut places);
    }
    places
}

fn read(bytes: &[u8], places: &mut Places) {
    let mut rest = &bytes[MAGIC..];
    let mut validities = BTreeMap::new();
    while let Some((length, after)) = rest.split_first_chunk::<4>() {
        let (piece, after) = after.split_at(u32::from_be_bytes(*length) as usize);
        rest = after;
        let piece = ShardPiece::decode(piece).expect("a piece");
        let Some(Piece::Ingest(ingest)) = piece.piece else {
            continue;
        };
        match ingest.piece {
            Some(Ingest::Mailbox(mailbox)) => {
                validities.insert((ingest.account, mailbox.mailbox_id), mailbox.uid_validity);
            }
            Some(Ingest::Message(message)) => {
                let mailbox = (ingest.account, message.mailbox_id);
                let uid_validity = *validities
                    .get(&mailbox)
                    .expect("a mailbox before its messages");
                let place = Place {
                    account: mailbox.0,
                    mailbox: mailbox.1,
                    uid_validity,
                    uid: message.uid,
                };
                // the delivery id is in it, so equal contents of two mails are two values
                let mut what = message.delivery_id.to_vec();
                what.extend_from_slice(&message.body.unwrap_or_default().blake3);
                let before = places.insert(place.clone(), what);
                assert!(before.is_none(), "{place:?} is two messages at once");
            }
            _ => {}
        }
    }
}

/// Places that hold something else in `later` than in `earlier`.
pub fn reused(earlier: &Places, later: &Places) -> Vec<Place> {
    let changed = earlier
        .iter()
        .filter(|(place, what)| later.get(place).is_some_and(|now| now != *what));
    changed.map(|(place, _)| place.clone()).collect()
}

/// Places of `earlier` that `later` lacks.
pub fn gone(earlier: &Places, later: &Places) -> Vec<Place> {
    earlier
        .keys()
        .filter(|place| !later.contains_key(place))
        .cloned()
        .collect()
}
