//! A broken entry is an error of `check` and tempfails alone; a broken file is refused.

use hikyaku_directory::finding::Severity;
use hikyaku_directory::{Directory, LoginError};

use proptest::prelude::{any, prop, prop_assert, proptest};

use crate::{DOMAIN, ROOT, decision, file, lines, load, resolve, user};

/// One broken thing, what is found, and what becomes unavailable; `good` must go on working beside it.
#[tokio::test]
async fn a_broken_entry_is_unavailable_alone() {
    for (name, entries, finding, unavailable) in [
        (
            "no id",
            "dn: uid=a\nuid: a\nmailLocalAddress: a@example.jp\nmailHost: mbox1\n",
            "line 12: error: uid=a: a mailbox without entryUUID",
            &["a@example.jp", "a+x@example.jp"][..],
        ),
        (
            "no address",
            "dn: uid=a\nobjectClass: inetLocalMailRecipient\nuid: a\nentryUUID: id-a\n",
            "line 12: error: uid=a: no mailLocalAddress: mail can never reach this entry",
            &["a@example.jp"],
        ),
        (
            "bad address",
            "dn: uid=a\nuid: a\nentryUUID: id-a\nmailLocalAddress: a@@example.jp\nmailLocalAddress: b@example.jp\n",
            "line 15: error: uid=a: maillocaladdress: a@@example.jp: not a mailbox address",
            &["a@example.jp", "b@example.jp"],
        ),
        (
            "an id twice",
            "dn: uid=a\nentryUUID: X1\nmailLocalAddress: a@example.jp\n\ndn: uid=b\nentryUUID: x1\nmailLocalAddress: b@example.jp\n",
            "line 16: error: uid=b: line 12 has the same entryUUID",
            &["a@example.jp", "b@example.jp"],
        ),
        (
            "a DN twice",
            "dn: uid=a\nentryUUID: 1\nmailLocalAddress: a@example.jp\n\ndn: UID = a\nentryUUID: 2\nmailLocalAddress: b@example.jp\n",
            "line 16: error: UID = a: line 12 has the same DN",
            &["a@example.jp", "b@example.jp"],
        ),
        (
            "a domain that is not hosted",
            "dn: uid=a\nentryUUID: 1\nmailLocalAddress: a@example.net\n",
            "line 12: error: uid=a: mailLocalAddress a@example.net: no domainRelatedObject entry hosts its domain; it is unavailable",
            &["a@example.net"],
        ),
        (
            "a group without members",
            "dn: cn=g\nobjectClass: inetMailGroup\nmailLocalAddress: g@example.jp\n",
            "line 12: error: cn=g: a group without members",
            &["g@example.jp"],
        ),
        (
            "a group with a broken member",
            "dn: cn=g\nobjectClass: inetMailGroup\nmailLocalAddress: g@example.jp\nmember: uid=a\n\n\
             dn: uid=a\nobjectClass: inetLocalMailRecipient\nuid: a\nentryUUID: id-a\n",
            "line 15: error: cn=g: member uid=a: its entry is broken",
            &["g@example.jp", "a@example.jp"],
        ),
        (
            "a domain of two tenants",
            "dn: dc=b\nobjectClass: domainRelatedObject\no: B\nassociatedDomain: b.jp\n\n\
             dn: dc=c\nobjectClass: domainRelatedObject\no: C\nassociatedDomain: b.jp\n\n\
             dn: uid=a\nentryUUID: 1\nmailLocalAddress: a@b.jp\n",
            "line 17: error: dc=c: b.jp is another tenant's too, or its other entry is broken",
            &["a@b.jp", "anybody@b.jp"],
        ),
        (
            "a mailbox in the entry of a domain",
            "dn: dc=b\nobjectClass: domainRelatedObject\nobjectClass: inetLocalMailRecipient\no: B\nassociatedDomain: b.jp\nmailHost: mbox1\n\
             mailLocalAddress: a@b.jp\nentryUUID: 1\n",
            "line 18: error: dc=b: mailLocalAddress a@b.jp: the entry of a domain is no mailbox; it is unavailable",
            &["a@b.jp", "a+x@b.jp"],
        ),
        (
            "a tenant's default mbox that is not ours",
            "dn: dc=b\nobjectClass: domainRelatedObject\no: B\nassociatedDomain: b.jp\nmailHost: mbox9\n",
            "line 12: error: dc=b: mailHost mbox9: the tenant's default mbox is none of our mboxes",
            &["anybody@b.jp"],
        ),
    ] {
        let directory = load(&file(&format!("{entries}\n{}", user("good")))).unwrap();
        let found = lines(directory.table().findings());
        assert!(
            found.iter().any(|line| line == finding),
            "{name}: {found:#?}"
        );
        for address in unavailable {
            assert_eq!(
                decision(&directory, address).await,
                "unavailable",
                "{name}: {address}"
            );
        }
        assert_eq!(
            decision(&directory, "good@example.jp").await,
            "mbox mbox1, account id-good",
            "{name}"
        );
        assert_eq!(
            decision(&directory, "nobody@example.jp").await,
            "no such user",
            "{name}"
        );
    }
}

