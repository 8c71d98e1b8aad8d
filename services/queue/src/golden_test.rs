//! The state hash of a queue to which everything has happened. Replicas of different builds compare it, so it may change only
//! together with the version of the record. And that whatever is kept moves it.

use std::collections::BTreeMap;

use crate::machine::{QueueMachine, QueueOptions};
use bytes::Bytes;
use hikyaku_log::{Bounds, Position, Stamp};
use hikyaku_mail::id::{Class, MessageId, ShardId};
use hikyaku_proto::v1::operate::Order;
use hikyaku_proto::v1::outcome::Result as Attempt;
use hikyaku_proto::v1::recipient::Target;
use hikyaku_proto::v1::record::Command;
use hikyaku_proto::v1::{
    Accept, Attempted, Body, Bounce, BouncedRecipient, Cancel, Deferred, Delayed, Delivered,
    Envelope, ExpandTarget, Held, LocalTarget, Operate, Outcome, Recipient, Record, RemoteTarget,
    Routed, Status, body::Content,
};
use hikyaku_shard::machine::Machine;
use prost::Message as _;

/// From the build that had it first.
const HASHES: [&str; 3] = [
    "df850be276f14a00c037c000875b9cd7f2b6b17b4516078763b6ec8b85d7f28e",
    "3acabe832bd6e162e78d0833845a348d77b71412d0c7826ae069cecb08e967a5",
    "b2adce7b2a46261c0771e6a1c755d6f2b81f6544ce558e6aa60cdf3efddb551e",
];

fn id(n: u64) -> MessageId {
    MessageId::new(ShardId::new(Class::Incoming, 0), 1_000_000 + n, n)
}

fn bytes(n: u64) -> Bytes {
    id(n).to_bytes().to_vec().into()
}

fn recipient(name: &str, target: Target) -> Recipient {
    Recipient {
        address: format!("{name}@example.jp"),
        target: Some(target),
        ..Recipient::default()
    }
}

fn local(account: &str, tenant: &str) -> Recipient {
    let target = LocalTarget {
        account: account.into(),
        tenant: tenant.into(),
        mbox: "mbox1".into(),
    };
    recipient("user", Target::Local(target))
}

fn expand(seen: &[&str]) -> Recipient {
    let seen = seen.iter().map(|name| (*name).to_owned()).collect();
    recipient("team", Target::Expand(ExpandTarget { seen }))
}

fn recipients() -> Vec<Recipient> {
    let domain = "elsewhere.example".to_owned();
    let remote = recipient("far", Target::Remote(RemoteTarget { domain }));
    let mut asking = local("1f9a3c52-7b1a-103e-8f5c-0123456789ab", "example");
    asking.original_recipient = "rfc822;user@example.jp".into();
    asking.notify = "SUCCESS,FAILURE".into();
    let mut nowhere = local("", "");
    nowhere.target = None;
    let upper = "1F9A3C52-7B1A-103E-8F5C-0123456789AB";
    vec![
        local("a", "example"),
        asking,
        local(upper, "other"),
        local("a", "example"),
        local("b", ""),
        expand(&[]),
        expand(&["cn=a", "cn=b"]),
        remote,
        nowhere,
    ]
}

fn accept(n: u64) -> Accept {
    Accept {
        message_id: bytes(n),
        envelope: (n != 3).then(|| Envelope {
            reverse_path: format!("sender{n}@example.net"),
            received_ms: 1_000_000 + n,
            client: "192.0.2.1:12345".into(),
            helo: "mail.example.net".into(),
            envelope_id: if n == 4 { "QQ314159" } else { "" }.into(),
            ret: if n == 4 { "HDRS" } else { "" }.into(),
            smtputf8: n == 5,
            body_8bit: n == 5,
        }),
        recipients: recipients(),
        body: Some(Body {
            content: Some(Content::Zstd(vec![7; 300].into())),
            size: 900,
            blake3: vec![9; 32].into(),
        }),
        tenant: if n == 6 { "" } else { "example" }.into(),
        traceparent: if n == 7 { "00-4bf92f-00f067-01" } else { "" }.into(),
        reports_on: if n == 8 { bytes(1) } else { Bytes::new() },
    }
}

