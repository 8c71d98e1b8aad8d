//! How big messages are: one size, or a mix of size classes by share.

use std::fmt;
use std::str::FromStr;

use anyhow::{Context, bail, ensure};

use crate::random::Random;

/// The smallest message: the headers that carry the ledger id, and one body line.
pub const SIZE_MIN: usize = 700;
/// The largest message the generator makes; one such buffer per session is its memory.
pub const SIZE_MAX: usize = 64 << 20;

/// What an ISP's traffic looks like: mostly small, a few big.
const USUAL: &str = "70:1K-10K,20:10K-100K,8:100K-300K,2:1M-2M";

/// Shares of size classes; within a class sizes are log-uniform.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SizeMix {
    text: String,
    /// (share, smallest, largest) in bytes.
    classes: Vec<(usize, usize, usize)>,
    shares: usize,
}

impl SizeMix {
    /// The size of the next message.
    pub fn pick(&self, random: &mut Random) -> usize {
        let mut at = random.below(self.shares);
        for &(share, low, high) in &self.classes {
            if at >= share {
                at -= share;
                continue;
            }
            let ratio = high as f64 / low as f64;
            return ((low as f64 * ratio.powf(random.unit())) as usize).clamp(low, high);
        }
        SIZE_MIN
    }

    /// The largest size that can occur.
    pub fn size_max(&self) -> usize {
        self.classes.iter().map(|c| c.2).max().unwrap_or(SIZE_MIN)
    }
}

impl fmt::Display for SizeMix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// `mix`, `10240`, `10K`, or `SHARE:LOW-HIGH,...` such as `90:1K-10K,10:1M-2M`.
impl FromStr for SizeMix {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<SizeMix> {
        let written = if text == "mix" { USUAL } else { text };
        let mut classes = Vec::new();
        for part in written.split(',') {
            let Some((share, range)) = part.split_once(':') else {
                let size = bytes(part)?;
                classes.push((1, size, size));
                continue;
            };
            let (low, high) = range.split_once('-').unwrap_or((range, range));
            let share = share
                .parse()
                .with_context(|| format!("share {share:?} in size mix"))?;
            let (low, high) = (bytes(low)?, bytes(high)?);
            ensure!(low <= high, "size class {part:?} is upside down");
            classes.push((share, low, high));
        }
        let shares = classes.iter().map(|c| c.0).sum();
        ensure!(shares > 0, "size mix {text:?} has no share above zero");
        let text = if text == "mix" {
            format!("mix({USUAL})")
        } else {
            text.to_owned()
        };
        Ok(SizeMix {
            text,
            classes,
            shares,
        })
    }
}

fn bytes(text: &str) -> anyhow::Result<usize> {
    let text = text.trim();
    let (digits, unit) = match text.as_bytes().last() {
        Some(b'K' | b'k') => (&text[..text.len() - 1], 1 << 10),
        Some(b'M' | b'm') => (&text[..text.len() - 1], 1 << 20),
        _ => (text, 1),
    };
    let Ok(number) = digits.parse::<usize>() else {
        bail!("size {text:?} is not a number of bytes, or one with K or M behind it")
    };
    let size = number.saturating_mul(unit);
    ensure!(
        (SIZE_MIN..=SIZE_MAX).contains(&size),
        "size {text:?} is outside {SIZE_MIN}..{SIZE_MAX} bytes"
    );
    Ok(size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_size_is_that_size() {
        let mix: SizeMix = "10K".parse().unwrap();
        assert_eq!(mix.pick(&mut Random::new(1)), 10240);
        assert_eq!("10240".parse::<SizeMix>().unwrap().size_max(), 10240);
    }

    #[test]
    fn the_mix_has_its_shares() {
        let mix: SizeMix = "mix".parse().unwrap();
        let mut random = Random::new(7);
        let sizes: Vec<usize> = (0..100_000).map(|_| mix.pick(&mut random)).collect();
        let share =
            |low, high| sizes.iter().filter(|s| (low..=high).contains(*s)).count() as f64 / 1000.0;
        assert!((share(1 << 10, (10 << 10) - 1) - 70.0).abs() < 1.0);
        assert!((share(10 << 10, (100 << 10) - 1) - 20.0).abs() < 1.0);
        assert!((share(100 << 10, 300 << 10) - 8.0).abs() < 0.5);
        assert!((share(1 << 20, 2 << 20) - 2.0).abs() < 0.3);
    }

    #[test]
    fn nonsense_is_refused() {
        for bad in [
            "", "ten", "0", "100", "10G", "1:5K-1K", "0:1K-2K", "x:1K", "1000M",
        ] {
            assert!(bad.parse::<SizeMix>().is_err(), "{bad}");
        }
    }
}