#[tokio::test]
async fn an_address_in_another_tenants_domain_is_unavailable_alone() {
    let second = "dn: dc=b\nobjectClass: domainRelatedObject\no: B\nassociatedDomain: b.jp\n\n\
        dn: uid=a\nuid: a\nentryUUID: 1\nmailHost: mbox1\nmailLocalAddress: a@example.jp\nmailLocalAddress: a@b.jp\n";
    let directory = load(&file(second)).unwrap();
    assert_eq!(
        decision(&directory, "a@example.jp").await,
        "mbox mbox1, account 1"
    );
    assert_eq!(decision(&directory, "a@b.jp").await, "unavailable");
    assert_eq!(
        directory
            .authenticate("a@b.jp", b"x")
            .await
            .map_err(|e| matches!(e, LoginError::Unavailable(_))),
        Err(true)
    );
}

#[tokio::test]
async fn a_lost_id_makes_no_account_disappear() {
    let lost = load(&file(
        "dn: uid=a\nuid: a\nmailLocalAddress: a@example.jp\nmailHost: mbox1\n",
    ))
    .unwrap();
    assert!(lost.account(&"id-a".parse().unwrap()).await.is_err());
    assert!(
        lost.account(&"id-root".parse().unwrap())
            .await
            .unwrap()
            .is_some()
    );
    let alias = load(&file(
        "dn: cn=a\nmailLocalAddress: a@example.jp\nmailRoutingAddress: root@example.jp\nmailQuotaSize: x\n",
    ));
    let alias = alias.unwrap();
    assert_eq!(decision(&alias, "a@example.jp").await, "unavailable");
    assert_eq!(
        alias.account(&"id-a".parse().unwrap()).await,
        Ok(None),
        "an alias has no id to lose"
    );
}

#[tokio::test]
async fn a_uid_that_is_anothers_address_logs_nobody_in() {
    let text = file(&format!(
        "{}dn: uid=b\nuid: a@example.jp\nentryUUID: id-b\nmailLocalAddress: b@example.jp\nmailHost: mbox1\n",
        user("a")
    ));
    let directory = load(&text).unwrap();
    assert!(matches!(
        directory.authenticate("a@example.jp", b"x").await,
        Err(LoginError::Unavailable(_))
    ));
    assert!(
        lines(directory.table().findings())
            .iter()
            .any(|line| line.contains("another entry has it as an address"))
    );
}

