//! What directory servers export: attributes that nobody reads, records that are no entries, other
//! encodings.

use crate::{decision, file, lines, load, user};

/// A user whose entry has `more` at its end.
fn with(uid: &str, more: &str) -> String {
    user(uid).replace("\n\n", &format!("\n{more}\n"))
}

#[tokio::test]
async fn attributes_that_nobody_reads_harm_nobody() {
    let photo = format!("jpegPhoto:: {}\n", "QUFB".repeat(400_000));
    let folded = format!("jpegPhoto:: {}\n", "QUFB\n ".repeat(300_000));
    let members = "memberUid: somebody\n".repeat(100_001);
    for (name, more) in [
        ("a photo elsewhere", "jpegPhoto:< file:///photo.jpg\n"),
        ("no base64", "userCertificate;binary:: ***\n"),
        ("a control character", "description: a\u{1}b\n"),
        ("a name of its own", "my_attribute;x-option_1: y\n"),
        ("a large photo", &photo),
        ("a large photo, folded", &folded),
        ("many members of a Unix group", &members),
        (
            "a part of somebody's list",
            "directReports;range=0-1499: cn=x\n",
        ),
    ] {
        let directory = load(&file(&with("a", more))).unwrap_or_else(|found| {
            panic!("{name}: {:?}", lines(&found));
        });
        assert_eq!(
            lines(directory.table().findings()),
            [] as [&str; 0],
            "{name}"
        );
        assert_eq!(
            decision(&directory, "a@example.jp").await,
            "mbox mbox1, account id-a",
            "{name}"
        );
    }
}

#[tokio::test]
async fn what_is_read_and_cannot_be_makes_its_entry_unavailable() {
    let members: String = (0..100_001)
        .map(|n| format!("mgrpRFC822MailMember: u{n}@elsewhere.example\n"))
        .collect();
    let long = format!("mailRoutingAddress: {}\n", "x".repeat(2 << 20));
    for (more, found) in [
        (
            "mailHost:< file:///host\n",
            "line 17: error: uid=a: mailhost: values from files or URLs (`:<`) are not read",
        ),
        (
            "mailQuotaSize: 1\u{1}0\n",
            "line 17: error: uid=a: mailquotasize: not UTF-8 text, or with control characters; use `::` and base64",
        ),
        (
            "objectClass:: ***\n",
            "line 17: error: uid=a: objectclass: not base64 after `::`",
        ),
        (
            &long,
            "line 17: error: uid=a: mailroutingaddress: the line is too long",
        ),
        (
            &members,
            "line 12: error: uid=a: mgrprfc822mailmember: the record has too many values",
        ),
    ] {
        let directory = load(&file(&format!("{}{}", with("a", more), user("b")))).unwrap();
        let findings = lines(directory.table().findings());
        assert!(
            findings.iter().any(|line| line == found),
            "{found}: {:?}",
            findings.first()
        );
        assert_eq!(decision(&directory, "a@example.jp").await, "unavailable");
        assert_eq!(
            decision(&directory, "b@example.jp").await,
            "mbox mbox1, account id-b"
        );
    }
    // the DN, too, and a domain's classes: what it hosts is not somebody else's
    let bad_dn = user("a").replace("dn: uid=a", "dn:: //8=");
    let bad_domain = "dn: dc=b\nobjectClass:< file:///x\no: B\nassociatedDomain: b.jp\n\n";
    let directory = load(&file(&format!("{bad_dn}{bad_domain}"))).unwrap();
    for address in ["a@example.jp", "anybody@b.jp"] {
        assert_eq!(
            decision(&directory, address).await,
            "unavailable",
            "{address}"
        );
    }
}

#[tokio::test]
async fn a_group_without_all_its_members_is_no_group() {
    let group = |members: &str| {
        format!(
            "dn: cn=g\nobjectClass: groupOfNames\nmailLocalAddress: g@example.jp\nmember: uid=root\n{members}\n"
        )
    };
    for (members, expected) in [
        ("member;range=0-1499: uid=x\n", "unavailable"),
        ("member:< file:///members\n", "unavailable"),
        ("member:: ***\nmember;range=0-1499: uid=x\n", "unavailable"),
        ("member;range=0-*: uid=root\n", "group of 1"),
        (
            "member:\nmember: nobody in particular\nmember:: ***\n",
            "group of 1",
        ),
    ] {
        let directory = load(&file(&group(members))).unwrap();
        assert_eq!(
            decision(&directory, "g@example.jp").await,
            expected,
            "{members}"
        );
    }
}

#[tokio::test]
async fn exports_of_ldifde_and_ldapsearch_are_read() {
    let added = file(&user("a")).replace("\nuid: ", "\nchangetype: add\nuid: ");
    let searched = format!(
        "# extended LDIF\n#\n# LDAPv3\n\n{}# search reference\nref: ldap://elsewhere/dc=x\n\n\
         # search result\nsearch: 2\nresult: 0 Success\n\n# numEntries: 3\n",
        file(&user("a"))
    );
    let marked: Vec<u8> = format!("\u{feff}{added}")
        .replace('\n', "\r\n")
        .encode_utf16()
        .flat_map(u16::to_le_bytes)
        .collect();
    for text in [added.as_bytes(), searched.as_bytes(), &marked] {
        let table = hikyaku_directory::load::load(text, &crate::settings());
        let table = table.unwrap_or_else(|found| panic!("{:?}", lines(&found)));
        assert_eq!(table.findings(), &[]);
        assert!(
            table
                .resolve(&crate::mailbox("a@example.jp"))
                .unwrap()
                .entry
                .is_some()
        );
    }
    let refused = |text: &[u8]| {
        let refused = hikyaku_directory::load::load(text, &crate::settings());
        lines(&refused.map(drop).unwrap_err()).join("; ")
    };
    let cut = searched.replace("0 Success", "4 Size limit exceeded");
    assert!(refused(cut.as_bytes()).contains("entries are missing"));
    assert!(refused(&marked[2..]).contains("UTF-16"));
    let changed = added.replace("changetype: add", "changetype: modify");
    assert!(refused(changed.as_bytes()).contains("change records are not read"));
}

#[test]
fn the_trouble_of_a_domain_is_said_once() {
    let users: String = (0..100)
        .map(|n| {
            format!("dn: uid=u{n}\nuid: u{n}\nentryUUID: id{n}\nmailLocalAddress: u{n}@b.jp\n\n")
        })
        .collect();
    let domain = "dn: dc=b\nobjectClass: domainRelatedObject\no: B\nassociatedDomain: b.jp\nmailHost: mbox9\n\n";
    let directory = load(&file(&format!("{domain}{users}"))).unwrap();
    assert_eq!(
        lines(directory.table().findings()),
        [
            "error: 100 addresses are unavailable, for the entries of their domains are broken",
            "line 12: error: dc=b: mailHost mbox9: the tenant's default mbox is none of our mboxes",
        ]
    );
    // and that of a domain that is not there, once for each address
    let directory = load(&file(&users)).unwrap();
    assert_eq!(directory.table().findings().len(), 100);
}
