//! The real binary from outside: start it, talk to it, kill it, cut its power, look at what is left.
//!
//! Nothing here reaches into the running process: it is seen through its ports, its command line, its log and its
//! system calls. Only what a dead process left behind is read with the product's own libraries.
//!
//! # Layout
//! * [`binary`]: where the programs are; running them to their end
//! * [`site`]: a configuration, a directory and users, in a directory of their own, on ports nobody uses
//! * [`server`]: the running process
//! * [`load`]: the load generator as a process of its own, and its verdict
//! * [`talk`]: a client that sends and expects lines
//! * [`dialogue`]: files of what client and server say
//! * [`wire`]: its connection, in the clear or under TLS
//! * [`crowd`]: many peers at once, and a bystander among them
//! * [`strace`]: a server under strace, to be killed at one of its system calls
//! * [`post_mortem`]: what the log of a dead process says about every mail
//! * [`fill`]: mailboxes with very many mails, without sending them
//! * [`backup`]: which UIDs a running process has given to which mail
//! * [`power`]: images of a recorded run, each opened and held against its ledger

pub mod backup;
pub mod binary;
pub mod crowd;
pub mod dialogue;
pub mod fill;
pub mod load;
pub mod post_mortem;
pub mod power;
pub mod server;
pub mod site;
pub mod strace;
pub mod talk;
pub mod wire;

use std::time::{Duration, Instant};

/// Waits until `condition` is true.
///
/// # Panics
/// When it is not within `limit`; says what was waited for.
pub fn wait_for(what: &str, limit: Duration, mut condition: impl FnMut() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(
            began.elapsed() < limit,
            "waited {limit:?} in vain for: {what}"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}
