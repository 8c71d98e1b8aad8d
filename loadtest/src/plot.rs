//! The picture of a sweep, as SVG: what was accepted above, latencies below; a column for each kind of loop, all on the
//! same scales.

use std::fmt::Write as _;

use crate::axis::{Axis, number};

/// The left edge of the first column, and of each further one from the right edge of the one before.
const BEFORE: f64 = 84.0;
/// Right of the last column.
const AFTER: f64 = 30.0;
/// The width of one column alone, and of each of several.
const WIDTH: (f64, f64) = (740.0, 430.0);
/// Top and bottom of the panels of rates.
const RATES: (f64, f64) = (136.0, 400.0);
/// Top and bottom of the panels of latencies.
const LATENCIES: (f64, f64) = (456.0, 700.0);
const HEIGHT: f64 = 770.0;
/// The first line of notes, and from one to the next.
const NOTES: (f64, f64) = (52.0, 15.0);
/// The most lines of notes.
const NOTES_MAX: usize = 4;
/// About how wide a character of the notes is.
const NOTE_CHARACTER: f64 = 5.9;
/// Room for half of the highest rate, written beside its dot.
const PEAK_WIDTH: f64 = 30.0;

const ACCEPTED: &str = "#1f5fa8";
const P50: &str = "#2e8b57";
const P99: &str = "#c0392b";
const OFFERED: &str = "stroke=\"#999\" stroke-dasharray=\"6 4\"";
const SMALL: &str = "font-size=\"11\" fill=\"#555\"";

/// What is drawn.
pub(crate) struct Picture {
    pub(crate) title: String,
    /// Under which conditions it was found.
    pub(crate) notes: Vec<String>,
    /// At least one of them has dots.
    pub(crate) columns: Vec<Column>,
}

/// One kind of loop.
pub(crate) struct Column {
    pub(crate) heading: String,
    /// What the dots are at.
    pub(crate) across: Across,
    /// In rising order.
    pub(crate) dots: Vec<Dot>,
}

/// What grows from left to right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Across {
    /// Messages due per second in an open loop; latencies count from due.
    Offered,
    /// Sessions of a closed loop; latencies count from DATA.
    Sessions,
}

/// One step of a sweep.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Dot {
    /// Messages per second offered, or sessions.
    pub(crate) at: f64,
    /// Messages per second.
    pub(crate) accepted: f64,
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
    /// The generator kept up.
    pub(crate) sound: bool,
}

impl Across {
    fn axis(self) -> &'static str {
        match self {
            Across::Offered => "offered, messages/s (Poisson arrivals)",
            Across::Sessions => "sessions (logarithmic)",
        }
    }

    fn latency(self) -> &'static str {
        match self {
            Across::Offered => "due to 250, ms (logarithmic)",
            Across::Sessions => "DATA to 250, ms (logarithmic)",
        }
    }

    fn words(self, dot: &Dot) -> String {
        let at = number(dot.at);
        let what = match self {
            Across::Offered => format!("{at}/s offered"),
            Across::Sessions => format!("{at} sessions"),
        };
        format!(
            "{what}: {:.0}/s accepted, p50 {:.1} ms, p99 {:.1} ms",
            dot.accepted, dot.p50_ms, dot.p99_ms
        )
    }
}

impl Picture {
    /// Draws it.
    pub(crate) fn svg(&self) -> String {
        let count = self.columns.len();
        let each = if count > 1 { WIDTH.1 } else { WIDTH.0 };
        let width = count as f64 * (BEFORE + each) + AFTER;
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {HEIGHT}\" width=\"{width}\" height=\"{HEIGHT}\" \
             font-family=\"sans-serif\" font-size=\"13\" fill=\"#222\">\n<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n"
        );
        let title = "font-size=\"18\" font-weight=\"bold\"";
        text(&mut svg, (BEFORE, 30.0), "start", title, &self.title);
        let line_max = ((width - BEFORE - AFTER) / NOTE_CHARACTER) as usize;
        let notes = wrapped(&self.notes, line_max);
        for (line, note) in notes.iter().take(NOTES_MAX).enumerate() {
            let y = NOTES.0 + NOTES.1 * line as f64;
            text(&mut svg, (BEFORE, y), "start", SMALL, note);
        }
        let (rates, latencies) = self.scales();
        for (at, column) in self.columns.iter().enumerate() {
            let left = BEFORE + at as f64 * (BEFORE + each);
            column.draw(&mut svg, (left, left + each), &rates, &latencies);
        }
        let mut dots = self.columns.iter().flat_map(|column| &column.dots);
        if dots.any(|dot| !dot.sound) {
            let note = "hollow: the generator itself did not keep up";
            let place = (width - AFTER, HEIGHT - 8.0);
            text(&mut svg, place, "end", SMALL, note);
        }
        svg.push_str("</svg>\n");
        svg
    }

    /// The scales of rates and of latencies, which all columns share.
    fn scales(&self) -> (Axis, Axis) {
        let (mut rate, mut least, mut most) = (0.0, f64::MAX, 0.0);
        for column in &self.columns {
            for dot in &column.dots {
                rate = dot.accepted.max(rate);
                least = dot.p50_ms.min(least);
                most = dot.p99_ms.max(most);
            }
        }
        (
            Axis::linear(rate, (RATES.1, RATES.0)),
            Axis::logarithmic(least.min(1.0), most.max(1.0), (LATENCIES.1, LATENCIES.0)),
        )
    }
}

