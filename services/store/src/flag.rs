//! Flags as bits, keywords as bits of a table that each mailbox keeps (RFC 9051 section 2.3.2).

/// The system flags, by bit.
const SYSTEM: [(&str, u32); 5] = [
    ("\\Seen", SEEN),
    ("\\Answered", 2),
    ("\\Flagged", 4),
    ("\\Deleted", 8),
    ("\\Draft", 16),
];
/// The bit of `\Seen`, which the unseen counter follows.
pub const SEEN: u32 = 1;
/// Different keywords in one mailbox: the bits there are.
pub const KEYWORDS_MAX: usize = 64;
/// The longest keyword, in octets.
pub const KEYWORD_BYTES_MAX: usize = 64;
/// Flags named in one command.
const NAMED_MAX: usize = 256;

/// Flags and keywords of a message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags {
    /// System flags.
    pub system: u32,
    /// Bit n is the n-th keyword of the mailbox.
    pub keywords: u64,
}

/// Why names do not become flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlagError {
    /// A name is no system flag and no keyword.
    NotAFlag,
    /// The mailbox has too many keywords already.
    TooManyKeywords,
}

/// The flags called `names`. Unknown keywords enter `table` when `create`, and are left out otherwise.
///
/// # Errors
/// As [`FlagError`] says; the table may have grown.
pub fn parse(names: &[String], table: &mut Vec<String>, create: bool) -> Result<Flags, FlagError> {
    if names.len() > NAMED_MAX {
        return Err(FlagError::NotAFlag);
    }
    let mut flags = Flags::default();
    for name in names {
        if name.starts_with('\\') {
            let known = SYSTEM
                .iter()
                .find(|(flag, _)| flag.eq_ignore_ascii_case(name));
            let (_, bit) = known.ok_or(FlagError::NotAFlag)?;
            flags.system |= bit;
            continue;
        }
        if !is_keyword(name) {
            return Err(FlagError::NotAFlag);
        }
        let index = match table
            .iter()
            .position(|known| known.eq_ignore_ascii_case(name))
        {
            Some(index) => index,
            None if !create => continue,
            None if table.len() >= KEYWORDS_MAX => return Err(FlagError::TooManyKeywords),
            None => {
                table.push(name.clone());
                table.len() - 1
            }
        };
        flags.keywords |= 1 << index;
    }
    Ok(flags)
}

/// The names of `flags`.
pub fn names(flags: Flags, table: &[String]) -> Vec<String> {
    let system = SYSTEM
        .iter()
        .filter(|(_, bit)| flags.system & bit != 0)
        .map(|(name, _)| (*name).to_owned());
    let keywords = table
        .iter()
        .take(KEYWORDS_MAX)
        .enumerate()
        .filter(|(index, _)| flags.keywords >> index & 1 != 0)
        .map(|(_, name)| name.clone());
    system.chain(keywords).collect()
}

/// RFC 9051 section 9: flag-keyword is an atom.
pub(crate) fn is_keyword(name: &str) -> bool {
    (1..=KEYWORD_BYTES_MAX).contains(&name.len())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_graphic() && !b"(){%*\"\\]".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::{FlagError, Flags, KEYWORDS_MAX, names, parse};

    fn owned(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn names_become_bits_and_names_again() {
        let mut table = owned(&["$Junk"]);
        let flags = parse(&owned(&["\\SEEN", "$junk", "Work"]), &mut table, true).unwrap();
        assert_eq!(
            flags,
            Flags {
                system: 1,
                keywords: 3
            }
        );
        assert_eq!(names(flags, &table), owned(&["\\Seen", "$Junk", "Work"]));
        let removed = parse(&owned(&["nobody-knows"]), &mut table, false).unwrap();
        assert_eq!(removed, Flags::default());
        assert_eq!(table.len(), 2);
    }

    #[test]
    fn what_is_no_flag_is_refused() {
        let mut table = Vec::new();
        for bad in ["\\Recent", "", "two words", "a]", "b\"", "ü"] {
            let parsed = parse(&owned(&[bad]), &mut table, true);
            assert_eq!(parsed, Err(FlagError::NotAFlag), "{bad}");
        }
        let many: Vec<String> = (0..=KEYWORDS_MAX).map(|n| format!("k{n}")).collect();
        assert_eq!(
            parse(&many, &mut table, true),
            Err(FlagError::TooManyKeywords)
        );
    }
}
