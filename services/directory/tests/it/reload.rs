//! A changed file replaces everything or nothing.

use hikyaku_directory::ldif_directory::{Loss, Reload, Stamp, Stillness};

use crate::{decision, file, load, user};

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
