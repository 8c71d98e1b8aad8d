//! What every [`Directory`] answers, run against each implementation loaded with [`FIXTURE`].
//!
//! Settings of the fixture: mboxes `mbox1` and `mbox2`, no default mbox of the site, default domain `example.jp`, delimiter `+`,
//! postmaster `root@example.jp`. The fixture is kept to what an LDAP server can hold too, so that it can be loaded into one.
//! A check that fails panics: this module is for tests.

use hikyaku_mail::path::Mailbox;

use crate::{
    Account, AccountState, Decision, Directory, LoginError, Resolution, Rule, Unavailable,
};

/// The directory's content.
pub const FIXTURE: &str = include_str!("contract.ldif");
/// The password of every account in the fixture.
pub const PASSWORD: &[u8] = b"hikyaku";

/// Runs all checks; panics at the first that fails.
pub async fn all(directory: &dyn Directory) {
    truth_table(directory).await;
    local_users(directory).await;
    addresses_match(directory).await;
    groups(directory).await;
    catch_alls(directory).await;
    definite_no(directory).await;
    doubt_is_never_no(directory).await;
    roles_reach_somebody(directory).await;
    logins(directory).await;
    accounts(directory).await;
}

fn mailbox(text: &str) -> Mailbox {
    match text.parse() {
        Ok(mailbox) => mailbox,
        Err(error) => panic!("{text}: {error}"),
    }
}

async fn resolve(directory: &dyn Directory, address: &str) -> Resolution {
    match directory.resolve(&mailbox(address)).await {
        Ok(resolution) => resolution,
        Err(Unavailable { reason, .. }) => panic!("{address}: {reason}"),
    }
}

async fn local(directory: &dyn Directory, address: &str) -> Account {
    match resolve(directory, address).await.decision {
        Decision::Local { account, .. } => account,
        other => panic!("{address}: {other:?}"),
    }
}

/// DESIGN: which mbox, which rewriting, which relay. One line for one row of the table.
async fn truth_table(directory: &dyn Directory) {
    for (address, rule, decision) in [
        (
            "ours-set@example.jp",
            Rule::Rewrite,
            "forward to elsewhere@example.net",
        ),
        (
            "ours-self@example.jp",
            Rule::Final,
            "mbox mbox1, account id-ours-self",
        ),
        (
            "ours-alias@example.jp",
            Rule::Final,
            "mbox mbox1, account id-ours-self",
        ),
        (
            "ours-mbox@example.jp",
            Rule::Final,
            "mbox mbox2, account id-ours-mbox",
        ),
        (
            "ours@example.jp",
            Rule::MailHost,
            "mbox mbox1, account id-ours",
        ),
        (
            "foreign-set@example.jp",
            Rule::RelayRoutingAddress,
            "relay u@inside.example.net to [mail.example.net]",
        ),
        (
            "foreign@example.jp",
            Rule::RelayOriginal,
            "relay foreign@example.jp to [mail.example.net]",
        ),
        (
            "set@example.jp",
            Rule::RoutingAddress,
            "forward to elsewhere@example.net",
        ),
        (
            "set-mbox@example.jp",
            Rule::Final,
            "mbox mbox1, account id-set-mbox",
        ),
        (
            "set-self@tenant2.jp",
            Rule::DefaultMbox,
            "mbox mbox2, account id-set-self",
        ),
        (
            "neither@tenant2.jp",
            Rule::DefaultMbox,
            "mbox mbox2, account id-neither2",
        ),
        ("neither@example.jp", Rule::NoDefaultMbox, "no such user"),
    ] {
        let resolution = resolve(directory, address).await;
        assert_eq!(
            (resolution.rule, resolution.decision.to_string().as_str()),
            (rule, decision),
            "{address}"
        );
        assert!(resolution.entry.is_some(), "{address}: an entry decided");
        let tenant = if address.ends_with("@tenant2.jp") {
            "Second"
        } else {
            "Example"
        };
        assert_eq!(resolution.tenant.as_deref(), Some(tenant), "{address}");
    }
}

async fn local_users(directory: &dyn Directory) {
    let ours = local(directory, "ours@example.jp").await;
    assert_eq!(
        (ours.id.as_str(), &*ours.tenant, &*ours.mbox),
        ("id-ours", "Example", "mbox1")
    );
    assert_eq!(
        (ours.address.as_str(), ours.quota_bytes),
        ("Ours@example.jp", Some(1_000_000))
    );
    assert_eq!(ours.state, AccountState::Active);
    assert_eq!(
        local(directory, "neither@tenant2.jp").await.quota_bytes,
        None
    );
    for (address, state) in [
        ("suspended@example.jp", AccountState::Suspended),
        ("disabled@example.jp", AccountState::Disabled),
        ("deleted@example.jp", AccountState::Deleted),
    ] {
        assert_eq!(local(directory, address).await.state, state, "{address}");
    }
}

