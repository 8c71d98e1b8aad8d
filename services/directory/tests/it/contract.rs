//! The shared contract, run by the LDIF directory.

use hikyaku_directory::contract::{FIXTURE, all};
use hikyaku_directory::ldif_directory::{LdifDirectory, Loss, Reload};
use hikyaku_directory::password::PoolLimits;

use crate::{lines, settings};

#[tokio::test]
async fn the_ldif_directory_keeps_the_contract() {
    let directory =
        LdifDirectory::load(FIXTURE.as_bytes(), settings(), PoolLimits::default()).unwrap();
    all(&directory).await;
    assert!(matches!(
        directory.reload(FIXTURE.as_bytes(), Loss::Few),
        Reload::Replaced { .. }
    ));
    all(&directory).await;
}

#[test]
fn its_findings_are_those_that_the_fixture_was_made_for() {
    let directory =
        LdifDirectory::load(FIXTURE.as_bytes(), settings(), PoolLimits::default()).unwrap();
    let findings = lines(directory.table().findings()).join("\n");
    for expected in [
        "error: cn=twice2,ou=people,dc=example,dc=jp: uid twice: line",
        "error: cn=owner2,ou=people,dc=example,dc=jp: mailLocalAddress two-owners@example.jp: line",
        "error: cn=bad-quota,ou=people,dc=example,dc=jp: mailquotasize: much: expected a number of octets",
        "error: cn=bad-mailbox,ou=people,dc=example,dc=jp: maillocaladdress: bad mailbox@example.jp: not a mailbox address",
        "warning: cn=clear,ou=people,dc=example,dc=jp: userPassword: cleartext is refused, store a hash",
        "warning: cn=unknown-scheme,ou=people,dc=example,dc=jp: userPassword: unknown scheme",
        "warning: cn=all,dc=example,dc=jp: member cn=has left,ou=people,dc=example,dc=jp: no such mail entry; left out",
        "warning: cn=all,dc=example,dc=jp: leads back to itself: cn=all,dc=example,dc=jp -> cn=all,dc=example,dc=jp",
        "error: cn=lost,dc=tenant3,dc=jp: maillocaladdress: lost mail@tenant3.jp: not a mailbox address",
    ] {
        assert!(findings.contains(expected), "{expected}\n{findings}");
    }
    assert_eq!(findings.lines().count(), 9, "{findings}");
    assert_eq!(
        directory.table().remarks(),
        [
            "1 uids of several tenants (they log in as uid@domain)",
            "1 entries with a locked password (nothing matches it)",
        ]
    );
}
