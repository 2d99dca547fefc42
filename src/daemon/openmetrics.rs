//! The text form of numbers for Prometheus: OpenMetrics 1.0.
//!
//! Invariants: all samples of a family stand together below its `TYPE` and `HELP`; the text ends with `# EOF`.

use std::fmt::{Display, Write};

/// What a family of samples is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// It goes up and down.
    Gauge,
    /// It only grows, until the daemon starts anew.
    Counter,
    /// One of several states is 1.
    StateSet,
    /// Counts of values up to a bound.
    Histogram,
    /// A constant with labels that say something.
    Info,
}

impl Kind {
    fn word(self) -> &'static str {
        match self {
            Kind::Gauge => "gauge",
            Kind::Counter => "counter",
            Kind::StateSet => "stateset",
            Kind::Histogram => "histogram",
            Kind::Info => "info",
        }
    }

    /// What the names of a family's samples end with, beyond the family's own name.
    fn suffix(self) -> &'static str {
        match self {
            Kind::Counter => "_total",
            Kind::Info => "_info",
            _ => "",
        }
    }
}

/// A name and its value.
pub(super) type Label<'a> = (&'a str, &'a str);

/// The text while it grows.
#[derive(Default)]
pub(super) struct Exposition {
    text: String,
}

/// One family, whose samples are added.
pub(super) struct Family<'a> {
    text: &'a mut String,
    name: &'a str,
    kind: Kind,
}

impl Exposition {
    /// Begins a family; `name` is without the suffix of its kind.
    pub(super) fn family<'a>(&'a mut self, name: &'a str, kind: Kind, help: &str) -> Family<'a> {
        let _ = writeln!(self.text, "# TYPE {name} {}\n# HELP {name} {}", kind.word(), escape(help));
        Family { text: &mut self.text, name, kind }
    }

    /// The whole text.
    pub(super) fn finish(mut self) -> String {
        self.text.push_str("# EOF\n");
        self.text
    }
}

impl Family<'_> {
    /// One sample.
    pub(super) fn sample(&mut self, labels: &[Label<'_>], value: impl Display) {
        self.line(self.kind.suffix(), labels, value);
    }

    /// One sample for each of `states`; only that of `now` is 1.
    pub(super) fn states(&mut self, labels: &[Label<'_>], states: &[&str], now: &str) {
        let name = self.name;
        for state in states {
            // In a state set the label that tells the states apart has the name of the family.
            let labels: Vec<Label<'_>> = labels.iter().copied().chain([(name, *state)]).collect();
            self.line("", &labels, u8::from(*state == now));
        }
    }

    /// The samples of one histogram: `counts` are the values up to each bound and, last, those above all of them.
    pub(super) fn histogram(&mut self, labels: &[Label<'_>], bounds: &[f64], counts: &[u64], sum: f64) {
        let mut upto = 0;
        for (at, count) in counts.iter().enumerate() {
            upto += count;
            let bound = bounds.get(at).map_or("+Inf".to_owned(), |bound| format!("{bound:?}"));
            let labels: Vec<Label<'_>> = labels.iter().copied().chain([("le", bound.as_str())]).collect();
            self.line("_bucket", &labels, upto);
        }
        self.line("_count", labels, upto);
        self.line("_sum", labels, sum);
    }

    fn line(&mut self, suffix: &str, labels: &[Label<'_>], value: impl Display) {
        let labels: Vec<String> = labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escape(value))).collect();
        let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        let _ = writeln!(self.text, "{}{suffix}{labels} {value}", self.name);
    }
}

/// As OpenMetrics has it for values of labels and for HELP.
fn escape(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_is_what_the_format_says() {
        let mut text = Exposition::default();
        text.family("a_ops", Kind::Counter, "Ops.").sample(&[("op", "a\"b\\c\nd")], 3);
        text.family("a_state", Kind::StateSet, "State.").states(&[("v", "x")], &["on", "off"], "off");
        let mut times = text.family("a_seconds", Kind::Histogram, "Times.");
        times.histogram(&[], &[0.001, 1.0], &[2, 1, 4], 12.5);
        let expected = "\
# TYPE a_ops counter
# HELP a_ops Ops.
a_ops_total{op=\"a\\\"b\\\\c\\nd\"} 3
# TYPE a_state stateset
# HELP a_state State.
a_state{v=\"x\",a_state=\"on\"} 0
a_state{v=\"x\",a_state=\"off\"} 1
# TYPE a_seconds histogram
# HELP a_seconds Times.
a_seconds_bucket{le=\"0.001\"} 2
a_seconds_bucket{le=\"1.0\"} 3
a_seconds_bucket{le=\"+Inf\"} 7
a_seconds_count 7
a_seconds_sum 12.5
# EOF
";
        assert_eq!(text.finish(), expected);
    }
}
