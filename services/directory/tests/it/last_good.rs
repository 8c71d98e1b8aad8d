//! A restart has the last good directory.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use hikyaku_directory::Directory;
use hikyaku_directory::file::{DirectoryFile, OpenError};
use hikyaku_directory::ldif_directory::Reload;
use hikyaku_directory::password::PoolLimits;

use crate::{decision, file, settings, user};

struct Site {
    _dir: tempfile::TempDir,
    ldif: PathBuf,
    copy: PathBuf,
}

impl Site {
    fn new(text: &str) -> Site {
        let dir = tempfile::tempdir().unwrap();
        let (ldif, copy) = (
            dir.path().join("directory.ldif"),
            dir.path().join("last-good.ldif"),
        );
        std::fs::write(&ldif, text).unwrap();
        Site {
            _dir: dir,
            ldif,
            copy,
        }
    }

    fn open(&self) -> Result<DirectoryFile, OpenError> {
        DirectoryFile::open(
            &self.ldif,
            &self.copy,
            settings(),
            PoolLimits::default(),
            [0; 32],
        )
    }

    fn write(&self, text: &str) {
        std::fs::write(&self.ldif, text).unwrap();
    }
}

fn users(range: std::ops::Range<u32>) -> String {
    file(&range.map(|n| user(&format!("u{n}"))).collect::<String>())
}

async fn knows(opened: &DirectoryFile, uid: &str) -> bool {
    match decision(opened.directory(), &format!("{uid}@example.jp"))
        .await
        .as_str()
    {
        "no such user" => false,
        answer => {
            assert!(answer.starts_with("mbox mbox1"), "{answer}");
            true
        }
    }
}

#[tokio::test]
async fn a_start_without_the_file_goes_on_with_the_copy() {
    let site = Site::new(&users(0..20));
    assert_eq!(site.open().unwrap().alarm(), None);
    for broken in [None, Some(""), Some("dn: x\n"), Some(&users(0..20)[..100])] {
        match broken {
            None => std::fs::remove_file(&site.ldif).unwrap(),
            Some(text) => site.write(text),
        }
        let opened = site.open().unwrap();
        assert!(knows(&opened, "u7").await, "{broken:?}");
        let alarm = opened.alarm().unwrap();
        assert!(
            alarm.contains("directory.ldif: ") && alarm.contains("the last good directory answers"),
            "{alarm}"
        );
        // and it is mended while it runs
        site.write(&users(0..21));
        assert!(matches!(
            opened.reload(),
            Ok(Reload::Replaced { entries: 22, .. })
        ));
        assert_eq!(opened.alarm(), None);
        assert!(knows(&opened, "u20").await);
    }
    let restarted = site.open().unwrap();
    assert!(knows(&restarted, "u20").await && restarted.alarm().is_none());
}

#[tokio::test]
async fn without_a_copy_a_broken_file_is_an_error() {
    let site = Site::new("dn: x\n");
    assert!(matches!(site.open(), Err(OpenError::Refused(findings)) if !findings.is_empty()));
    std::fs::remove_file(&site.ldif).unwrap();
    assert!(
        matches!(site.open(), Err(OpenError::Io(error)) if error.kind() == std::io::ErrorKind::NotFound)
    );
    assert!(!site.copy.exists());
    // nor does a copy help that cannot be used itself
    std::fs::write(&site.copy, "dn: y\n").unwrap();
    assert!(matches!(site.open(), Err(OpenError::Io(_))));
    site.write(&users(0..3));
    assert!(knows(&site.open().unwrap(), "u2").await);
    assert_eq!(std::fs::read_to_string(&site.copy).unwrap(), users(0..3));
}

#[tokio::test]
async fn a_restart_takes_no_loss_that_a_running_node_would_refuse() {
    let site = Site::new(&users(0..19));
    drop(site.open().unwrap());
    site.write(&users(5..19));
    let opened = site.open().unwrap();
    assert!(knows(&opened, "u0").await);
    let alarm = opened.alarm().unwrap();
    assert!(
        alarm.contains("has lost 5 of 20 entries") && alarm.contains("hikyaku directory accept"),
        "{alarm}"
    );
    assert_eq!(
        opened.reload().unwrap(),
        Reload::TooMuchLost { lost: 5, of: 20 }
    );
    assert!(matches!(
        opened.accept(),
        Ok(Reload::Replaced { entries: 15, .. })
    ));
    assert_eq!(opened.alarm(), None);
    let restarted = site.open().unwrap();
    assert!(!knows(&restarted, "u0").await && restarted.alarm().is_none());
    // what cannot be used at all nobody can accept
    site.write("dn: x\n");
    assert!(matches!(restarted.accept(), Ok(Reload::Refused { .. })));
    assert!(knows(&restarted, "u7").await);
    std::fs::remove_file(&site.ldif).unwrap();
    assert!(restarted.accept().is_err());
    assert!(restarted.alarm().is_some());
}

#[tokio::test]
async fn a_copy_that_cannot_be_kept_is_an_alarm_and_no_more() {
    let site = Site::new(&users(0..3));
    let nowhere = site.copy.join("folder").join("last-good.ldif");
    let opened = DirectoryFile::open(
        &site.ldif,
        &nowhere,
        settings(),
        PoolLimits::default(),
        [0; 32],
    )
    .unwrap();
    assert!(
        opened
            .alarm()
            .unwrap()
            .contains("a restart would not have the last good directory")
    );
    assert!(knows(&opened, "u2").await);
    assert!(opened.directory().authenticate("u2", b"x").await.is_err());
}

#[test]
fn nobody_else_reads_the_copy() {
    let site = Site::new(&users(0..3));
    drop(site.open().unwrap());
    let mode = std::fs::metadata(&site.copy).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[tokio::test]
async fn a_file_that_is_too_long_or_no_file_is_not_read() {
    let site = Site::new(&users(0..20));
    let limits = hikyaku_directory::ldif::Limits {
        file_bytes_max: users(0..20).len(),
        ..Default::default()
    };
    let settings = hikyaku_directory::settings::Settings {
        limits,
        ..settings()
    };
    let pool = PoolLimits::default();
    let opened = DirectoryFile::open(&site.ldif, &site.copy, settings, pool, [0; 32]).unwrap();
    assert_eq!(opened.alarm(), None);
    site.write(&users(0..21));
    let kind = opened.reload().unwrap_err().kind();
    assert_eq!(kind, std::io::ErrorKind::FileTooLarge);
    assert!(opened.alarm().unwrap().contains("octets, and at most"));
    std::fs::remove_file(&site.ldif).unwrap();
    std::fs::create_dir(&site.ldif).unwrap();
    assert!(opened.reload().is_err());
    assert!(opened.alarm().unwrap().contains("is no regular file"));
    assert!(knows(&opened, "u7").await);
    // its size is known before it is read: without that, it would be one more than the limit
    let sparse = site.ldif.with_extension("sparse");
    let file = std::fs::File::create(&sparse).unwrap();
    file.set_len(3 << 30).unwrap();
    let refused = hikyaku_directory::file::read(&sparse, 1000).unwrap_err();
    assert!(
        refused.to_string().contains("3221225472 octets"),
        "{refused}"
    );
    let device = std::path::Path::new("/dev/zero");
    assert!(hikyaku_directory::file::read(device, usize::MAX).is_err());
}