#[test]
fn a_broken_file_is_refused_with_its_line() {
    for (text, expected) in [
        (
            String::new(),
            "error: no mail entries: nobody could receive mail",
        ),
        (
            DOMAIN.to_owned(),
            "error: no mail entries: nobody could receive mail",
        ),
        (
            ROOT.to_owned(),
            "error: no domainRelatedObject entry hosts the default domain example.jp (directory.default_domain, else node.hostname)",
        ),
        (
            file("dn: uid=a\nmailLocalAddress\n"),
            "line 13: error: expected `attribute: value`",
        ),
        (
            file("uid: a\n"),
            "line 12: error: expected `dn: ...` at the start of a record",
        ),
    ] {
        let found = load(&text).map(|_| ()).unwrap_err();
        assert!(lines(&found).contains(&expected.to_owned()), "{found:#?}");
    }
}

#[test]
fn settings_that_contradict_the_file_are_refused() {
    let load = |change: fn(&mut hikyaku_directory::settings::Settings)| {
        let mut settings = crate::settings();
        change(&mut settings);
        hikyaku_directory::load::load(file("").as_bytes(), &settings)
            .map(|table| table.len())
            .map_err(|e| lines(&e).join(";"))
    };
    assert_eq!(load(|_| {}), Ok(1));
    assert_eq!(
        load(|s| s.mboxes.push("m b".into())),
        Err("error: mbox m b: not a host name".into())
    );
    assert_eq!(
        load(|s| s.default_mbox = Some("mbox3".into())),
        Err("error: the default mbox is none of our mboxes".into())
    );
    assert_eq!(
        load(|s| s.default_domain = "a b".into()),
        Err("error: default domain a b: not a domain".into())
    );
    assert_eq!(
        load(|s| s.entries_max = 1),
        Err("line 6: error: more than 1 entries".into())
    );
    assert!(
        load(|s| s.limits.file_bytes_max = 10)
            .unwrap_err()
            .contains("the file is too long")
    );
}

#[tokio::test]
async fn postmaster_must_reach_somebody() {
    let mut settings = crate::settings();
    settings.postmaster = None;
    let table = |settings: &hikyaku_directory::settings::Settings, text: &str| {
        hikyaku_directory::load::load(text.as_bytes(), settings).unwrap()
    };
    let nobody = table(&settings, &file(""));
    assert_eq!(
        lines(nobody.findings()),
        ["error: nobody is postmaster@example.jp: add an entry, or set who is postmaster"]
    );
    let entry =
        "dn: cn=p\nmailLocalAddress: postmaster@example.jp\nmailRoutingAddress: root@example.jp\n";
    assert!(table(&settings, &file(entry)).findings().is_empty());
    for wrong in ["nobody@example.jp", "postmaster@example.jp"] {
        settings.postmaster = Some(crate::mailbox(wrong));
        let found = lines(table(&settings, &file("")).findings());
        assert_eq!(
            found,
            [format!(
                "error: postmaster {wrong}: no entry has this address"
            )]
        );
    }
}

#[tokio::test]
async fn findings_are_bounded_and_counted() {
    let mut settings = crate::settings();
    settings.findings_max = 3;
    let text: String = (0..10)
        .map(|n| format!("dn: uid=u{n}\nmailLocalAddress: bad\n\n"))
        .collect();
    let table = hikyaku_directory::load::load(file(&text).as_bytes(), &settings).unwrap();
    assert_eq!(table.findings().len(), 4);
    assert_eq!(
        table.findings()[3].to_string(),
        "error: 7 more findings are not listed"
    );
    assert!(
        table
            .findings()
            .iter()
            .all(|finding| finding.severity == Severity::Error)
    );
    assert_eq!(table.len(), 1);
}

#[test]
fn warnings_hide_no_error() {
    let mut settings = crate::settings();
    settings.findings_max = 2;
    let warned = |n: usize| {
        format!(
            "dn: cn=w{n}\nmailLocalAddress: w{n}@example.jp\nmailRoutingAddress: gone@example.jp\n\n"
        )
    };
    let text: String = (0..5).map(warned).collect();
    let load = |text: &str| {
        let table = hikyaku_directory::load::load(file(text).as_bytes(), &settings).unwrap();
        lines(table.findings())
    };
    let found = load(&text);
    assert_eq!(found.len(), 3, "{found:?}");
    assert_eq!(found[2], "warning: 3 more findings are not listed");
    let found = load(&format!("{text}dn: cn=e\nmailLocalAddress: bad\n"));
    assert_eq!(
        found[2],
        "line 33: error: cn=e: maillocaladdress: bad: not a mailbox address"
    );
}

