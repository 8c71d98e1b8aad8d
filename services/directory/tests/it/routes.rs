//! Groups, aliases and forwards that lead in a circle, or to more recipients than a mail may have.

use std::fmt::Write;

use crate::{file, lines, load, user};

fn warnings(entries: &str) -> Vec<String> {
    let directory = load(&file(entries)).unwrap();
    lines(directory.table().findings())
}

fn forward(name: &str, to: &str) -> String {
    format!(
        "dn: cn={name}\nmailLocalAddress: {name}@example.jp\nmailRoutingAddress: {to}@example.jp\n\n"
    )
}

fn group(name: &str, members: &[&str]) -> String {
    let members: String = members
        .iter()
        .map(|member| format!("mgrpRFC822MailMember: {member}@example.jp\n"))
        .collect();
    format!("dn: cn={name}\nmailLocalAddress: {name}@example.jp\n{members}\n")
}

#[test]
fn circles_are_named_with_all_that_is_in_them() {
    let nobody: Vec<String> = Vec::new();
    assert_eq!(
        warnings(&[forward("a", "b"), forward("b", "a")].concat()),
        [
            "line 12: warning: cn=a: leads back to itself: cn=a -> cn=b -> cn=a; no mail for it can be delivered"
        ]
    );
    let groups = [
        group("one", &["two", "root"]),
        group("two", &["one+x", "root"]),
    ];
    assert_eq!(
        warnings(&groups.concat()),
        ["line 12: warning: cn=one: leads back to itself: cn=one -> cn=two -> cn=one"]
    );
    let mixed = [
        group("list", &["root", "away"]),
        forward("away", "list"),
        forward("into", "list"),
    ];
    assert_eq!(
        warnings(&mixed.concat()),
        ["line 12: warning: cn=list: leads back to itself: cn=list -> cn=away -> cn=list"]
    );
    // the same entry is no circle, nor are two ways to one
    let itself = format!(
        "dn: cn=a\nentryUUID: id-a\nmailLocalAddress: a@example.jp\nmailHost: mbox1\nmailRoutingAddress: a@example.jp\n\n{}{}{}",
        group("left", &["down"]),
        group("right", &["down", "left"]),
        group("down", &["root"])
    );
    assert_eq!(warnings(&itself), nobody);
}

#[test]
fn a_circle_through_a_role_address_or_a_catch_all_is_one_too() {
    let mut settings = crate::settings();
    settings.postmaster = Some(crate::mailbox("pm@example.jp"));
    let text = file(&forward("pm", "abuse"));
    let table = hikyaku_directory::load::load(text.as_bytes(), &settings).unwrap();
    assert_eq!(
        lines(table.findings()),
        [
            "line 12: warning: cn=pm: leads back to itself: cn=pm -> cn=pm; no mail for it can be delivered"
        ]
    );
    let rest = "dn: cn=rest\nmailLocalAddress: @example.jp\nmailRoutingAddress: a@example.jp\n\n";
    assert_eq!(
        warnings(&format!("{rest}{}", forward("a", "gone"))),
        [
            "line 12: warning: cn=rest: leads back to itself: cn=rest -> cn=a -> cn=rest; no mail for it can be delivered"
        ]
    );
}

#[test]
fn groups_that_the_queue_would_hold_are_named() {
    let mut people = String::new();
    for n in 0..1001 {
        people.push_str(&user(&format!("u{n}")));
    }
    let names: Vec<String> = (0..1001).map(|n| format!("u{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let fits = group("fits", &names[..1000]);
    assert!(warnings(&format!("{people}{fits}")).is_empty());
    let found = warnings(&format!("{people}{}", group("large", &names)));
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(
        found[0].contains(
            "cn=large: a group of 1001 members: mail for it is held, for a group may have 1000"
        ),
        "{found:?}"
    );
    let mut parts = String::new();
    for part in 0..5 {
        write!(parts, "{}", group(&format!("part{part}"), &names[..900])).unwrap();
    }
    let of = ["part0", "part1", "part2", "part3", "part4"];
    let fits = group("fits", &of[..4]);
    assert!(warnings(&format!("{people}{parts}{fits}")).is_empty());
    let found = warnings(&format!("{people}{parts}{}", group("all", &of)));
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(
        found[0].contains("cn=all: a group that leads to over 4096 recipients"),
        "{found:?}"
    );
}
