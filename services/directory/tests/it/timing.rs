//! B-130: how long a refusal takes does not say whether the login exists.

use std::fmt::Write;
use std::time::Duration;

use hikyaku_directory::ldif_directory::LdifDirectory;
use hikyaku_directory::{Directory, LoginError};
use tokio::time::Instant;

use crate::{file, load};

const SAMPLES: usize = 30;
const ROUNDS: usize = 10;
/// Argon2id, 8 MiB, one pass.
const COSTLY: &str =
    "{ARGON2}$argon2id$v=19$m=8192,t=1,p=1$c29tZXNhbHQ$nf65EOgLrQMR/uIPnA4rEsF5h7TKyQwu9U1bMCHGi/4";
const CHEAP: &str = "{SSHA256}ce8qBmhwhA9g6QUEX3ON1sHRQLSwSjFin4CRCkX6V9VzYWx0MTIzNA==";

/// The first user is not like the others.
fn directory() -> LdifDirectory {
    let mut people = String::new();
    for (uid, stored) in [("first", CHEAP), ("alice", COSTLY), ("bob", COSTLY)] {
        write!(
            people,
            "dn: uid={uid}\nuid: {uid}\nentryUUID: id-{uid}\nmailLocalAddress: {uid}@example.jp\nmailHost: mbox1\n\
             userPassword: {stored}\n\n"
        )
        .unwrap();
    }
    load(&file(&people)).unwrap()
}

async fn refused(directory: &LdifDirectory, login: &str) -> Duration {
    let begun = Instant::now();
    let answer = directory.authenticate(login, b"not it").await;
    assert_eq!(answer, Err(LoginError::Wrong), "{login}");
    begun.elapsed()
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

/// Medians of refusals: of a known login, of an unknown one, of one without a password.
async fn medians(directory: &LdifDirectory) -> [Duration; 3] {
    let logins = ["alice", "nobody", "root"];
    let mut times = [(); 3].map(|()| Vec::with_capacity(SAMPLES));
    for _ in 0..SAMPLES {
        // by turns, so that a noisy neighbour is fair
        for (login, times) in logins.iter().zip(&mut times) {
            times.push(refused(directory, login).await);
        }
    }
    times.map(median)
}

#[tokio::test]
async fn b130_an_unknown_login_takes_as_long_as_a_wrong_password() {
    let directory = directory();
    let mut seen = Vec::new();
    // neighbours disturb one round and not all of them; a difference that is there is there in each
    for _ in 0..ROUNDS {
        let [known, unknown, without_password] = medians(&directory).await;
        assert!(
            known > Duration::from_millis(1),
            "{known:?}: it is hashed at all"
        );
        let is_close = |other: Duration| {
            let apart = known.abs_diff(other);
            // on a busy machine all take many times as long, and scatter as much more
            apart < Duration::from_millis(2).max(known / 4) && apart < known / 2
        };
        if is_close(unknown) && is_close(without_password) {
            return;
        }
        seen.push([known, unknown, without_password]);
    }
    panic!("known, unknown, without a password: {seen:?}");
}
