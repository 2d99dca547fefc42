//! How often something is done, as people write it.

use std::str::FromStr;

use serde::Deserialize;

/// A time between two verifications, written as `30m`, `12h`, `7d` or `2w`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(try_from = "String")]
pub struct VerifyEvery(u64);

/// Text that is not such a time.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not a time; write it like 30m, 12h, 7d or 2w")]
pub struct EveryProblem(String);

const UNITS: [(char, u64); 5] = [('s', 1), ('m', 60), ('h', 3600), ('d', 86_400), ('w', 604_800)];

impl VerifyEvery {
    /// The time in seconds.
    pub fn seconds(self) -> u64 {
        self.0
    }
}

impl FromStr for VerifyEvery {
    type Err = EveryProblem;

    fn from_str(text: &str) -> Result<VerifyEvery, EveryProblem> {
        let problem = || EveryProblem(text.escape_debug().to_string());
        let (unit, seconds) = UNITS.iter().find(|(unit, _)| text.ends_with(*unit)).ok_or_else(problem)?;
        let digits = text.strip_suffix(*unit).unwrap_or_default();
        // u64::parse would also take a sign.
        let number = digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse::<u64>().ok()).flatten();
        let seconds = number.filter(|n| *n > 0).and_then(|n| n.checked_mul(*seconds));
        seconds.filter(|seconds| *seconds < i64::MAX as u64).map(VerifyEvery).ok_or_else(problem)
    }
}

/// How old a change is when a target performs it, written as a [`VerifyEvery`] is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(transparent)]
pub struct Delay(VerifyEvery);

impl Delay {
    /// The time in seconds.
    pub fn seconds(self) -> u64 {
        self.0.seconds()
    }
}

impl TryFrom<String> for VerifyEvery {
    type Error = EveryProblem;

    fn try_from(text: String) -> Result<VerifyEvery, EveryProblem> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_times() {
        for (text, seconds) in [("30m", 1800), ("12h", 43_200), ("7d", 604_800), ("2w", 1_209_600), ("1s", 1)] {
            assert_eq!(text.parse(), Ok(VerifyEvery(seconds)), "{text}");
        }
        for bad in ["", "7", "d", "-1d", "0d", "1.5h", "7dd", "99999999999999999w"] {
            assert!(bad.parse::<VerifyEvery>().is_err(), "{bad}");
        }
    }
}
