//! The equation: how many copies of a message each outcome allows its recipient (per attempt and recipient).
//!
//! | outcome | what the client saw | copies + DSNs |
//! |---|---|---|
//! | ACK  | recipient accepted, and the whole 250 line after the dot | exactly 1 |
//! | UNK  | dot sent; no reply, part of one, or a 4xx | at most 1 |
//! | NAK  | refused before the dot, or 5xx after it | 0 |
//! | NONE | the connection ended before the dot | 0 |

use serde::{Deserialize, Serialize};

/// What the client may conclude about one recipient of one attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Class {
    /// Acknowledged: the server has taken responsibility.
    Ack,
    /// Refused: the server has said that it did not take it.
    Nak,
    /// Unknown: the dot was sent and no final word came back.
    Unk,
    /// Nothing was decided, because the dot was never sent.
    None,
}

/// What the sweep found, held against the class.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it must be.
    Balanced,
    /// Unknown, and it arrived: allowed once.
    Appeared,
    /// Acknowledged, and nowhere.
    Lost,
    /// More than one copy, or a copy and a DSN.
    Doubled,
    /// Refused or never sent, and yet there.
    Ghost,
}

/// Judges one recipient of one attempt.
pub fn judge(class: Class, copies: u32, dsns: u32) -> Verdict {
    match (class, copies.saturating_add(dsns)) {
        (Class::Ack, 0) => Verdict::Lost,
        (Class::Ack, 1) | (Class::Unk | Class::Nak | Class::None, 0) => Verdict::Balanced,
        (Class::Unk, 1) => Verdict::Appeared,
        (Class::Ack | Class::Unk, _) => Verdict::Doubled,
        (Class::Nak | Class::None, _) => Verdict::Ghost,
    }
}

/// How many (attempt, recipient) pairs ended in each class.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Classes {
    /// Acknowledged.
    pub ack: u64,
    /// Refused.
    pub nak: u64,
    /// Unknown.
    pub unk: u64,
    /// Nothing decided.
    pub none: u64,
}

impl Classes {
    /// Counts one pair.
    pub fn count(&mut self, class: Class) {
        match class {
            Class::Ack => self.ack += 1,
            Class::Nak => self.nak += 1,
            Class::Unk => self.unk += 1,
            Class::None => self.none += 1,
        }
    }

    /// Adds another session's counts.
    pub fn merge(&mut self, other: Classes) {
        self.ack += other.ack;
        self.nak += other.nak;
        self.unk += other.unk;
        self.none += other.none;
    }
}

#[cfg(test)]
mod tests {
    use super::{Class, Verdict, judge};

    #[test]
    fn the_whole_table() {
        let table = [
            (Class::Ack, 0, 0, Verdict::Lost),
            (Class::Ack, 1, 0, Verdict::Balanced),
            (Class::Ack, 0, 1, Verdict::Balanced),
            (Class::Ack, 1, 1, Verdict::Doubled),
            (Class::Ack, 2, 0, Verdict::Doubled),
            (Class::Ack, 0, 2, Verdict::Doubled),
            (Class::Unk, 0, 0, Verdict::Balanced),
            (Class::Unk, 1, 0, Verdict::Appeared),
            (Class::Unk, 0, 1, Verdict::Appeared),
            (Class::Unk, 2, 0, Verdict::Doubled),
            (Class::Nak, 0, 0, Verdict::Balanced),
            (Class::Nak, 1, 0, Verdict::Ghost),
            (Class::Nak, 0, 1, Verdict::Ghost),
            (Class::None, 0, 0, Verdict::Balanced),
            (Class::None, 1, 0, Verdict::Ghost),
        ];
        for (class, copies, dsns, verdict) in table {
            assert_eq!(
                judge(class, copies, dsns),
                verdict,
                "{class:?} {copies} {dsns}"
            );
        }
    }
}