impl Column {
    fn draw(&self, svg: &mut String, paper: (f64, f64), rates: &Axis, latencies: &Axis) {
        let values: Vec<f64> = self.dots.iter().map(|dot| dot.at).collect();
        let x = match self.across {
            Across::Offered => Axis::linear(values.iter().copied().fold(0.0, f64::max), paper),
            Across::Sessions => Axis::of(&values, paper),
        };
        let bold = "font-weight=\"bold\"";
        text(svg, (paper.0, RATES.0 - 12.0), "start", bold, &self.heading);
        grid(svg, &x, rates, "accepted, messages/s");
        grid(svg, &x, latencies, self.across.latency());
        let middle = (paper.0 + paper.1) / 2.0;
        let below = (middle, LATENCIES.1 + 40.0);
        text(svg, below, "middle", "", self.across.axis());
        let solid = |colour| format!("stroke=\"{colour}\" stroke-width=\"2.5\"");
        // below the curves of rates, above those of latencies
        let (below, beside) = (RATES.1 - 52.0, paper.1 - 180.0);
        let mut legend = vec![((beside, below), solid(ACCEPTED), "accepted")];
        if self.across == Across::Offered {
            let all = x.values.1.min(rates.values.1);
            let (from, to) = (
                (x.place(0.0), rates.place(0.0)),
                (x.place(all), rates.place(all)),
            );
            line(svg, from, to, OFFERED);
            let all = "all that was offered";
            legend.push(((beside, below + 18.0), OFFERED.to_owned(), all));
        }
        let (left, top) = (paper.0 + 12.0, LATENCIES.0);
        legend.push(((left, top), solid(P50), "p50"));
        legend.push(((left, top + 18.0), solid(P99), "p99"));
        self.curve(svg, ACCEPTED, |d| (x.place(d.at), rates.place(d.accepted)));
        self.curve(svg, P50, |d| (x.place(d.at), latencies.place(d.p50_ms)));
        self.curve(svg, P99, |d| (x.place(d.at), latencies.place(d.p99_ms)));
        if let Some(peak) = self
            .dots
            .iter()
            .max_by(|a, b| a.accepted.total_cmp(&b.accepted))
        {
            let place = (x.place(peak.at), rates.place(peak.accepted) - 10.0);
            let words = format!("{}/s", number(peak.accepted.round()));
            // not into the next column
            let anchor = if paper.1 - place.0 < PEAK_WIDTH {
                "end"
            } else {
                "middle"
            };
            text(svg, place, anchor, "fill=\"#1f5fa8\"", &words);
        }
        for ((left, top), stroke, what) in legend {
            let y = top + 16.0;
            line(svg, (left, y), (left + 24.0, y), &stroke);
            text(svg, (left + 30.0, y + 4.0), "start", "", what);
        }
    }

    /// A line through the dots, and a circle at each that says its figures when pointed at.
    fn curve(&self, svg: &mut String, colour: &str, place: impl Fn(&Dot) -> (f64, f64)) {
        let points: Vec<String> = self
            .dots
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
        for dot in &self.dots {
            let (x, y) = place(dot);
            let fill = if dot.sound { colour } else { "#fff" };
            let words = self.across.words(dot);
            let _ = writeln!(
                svg,
                "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4\" fill=\"{fill}\" stroke=\"{colour}\" stroke-width=\"1.5\">\
                 <title>{words}</title></circle>"
            );
        }
    }
}

