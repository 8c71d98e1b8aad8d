//! Whose a login name is: each tenant may use it.

use hikyaku_directory::finding::Finding;
use hikyaku_directory::ldif_directory::LdifDirectory;
use hikyaku_directory::{Directory, LoginError};

use crate::{decision, file, lines, load};

const PASSWORD: &str = "{SSHA256}ce8qBmhwhA9g6QUEX3ON1sHRQLSwSjFin4CRCkX6V9VzYWx0MTIzNA==";

fn user(id: &str, uid: &str, address: &str) -> String {
    format!(
        "dn: cn={id}\nuid: {uid}\nentryUUID: {id}\nmailLocalAddress: {address}\nmailHost: mbox1\nuserPassword: {PASSWORD}\n\n"
    )
}

fn tenant(name: &str) -> String {
    format!(
        "dn: dc={name}\nobjectClass: domainRelatedObject\no: {name}\nassociatedDomain: {name}.jp\n\n"
    )
}

async fn answer(directory: &LdifDirectory, login: &str) -> String {
    match directory.authenticate(login, b"hikyaku").await {
        Ok(account) => account.id.to_string(),
        Err(LoginError::Wrong) => "wrong".to_owned(),
        Err(LoginError::Disabled) => "disabled".to_owned(),
        Err(LoginError::Unavailable(_)) => "unavailable".to_owned(),
    }
}

#[tokio::test]
async fn tenants_share_login_names_and_nothing_is_wrong_with_that() {
    let mut entries = String::new();
    for name in ["b", "c", "d"] {
        entries.push_str(&tenant(name));
        entries.push_str(&user(
            &format!("id-{name}"),
            "info",
            &format!("info@{name}.jp"),
        ));
    }
    let directory = load(&file(&entries)).unwrap();
    assert_eq!(directory.table().findings(), &[] as &[Finding]);
    assert!(directory.table().troubles().is_empty());
    for name in ["b", "c", "d"] {
        assert_eq!(
            answer(&directory, &format!("info@{name}.jp")).await,
            format!("id-{name}")
        );
    }
    assert_eq!(answer(&directory, "info").await, "wrong");
    assert_eq!(answer(&directory, "info@example.jp").await, "wrong");
}

#[tokio::test]
async fn in_one_tenant_a_login_name_is_one_entrys() {
    let twice = [
        user("1", "info", "a@example.jp"),
        user("2", "info", "b@example.jp"),
        tenant("b"),
        user("3", "info", "c@b.jp"),
    ];
    let directory = load(&file(&twice.concat())).unwrap();
    let found = lines(directory.table().findings());
    assert_eq!(
        found,
        ["line 19: error: cn=2: uid info: line 12 has it too; it is unavailable"]
    );
    for (login, expected) in [
        ("info@example.jp", "unavailable"),
        ("info@b.jp", "3"),
        ("a@example.jp", "1"),
        ("b@example.jp", "2"),
        ("info", "wrong"),
    ] {
        assert_eq!(answer(&directory, login).await, expected, "{login}");
    }
    let directory = load(&file(&twice[..2].concat())).unwrap();
    assert_eq!(answer(&directory, "info").await, "unavailable");
    assert_eq!(
        directory.table().troubles(),
        ["login names in doubt: 1 (a login is answered \"try again later\")"]
    );
    // mail has nothing to do with it
    assert_eq!(
        decision(&directory, "info@example.jp").await,
        "no such user"
    );
}

#[tokio::test]
async fn a_broken_entry_is_in_the_way_of_its_own_tenant_alone() {
    let entries = [
        tenant("b"),
        user("1", "info", "info@b.jp").replace("entryUUID: 1", "entryUUID: 1 2"),
        user("2", "info", "office@example.jp"),
    ];
    let directory = load(&file(&entries.concat())).unwrap();
    assert_eq!(decision(&directory, "info@b.jp").await, "unavailable");
    assert_eq!(
        decision(&directory, "info@example.jp").await,
        "no such user"
    );
    assert_eq!(answer(&directory, "info@b.jp").await, "unavailable");
    assert_eq!(answer(&directory, "info@example.jp").await, "2");
    // one that has lost its address may be anybody's
    let stray = user("1", "info", "info@@b.jp");
    for text in [
        format!("{stray}{}", user("2", "info", "office@example.jp")),
        format!("{}{stray}", user("2", "info", "office@example.jp")),
    ] {
        let directory = load(&file(&text)).unwrap();
        assert_eq!(answer(&directory, "info").await, "unavailable");
        assert_eq!(answer(&directory, "info@example.jp").await, "unavailable");
        assert_eq!(decision(&directory, "info@example.jp").await, "unavailable");
        assert_eq!(answer(&directory, "office@example.jp").await, "2");
    }
}

#[tokio::test]
async fn what_cannot_be_read_may_be_the_right_password() {
    for (stored, expected) in [
        ("userPassword:< file:///pw\n", "unavailable"),
        ("userPassword:: //8=\n", "unavailable"),
        ("userPassword: {CRYPT}!\n", "wrong"),
        ("userPassword: *LK*\n", "wrong"),
    ] {
        let entry = user("1", "a", "a@example.jp");
        let entry = entry.replace(&format!("userPassword: {PASSWORD}\n"), stored);
        let directory = load(&file(&entry)).unwrap();
        assert_eq!(answer(&directory, "a").await, expected, "{stored}");
        assert_eq!(
            decision(&directory, "a@example.jp").await,
            "mbox mbox1, account 1"
        );
    }
}
