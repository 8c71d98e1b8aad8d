//! What is on the disk is for the user of the process alone, however it was started.

use std::fs::{self, DirBuilder, Permissions};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use hikyaku_tests::harness::server::Server;
use hikyaku_tests::harness::site::{PASSWORD, Plan, Site};
use hikyaku_tests::harness::talk::{send_mail, wait_for_mails};

/// Everything below `directory` and itself, with the bits that let others in.
fn open_to_others(directory: &Path, found: &mut Vec<PathBuf>, seen: &mut usize) {
    let mode = |path: &Path| fs::symlink_metadata(path).unwrap().permissions().mode();
    if mode(directory) & 0o077 != 0 {
        found.push(directory.to_owned());
    }
    *seen += 1;
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            open_to_others(&path, found, seen);
        } else {
            *seen += 1;
            if mode(&path) & 0o077 != 0 {
                found.push(path);
            }
        }
    }
}

#[test]
fn nothing_it_writes_is_for_others_whatever_the_umask() {
    let site = Site::new(Plan::sample());
    // as a supervisor or a mount may have made it
    DirBuilder::new().mode(0o755).create(site.data()).unwrap();
    fs::set_permissions(site.data(), Permissions::from_mode(0o777)).unwrap();
    let mut server = Server::start_under_umask(&site, "000");
    let large = format!("Subject: large\n\n{}", "a line of it\n".repeat(20_000));
    for content in ["Subject: small\n\nIt is.\n", &large] {
        let reply = send_mail(site.smtp, "", &["bob@example.jp"], content);
        assert!(reply.starts_with("250"), "{reply}");
    }
    wait_for_mails(site.pop3, "bob", PASSWORD, 2);
    let snapshot = site.data().join("mbox-1.snapshot");
    site.ask(&["shard", "snapshot", "mbox-1", snapshot.to_str().unwrap()])
        .must();
    // stores are flushed: their files are there
    assert!(server.stop().0.success());
    let (mut found, mut seen) = (Vec::new(), 0);
    open_to_others(site.data(), &mut found, &mut seen);
    assert!(found.is_empty(), "others may look into {found:?}");
    for part in [
        "log",
        "store/mbox-1/tables",
        "blobs",
        "directory.last-good.ldif",
    ] {
        assert!(site.data().join(part).exists(), "{part}");
    }
    assert!(seen > 20, "only {seen} files and directories");
}
