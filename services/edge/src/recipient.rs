//! RCPT: who is this, and may mail for them be accepted here?
//!
//! A forward is followed far enough to see whether it leaves this site; the expansion itself is the queue's business.
//! Groups are taken without looking at their members. RFC 5321 sections 3.3 and 4.2.4; codes of RFC 3463.

use std::collections::BTreeSet;

use hikyaku_directory::{Decision, Directory, Resolution};
use hikyaku_mail::path::{ForwardPath, Mailbox};
use hikyaku_mail::reply::{Rejection, Reply};
use hikyaku_proto::v1::recipient::Target;
use hikyaku_proto::v1::{ExpandTarget, LocalTarget, Recipient};
use hikyaku_smtp::command::RcptParameters;

use crate::quota;

/// Forwards followed at RCPT; a longer chain is a configuration mistake.
const FORWARDS_MAX: usize = 10;

/// An accepted recipient and whose customer it is.
#[derive(Clone, Debug)]
pub struct Accepted {
    /// As it goes into the `Accept` record.
    pub recipient: Recipient,
    /// The tenant of the address.
    pub tenant: String,
    /// The mailbox it comes to, where that is one.
    pub mailbox: Option<quota::Mailbox>,
}

/// Decides about `path`.
///
/// # Errors
/// The refusal: 550 only where the directory said a definite no.
pub async fn decide(directory: &dyn Directory, path: &ForwardPath) -> Result<Accepted, Rejection> {
    let address = match path {
        ForwardPath::Path(mailbox) => mailbox.clone(),
        ForwardPath::Postmaster => directory.postmaster(),
    };
    let resolution = resolve(directory, &address).await?;
    let tenant = resolution.tenant.as_deref().unwrap_or_default().to_owned();
    route(directory, address, resolution, &tenant)
        .await
        .map_err(|rejection| rejection.of_tenant(&tenant))
}

/// What the directory's answer comes to.
async fn route(
    directory: &dyn Directory,
    address: Mailbox,
    resolution: Resolution,
    tenant: &str,
) -> Result<Accepted, Rejection> {
    let accepted = |address: &Mailbox, target, mailbox| Accepted {
        recipient: Recipient {
            address: address.to_string(),
            target: Some(target),
            ..Recipient::default()
        },
        tenant: tenant.to_owned(),
        mailbox,
    };
    match resolution.decision {
        Decision::Local {
            account,
            delivered_to,
        } if account.state.takes_mail() => {
            let target = LocalTarget {
                account: account.id.to_string(),
                tenant: account.tenant.to_string(),
                mbox: account.mbox.to_string(),
            };
            let mailbox = quota::Mailbox::from(&account);
            Ok(accepted(
                &delivered_to,
                Target::Local(target),
                Some(mailbox),
            ))
        }
        Decision::Local { .. } => {
            let reply = Reply::new(550, (5, 2, 1), "mailbox is disabled");
            Err(Rejection::new(reply, "the account does not take mail"))
        }
        Decision::Group { .. } => Ok(accepted(
            &address,
            Target::Expand(ExpandTarget::default()),
            None,
        )),
        Decision::Forward { ref to } => {
            let mailbox = follow(directory, &resolution, to.clone()).await?;
            Ok(accepted(
                &address,
                Target::Expand(ExpandTarget::default()),
                mailbox,
            ))
        }
        Decision::Relay { host, .. } => Err(no_outbound(format!("mailHost {host} is not ours"))),
        Decision::Foreign => Err(Rejection::new(
            Reply::new(550, (5, 7, 1), "relaying denied"),
            "the domain is not ours",
        )),
        Decision::NoSuchUser => Err(Rejection::new(
            Reply::new(550, (5, 1, 1), "no such user here"),
            resolution.rule.to_string(),
        )),
    }
}

/// Notes what the sender wants to hear about the recipient (RFC 3461 section 4).
pub(crate) fn note(accepted: &mut Accepted, rcpt: &RcptParameters) {
    let recipient = &mut accepted.recipient;
    recipient.notify = rcpt
        .notify
        .map(|notify| notify.to_string())
        .unwrap_or_default();
    recipient.original_recipient = rcpt.original_recipient.clone().unwrap_or_default();
}

async fn resolve(directory: &dyn Directory, address: &Mailbox) -> Result<Resolution, Rejection> {
    directory
        .resolve(address)
        .await
        .map_err(|unavailable| Rejection::new(unavailable.reply(), unavailable.reason))
}

/// Follows a forward to its end, the mailbox if it is one; an error when it cannot be delivered here now.
async fn follow(
    directory: &dyn Directory,
    from: &Resolution,
    first: Mailbox,
) -> Result<Option<quota::Mailbox>, Rejection> {
    let mut seen: BTreeSet<Option<String>> = BTreeSet::from([from.entry.clone()]);
    let mut to = first;
    for _ in 0..FORWARDS_MAX {
        let next = resolve(directory, &to).await?;
        match next.decision {
            Decision::Local { account, .. } if account.state.takes_mail() => {
                return Ok(Some(quota::Mailbox::from(&account)));
            }
            Decision::Group { .. } => return Ok(None),
            Decision::Local { .. } => {
                return Err(misconfigured(format!(
                    "it forwards to {to}, which is disabled"
                )));
            }
            Decision::NoSuchUser => {
                return Err(misconfigured(format!(
                    "it forwards to {to}, who does not exist"
                )));
            }
            Decision::Relay { host, .. } => {
                return Err(no_outbound(format!("it forwards to {to} at {host}")));
            }
            Decision::Foreign => return Err(no_outbound(format!("it forwards to {to}"))),
            Decision::Forward { to: further } if seen.insert(next.entry) => to = further,
            Decision::Forward { .. } => {
                return Err(misconfigured(format!("its forwards lead back to {to}")));
            }
        }
    }
    Err(misconfigured(format!("more than {FORWARDS_MAX} forwards")))
}

/// A known user whose mail would leave: nothing sends mail out yet, and the user is not to blame.
fn no_outbound(reason: String) -> Rejection {
    Rejection::new(
        Reply::new(450, (4, 3, 2), "cannot be forwarded now, try again later"),
        reason,
    )
}

/// The directory contradicts itself: our fault, so never permanent.
fn misconfigured(reason: String) -> Rejection {
    Rejection::new(
        Reply::new(450, (4, 3, 5), "cannot be routed now, try again later"),
        reason,
    )
}
