//! The picture of a saturation sweep, as SVG: accepted against offered rate above, latency against offered rate below.

use std::fmt::Write as _;

/// The whole picture.
const SIZE: (f64, f64) = (860.0, 800.0);
/// Left and right edge of both panels.
const X: (f64, f64) = (90.0, 830.0);
/// Top and bottom of the panel of rates.
const RATES: (f64, f64) = (130.0, 410.0);
/// Top and bottom of the panel of latencies.
const LATENCIES: (f64, f64) = (460.0, 720.0);
/// About how many marks an axis has.
const MARKS: f64 = 8.0;
/// The widest line of notes, in characters.
const NOTE_MAX: usize = 130;

const ACCEPTED: &str = "#1f5fa8";
const P50: &str = "#2e8b57";
const P99: &str = "#c0392b";

/// One offered rate.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Dot {
    /// Messages per second.
    pub(crate) offered: f64,
    /// Messages per second.
    pub(crate) accepted: f64,
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
    /// The generator kept up.
    pub(crate) sound: bool,
}

/// A scale: from values to places on the paper.
#[derive(Clone, Copy)]
struct Axis {
    values: (f64, f64),
    paper: (f64, f64),
    logarithmic: bool,
}

impl Axis {
    fn place(&self, value: f64) -> f64 {
        let scale = |v: f64| {
            if self.logarithmic {
                v.max(1e-9).log10()
            } else {
                v
            }
        };
        let (low, high) = (scale(self.values.0), scale(self.values.1));
        let share = (scale(value) - low) / (high - low);
        self.paper.0 + share * (self.paper.1 - self.paper.0)
    }

