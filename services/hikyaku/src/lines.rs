//! One event, one line: `ts=... level=info target=maillog msg=queued queue_id=... size=4711`, or the same as a JSON object.
//!
//! A value that is not a plain word is quoted; what is in the quotes is escaped as in JSON. Whatever a peer sends, a line holds
//! no control character, nor one that hides or turns round what follows it.

use std::fmt::{self, Debug, Write};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// How lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lines {
    /// `key=value` pairs.
    Logfmt,
    /// A JSON object.
    Json,
}

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let metadata = event.metadata();
        let level = match *metadata.level() {
            Level::ERROR => "error",
            Level::WARN => "warn",
            Level::INFO => "info",
            Level::DEBUG => "debug",
            Level::TRACE => "trace",
        };
        let mut fields = self.begin(&mut writer, level, metadata.target())?;
        // the sentence first: it says which fields to expect
        event.record(&mut fields);
        fields.message = false;
        event.record(&mut fields);
        fields.result?;
        writer.write_str(self.end())
    }
}

/// A field of a line that is no event.
#[derive(Clone, Copy, Debug)]
pub enum Value<'a> {
    /// Words.
    Text(&'a str),
    /// A count.
    Number(u64),
}

impl Lines {
    /// A line that is no event: what the log has to say of itself.
    pub fn line(self, level: &str, message: &str, fields: &[(&str, Value<'_>)]) -> String {
        let mut line = String::new();
        // writing to a string does not fail
        let _ = self.write_line(&mut line, level, message, fields);
        line
    }

    fn write_line(
        self,
        line: &mut String,
        level: &str,
        message: &str,
        fields: &[(&str, Value<'_>)],
    ) -> fmt::Result {
        let mut writer = Writer::new(line);
        let mut written = self.begin(&mut writer, level, "hikyaku")?;
        written.text("msg", message);
        for (name, value) in fields {
            match value {
                Value::Text(text) => written.text(name, text),
                Value::Number(number) => written.number(name, format_args!("{number}")),
            }
        }
        written.result?;
        writer.write_str(self.end())
    }

    /// Writes what every line begins with; the fields follow.
    fn begin<'a, 'b>(
        self,
        writer: &'a mut Writer<'b>,
        level: &str,
        target: &str,
    ) -> Result<Fields<'a, 'b>, fmt::Error> {
        let (begin, between) = match self {
            Lines::Logfmt => ("ts=", ""),
            Lines::Json => ("{\"ts\":\"", "\""),
        };
        writer.write_str(begin)?;
        SystemTime.format_time(writer)?;
        writer.write_str(between)?;
        let mut fields = Fields {
            writer,
            lines: self,
            message: true,
            result: Ok(()),
        };
        fields.text("level", level);
        fields.text("target", target);
        Ok(fields)
    }

    fn end(self) -> &'static str {
        match self {
            Lines::Logfmt => "\n",
            Lines::Json => "}\n",
        }
    }
}

/// Writes the message, or everything else.
struct Fields<'a, 'b> {
    writer: &'a mut Writer<'b>,
    lines: Lines,
    message: bool,
    result: fmt::Result,
}

impl Fields<'_, '_> {
    /// The name to write a field under, if its turn has come.
    fn name(&self, field: &Field) -> Option<&'static str> {
        let is_message = field.name() == "message";
        let name = if is_message { "msg" } else { field.name() };
        (is_message == self.message && self.result.is_ok()).then_some(name)
    }

    fn text(&mut self, name: &str, value: &str) {
        self.result = match self.lines {
            Lines::Logfmt => {
                write!(self.writer, " {name}=").and_then(|()| write_value(self.writer, value))
            }
            Lines::Json => {
                write!(self.writer, ",\"{name}\":").and_then(|()| write_quoted(self.writer, value))
            }
        };
    }

    /// A number or a truth value.
    fn bare(&mut self, field: &Field, value: fmt::Arguments<'_>) {
        if let Some(name) = self.name(field) {
            self.number(name, value);
        }
    }

    fn number(&mut self, name: &str, value: fmt::Arguments<'_>) {
        self.result = match self.lines {
            Lines::Logfmt => write!(self.writer, " {name}={value}"),
            Lines::Json => write!(self.writer, ",\"{name}\":{value}"),
        };
    }
}

impl Visit for Fields<'_, '_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        if let Some(name) = self.name(field) {
            self.text(name, value);
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if let Some(name) = self.name(field) {
            self.text(name, &format!("{value:?}"));
        }
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.bare(field, format_args!("{value}"));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.bare(field, format_args!("{value}"));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.bare(field, format_args!("{value}"));
    }
}

fn is_plain(text: &str) -> bool {
    !text.is_empty()
        && text
            .bytes()
            .all(|octet| octet.is_ascii_graphic() && !matches!(octet, b'"' | b'=' | b'\\'))
}

/// Whether a terminal or a reader would take `letter` for anything but a letter.
fn is_hidden(letter: char) -> bool {
    letter.is_control()
        || matches!(letter,
            '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

fn write_value(writer: &mut impl Write, text: &str) -> fmt::Result {
    if is_plain(text) {
        return writer.write_str(text);
    }
    write_quoted(writer, text)
}

fn write_quoted(writer: &mut impl Write, text: &str) -> fmt::Result {
    writer.write_char('"')?;
    let mut rest = text;
    while let Some(at) = rest.find(|letter| matches!(letter, '"' | '\\') || is_hidden(letter)) {
        let (clean, from) = rest.split_at(at);
        writer.write_str(clean)?;
        let mut letters = from.chars();
        match letters.next() {
            Some('\n') => writer.write_str("\\n")?,
            Some('\r') => writer.write_str("\\r")?,
            Some('\t') => writer.write_str("\\t")?,
            Some(letter @ ('"' | '\\')) => write!(writer, "\\{letter}")?,
            // all of them are in the first plane: four digits, as JSON wants them
            Some(letter) => write!(writer, "\\u{:04x}", u32::from(letter))?,
            None => {}
        }
        rest = letters.as_str();
    }
    writer.write_str(rest)?;
    writer.write_char('"')
}

#[cfg(test)]
mod tests {
    use super::{Lines, Value, write_value};
    use std::io::{self, Write};
    use std::sync::{Arc, Mutex};
    use tracing_subscriber::fmt::MakeWriter;

    fn value(text: &str) -> String {
        let mut out = String::new();
        write_value(&mut out, text).unwrap();
        out
    }

    #[test]
    fn values_are_words_or_quoted_and_never_raw() {
        assert_eq!(value("a@example.jp"), "a@example.jp");
        assert_eq!(value(""), r#""""#);
        assert_eq!(value("two words"), r#""two words""#);
        assert_eq!(value("a=b"), r#""a=b""#);
        assert_eq!(value(r#"say "\o/""#), r#""say \"\\o/\"""#);
        assert_eq!(value("x\r\n\t\0\u{1b}[31m"), r#""x\r\n\t\u0000\u001b[31m""#);
        assert_eq!(
            value("\u{9b}31m\u{202e}gpj\u{2028}"),
            r#""\u009b31m\u202egpj\u2028""#
        );
        assert_eq!(value("飛脚@例え.jp"), r#""飛脚@例え.jp""#);
    }

    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl MakeWriter<'_> for Kept {
        type Writer = Kept;

        fn make_writer(&self) -> Kept {
            self.clone()
        }
    }

    fn line(lines: Lines) -> String {
        let kept = Kept::default();
        let subscriber = tracing_subscriber::fmt()
            .event_format(lines)
            .with_writer(kept.clone())
            .finish();
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!(target: "maillog", queue_id = %"abc", size = 7u64, peer = "a\nb\u{7f}", ok = true, "queued {}", 1);
        });
        String::from_utf8(kept.0.lock().unwrap().clone()).unwrap()
    }

    #[test]
    fn an_event_is_one_line_with_the_sentence_in_front() {
        let line = line(Lines::Logfmt);
        let (time, rest) = line.split_once(' ').unwrap();
        assert!(time.starts_with("ts=2") && time.ends_with('Z'), "{time}");
        assert_eq!(
            rest,
            "level=info target=maillog msg=\"queued 1\" queue_id=abc size=7 peer=\"a\\nb\\u007f\" ok=true\n"
        );
    }

    #[test]
    fn a_line_of_the_log_about_itself_looks_like_the_others() {
        let fields = [("why", Value::Text("a\nb")), ("left_out", Value::Number(7))];
        let line = Lines::Logfmt.line("warn", "7 lines", &fields);
        let (time, rest) = line.split_once(' ').unwrap();
        assert!(time.starts_with("ts=2"), "{time}");
        assert_eq!(
            rest,
            "level=warn target=hikyaku msg=\"7 lines\" why=\"a\\nb\" left_out=7\n"
        );
        let line = Lines::Json.line("warn", "7 lines", &fields);
        let (_, rest) = line.split_once("Z\",").unwrap();
        assert_eq!(
            rest,
            "\"level\":\"warn\",\"target\":\"hikyaku\",\"msg\":\"7 lines\",\"why\":\"a\\nb\",\"left_out\":7}\n"
        );
    }

    #[test]
    fn the_same_as_json() {
        let line = line(Lines::Json);
        let (time, rest) = line.split_once("Z\",").unwrap();
        assert!(time.starts_with("{\"ts\":\"2"), "{time}");
        assert_eq!(
            rest,
            "\"level\":\"info\",\"target\":\"maillog\",\"msg\":\"queued 1\",\"queue_id\":\"abc\",\"size\":7,\"peer\":\"a\\nb\\u007f\",\"ok\":true}\n"
        );
    }
}