fn attempted(n: u64, results: Vec<(u32, Attempt)>) -> Command {
    let outcomes = results.into_iter().map(|(recipient, result)| Outcome {
        recipient,
        result: Some(result),
    });
    Command::Attempted(Attempted {
        message_id: bytes(n),
        outcomes: outcomes.collect(),
        ..Attempted::default()
    })
}

fn deferred(due_ms: u64) -> Attempt {
    Attempt::Deferred(Deferred {
        status: Some(Status {
            code: 452,
            enhanced: "4.2.2".into(),
            text: "mailbox full".into(),
        }),
        due_ms,
    })
}

fn delivered() -> Attempt {
    Attempt::Delivered(Delivered {
        shard: 1,
        uid_validity: 2,
        uid: 3,
    })
}

fn operate(n: u64, order: Order, recipients: &[u32], reason: &str) -> Command {
    Command::Operate(Operate {
        order: order.into(),
        message_id: bytes(n),
        recipients: recipients.to_vec(),
        reason: reason.into(),
        operator: "root".into(),
    })
}

fn facts() -> Vec<Command> {
    let held = Attempt::Held(Held {
        reason: "no-outbound".into(),
    });
    vec![
        attempted(1, vec![(0, delivered()), (1, deferred(5000)), (7, held)]),
        attempted(2, vec![(1, deferred(6000))]),
        attempted(2, vec![(1, deferred(7000))]),
        attempted(2, vec![(1, deferred(7000))]),
        Command::Routed(Routed {
            message_id: bytes(2),
            recipient: 5,
            children: vec![
                local("c", "example"),
                local("b", "example"),
                expand(&["cn=team"]),
            ],
            errors_to: Some("owner@example.jp".into()),
            reason: "group".into(),
            ..Routed::default()
        }),
        Command::Routed(Routed {
            message_id: bytes(4),
            recipient: 0,
            children: vec![local("z", "example")],
            errors_to: Some(String::new()),
            ..Routed::default()
        }),
        Command::Cancel(Cancel {
            message_id: bytes(5),
        }),
        operate(6, Order::Hold, &[], ""),
        operate(7, Order::Hold, &[1, 4], "look"),
        operate(7, Order::Delete, &[0], ""),
        operate(2, Order::Retry, &[1], ""),
        operate(8, Order::Hold, &[], "whole"),
        operate(8, Order::Release, &[], ""),
        Command::Bounce(Bounce {
            message_id: bytes(3),
            recipients: vec![BouncedRecipient {
                recipient: 2,
                status: None,
            }],
            dsn: Some(accept(20)),
        }),
        Command::Bounce(Bounce {
            message_id: bytes(8),
            recipients: vec![BouncedRecipient {
                recipient: 1,
                status: None,
            }],
            dsn: None,
        }),
    ]
}

fn apply(machine: &mut QueueMachine, position: u64, command: Command) {
    let record = Record {
        version: 1,
        cmd_id: position.to_be_bytes().to_vec().into(),
        time_ms: 2_000_000 + position,
        command: Some(command),
    };
    let payload = Bytes::from(record.encode_to_vec());
    let stamp = Stamp {
        position: Position(position),
        crc: 0,
    };
    machine
        .apply(stamp, Record::decode(payload).unwrap())
        .unwrap();
}