async fn addresses_match(directory: &dyn Directory) {
    for address in [
        "OURS@EXAMPLE.JP",
        "ours+detail@example.jp",
        "Ours+a+b@example.jp",
        "ours+@example.jp",
        "\"ours\"@example.jp",
        "\"o\\urs\"@example.jp",
        "second-address@example.jp",
        "o.urs@other.example.jp",
    ] {
        let resolution = resolve(directory, address).await;
        let Decision::Local {
            account,
            delivered_to,
        } = resolution.decision
        else {
            panic!("{address}")
        };
        assert_eq!(account.id.as_str(), "id-ours", "{address}");
        assert_eq!(account.address.as_str(), "Ours@example.jp", "{address}");
        assert_eq!(
            delivered_to,
            mailbox(address),
            "{address}: Delivered-To keeps what was asked for"
        );
    }
    // An entry of its own goes before the part in front of the delimiter.
    assert_eq!(
        local(directory, "ours+own@example.jp").await.id.as_str(),
        "id-own"
    );
    for address in [
        "+detail@example.jp",
        "\"ours+detail\"@other.example.jp",
        "ours@other.example.jp",
        "\"ours \"@example.jp",
    ] {
        assert_eq!(
            resolve(directory, address).await.decision,
            Decision::NoSuchUser,
            "{address}"
        );
    }
}

async fn groups(directory: &dyn Directory) {
    let resolution = resolve(directory, "all@example.jp").await;
    // Once each, as written: which of them are one account is seen when they are resolved.
    let members = [
        "Ours@example.jp",
        "far@example.net",
        "all@example.jp",
        "second-address@example.jp",
    ];
    let members = members.map(mailbox).to_vec();
    let errors_to = Some(mailbox("root@example.jp"));
    assert_eq!(resolution.decision, Decision::Group { members, errors_to });
    assert_eq!(resolution.rule, Rule::Group);
    // A member is found however its name is spelt.
    let spelt = resolve(directory, "spelt@tenant3.jp").await.decision;
    let members = vec![mailbox("t.tanaka@tenant3.jp")];
    let errors_to = None;
    assert_eq!(spelt, Decision::Group { members, errors_to });
}

/// What nobody else has: no address, no detail, no role, and no entry that may have lost its
/// address.
async fn catch_alls(directory: &dyn Directory) {
    for address in [
        "nobody@tenant3.jp",
        "nobody+x@tenant3.jp",
        "taro@TENANT3.jp",
    ] {
        let resolution = resolve(directory, address).await;
        let to = mailbox("info@tenant3.jp");
        assert_eq!(resolution.decision, Decision::Forward { to }, "{address}");
        assert_eq!(resolution.rule, Rule::RoutingAddress, "{address}");
        assert!(resolution.is_catch_all, "{address}");
        assert_eq!(resolution.tenant.as_deref(), Some("Third"), "{address}");
    }
    for address in ["info@tenant3.jp", "Info+x@tenant3.jp"] {
        assert_eq!(
            local(directory, address).await.id.as_str(),
            "id-info3",
            "{address}"
        );
        assert!(!resolve(directory, address).await.is_catch_all, "{address}");
    }
    for address in ["postmaster@tenant3.jp", "abuse+x@tenant3.jp"] {
        assert_eq!(
            resolve(directory, address).await.rule,
            Rule::RoleAddress,
            "{address}"
        );
    }
    let lost = directory.resolve(&mailbox("lost@tenant3.jp")).await;
    assert!(lost.is_err_and(|unavailable| unavailable.is_doubt()));
}

async fn definite_no(directory: &dyn Directory) {
    let nobody = resolve(directory, "nobody@example.jp").await;
    assert_eq!(
        (nobody.decision, nobody.rule, nobody.entry),
        (Decision::NoSuchUser, Rule::NoEntry, None)
    );
    assert_eq!(nobody.tenant.as_deref(), Some("Example"));
    for address in [
        "ours@example.net",
        "ours@sub.example.jp",
        "ours@[127.0.0.1]",
        "ours@mbox1",
    ] {
        let foreign = resolve(directory, address).await;
        assert_eq!(
            (foreign.decision, foreign.rule, foreign.tenant),
            (Decision::Foreign, Rule::ForeignDomain, None)
        );
    }
}

async fn doubt_is_never_no(directory: &dyn Directory) {
    for address in [
        "two-owners@example.jp",
        "two-owners+x@example.jp",
        "Bad-Quota@example.jp",
        "bad-mailbox@example.jp",
    ] {
        let answer = directory.resolve(&mailbox(address)).await;
        let Err(unavailable) = answer else {
            panic!("{address}: {answer:?}")
        };
        assert!(
            !unavailable.reason.is_empty(),
            "{address}: the log learns why"
        );
        assert!(unavailable.is_doubt(), "{address} alone is in doubt");
        assert_eq!(
            unavailable.reply().to_string(),
            "451 4.4.3 directory is unavailable, try again later"
        );
    }
    // Both owners are reached by what is theirs alone.
    assert_eq!(
        local(directory, "owner1@example.jp").await.id.as_str(),
        "id-owner1"
    );
    assert_eq!(
        local(directory, "owner2@example.jp").await.id.as_str(),
        "id-owner2"
    );
}

