//! The directory through its public face.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod broken;
mod catch_all;
mod contract;
mod explain;
mod exports;
mod last_good;
mod logins;
mod reload;
mod routes;
mod scale;
mod timing;

use hikyaku_directory::finding::Finding;
use hikyaku_directory::ldif_directory::LdifDirectory;
use hikyaku_directory::password::PoolLimits;
use hikyaku_directory::settings::Settings;
use hikyaku_directory::{Directory, Resolution, Unavailable};
use hikyaku_mail::path::Mailbox;

/// Two mboxes, `root@example.jp` is postmaster.
fn settings() -> Settings {
    let postmaster = Some(mailbox("root@example.jp"));
    Settings {
        postmaster,
        ..Settings::new(&["mbox1", "mbox2"], "example.jp")
    }
}

const DOMAIN: &str = "dn: dc=example\nobjectClass: domainRelatedObject\no: Example\nassociatedDomain: example.jp\n\n";
const ROOT: &str = "dn: uid=root\nuid: root\nentryUUID: id-root\nmailLocalAddress: root@example.jp\nmailHost: mbox1\n\n";

fn user(uid: &str) -> String {
    format!(
        "dn: uid={uid}\nuid: {uid}\nentryUUID: id-{uid}\nmailLocalAddress: {uid}@example.jp\nmailHost: mbox1\n\n"
    )
}

/// The domain, root, and from line 12 on `rest`.
fn file(rest: &str) -> String {
    format!("{DOMAIN}{ROOT}{rest}")
}

fn load(text: &str) -> Result<LdifDirectory, Vec<Finding>> {
    LdifDirectory::load(text.as_bytes(), settings(), PoolLimits::default())
}

fn mailbox(text: &str) -> Mailbox {
    text.parse().unwrap()
}

async fn resolve(directory: &LdifDirectory, address: &str) -> Result<Resolution, Unavailable> {
    directory.resolve(&mailbox(address)).await
}

async fn decision(directory: &LdifDirectory, address: &str) -> String {
    match resolve(directory, address).await {
        Ok(resolution) => resolution.decision.to_string(),
        Err(_) => "unavailable".to_owned(),
    }
}

fn lines(findings: &[Finding]) -> Vec<String> {
    findings.iter().map(ToString::to_string).collect()
}
