//! Lengths of time, as people write them: how often something is done, how old something is to be.

use std::fmt;
use std::str::FromStr;

use serde::Deserialize;

/// A length of time in whole seconds, at least one, written as `30m`, `12h`, `7d` or `2w`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(try_from = "String")]
pub struct TimeSpan(u64);

/// Text that is not such a time.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not a time; write it like 30m, 12h, 7d or 2w")]
pub struct TimeSpanProblem(String);

const UNITS: [(char, u64); 5] = [('s', 1), ('m', 60), ('h', 3600), ('d', 86_400), ('w', 604_800)];

impl TimeSpan {
    /// The time in seconds.
    pub fn seconds(self) -> u64 {
        self.0
    }
}

impl FromStr for TimeSpan {
    type Err = TimeSpanProblem;

    fn from_str(text: &str) -> Result<TimeSpan, TimeSpanProblem> {
        let problem = || TimeSpanProblem(text.escape_debug().to_string());
        let (unit, seconds) = UNITS.iter().find(|(unit, _)| text.ends_with(*unit)).ok_or_else(problem)?;
        let digits = text.strip_suffix(*unit).unwrap_or_default();
        // u64::parse would also take a sign.
        let number = digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse::<u64>().ok()).flatten();
        let seconds = number.filter(|n| *n > 0).and_then(|n| n.checked_mul(*seconds));
        seconds.filter(|seconds| *seconds < i64::MAX as u64).map(TimeSpan).ok_or_else(problem)
    }
}

/// How old a change is when a target performs it, written as a [`TimeSpan`] is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(transparent)]
pub struct Delay(TimeSpan);

impl Delay {
    /// The time in seconds.
    pub fn seconds(self) -> u64 {
        self.0.seconds()
    }
}

impl FromStr for Delay {
    type Err = TimeSpanProblem;

    fn from_str(text: &str) -> Result<Delay, TimeSpanProblem> {
        text.parse().map(Delay)
    }
}

/// In the largest unit that says it whole.
impl fmt::Display for Delay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.seconds();
        let whole = UNITS.iter().rev().find(|(_, unit)| seconds.is_multiple_of(*unit));
        let (unit, factor) = whole.copied().unwrap_or(('s', 1));
        write!(f, "{}{unit}", seconds / factor)
    }
}

impl TryFrom<String> for TimeSpan {
    type Error = TimeSpanProblem;

    fn try_from(text: String) -> Result<TimeSpan, TimeSpanProblem> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_times() {
        for (text, seconds) in [("30m", 1800), ("12h", 43_200), ("7d", 604_800), ("2w", 1_209_600), ("1s", 1)] {
            assert_eq!(text.parse(), Ok(TimeSpan(seconds)), "{text}");
        }
        for text in ["90s", "30m", "7h", "5d", "2w"] {
            assert_eq!(text.parse::<Delay>().unwrap().to_string(), text);
        }
        for bad in ["", "7", "d", "-1d", "0d", "1.5h", "7dd", "99999999999999999w"] {
            assert!(bad.parse::<TimeSpan>().is_err(), "{bad}");
        }
    }
}
