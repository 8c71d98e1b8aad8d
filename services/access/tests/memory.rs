//! What an open maildrop takes of the memory: `pop3.memory_bytes_max` is a budget that operators
//! rely on.

#![allow(clippy::unwrap_used, missing_docs)]

use std::alloc::System;

use cap::Cap;
use hikyaku_access::memory::MAIL_BYTES;
use hikyaku_access::pop3::maildrop::{MailboxRef, MaildropBuilder};
use hikyaku_access::pop3::unique_id::UniqueId;

#[global_allocator]
static ALLOCATOR: Cap<System> = Cap::new(System, usize::MAX);

const MAILS: usize = 150_000;
/// Of a maildrop that nothing is in.
const EMPTY_BYTES: usize = 4 << 10;

fn mailbox() -> MailboxRef {
    MailboxRef {
        shard: 0,
        account: "a-1".parse().unwrap(),
        mailbox_id: 1,
        uid_validity: 77,
    }
}

#[test]
fn a_maildrop_takes_what_is_reserved_for_it_also_while_it_is_read() {
    let before = ALLOCATOR.allocated();
    let mut builder = MaildropBuilder::new(mailbox(), MAILS);
    let mut most = 0;
    for number in 1..=MAILS as u32 {
        let mut octets = [0; 15];
        octets[..4].copy_from_slice(&number.wrapping_mul(0x9e37_79b9).to_be_bytes());
        let id = UniqueId::EmailId(octets).to_string();
        builder.push(number, 10_240, &id).unwrap();
        most = most.max(ALLOCATOR.allocated() - before - id.capacity());
    }
    let mut maildrop = builder.finish();
    most = most.max(ALLOCATOR.allocated() - before);
    assert_eq!(maildrop.count() as usize, MAILS);
    for number in 1..=maildrop.count() {
        maildrop.mark(number).unwrap();
    }
    let marked = maildrop.marked();
    most = most.max(ALLOCATOR.allocated() - before);
    assert_eq!(marked.len(), MAILS);
    println!("{} octets a mail", most / MAILS);
    assert!(most <= MAILS * MAIL_BYTES + EMPTY_BYTES, "{most} octets");
    drop((maildrop, marked));
    assert!(ALLOCATOR.allocated() <= before + EMPTY_BYTES);
}
