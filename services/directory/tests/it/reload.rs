//! A changed file replaces everything or nothing.

use hikyaku_directory::ldif_directory::{Loss, Reload, Stamp, Stillness};

use hikyaku_directory::Directory;
use hikyaku_directory::settings::Settings;

use crate::{decision, file, load, settings, user};

fn users(range: std::ops::Range<u32>) -> String {
    file(&range.map(|n| user(&format!("u{n}"))).collect::<String>())
}

#[tokio::test]
async fn a_good_file_replaces_and_a_broken_one_does_not() {
    let directory = load(&users(0..20)).unwrap();
    let reloaded = directory.reload(users(1..22).as_bytes(), Loss::Few);
    assert_eq!(
        reloaded,
        Reload::Replaced {
            entries: 22,
            findings: vec![]
        }
    );
    assert_eq!(decision(&directory, "u0@example.jp").await, "no such user");
    assert_eq!(
        decision(&directory, "u21@example.jp").await,
        "mbox mbox1, account id-u21"
    );
    for broken in ["", "dn: x\n", &users(1..22)[..100]] {
        let reloaded = directory.reload(broken.as_bytes(), Loss::Accepted);
        assert!(
            matches!(reloaded, Reload::Refused { ref findings } if !findings.is_empty()),
            "{reloaded:?}"
        );
        assert_eq!(
            decision(&directory, "u21@example.jp").await,
            "mbox mbox1, account id-u21"
        );
    }
}

#[tokio::test]
async fn the_sites_quota_counts_where_an_entry_has_none() {
    let text = file(&format!(
        "{}{}",
        user("own").replace("\n\n", "\nmailQuotaSize: 7\n\n"),
        user("free").replace("\n\n", "\nmailQuotaSize: 0\n\n")
    ));
    let directory = load(&text).unwrap();
    let quotas = async || {
        let mut quotas = Vec::new();
        for id in ["id-root", "id-own", "id-free"] {
            let account = directory.account(&id.parse().unwrap()).await;
            quotas.push(account.unwrap().unwrap().quota_bytes);
        }
        quotas
    };
    assert_eq!(quotas().await, [None, Some(7), Some(0)]);
    let settings = Settings {
        quota_bytes_default: 1000,
        ..settings()
    };
    let prepared = directory.prepare(text.as_bytes(), settings, Loss::Few);
    directory.adopt(prepared.map_err(drop).unwrap());
    assert_eq!(quotas().await, [Some(1000), Some(7), Some(0)]);
    // and it stays when the file is read again
    directory.reload(text.as_bytes(), Loss::Few);
    assert_eq!(quotas().await, [Some(1000), Some(7), Some(0)]);
}

#[tokio::test]
async fn users_with_new_ids_would_have_empty_mailboxes_and_wait_for_the_operator() {
    let directory = load(&users(0..19)).unwrap();
    // what a server makes of a file that it gives its own entryUUIDs to
    let renamed = users(0..19).replace("entryUUID: id-u", "entryUUID: other-u");
    assert_eq!(
        directory.reload(renamed.as_bytes(), Loss::Few),
        Reload::TooMuchLost { lost: 19, of: 20 }
    );
    assert_eq!(
        decision(&directory, "u0@example.jp").await,
        "mbox mbox1, account id-u0"
    );
    let accepted = directory.reload(renamed.as_bytes(), Loss::Accepted);
    assert!(matches!(accepted, Reload::Replaced { entries: 20, .. }));
}

#[tokio::test]
async fn losing_more_than_a_tenth_waits_for_the_operator() {
    // with root, 20 entries: two may go
    let directory = load(&users(0..19)).unwrap();
    let lossy = users(3..40);
    assert_eq!(
        directory.reload(lossy.as_bytes(), Loss::Few),
        Reload::TooMuchLost { lost: 3, of: 20 }
    );
    assert_eq!(
        decision(&directory, "u0@example.jp").await,
        "mbox mbox1, account id-u0"
    );
    // An entry that breaks is lost too.
    let all_broken = users(0..19).replace("entryUUID: id-u", "entryUUID: id u");
    assert_eq!(
        directory.reload(all_broken.as_bytes(), Loss::Few),
        Reload::TooMuchLost { lost: 19, of: 20 }
    );
    let kept = users(2..19);
    assert!(matches!(
        directory.reload(kept.as_bytes(), Loss::Few),
        Reload::Replaced { entries: 18, .. }
    ));
    assert!(matches!(
        directory.reload(lossy.as_bytes(), Loss::Accepted),
        Reload::Replaced { .. }
    ));
    assert_eq!(decision(&directory, "u2@example.jp").await, "no such user");
}

#[test]
fn a_file_is_read_once_it_rests() {
    let stamp = |size, modified_ns| Stamp { size, modified_ns };
    let mut file = Stillness::new(stamp(1, 1), 2000);
    assert!(!file.observe(stamp(1, 1), 0));
    assert!(!file.observe(stamp(1, 1), 10_000), "it is as it was read");
    assert!(!file.observe(stamp(2, 2), 11_000));
    assert!(!file.observe(stamp(3, 2), 12_500), "it grows");
    assert!(!file.observe(stamp(3, 3), 14_000), "it is touched");
    assert!(!file.observe(stamp(3, 3), 15_999));
    assert!(file.observe(stamp(3, 3), 16_000));
    assert!(!file.observe(stamp(3, 3), 20_000), "once");
    assert!(!file.observe(stamp(1, 1), 21_000));
    assert!(!file.observe(stamp(3, 3), 22_000), "back to what was read");
    assert!(!file.observe(stamp(3, 3), 30_000));
}
