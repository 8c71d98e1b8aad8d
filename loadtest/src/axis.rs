//! The scales of a picture: from values to places on the paper, and which values are marked.

use std::fmt::Write as _;

/// About how far apart marks are, on the paper.
const MARK_EVERY: f64 = 75.0;
/// Marks nearer than this would run into each other.
const MARK_NEAREST: f64 = 30.0;
/// A logarithmic scale of more decades has marks at whole decades only.
const DECADES_FINE: f64 = 2.5;
/// The smallest value of a logarithmic scale.
const LEAST: f64 = 1e-3;

/// A scale.
#[derive(Debug, Clone)]
pub(crate) struct Axis {
    pub(crate) values: (f64, f64),
    pub(crate) paper: (f64, f64),
    logarithmic: bool,
    marks: Vec<f64>,
}

impl Axis {
    /// From 0 to a round value that is not below `most`.
    pub(crate) fn linear(most: f64, paper: (f64, f64)) -> Axis {
        let marks = (paper.1 - paper.0).abs() / MARK_EVERY;
        let step = round_up(most.max(1.0) / marks.max(1.0));
        let steps = (most.max(1.0) / step * 0.9999).ceil();
        Axis {
            values: (0.0, steps * step),
            paper,
            logarithmic: false,
            marks: (0..=steps as u32).map(|n| f64::from(n) * step).collect(),
        }
    }

    /// From the last of 1, 2, 5 times a power of ten that is not above `least` to the first that is not below `most`.
    pub(crate) fn logarithmic(least: f64, most: f64, paper: (f64, f64)) -> Axis {
        let least = least.max(LEAST);
        let powers = least.log10().floor() as i32..=most.max(least).log10().floor() as i32 + 1;
        let round: Vec<f64> = powers
            .flat_map(|power| [1.0, 2.0, 5.0].map(|factor| factor * 10f64.powi(power)))
            .collect();
        let low = round.iter().rfind(|v| **v <= least * 1.0001);
        let low = low.copied().unwrap_or(least);
        let high = round.iter().find(|v| **v >= most * 0.9999 && **v > low);
        let high = high.copied().unwrap_or(low * 10.0);
        let fine = (high / low).log10() <= DECADES_FINE;
        let decade = |value: f64| (value.log10() - value.log10().round()).abs() < 1e-6;
        Axis {
            values: (low, high),
            paper,
            logarithmic: true,
            marks: round
                .into_iter()
                .filter(|v| (low..=high).contains(v) && (fine || decade(*v)))
                .collect(),
        }
    }

    /// Logarithmic from the first to the last of some rising values, and marked at these.
    pub(crate) fn of(values: &[f64], paper: (f64, f64)) -> Axis {
        let low = values.first().copied().unwrap_or(1.0).max(LEAST);
        let high = values.last().copied().unwrap_or(low);
        let mut axis = Axis {
            values: (low, if high > low { high } else { low * 2.0 }),
            paper,
            logarithmic: true,
            marks: Vec::new(),
        };
        for value in values {
            let place = axis.place(*value);
            let last = axis.marks.last().map(|last| axis.place(*last));
            if last.is_none_or(|last| (place - last).abs() >= MARK_NEAREST) {
                axis.marks.push(*value);
            }
        }
        axis
    }

    /// Where a value is.
    pub(crate) fn place(&self, value: f64) -> f64 {
        let scale = |v: f64| {
            if self.logarithmic {
                v.max(LEAST).log10()
            } else {
                v
            }
        };
        let (low, high) = (scale(self.values.0), scale(self.values.1));
        let share = (scale(value) - low) / (high - low);
        self.paper.0 + share.clamp(0.0, 1.0) * (self.paper.1 - self.paper.0)
    }

    /// The values to be marked.
    pub(crate) fn marks(&self) -> &[f64] {
        &self.marks
    }
}

/// The next of 1, 2, 2.5, 5 times a power of ten.
fn round_up(value: f64) -> f64 {
    let power = 10f64.powf(value.max(1e-9).log10().floor());
    [1.0, 2.0, 2.5, 5.0, 10.0]
        .into_iter()
        .map(|factor| factor * power)
        .find(|step| *step >= value * 0.9999)
        .unwrap_or(10.0 * power)
}

/// 12000 as 12,000; 0.1 as 0.1.
pub(crate) fn number(value: f64) -> String {
    if value < 1.0 && value > 0.0 {
        let text = format!("{value:.3}");
        return text.trim_end_matches('0').to_owned();
    }
    let whole = value.trunc();
    let digits = format!("{whole:.0}");
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    if value - whole > 0.05 {
        let _ = write!(
            text,
            "{}",
            format!("{:.1}", value - whole).trim_start_matches('0')
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn higher_is_higher() {
        let axis = Axis::logarithmic(1.3, 900.0, (700.0, 400.0));
        assert_eq!(axis.values, (1.0, 1000.0));
        assert_eq!(axis.marks(), [1.0, 10.0, 100.0, 1000.0]);
        assert!((axis.place(1.0) - 700.0).abs() < 1e-6);
        assert!((axis.place(10.0) - 600.0).abs() < 1e-6);
        assert!((axis.place(1000.0) - 400.0).abs() < 1e-6);
        let fine = Axis::logarithmic(2.2, 48.0, (0.0, 100.0));
        assert_eq!(fine.marks(), [2.0, 5.0, 10.0, 20.0, 50.0]);
        let rates = Axis::linear(3900.0, (0.0, 600.0));
        assert_eq!(rates.marks().last(), Some(&4000.0));
        assert_eq!((rates.place(0.0), rates.place(4000.0)), (0.0, 600.0));
    }

    #[test]
    fn nothing_and_one_value_have_a_scale_too() {
        for axis in [
            Axis::linear(0.0, (0.0, 100.0)),
            Axis::logarithmic(0.0, 0.0, (0.0, 100.0)),
            Axis::logarithmic(5.0, 5.0, (0.0, 100.0)),
            Axis::of(&[], (0.0, 100.0)),
            Axis::of(&[8.0], (0.0, 100.0)),
        ] {
            assert!(axis.values.1 > axis.values.0, "{axis:?}");
            assert!((0.0..=100.0).contains(&axis.place(8.0)), "{axis:?}");
        }
    }

    #[test]
    fn marks_at_given_values_do_not_run_into_each_other() {
        let axis = Axis::of(&[1.0, 2.0, 3.0, 4.0, 64.0], (0.0, 100.0));
        assert_eq!(axis.marks(), [1.0, 4.0, 64.0]);
    }

    #[test]
    fn numbers_are_readable() {
        for (value, text) in [
            (0.0, "0"),
            (0.1, "0.1"),
            (0.05, "0.05"),
            (250.0, "250"),
            (12_000.0, "12,000"),
            (1e6, "1,000,000"),
            (2.5, "2.5"),
            (4999.7, "4,999.7"),
        ] {
            assert_eq!(number(value), text);
        }
    }
}