/// Frame, grid lines, marks and the name of the vertical axis of one panel.
fn grid(svg: &mut String, x: &Axis, y: &Axis, name: &str) {
    let (left, right) = x.paper;
    let (bottom, top) = y.paper;
    for value in x.marks() {
        let at = x.place(*value);
        line(svg, (at, top), (at, bottom), "stroke=\"#e4e4e4\"");
        text(svg, (at, bottom + 18.0), "middle", "", &number(*value));
    }
    for value in y.marks() {
        let at = y.place(*value);
        line(svg, (left, at), (right, at), "stroke=\"#e4e4e4\"");
        text(svg, (left - 8.0, at + 4.0), "end", "", &number(*value));
    }
    let _ = writeln!(
        svg,
        "<rect x=\"{left}\" y=\"{top}\" width=\"{}\" height=\"{}\" fill=\"none\" stroke=\"#444\"/>",
        right - left,
        bottom - top
    );
    let place = (left - 62.0, (top + bottom) / 2.0);
    let turned = format!("transform=\"rotate(-90 {} {})\"", place.0, place.1);
    text(svg, place, "middle", &turned, name);
}

fn line(svg: &mut String, from: (f64, f64), to: (f64, f64), stroke: &str) {
    let _ = writeln!(
        svg,
        "<line x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\" {stroke}/>",
        from.0, from.1, to.0, to.1
    );
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

/// Breaks the notes into lines that fit.
fn wrapped(notes: &[String], line_max: usize) -> Vec<String> {
    let mut lines = Vec::new();
    for note in notes {
        let mut line = String::new();
        for word in note.split(' ') {
            if !line.is_empty() && line.len() + word.len() >= line_max {
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

    fn dots(rows: [(f64, f64, f64); 3]) -> Vec<Dot> {
        rows.into_iter()
            .map(|(at, accepted, p99_ms)| Dot {
                at,
                accepted,
                p50_ms: p99_ms / 3.0,
                p99_ms,
                sound: at < 8000.0,
            })
            .collect()
    }

    fn open() -> Column {
        Column {
            heading: "open".to_owned(),
            across: Across::Offered,
            dots: dots([
                (500.0, 499.0, 2.0),
                (2000.0, 1990.0, 9.0),
                (8000.0, 4100.0, 2300.0),
            ]),
        }
    }

    fn closed() -> Column {
        Column {
            heading: "closed".to_owned(),
            across: Across::Sessions,
            dots: dots([(1.0, 300.0, 3.0), (8.0, 2200.0, 5.0), (64.0, 4300.0, 30.0)]),
        }
    }

    fn picture(columns: Vec<Column>) -> String {
        let picture = Picture {
            title: "a <b> & c".to_owned(),
            notes: vec!["sizes".to_owned()],
            columns,
        };
        picture.svg()
    }

    /// Every tag that is opened is closed, and every place lies on the paper.
    #[test]
    fn it_is_whole_and_on_the_paper() {
        for (columns, width, circles) in [
            (vec![closed(), open()], 1058.0, 18),
            (vec![open()], 854.0, 9),
            (vec![closed()], 854.0, 9),
        ] {
            let svg = picture(columns);
            assert!(svg.starts_with("<svg ") && svg.trim_end().ends_with("</svg>"));
            assert!(svg.contains("a &lt;b&gt; &amp; c"));
            assert_eq!(svg.matches("<text").count(), svg.matches("</text>").count());
            assert_eq!(svg.matches("<circle").count(), circles);
            assert_eq!(svg.matches("</circle>").count(), circles);
            for (attribute, limit) in [
                (" x=\"", width),
                (" cx=\"", width),
                (" x2=\"", width),
                (" y=\"", HEIGHT),
                (" cy=\"", HEIGHT),
                (" y2=\"", HEIGHT),
            ] {
                for part in svg.split(attribute).skip(1) {
                    let place: f64 = part.split('"').next().unwrap().parse().unwrap();
                    assert!((0.0..=limit).contains(&place), "{attribute}{place}");
                }
            }
        }
    }

    #[test]
    fn it_says_what_is_drawn() {
        let both = picture(vec![closed(), open()]);
        for said in [
            "accepted, messages/s",
            "due to 250, ms",
            "DATA to 250, ms",
            "offered, messages/s",
            "sessions (logarithmic)",
            "8,000",
            ">4,300/s<",
            "8 sessions: 2200/s accepted, p50 1.7 ms, p99 5.0 ms",
            "hollow",
        ] {
            assert!(both.contains(said), "{said}");
        }
        let one = picture(vec![closed()]);
        assert!(!one.contains("offered") && !one.contains("hollow"));
        assert!(picture(Vec::new()).contains("</svg>"));
    }
}