    fn marks(&self) -> Vec<f64> {
        let (low, high) = self.values;
        if self.logarithmic {
            let decades = low.log10().round() as i32..=high.log10().round() as i32;
            return decades.map(|d| 10f64.powi(d)).collect();
        }
        let step = round_up((high - low) / MARKS);
        (0..)
            .map(|n| low + f64::from(n) * step)
            .take_while(|value| *value <= high * 1.0001)
            .collect()
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

/// Draws the sweep. `title` and `notes` stand above; nothing is drawn for no dots.
pub(crate) fn draw(title: &str, notes: &[String], dots: &[Dot]) -> String {
    let (width, height) = SIZE;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"13\" fill=\"#222\">\n<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n"
    );
    text(
        &mut svg,
        (X.0, 30.0),
        "start",
        "font-size=\"18\" font-weight=\"bold\"",
        title,
    );
    for (line, note) in wrapped(notes).iter().take(4).enumerate() {
        let y = 50.0 + 15.0 * line as f64;
        text(
            &mut svg,
            (X.0, y),
            "start",
            "font-size=\"11\" fill=\"#555\"",
            note,
        );
    }
    let most = |of: fn(&Dot) -> f64| dots.iter().map(of).fold(0.0, f64::max);
    let top = |value: f64| {
        let step = round_up(value.max(1.0) / MARKS);
        (value.max(1.0) / step).ceil() * step
    };
    let x = Axis {
        values: (0.0, top(most(|d| d.offered))),
        paper: X,
        logarithmic: false,
    };
    let rates = Axis {
        values: (0.0, top(most(|d| d.accepted.max(d.offered)))),
        paper: (RATES.1, RATES.0),
        logarithmic: false,
    };
    let least = dots
        .iter()
        .map(|d| d.p50_ms)
        .fold(1000.0, f64::min)
        .max(0.01);
    let latencies = Axis {
        values: (
            10f64.powf(least.log10().floor()),
            10f64.powf(most(|d| d.p99_ms).max(1.0).log10().floor() + 1.0),
        ),
        paper: (LATENCIES.1, LATENCIES.0),
        logarithmic: true,
    };
    grid(&mut svg, &x, &rates, "accepted, messages/s");
    grid(&mut svg, &x, &latencies, "due to 250, ms (logarithmic)");
    let label = "offered, messages/s (Poisson arrivals)";
    text(
        &mut svg,
        ((X.0 + X.1) / 2.0, LATENCIES.1 + 42.0),
        "middle",
        "",
        label,
    );
    let _ = writeln!(
        svg,
        "<line x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\" stroke=\"#999\" stroke-dasharray=\"6 4\"/>",
        x.place(0.0),
        rates.place(0.0),
        x.place(x.values.1.min(rates.values.1)),
        rates.place(x.values.1.min(rates.values.1)),
    );
    curve(&mut svg, dots, ACCEPTED, |d| {
        (x.place(d.offered), rates.place(d.accepted))
    });
    curve(&mut svg, dots, P50, |d| {
        (x.place(d.offered), latencies.place(d.p50_ms))
    });
    curve(&mut svg, dots, P99, |d| {
        (x.place(d.offered), latencies.place(d.p99_ms))
    });
    let legend = [
        (RATES.0, ACCEPTED, "accepted"),
        (RATES.0 + 18.0, "#999", "all that was offered"),
        (LATENCIES.0, P50, "p50"),
        (LATENCIES.0 + 18.0, P99, "p99"),
    ];
    for (y, colour, what) in legend {
        let y = y + 16.0;
        let _ = writeln!(
            svg,
            "<line x1=\"{0}\" y1=\"{y}\" x2=\"{1}\" y2=\"{y}\" stroke=\"{colour}\" stroke-width=\"2.5\"/>",
            X.0 + 12.0,
            X.0 + 36.0
        );
        text(&mut svg, (X.0 + 42.0, y + 4.0), "start", "", what);
    }
    if dots.iter().any(|dot| !dot.sound) {
        let note = "hollow: the generator itself did not keep up";
        text(
            &mut svg,
            (X.1, LATENCIES.1 + 62.0),
            "end",
            "font-size=\"11\" fill=\"#555\"",
            note,
        );
    }
    svg.push_str("</svg>\n");
    svg
}

/// Frame, grid lines, marks and the name of the vertical axis of one panel.
fn grid(svg: &mut String, x: &Axis, y: &Axis, name: &str) {
    let (bottom, top) = y.paper;
    let _ = writeln!(
        svg,
        "<rect x=\"{}\" y=\"{top}\" width=\"{}\" height=\"{}\" fill=\"none\" stroke=\"#444\"/>",
        X.0,
        X.1 - X.0,
        bottom - top
    );
    for value in x.marks() {
        let at = x.place(value);
        let _ = writeln!(
            svg,
            "<line x1=\"{at:.1}\" y1=\"{top}\" x2=\"{at:.1}\" y2=\"{bottom}\" stroke=\"#e4e4e4\"/>"
        );
        text(svg, (at, bottom + 18.0), "middle", "", &number(value));
    }
    for value in y.marks() {
        let at = y.place(value);
        let _ = writeln!(
            svg,
            "<line x1=\"{}\" y1=\"{at:.1}\" x2=\"{}\" y2=\"{at:.1}\" stroke=\"#e4e4e4\"/>",
            X.0, X.1
        );
        text(svg, (X.0 - 8.0, at + 4.0), "end", "", &number(value));
    }
    let middle = (top + bottom) / 2.0;
    let turned = format!("transform=\"rotate(-90 24 {middle})\"");
    text(svg, (24.0, middle), "middle", &turned, name);
}

/// A line through the dots, and a circle at each.
fn curve(svg: &mut String, dots: &[Dot], colour: &str, place: impl Fn(&Dot) -> (f64, f64)) {
    let points: Vec<String> = dots
        .iter()
        .map(|dot| {
            let (x, y) = place(dot);
            format!("{x:.1},{y:.1}")
        })
        .collect();
    let _ = writeln!(
        svg,
        "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>",
        points.join(" ")
    );
    for dot in dots {
        let (x, y) = place(dot);
        let fill = if dot.sound { colour } else { "#fff" };
        let _ = writeln!(
            svg,
            "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4\" fill=\"{fill}\" stroke=\"{colour}\" stroke-width=\"1.5\"/>"
        );
    }
}

fn text(svg: &mut String, (x, y): (f64, f64), anchor: &str, more: &str, words: &str) {
    let words = words
        .replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;");
    let _ = writeln!(
        svg,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" {more}>{words}</text>"
    );
}

/// 12000 as 12,000; 0.1 as 0.1.
fn number(value: f64) -> String {
    if value < 1.0 && value > 0.0 {
        return format!("{value}");
    }
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    if value.fract() > 1e-9 {
        let _ = write!(
            text,
            "{}",
            format!("{:.1}", value.fract()).trim_start_matches('0')
        );
    }
    text
}

/// Breaks the notes into lines that fit.
fn wrapped(notes: &[String]) -> Vec<String> {
    let mut lines = Vec::new();
    for note in notes {
        let mut line = String::new();
        for word in note.split(' ') {
            if !line.is_empty() && line.len() + word.len() >= NOTE_MAX {
                lines.push(std::mem::take(&mut line));
            }
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
        lines.push(line);
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dots() -> Vec<Dot> {
        [
            (500.0, 499.0, 2.0),
            (2000.0, 1990.0, 9.0),
            (8000.0, 4100.0, 2300.0),
        ]
        .into_iter()
        .map(|(offered, accepted, p99_ms)| Dot {
            offered,
            accepted,
            p50_ms: p99_ms / 3.0,
            p99_ms,
            sound: offered < 8000.0,
        })
        .collect()
    }

    /// Every tag that is opened is closed, and every place lies on the paper.
    #[test]
    fn it_is_whole_and_on_the_paper() {
        let svg = draw("a <b> & c", &["sizes".to_owned()], &dots());
        assert!(svg.starts_with("<svg ") && svg.trim_end().ends_with("</svg>"));
        assert!(svg.contains("a &lt;b&gt; &amp; c"));
        assert_eq!(svg.matches("<text").count(), svg.matches("</text>").count());
        assert_eq!(svg.matches("<circle").count(), 9);
        for said in [
            "accepted, messages/s",
            "due to 250, ms",
            "offered, messages/s",
            "8,000",
            "hollow",
        ] {
            assert!(svg.contains(said), "{said}");
        }
        for (attribute, limit) in [
            (" x=\"", SIZE.0),
            (" cx=\"", SIZE.0),
            (" y=\"", SIZE.1),
            (" cy=\"", SIZE.1),
        ] {
            for part in svg.split(attribute).skip(1) {
                let place: f64 = part.split('"').next().unwrap().parse().unwrap();
                assert!((0.0..=limit).contains(&place), "{attribute}{place}");
            }
        }
    }

    #[test]
    fn higher_is_higher() {
        let axis = Axis {
            values: (1.0, 1000.0),
            paper: (700.0, 400.0),
            logarithmic: true,
        };
        assert!(
            (axis.place(1.0) - 700.0).abs() < 1e-6 && (axis.place(1000.0) - 400.0).abs() < 1e-6
        );
        assert!((axis.place(10.0) - 600.0).abs() < 1e-6);
        assert_eq!(axis.marks(), [1.0, 10.0, 100.0, 1000.0]);
        let rates = Axis {
            values: (0.0, 4000.0),
            paper: (0.0, 100.0),
            logarithmic: false,
        };
        assert_eq!(rates.marks().last(), Some(&4000.0));
        assert!(draw("nothing", &[], &[]).contains("</svg>"));
    }

    #[test]
    fn numbers_are_readable() {
        for (value, text) in [
            (0.0, "0"),
            (0.1, "0.1"),
            (250.0, "250"),
            (12_000.0, "12,000"),
            (1e6, "1,000,000"),
            (2.5, "2.5"),
        ] {
            assert_eq!(number(value), text);
        }
    }
}
