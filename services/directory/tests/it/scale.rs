//! Many entries.

use std::fmt::Write;

use hikyaku_directory::Directory;

use crate::{decision, file, load};

/// `count` users as a provisioning system would write them.
fn many(count: usize) -> String {
    let mut text = String::with_capacity(count * 400);
    for n in 0..count {
        write!(
            text,
            "dn: uid=user{n},ou=people,dc=example,dc=jp\nobjectClass: inetOrgPerson\nobjectClass: inetLocalMailRecipient\n\
             uid: user{n}\nentryUUID: 4f1c2a90-0000-4000-8000-{n:012x}\ncn: User {n}\nmailLocalAddress: user{n}@example.jp\n\
             mailHost: mbox{}\nuserPassword: {{SSHA256}}ce8qBmhwhA9g6QUEX3ON1sHRQLSwSjFin4CRCkX6V9VzYWx0MTIzNA==\n\n",
            1 + n % 2
        )
        .unwrap();
    }
    file(&text)
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

async fn load_and_look_up(count: usize) {
    let text = many(count);
    let before = resident_kib();
    let start = tokio::time::Instant::now();
    let directory = load(&text).unwrap();
    let took = start.elapsed();
    let octets = (resident_kib().saturating_sub(before)) * 1024 / count as u64;
    println!(
        "{count} entries, {} octets of LDIF: loaded in {took:?}, about {octets} octets resident each",
        text.len()
    );
    assert_eq!(directory.table().findings(), &[]);
    assert_eq!(directory.table().len(), count + 1);
    for n in [0, 1, count / 2, count - 1] {
        let expected = format!(
            "mbox mbox{}, account 4f1c2a90-0000-4000-8000-{n:012x}",
            1 + n % 2
        );
        assert_eq!(
            decision(&directory, &format!("USER{n}+x@example.jp")).await,
            expected
        );
        let account = directory
            .authenticate(&format!("user{n}"), b"hikyaku")
            .await
            .unwrap();
        assert_eq!(
            directory.account(&account.id).await,
            Ok(Some(account.clone()))
        );
    }
    assert_eq!(
        decision(&directory, &format!("user{count}@example.jp")).await,
        "no such user"
    );
}

#[tokio::test]
async fn a_hundred_thousand_entries() {
    load_and_look_up(100_000).await;
}

/// `cargo test -p hikyaku-directory --release -- --ignored --nocapture`
#[tokio::test]
#[ignore = "needs a minute and a gigabyte"]
async fn a_million_entries() {
    load_and_look_up(1_000_000).await;
}
