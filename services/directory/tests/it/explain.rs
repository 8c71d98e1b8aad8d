//! `route explain`: every step, loops and depth included.

use hikyaku_directory::explain::{DEPTH_MAX, explain};
use hikyaku_directory::ldif_directory::LdifDirectory;
use hikyaku_directory::password::PoolLimits;
use hikyaku_directory::settings::Settings;

use crate::{decision, file, load, mailbox, resolve, settings, user};

async fn steps(text: &str, address: &str) -> Vec<String> {
    let directory = load(&file(text)).unwrap();
    explain(&directory, &mailbox(address))
        .await
        .iter()
        .map(ToString::to_string)
        .collect()
}

fn forward(name: &str, to: &str) -> String {
    format!("dn: cn={name}\nmailLocalAddress: {name}@example.jp\nmailRoutingAddress: {to}\n\n")
}

fn group(name: &str, members: &[&str]) -> String {
    let members: String = members
        .iter()
        .map(|member| format!("mgrpRFC822MailMember: {member}\n"))
        .collect();
    format!("dn: cn={name}\nmailLocalAddress: {name}@example.jp\n{members}\n")
}

#[tokio::test]
async fn every_step_names_its_rule_and_entry() {
    let text = [
        group(
            "team",
            &[
                "alias@example.jp",
                "alice@example.jp",
                "far@example.net",
                "gone@example.jp",
            ],
        ),
        forward("alias", "alice+x@example.jp"),
        user("alice"),
    ]
    .concat();
    let expected = [
        "team@example.jp: group of 4 [group; a group: route its members; cn=team; tenant Example]",
        "  alias@example.jp: forward to alice+x@example.jp [routing-address; only mailRoutingAddress is set: route that; cn=alias; tenant Example]",
        "    alice+x@example.jp: mbox mbox1, account id-alice [mail-host; mailHost is ours: deliver to that mbox; uid=alice; tenant Example]",
        "  alice@example.jp: mbox mbox1, account id-alice [mail-host; mailHost is ours: deliver to that mbox; uid=alice; tenant Example]",
        "  far@example.net: not ours [foreign-domain; the domain is not in the directory]",
        "  gone@example.jp: no such user [no-entry; no entry has this address; tenant Example]",
    ];
    assert_eq!(steps(&text, "team@example.jp").await, expected);
}

#[tokio::test]
async fn loops_end() {
    let text = [forward("a", "b@example.jp"), forward("b", "a+x@example.jp")].concat();
    let steps_taken = steps(&text, "a@example.jp").await;
    assert_eq!(steps_taken.len(), 3);
    assert_eq!(
        steps_taken[2],
        "    a+x@example.jp: fails: a loop, cn=a was followed before"
    );
    let nested = [
        group("g", &["h@example.jp", "alice@example.jp"]),
        group("h", &["g@example.jp", "alice@example.jp"]),
        user("alice"),
    ];
    let steps_taken = steps(&nested.concat(), "g@example.jp").await;
    assert_eq!(steps_taken.len(), 5, "{steps_taken:#?}");
    assert_eq!(
        steps_taken[2], "    g@example.jp: met before: one copy",
        "its members get the mail"
    );
    assert!(steps_taken[4].ends_with("alice@example.jp: met before: one copy"));
    let endless = [
        group("g", &["h@example.jp", "i@example.jp"]),
        group("h", &["g@example.jp"]),
        group("i", &["h@example.jp"]),
    ];
    let steps_taken = steps(&endless.concat(), "g@example.jp").await;
    assert!(steps_taken[2].ends_with("g@example.jp: fails: a loop, cn=g was followed before"));
}

