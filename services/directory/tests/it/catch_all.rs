//! `mailLocalAddress: @domain`: what nobody else has in a domain.

use hikyaku_directory::explain::explain;
use hikyaku_directory::ldif_directory::{Loss, Reload};

use crate::{decision, file, lines, load, mailbox, user};

const TO_ROOT: &str =
    "dn: cn=rest\nmailLocalAddress: @Example.JP\nmailRoutingAddress: root@example.jp\n\n";

#[tokio::test]
async fn a_mailbox_an_alias_and_a_group_may_have_it() {
    let mailbox_ = user("rest").replace(
        "mailLocalAddress: rest@example.jp",
        "mailLocalAddress: rest@example.jp\nmailLocalAddress: @example.jp",
    );
    let group = "dn: cn=rest\nobjectClass: inetMailGroup\nmailLocalAddress: @example.jp\n\
        mgrpRFC822MailMember: root@example.jp\n\n";
    for (entry, expected) in [
        (TO_ROOT, "forward to root@example.jp"),
        (&mailbox_, "mbox mbox1, account id-rest"),
        (group, "group of 1"),
    ] {
        let directory = load(&file(entry)).unwrap();
        assert_eq!(lines(directory.table().findings()), [] as [&str; 0]);
        for address in ["gone@example.jp", "gone+x@example.jp", "\"a b\"@example.jp"] {
            assert_eq!(decision(&directory, address).await, expected, "{address}");
        }
        assert_eq!(
            decision(&directory, "root+x@example.jp").await,
            "mbox mbox1, account id-root"
        );
        assert_eq!(
            decision(&directory, "abuse@example.jp").await,
            "forward to root@example.jp",
            "the postmaster's"
        );
        assert_eq!(decision(&directory, "gone@example.net").await, "not ours");
    }
}

/// A role address is the postmaster's before it is the catch-all's, also where an entry names it.
#[tokio::test]
async fn a_catch_all_that_sends_on_to_a_role_address_is_no_circle() {
    let entry = user("rest").replace(
        "mailLocalAddress: rest@example.jp",
        "mailLocalAddress: rest@example.jp\nmailLocalAddress: @example.jp\n\
            mailRoutingAddress: abuse@example.jp",
    );
    let directory = load(&file(&entry)).unwrap();
    assert_eq!(
        decision(&directory, "gone@example.jp").await,
        "forward to abuse@example.jp"
    );
}

#[tokio::test]
async fn what_is_in_doubt_is_not_caught() {
    let lost = "dn: uid=a\nuid: a\nentryUUID: 1\nmailLocalAddress: a@@example.jp\n\n";
    let directory = load(&file(&format!("{TO_ROOT}{lost}"))).unwrap();
    assert_eq!(decision(&directory, "a@example.jp").await, "unavailable");
    assert_eq!(
        decision(&directory, "b@example.jp").await,
        "forward to root@example.jp"
    );
    let second = TO_ROOT.replace("cn=rest", "cn=others");
    let directory = load(&file(&format!("{TO_ROOT}{second}"))).unwrap();
    assert_eq!(
        lines(directory.table().findings()),
        [
            "line 16: error: cn=others: mailLocalAddress @example.jp: line 12 has it too; it is unavailable"
        ]
    );
    assert_eq!(decision(&directory, "b@example.jp").await, "unavailable");
    assert_eq!(
        decision(&directory, "root@example.jp").await,
        "mbox mbox1, account id-root"
    );
    let elsewhere = TO_ROOT.replace("@Example.JP", "@example.net");
    let directory = load(&file(&elsewhere)).unwrap();
    assert_eq!(decision(&directory, "b@example.net").await, "unavailable");
    let of_a_domain = "dn: dc=b\nobjectClass: domainRelatedObject\no: B\nassociatedDomain: b.jp\nmailLocalAddress: @b.jp\n";
    let directory = load(&file(of_a_domain)).unwrap();
    assert_eq!(decision(&directory, "b@b.jp").await, "unavailable");
}

#[tokio::test]
async fn a_mailbox_needs_an_address_of_its_own_too() {
    let entry = user("rest").replace("rest@example.jp", "@example.jp");
    let directory = load(&file(&entry)).unwrap();
    assert_eq!(
        lines(directory.table().findings()),
        ["line 12: error: uid=rest: a mailbox without an address of its own beside its catch-all"]
    );
    assert_eq!(decision(&directory, "b@example.jp").await, "unavailable");
}

#[tokio::test]
async fn explain_says_that_it_was_caught() {
    let directory = load(&file(TO_ROOT)).unwrap();
    let steps = explain(&directory, &mailbox("gone@example.jp")).await;
    let steps: Vec<String> = steps.iter().map(ToString::to_string).collect();
    assert_eq!(
        steps[0],
        "gone@example.jp: forward to root@example.jp [routing-address; only mailRoutingAddress is set: route that; cn=rest; \
         catch-all of the domain; tenant Example]"
    );
    assert!(steps[1].starts_with("  root@example.jp: mbox mbox1"));
}

#[tokio::test]
async fn losing_catch_alls_is_losing_entries() {
    let users: String = (0..8).map(|n| user(&format!("u{n}"))).collect();
    let with = |rest: &str| file(&format!("{users}{rest}"));
    let directory = load(&with(TO_ROOT)).unwrap();
    let second =
        "dn: cn=x\nmailLocalAddress: x@example.jp\nmailRoutingAddress: root@example.jp\n\n";
    let reload = |text: String| directory.reload(text.as_bytes(), Loss::Few);
    assert!(matches!(
        reload(with(&format!("{TO_ROOT}{second}"))),
        Reload::Replaced { .. }
    ));
    assert_eq!(reload(with("")), Reload::TooMuchLost { lost: 2, of: 11 });
}
