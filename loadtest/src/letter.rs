//! One message of a load: who sends it, who gets it and how big it is follow from the seed and its number alone, so
//! that a load is the same whoever sends it, and at every attempt.

use crate::ledger::AttemptId;
use crate::message::{self, Draft};
use crate::random::Random;
use crate::run::{Recipients, RunOptions, Senders};

/// One message, ready to be sent.
pub(crate) struct Letter<'a> {
    pub(crate) id: AttemptId,
    pub(crate) reverse_path: &'a str,
    /// Places in the users.
    pub(crate) rcpts: Vec<usize>,
    pub(crate) hash: String,
    pub(crate) size: u64,
}

/// Where messages are written; used again and again.
#[derive(Default)]
pub(crate) struct Paper {
    content: Vec<u8>,
    /// The message dot-stuffed, with its dot line.
    pub(crate) wire: Vec<u8>,
}

impl Paper {
    /// Draws the next attempt at a message from its sequence, and writes it.
    pub(crate) fn write<'a>(
        &mut self,
        options: &'a RunOptions,
        number: u64,
        random: &mut Random,
    ) -> anyhow::Result<Letter<'a>> {
        let id = AttemptId::random()?;
        let users = &options.users;
        let reverse_path = match &options.senders {
            Senders::Null => "",
            Senders::Fixed(address) => address,
            Senders::Users => &users[random.below(users.len())].address,
        };
        let rcpts = recipients(options, number, random);
        let draft = Draft {
            id,
            size: options.mix.pick(random),
            reverse_path,
            rcpt: rcpts.first().map_or("", |at| &users[*at].address),
            at_ms: crate::now_ms(),
        };
        message::compose(&draft, &mut self.content);
        message::stuff(&self.content, &mut self.wire);
        Ok(Letter {
            id,
            reverse_path,
            rcpts,
            hash: blake3::hash(&self.content).to_hex().to_string(),
            size: self.content.len() as u64,
        })
    }
}

/// Different users; any pair can meet.
fn recipients(options: &RunOptions, number: u64, random: &mut Random) -> Vec<usize> {
    let users = options.users.len();
    let wanted = options.recipients_per_message;
    if options.recipients == Recipients::InTurn {
        let first = usize::try_from(number % users as u64).unwrap_or(0) * wanted;
        return (first..first + wanted).map(|at| at % users).collect();
    }
    let mut chosen: Vec<usize> = Vec::with_capacity(wanted);
    while chosen.len() < wanted {
        let mut at = random.below(users);
        while chosen.contains(&at) {
            at = (at + 1) % users;
        }
        chosen.push(at);
    }
    chosen
}