#[tokio::test]
async fn a_target_that_leads_nowhere_is_a_warning() {
    let text =
        file("dn: cn=a\nmailLocalAddress: a@example.jp\nmailRoutingAddress: gone@example.jp\n");
    let directory = load(&text).unwrap();
    let found = lines(directory.table().findings());
    assert_eq!(
        found,
        ["line 12: warning: cn=a: gone@example.jp: no entry has this address"]
    );
    assert!(resolve(&directory, "a@example.jp").await.is_ok());
}

#[test]
fn a_host_without_a_dot_that_is_no_mbox_is_a_warning() {
    let user = |host: &str| {
        let text = file(&format!(
            "dn: cn=a\nentryUUID: 1\nmailLocalAddress: a@example.jp\nmailHost: {host}\n"
        ));
        lines(load(&text).unwrap().table().findings())
    };
    assert_eq!(
        user("mbx1"),
        [
            "line 12: warning: cn=a: mailHost mbx1: none of our mboxes, so it is another site's server"
        ]
    );
    assert!(user("mbox1").is_empty() && user("mail.elsewhere.example").is_empty());
}

/// What a slip of the hand does to one line of an entry: never another valid value.
fn slip(entry: &str, line: usize, how: usize) -> String {
    let mut lines: Vec<String> = entry.trim_end().lines().map(str::to_owned).collect();
    let name = lines[line].split(':').next().unwrap().to_owned();
    match how {
        0 => drop(lines.remove(line)),
        1 => lines.insert(line, lines[line].clone()),
        2 => lines[line] = format!("{name}: "),
        3 => lines[line] = format!("{name}: a b@@ c"),
        4 => lines[line] = format!("{name}:: AAEC/w=="),
        _ => lines[line] = format!("x{}", lines[line]),
    }
    lines.join("\n") + "\n\n"
}

proptest! {
    #[test]
    fn a_slip_in_one_entry_refuses_nobody(line in 1usize..5, how in 0usize..6, first in any::<bool>()) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let slipped = slip(&user("a"), line, how);
        let (before, after) = if first { (slipped, user("b")) } else { (user("b"), slipped) };
        let directory = load(&file(&[before, after, user("c")].concat())).unwrap();
        let answer = runtime.block_on(decision(&directory, "a@example.jp"));
        // Without its mailHost the tenant has no default mbox for it: that is a decision, not a slip that can be seen.
        let is_decision = name_of(line) == "mailHost" && matches!(how, 0 | 5);
        let fits = answer == "unavailable" || answer == "mbox mbox1, account id-a" || is_decision;
        prop_assert!(fits, "{answer}");
        for other in ["b", "c", "root"] {
            let answer = runtime.block_on(decision(&directory, &format!("{other}@example.jp")));
            prop_assert!(answer == format!("mbox mbox1, account id-{other}"), "{other}: {answer}");
        }
    }

    #[test]
    fn any_octets_load_or_are_refused_with_a_reason(noise in prop::collection::vec(any::<u8>(), 0..80), at in 0usize..400) {
        let mut text = file(&[user("a"), user("b")].concat()).into_bytes();
        let at = at.min(text.len());
        text.splice(at..at, noise);
        match hikyaku_directory::load::load(&text, &crate::settings()) {
            Ok(table) => prop_assert!(table.resolve(&crate::mailbox("a@example.jp")).is_ok() || !table.findings().is_empty()),
            Err(findings) => prop_assert!(!findings.is_empty()),
        }
    }
}

fn name_of(line: usize) -> &'static str {
    ["dn", "uid", "entryUUID", "mailLocalAddress", "mailHost"][line]
}