async fn roles_reach_somebody(directory: &dyn Directory) {
    assert_eq!(directory.postmaster(), mailbox("postmaster@example.jp"));
    for address in [
        "postmaster@example.jp",
        "PostMaster@tenant2.jp",
        "abuse@example.jp",
        "abuse+x@example.jp",
    ] {
        let resolution = resolve(directory, address).await;
        assert_eq!(
            resolution.decision,
            Decision::Forward {
                to: mailbox("root@example.jp")
            },
            "{address}"
        );
        assert_eq!(resolution.rule, Rule::RoleAddress, "{address}");
        assert!(
            resolution.entry.is_some(),
            "{address}: a key for loop detection"
        );
    }
    assert_eq!(
        resolve(directory, "abuse@tenant2.jp").await.rule,
        Rule::RoutingAddress,
        "an entry goes first"
    );
}

async fn logins(directory: &dyn Directory) {
    for login in [
        "ours",
        "OURS",
        "ours@example.jp",
        "second-address@EXAMPLE.jp",
        "o.urs@other.example.jp",
    ] {
        match directory.authenticate(login, PASSWORD).await {
            Ok(account) => assert_eq!(
                (account.id.as_str(), &*account.mbox),
                ("id-ours", "mbox1"),
                "{login}"
            ),
            Err(error) => panic!("{login}: {error:?}"),
        }
    }
    // A uid may be used by each tenant; with a domain of the tenant it is a login everywhere.
    for (login, id) in [
        ("info@tenant2.jp", "id-info2"),
        ("office@tenant2.jp", "id-info2"),
        ("INFO@tenant3.jp", "id-info3"),
        ("taro", "id-taro"),
        ("taro@tenant3.jp", "id-taro"),
    ] {
        match directory.authenticate(login, PASSWORD).await {
            Ok(account) => assert_eq!(account.id.as_str(), id, "{login}"),
            Err(error) => panic!("{login}: {error:?}"),
        }
    }
    // Mail is forwarded, the mailbox is still there.
    match directory.authenticate("ours-set", PASSWORD).await {
        Ok(account) => assert_eq!(&*account.mbox, "mbox1"),
        Err(error) => panic!("{error:?}"),
    }
    let too_long = "x".repeat(2000);
    for (login, password) in [
        ("ours", &b"Hikyaku"[..]),
        ("ours", b""),
        ("ours", b"hikyaku\0"),
        ("ours", too_long.as_bytes()),
        ("nobody", PASSWORD),
        ("", PASSWORD),
        ("*", PASSWORD),
        ("ours)(uid=*", PASSWORD),
        ("ours+detail@example.jp", PASSWORD),
        ("ours@example.net", PASSWORD),
        (too_long.as_str(), PASSWORD),
        ("disabled", b"wrong"),
        ("no-password", PASSWORD),
        ("no-password", b""),
        ("empty-password", b""),
        ("locked", PASSWORD),
        ("locked@tenant3.jp", b"!"),
        ("info", PASSWORD),
        ("info@example.jp", PASSWORD),
        ("taro@tenant2.jp", PASSWORD),
        ("nobody@tenant3.jp", PASSWORD),
        ("@tenant3.jp", PASSWORD),
    ] {
        let answer = directory.authenticate(login, password).await;
        assert_eq!(answer, Err(LoginError::Wrong), "{login:?}");
    }
    for login in ["suspended", "disabled", "deleted", "foreign"] {
        let answer = directory.authenticate(login, PASSWORD).await;
        assert_eq!(answer, Err(LoginError::Disabled), "{login:?}");
    }
    for login in [
        "twice",
        "two-owners@example.jp",
        "bad-quota",
        "clear",
        "unknown-scheme",
        "lost",
        "lost@tenant3.jp",
    ] {
        let answer = directory.authenticate(login, PASSWORD).await;
        assert!(
            matches!(answer, Err(LoginError::Unavailable(_))),
            "{login:?}: {answer:?}"
        );
    }
}

async fn accounts(directory: &dyn Directory) {
    let account = async |id: &str| {
        let Ok(id) = id.parse() else { panic!("{id}") };
        directory.account(&id).await
    };
    for (id, state) in [
        ("id-ours", AccountState::Active),
        ("id-disabled", AccountState::Disabled),
    ] {
        match account(id).await {
            Ok(Some(found)) => assert_eq!((found.id.as_str(), found.state), (id, state)),
            other => panic!("{id}: {other:?}"),
        }
    }
    assert_eq!(
        account("id-foreign").await,
        Ok(None),
        "its mailbox is elsewhere"
    );
    assert_eq!(account("id-nobody").await, Ok(None));
    assert!(account("id-bad-quota").await.is_err());
}
