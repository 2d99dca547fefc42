//! Values that clap reads by itself in no type of ours. Each error is one sentence with its remedy: clap shows only one.

use std::num::NonZeroU32;
use std::time::Duration;

use crate::config::{MountOptions, TargetUrl};

/// A name or an address, as a URL may have it.
pub(super) fn host(text: &str) -> Result<String, String> {
    let bracketed = if text.contains(':') { format!("[{text}]") } else { text.to_owned() };
    match format!("tls://{bracketed}/x").parse::<TargetUrl>() {
        Ok(TargetUrl::Tls(place)) => Ok(place.host),
        _ => Err("write a host's name or address".to_owned()),
    }
}

/// The problem and its remedy in one sentence, as clap shows only one.
pub(super) fn mount_options(text: &str) -> Result<MountOptions, String> {
    text.parse::<MountOptions>().map_err(|problem| format!("{problem}; {}", problem.remedy()))
}

/// A number with ms, s, m, h or d; without one, seconds.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let units = [("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];
    let unit = units.iter().find_map(|(unit, ms)| Some((text.strip_suffix(unit)?, *ms)));
    let (digits, ms): (&str, u64) = unit.unwrap_or((text, 1000));
    let number = digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse::<u64>().ok()).flatten();
    let duration = number.and_then(|n| n.checked_mul(ms)).map(Duration::from_millis);
    duration.ok_or_else(|| "write a time such as 90s, 5m or 1h".to_owned())
}

/// Whole seconds, at least one.
pub(super) fn seconds(text: &str) -> Result<NonZeroU32, String> {
    text.parse().map_err(|_| "write whole seconds, at least 1".to_owned())
}

/// Seconds with an optional fraction, as milliseconds.
pub(super) fn milliseconds(text: &str) -> Result<u64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if seconds.is_finite() && (0.0..1e12).contains(&seconds) => Ok((seconds * 1000.0) as u64),
        _ => Err("write seconds, such as 30 or 0.5".to_owned()),
    }
}
