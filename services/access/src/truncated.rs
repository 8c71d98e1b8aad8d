//! INBOXes with more mails than POP3 shows: an operator hears of them as long as their owners come
//! and look.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hikyaku_mail::id::AccountId;
use tokio::time::Instant;

/// Accounts remembered; of more than these only some are named.
const ACCOUNTS_MAX: usize = 1_000;
/// Lines said about them.
const LINES_MAX: usize = 5;
/// An account whose owner has not logged in for so long is not spoken of any more.
const REMEMBERED: Duration = Duration::from_secs(24 * 3_600);

/// What the last login of an account saw.
#[derive(Debug)]
struct Seen {
    mails: usize,
    shown: usize,
    at: Instant,
}

/// The accounts whose maildrops were cut. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Truncated(Arc<Mutex<BTreeMap<AccountId, Seen>>>);

impl Truncated {
    /// A login of `account`, whose INBOX has `mails`, is shown the first `shown` of them.
    pub fn note(&self, account: &AccountId, mails: usize, shown: usize) {
        let mut accounts = self.accounts();
        if mails <= shown {
            accounts.remove(account);
            return;
        }
        if accounts.len() >= ACCOUNTS_MAX && !accounts.contains_key(account) {
            return;
        }
        let at = Instant::now();
        accounts.insert(account.clone(), Seen { mails, shown, at });
    }

    /// A line for each account, as far as there are not too many.
    pub fn alarms(&self) -> Vec<String> {
        let mut accounts = self.accounts();
        accounts.retain(|_, seen| seen.at.elapsed() < REMEMBERED);
        let lines = accounts.iter().take(LINES_MAX);
        let mut lines: Vec<String> = lines
            .map(|(account, Seen { mails, shown, .. })| {
                format!("the INBOX of {account} has {mails} mails and POP3 shows the oldest {shown} (pop3.memory_bytes_max)")
            })
            .collect();
        let more = accounts.len().saturating_sub(LINES_MAX);
        if more > 0 {
            lines.push(format!(
                "of {more} further INBOXes POP3 shows the oldest mails only"
            ));
        }
        lines
    }

    fn accounts(&self) -> MutexGuard<'_, BTreeMap<AccountId, Seen>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::{ACCOUNTS_MAX, REMEMBERED, Truncated};

    #[tokio::test(start_paused = true)]
    async fn an_alarm_lasts_as_long_as_mails_are_hidden_from_somebody_who_comes() {
        let truncated = Truncated::default();
        let (alice, bob) = ("alice".parse().unwrap(), "bob".parse().unwrap());
        truncated.note(&alice, 10, 10);
        assert!(truncated.alarms().is_empty());
        truncated.note(&alice, 11, 10);
        truncated.note(&bob, 30, 10);
        let lines = truncated.alarms();
        assert_eq!(
            lines,
            [
                "the INBOX of alice has 11 mails and POP3 shows the oldest 10 (pop3.memory_bytes_max)",
                "the INBOX of bob has 30 mails and POP3 shows the oldest 10 (pop3.memory_bytes_max)"
            ]
        );
        truncated.note(&alice, 9, 9);
        assert_eq!(truncated.alarms(), lines[1..]);
        tokio::time::advance(REMEMBERED).await;
        assert!(truncated.alarms().is_empty());
    }

    #[test]
    fn many_accounts_make_few_lines() {
        let truncated = Truncated::default();
        for number in 0..2 * ACCOUNTS_MAX {
            truncated.note(&format!("account-{number}").parse().unwrap(), 2, 1);
        }
        let lines = truncated.alarms();
        assert_eq!(lines.len(), 6);
        assert_eq!(
            lines[5],
            "of 995 further INBOXes POP3 shows the oldest mails only"
        );
    }
}
