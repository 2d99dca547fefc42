//! How fast a target may be sent to, by the time of day.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::ByteSize;

/// Minutes of a day.
const DAY: u16 = 24 * 60;

/// A rate, and other rates at some times of the day: `2M`, or `2M, 21:00-04:00 50M, 12:00-13:00 unlimited`. Bytes per second
/// as they are on the wire; the first window that holds the time counts, local time.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Bandwidth {
    always: Rate,
    windows: Vec<Window>,
}

/// Bytes per second; `None` is as fast as it goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Rate(Option<ByteSize>);

/// From one minute of the day up to another, which may be the next morning's.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Window {
    from: u16,
    to: u16,
    rate: Rate,
}

/// Text that is not a bandwidth.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not a bandwidth; write bytes per second like 2M, or 2M, 21:00-04:00 50M")]
pub struct BandwidthProblem(String);

impl Bandwidth {
    /// The rate at `minute` of the day (0 to 1439); `None` is as fast as it goes.
    pub fn bytes_per_second(&self, minute: u16) -> Option<u64> {
        let window = self.windows.iter().find(|window| window.holds(minute));
        window.map_or(self.always, |window| window.rate).0.map(|size| size.0)
    }
}

impl Window {
    fn holds(&self, minute: u16) -> bool {
        match self.from < self.to {
            true => (self.from..self.to).contains(&minute),
            false => minute >= self.from || minute < self.to,
        }
    }
}

impl FromStr for Bandwidth {
    type Err = BandwidthProblem;

    fn from_str(text: &str) -> Result<Bandwidth, BandwidthProblem> {
        let read = || {
            let mut parts = text.split(',').map(str::trim);
            let always = rate(parts.next()?)?;
            let windows = parts.map(window).collect::<Option<Vec<_>>>()?;
            Some(Bandwidth { always, windows })
        };
        read().ok_or_else(|| BandwidthProblem(text.escape_debug().to_string()))
    }
}

/// A rate of nothing would be a pause, and has a command of its own.
fn rate(text: &str) -> Option<Rate> {
    match text {
        "unlimited" => Some(Rate(None)),
        text => text.parse::<ByteSize>().ok().filter(|size| size.0 > 0).map(|size| Rate(Some(size))),
    }
}

fn window(text: &str) -> Option<Window> {
    let (times, what) = text.split_once(char::is_whitespace)?;
    let (from, to) = times.split_once('-')?;
    let (from, to) = (minute(from)?, minute(to)?);
    (from != to).then_some(Window { from, to: to % DAY, rate: rate(what.trim())? })
}

/// `HH:MM`, up to 24:00.
fn minute(text: &str) -> Option<u16> {
    let (hours, minutes) = text.split_once(':')?;
    let number =
        |digits: &str| (digits.len() == 2 && digits.bytes().all(|b| b.is_ascii_digit())).then(|| digits.parse());
    let (hours, minutes): (u16, u16) = (number(hours)?.ok()?, number(minutes)?.ok()?);
    let total = hours * 60 + minutes;
    (minutes < 60 && total <= DAY).then_some(total)
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(size) => size.fmt(f),
            None => f.write_str("unlimited"),
        }
    }
}

impl fmt::Display for Bandwidth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.always.fmt(f)?;
        self.windows.iter().try_for_each(|Window { from, to, rate }| {
            write!(f, ", {:02}:{:02}-{:02}:{:02} {rate}", from / 60, from % 60, to / 60, to % 60)
        })
    }
}

impl TryFrom<String> for Bandwidth {
    type Error = BandwidthProblem;

    fn try_from(text: String) -> Result<Bandwidth, BandwidthProblem> {
        text.parse()
    }
}

impl From<Bandwidth> for String {
    fn from(bandwidth: Bandwidth) -> String {
        bandwidth.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_window_that_holds_the_time_counts() {
        let text = "2M, 21:00-04:00 50M, 03:00-05:00 unlimited";
        let bandwidth = text.parse::<Bandwidth>().unwrap();
        let at = |hours: u16, minutes: u16| bandwidth.bytes_per_second(hours * 60 + minutes);
        assert_eq!(at(20, 59), Some(2 << 20));
        assert_eq!(at(21, 0), Some(50 << 20));
        assert_eq!(at(0, 0), Some(50 << 20));
        assert_eq!(at(3, 59), Some(50 << 20));
        assert_eq!(at(4, 0), None);
        assert_eq!(at(5, 0), Some(2 << 20));
        assert_eq!(bandwidth.to_string(), text);
    }

    #[test]
    fn what_is_no_bandwidth_is_refused() {
        for text in
            ["", "0", "fast", "2M,", "2M, 21:00 5M", "2M, 25:00-26:00 5M", "2M, 1:00-2:00 5M", "2M, 01:60-02:00 5M"]
        {
            assert!(text.parse::<Bandwidth>().is_err(), "{text}");
        }
        assert!("2M, 05:00-05:00 1M".parse::<Bandwidth>().is_err(), "all day or never: nobody can tell");
        assert_eq!("unlimited, 22:00-24:00 1K".parse::<Bandwidth>().unwrap().bytes_per_second(23 * 60), Some(1024));
    }
}