fn hash(machine: &QueueMachine) -> String {
    let bytes = machine.state_hash();
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn the_state_hash_is_what_it_always_was() {
    let mut machine = QueueMachine::new(QueueOptions::default());
    let (start, end) = (Position(1), Position(1));
    machine.resume(1, Bounds { start, end }).unwrap();
    let mut position = 1;
    let mut hashes = Vec::new();
    for n in 1..=9 {
        apply(&mut machine, position, Command::Accept(accept(n)));
        position += 1;
    }
    hashes.push(hash(&machine));
    for command in facts() {
        apply(&mut machine, position, command);
        position += 1;
    }
    hashes.push(hash(&machine));
    // the same state from carried messages alone
    let mut other = QueueMachine::new(QueueOptions::default());
    let (start, end) = (Position(position), Position(position));
    other.resume(1, Bounds { start, end }).unwrap();
    let ids: Vec<MessageId> = (1..=20)
        .map(id)
        .filter(|id| machine.index().message(*id).is_some())
        .collect();
    assert_eq!(ids.len(), 9, "one was cancelled, one is a report");
    for id in &ids {
        let draft = machine.draft_of(*id).unwrap();
        apply(&mut other, position, Command::Carry(draft.carry));
        position += 1;
    }
    assert_eq!(hash(&other), hash(&machine));
    // and nothing is left of it
    for n in 1..=20 {
        let release = operate(n, Order::Release, &[], "");
        let delete = operate(n, Order::Delete, &[], "");
        for command in [release, delete] {
            apply(&mut machine, position, command);
            position += 1;
        }
        if n == 7 {
            hashes.push(hash(&machine));
        }
    }
    assert_eq!(hash(&machine), "0".repeat(64));
    assert_eq!(hashes, HASHES);
}

/// The hash of a queue that has taken `mail` and then these commands.
fn hash_after(mail: Accept, commands: Vec<Command>) -> String {
    let mut machine = QueueMachine::new(QueueOptions::default());
    let (start, end) = (Position(1), Position(1));
    machine.resume(1, Bounds { start, end }).unwrap();
    let commands = std::iter::once(Command::Accept(mail)).chain(commands);
    for (position, command) in (1..).zip(commands) {
        apply(&mut machine, position, command);
    }
    hash(&machine)
}

/// A change of a mail, and of its envelope.
type Change = fn(&mut Accept);
type EnvelopeChange = fn(&mut Envelope);

/// Mails of which each differs from the first in one thing that the queue keeps.
fn mails() -> Vec<Accept> {
    let local_of = |recipient: &mut Recipient, change: fn(&mut LocalTarget)| {
        if let Some(Target::Local(target)) = &mut recipient.target {
            change(target);
        }
    };
    let mut mails = vec![accept(1)];
    let mut differ = |change: &dyn Fn(&mut Accept)| {
        let mut mail = accept(1);
        change(&mut mail);
        mails.push(mail);
    };
    let changes: [Change; 9] = [
        |mail| mail.message_id = bytes(2),
        |mail| mail.envelope = None,
        |mail| mail.tenant = "other".into(),
        |mail| mail.traceparent = "00-4bf92f-00f067-01".into(),
        |mail| mail.reports_on = bytes(3),
        |mail| mail.recipients.swap(0, 7),
        |mail| drop(mail.recipients.pop()),
        |mail| mail.body.as_mut().unwrap().size += 1,
        |mail| mail.body.as_mut().unwrap().blake3 = vec![8; 32].into(),
    ];
    let of_envelope: [EnvelopeChange; 8] = [
        |envelope| envelope.reverse_path.push('x'),
        |envelope| envelope.received_ms += 1,
        |envelope| envelope.client.push('6'),
        |envelope| envelope.helo.push('x'),
        |envelope| envelope.envelope_id.push('x'),
        |envelope| envelope.ret = "FULL".into(),
        |envelope| envelope.smtputf8 = true,
        |envelope| envelope.body_8bit = true,
    ];
    let of_recipient: [fn(&mut Recipient); 4] = [
        |recipient| recipient.address.insert(0, 'x'),
        |recipient| recipient.original_recipient.push('x'),
        |recipient| recipient.notify = "NEVER".into(),
        |recipient| recipient.target = None,
    ];
    let of_local: [fn(&mut LocalTarget); 3] = [
        |target| target.account.push('x'),
        |target| target.tenant.push('x'),
        |target| target.mbox.push('x'),
    ];
    for change in changes {
        differ(&change);
    }
    for change in of_envelope {
        differ(&|mail| change(mail.envelope.as_mut().unwrap()));
    }
    for number in [0, 1, 7] {
        for change in of_recipient {
            differ(&|mail| change(&mut mail.recipients[number]));
        }
    }
    for number in [0, 1] {
        for change in of_local {
            differ(&|mail| local_of(&mut mail.recipients[number], change));
        }
    }
    differ(&|mail| mail.recipients[5] = expand(&["cn=a"]));
    differ(&|mail| mail.recipients[6] = expand(&["cn=b", "cn=a"]));
    let domain = "other.example".to_owned();
    let remote = Target::Remote(RemoteTarget { domain });
    differ(&|mail| mail.recipients[7].target = Some(remote.clone()));
    mails
}

/// What may happen to one mail; each ends in another state.
fn histories() -> Vec<Vec<Command>> {
    let ended = |shard, uid_validity, uid| {
        let delivered = Delivered {
            shard,
            uid_validity,
            uid,
        };
        vec![attempted(1, vec![(0, Attempt::Delivered(delivered))])]
    };
    let held = |reason: &str| {
        let reason = reason.to_owned();
        vec![attempted(1, vec![(0, Attempt::Held(Held { reason }))])]
    };
    let routed = |recipient, child, errors_to: Option<&str>| {
        vec![Command::Routed(Routed {
            message_id: bytes(1),
            recipient,
            children: vec![local(child, "example")],
            errors_to: errors_to.map(str::to_owned),
            ..Routed::default()
        })]
    };
    let bounced = |dsn: Option<Accept>| {
        vec![Command::Bounce(Bounce {
            message_id: bytes(1),
            recipients: vec![BouncedRecipient {
                recipient: 1,
                status: None,
            }],
            dsn,
        })]
    };
    let delayed = |number| attempted(1, vec![(number, Attempt::Delayed(Delayed {}))]);
    let later = |due_ms| attempted(1, vec![(0, deferred(due_ms))]);
    let cancel = Command::Cancel(Cancel {
        message_id: bytes(1),
    });
    vec![
        vec![later(5000)],
        vec![later(5001)],
        vec![later(4000), later(5000)],
        vec![attempted(1, vec![(1, deferred(5000))])],
        vec![delayed(0)],
        vec![delayed(1)],
        vec![delayed(0), delayed(1)],
        vec![later(5000), delayed(0)],
        ended(1, 2, 3),
        ended(4, 2, 3),
        ended(1, 4, 3),
        ended(1, 2, 4),
        held("no-outbound"),
        held("poison"),
        routed(5, "z", None),
        routed(6, "z", None),
        routed(5, "y", None),
        routed(5, "z", Some("owner@example.jp")),
        routed(5, "z", Some("")),
        bounced(None),
        bounced(Some(accept(20))),
        bounced(Some(accept(21))),
        vec![operate(1, Order::Delete, &[0], "")],
        vec![operate(1, Order::Hold, &[], "look")],
        vec![operate(1, Order::Hold, &[], "wait")],
        vec![operate(1, Order::Hold, &[0], "look")],
        vec![operate(1, Order::Hold, &[0], "wait")],
        vec![later(5000), cancel],
    ]
}

#[test]
fn all_that_is_kept_moves_the_state_hash() {
    let mut seen = BTreeMap::new();
    let mut note = |what: String, hash: String| {
        let other = seen.insert(hash, what.clone());
        assert_eq!(other, None, "and {what} have one hash");
    };
    note("an empty queue".to_owned(), "0".repeat(64));
    for (number, mail) in mails().into_iter().enumerate() {
        let what = format!("mail {number}: {mail:?}");
        note(what, hash_after(mail, Vec::new()));
    }
    for history in histories() {
        let what = format!("{history:?}");
        note(what, hash_after(accept(1), history));
    }
}