#[tokio::test]
async fn depth_ends() {
    let chain = |length: usize| {
        let forwards =
            (0..length).map(|n| forward(&format!("f{n}"), &format!("f{}@example.jp", n + 1)));
        forwards
            .chain([user(&format!("f{length}"))])
            .collect::<String>()
    };
    let fits = steps(&chain(DEPTH_MAX), "f0@example.jp").await;
    assert_eq!(fits.len(), DEPTH_MAX + 1);
    assert!(fits[DEPTH_MAX].contains("mbox mbox1"));
    let too_deep = steps(&chain(DEPTH_MAX + 1), "f0@example.jp").await;
    assert!(
        too_deep
            .last()
            .unwrap()
            .ends_with("fails: more than 10 forwards in a row")
    );
}

#[tokio::test]
async fn groups_of_groups_stay_bounded() {
    // Ten groups that hold each other: without bounds 10 factorial steps.
    let names: Vec<String> = (0..10).map(|n| format!("g{n}@example.jp")).collect();
    let members: Vec<&str> = names.iter().map(String::as_str).collect();
    let text: String = (0..10).map(|n| group(&format!("g{n}"), &members)).collect();
    let steps_taken = steps(&text, "g0@example.jp").await;
    assert!(steps_taken.len() <= 101, "{}", steps_taken.len());
}

#[tokio::test]
async fn what_is_not_known_is_said() {
    let text = "dn: uid=a\nuid: a\nmailLocalAddress: a@example.jp\nmailHost: mbox1\n";
    let expected = "a@example.jp: not known now (broken entry uid=a: a mailbox without entryUUID)";
    assert_eq!(steps(text, "a@example.jp").await, [expected]);
}

/// RFC 3464 section 2: whoever answers a report must reach somebody.
#[tokio::test]
async fn the_addresses_that_reports_come_from_are_the_postmasters() {
    let at_host = |host: &str, postmaster: Option<&str>, rest: &str| {
        let settings = Settings {
            host_name: Some(host.to_owned()),
            postmaster: postmaster.map(mailbox),
            ..settings()
        };
        LdifDirectory::load(file(rest).as_bytes(), settings, PoolLimits::default()).unwrap()
    };
    let daemon = "MAILER-DAEMON@mail.example.jp";
    let entry = user("postmaster") + &user("mailer-daemon");
    for (host, address, postmaster, rest, expected) in [
        (
            "mail.example.jp",
            daemon,
            Some("root@example.jp"),
            "",
            "forward to root@example.jp",
        ),
        (
            "mail.example.jp",
            "postmaster@mail.example.jp",
            Some("root@example.jp"),
            "",
            "forward to root@example.jp",
        ),
        (
            "mail.example.jp",
            "abuse@mail.example.jp",
            Some("root@example.jp"),
            "",
            "not ours",
        ),
        (
            "mail.example.jp",
            "root@mail.example.jp",
            Some("root@example.jp"),
            "",
            "not ours",
        ),
        ("mail.example.jp", daemon, Some(daemon), "", "not ours"),
        // nobody is named, and an entry is postmaster
        (
            "mail.example.jp",
            daemon,
            None,
            &*entry,
            "forward to postmaster@example.jp",
        ),
        ("mail.example.jp", daemon, None, "", "not ours"),
        // the host's name is a hosted domain
        (
            "example.jp",
            "mailer-daemon@example.jp",
            Some("root@example.jp"),
            "",
            "forward to root@example.jp",
        ),
        (
            "example.jp",
            "mailer-daemon@example.jp",
            Some("root@example.jp"),
            &*entry,
            "mbox mbox1, account id-mailer-daemon",
        ),
        (
            "mail.example.jp",
            "mailer-daemon@example.jp",
            Some("root@example.jp"),
            "",
            "no such user",
        ),
    ] {
        let directory = at_host(host, postmaster, rest);
        assert_eq!(
            decision(&directory, address).await,
            expected,
            "{host} {address} {postmaster:?}"
        );
    }
    let directory = at_host("mail.example.jp", Some("root@example.jp"), "");
    let found = resolve(&directory, daemon).await.unwrap();
    assert_eq!(found.tenant.as_deref(), Some("Example"));
    let explained = explain(&directory, &mailbox(daemon)).await;
    assert_eq!(explained.len(), 2, "{explained:?}");
}
