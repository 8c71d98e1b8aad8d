//! The format on the disk: the same commands give the same state hash in every version of this program.
//!
//! When this fails, data directories of the last release would not continue: either undo the change, or give the changed
//! keys a new layout and say how old ones are read.

use hikyaku_proto::v1::record::Command;
use hikyaku_proto::v1::{AccountState, CreateMailbox, SetAccount, StoreFlags, store_flags::How};
use hikyaku_shard::machine::Machine;

use crate::bench::{Bench, DAY_MS};

const GOLDEN: &str = "e0154be60dd923fd194e499548aa759338028a73b3fbe0e234228790b47e5575";

#[test]
fn the_format_has_not_changed() {
    let mut bench = Bench::new();
    bench.open("alice");
    bench.open("bob");
    for number in 0..20 {
        bench.deliver(if number % 3 == 0 { "bob" } else { "alice" }, number);
    }
    let at = bench.stored("alice", 20);
    bench.run(Command::CreateMailbox(CreateMailbox {
        account: "alice".into(),
        name: "仕事".into(),
        special_use: "\\Flagged".into(),
    }));
    bench.run(Command::StoreFlags(StoreFlags {
        account: "alice".into(),
        mailbox_id: 0,
        uid_validity: at.uid_validity,
        uids: vec![1, 2, 3],
        how: How::Add.into(),
        flags: vec!["\\Seen".into(), "$Work".into()],
        unchanged_since: 0,
    }));
    bench.expunge("alice", at, &[2, 4]);
    bench.void("bob", 99);
    bench.run(Command::SetAccount(SetAccount {
        account: "bob".into(),
        state: Some(AccountState::Deleted.into()),
        quota_bytes: Some(1 << 30),
        purge_at_ms: bench.now_ms + 30 * DAY_MS,
    }));
    bench.now_ms += DAY_MS;
    bench.tick();
    bench
        .machine
        .quarantine(crate::bench::stamp(1_000))
        .unwrap();
    let hash = bench.machine.state_hash();
    let hash: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(hash, GOLDEN);
}
