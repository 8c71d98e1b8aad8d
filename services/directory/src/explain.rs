//! What would happen to an address, step by step: `hikyaku route explain`. It follows forwards and groups as the queue would, and
//! changes nothing.

use std::collections::BTreeSet;
use std::fmt;

use hikyaku_mail::path::Mailbox;

use crate::{Decision, Directory, Resolution, Unavailable};

/// Forwards and groups followed in a row, as in the queue.
pub const DEPTH_MAX: usize = 10;
/// Members of a group that the queue expands; mail for a larger one is held.
pub const MEMBERS_MAX: usize = 1000;
/// Recipients of one mail, those that it was expanded to included; a group that leads to more is
/// held.
pub const RECIPIENTS_MAX: usize = 4096;
/// Addresses looked at.
const STEPS_MAX: usize = 1000;

/// One address on the way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Forwards and groups followed to get here.
    pub depth: usize,
    /// The address.
    pub address: Mailbox,
    /// What was decided.
    pub outcome: Outcome,
}

/// What was decided about one address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The directory's answer.
    Resolved(Resolution),
    /// The directory does not know now.
    Unavailable(Unavailable),
    /// The entry was followed before on this way, and leads to nothing but itself.
    Loop {
        /// Its DN.
        entry: String,
    },
    /// More than [`DEPTH_MAX`] forwards and groups in a row.
    TooDeep,
    /// Looked at already, on this way or another one: equal final recipients get one copy.
    Again,
}

/// All steps from `address` on, depth first, members in their order; the last ones are left out of a big expansion.
pub async fn explain(directory: &dyn Directory, address: &Mailbox) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut seen = BTreeSet::new();
    let mut waiting: Vec<(Mailbox, Vec<String>)> = vec![(address.clone(), Vec::new())];
    while let Some((address, followed)) = waiting.pop() {
        if steps.len() >= STEPS_MAX {
            break;
        }
        let depth = followed.len();
        let (outcome, next) = step(directory, &address, &followed).await;
        let is_again = matches!(outcome, Outcome::Resolved(_)) && !seen.insert(address.clone());
        let outcome = if is_again { Outcome::Again } else { outcome };
        let entry = match &outcome {
            Outcome::Resolved(resolution) => resolution.entry.clone(),
            _ => None,
        };
        steps.push(Step {
            depth,
            address,
            outcome,
        });
        if let Some(entry) = entry {
            let followed: Vec<String> = followed.into_iter().chain([entry]).collect();
            waiting.extend(
                next.into_iter()
                    .rev()
                    .map(|member| (member, followed.clone())),
            );
        }
    }
    steps
}

/// What is decided about one address, and which addresses come next.
async fn step(
    directory: &dyn Directory,
    address: &Mailbox,
    followed: &[String],
) -> (Outcome, Vec<Mailbox>) {
    let resolution = match directory.resolve(address).await {
        Ok(resolution) => resolution,
        Err(unavailable) => return (Outcome::Unavailable(unavailable), Vec::new()),
    };
    let next = match &resolution.decision {
        Decision::Forward { to } => vec![to.clone()],
        Decision::Group { members, .. } => members.clone(),
        _ => return (Outcome::Resolved(resolution), Vec::new()),
    };
    match &resolution.entry {
        Some(entry) if followed.contains(entry) => {
            let outcome = match leads_somewhere(directory, address).await {
                Ok(true) => Outcome::Again,
                Ok(false) => Outcome::Loop {
                    entry: entry.clone(),
                },
                Err(unavailable) => Outcome::Unavailable(unavailable),
            };
            (outcome, Vec::new())
        }
        _ if followed.len() >= DEPTH_MAX => (Outcome::TooDeep, Vec::new()),
        _ => (Outcome::Resolved(resolution), next),
    }
}

/// Whether mail to `address` comes to anything but forwards and groups that lead back to each other: a mailbox, another site,
/// or an address of which the sender hears that it does not exist or is in doubt. Taken for granted of more than [`STEPS_MAX`].
///
/// # Errors
/// When the directory does not answer.
pub async fn leads_somewhere(
    directory: &dyn Directory,
    address: &Mailbox,
) -> Result<bool, Unavailable> {
    let mut seen = BTreeSet::from([address.clone()]);
    let mut waiting = vec![address.clone()];
    while let Some(address) = waiting.pop() {
        let decision = match directory.resolve(&address).await {
            Ok(resolution) => resolution.decision,
            Err(unavailable) if unavailable.is_doubt() => return Ok(true),
            Err(unavailable) => return Err(unavailable),
        };
        let next = match decision {
            Decision::Forward { to } => vec![to],
            Decision::Group { members, .. } if !members.is_empty() => members,
            _ => return Ok(true),
        };
        if seen.len() > STEPS_MAX {
            return Ok(true);
        }
        waiting.extend(
            next.into_iter()
                .filter(|member| seen.insert(member.clone())),
        );
    }
    Ok(false)
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:indent$}{}: {}",
            "",
            self.address,
            self.outcome,
            indent = 2 * self.depth
        )
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Outcome::Resolved(resolution) => resolution.fmt(f),
            Outcome::Unavailable(unavailable) => {
                write!(f, "not known now ({})", unavailable.reason)
            }
            Outcome::Loop { entry } => write!(f, "fails: a loop, {entry} was followed before"),
            Outcome::TooDeep => write!(f, "fails: more than {DEPTH_MAX} forwards in a row"),
            Outcome::Again => f.write_str("met before: one copy"),
        }
    }
}

impl fmt::Display for Resolution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.decision.fmt(f)?;
        write!(f, " [{}; {}", self.rule.word(), self.rule)?;
        if let Some(entry) = &self.entry {
            write!(f, "; {entry}")?;
        }
        if self.is_catch_all {
            f.write_str("; catch-all of the domain")?;
        }
        if let Some(tenant) = &self.tenant {
            write!(f, "; tenant {tenant}")?;
        }
        f.write_str("]")
    }
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Decision::Local { account, .. } => {
                write!(f, "mbox {}, account {}", account.mbox, account.id)?;
                if account.state.takes_mail() {
                    Ok(())
                } else {
                    f.write_str(" (takes no mail)")
                }
            }
            Decision::Forward { to } => write!(f, "forward to {to}"),
            Decision::Group {
                members,
                errors_to: None,
            } => write!(f, "group of {}", members.len()),
            Decision::Group {
                members,
                errors_to: Some(owner),
            } => {
                write!(f, "group of {}, errors to {owner}", members.len())
            }
            Decision::Relay { host, address } => write!(f, "relay {address} to [{host}]"),
            Decision::Foreign => f.write_str("not ours"),
            Decision::NoSuchUser => f.write_str("no such user"),
        }
    }
}
