//! `dtfs.toml`: how the daemon runs.

use std::fmt;
use std::net::SocketAddr;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use serde::Deserialize;

use super::{ByteSize, ConfigError, Paths, atomic, toml_text};

/// The whole file. A missing file, or key, is the default.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DaemonFile {
    /// At the stop, how long targets that answer may take for what they lack; `None` is the built-in default.
    #[serde(default)]
    pub drain: Option<Seconds>,
    /// Most bytes of received records that each replica on this host keeps until they are in its tree; `None` is a tenth of the
    /// filesystem that holds them, at most 8 GiB.
    #[serde(default)]
    pub inbox_cap: Option<ByteSize>,
    /// Whether others are kept out of the trees of this host's copies.
    #[serde(default)]
    pub guard: Switch,
    /// What the sources of this host's copies are trusted with where a copy's own file does not say.
    #[serde(default)]
    pub trust: Trusted,
    /// Where sources may call, as `0.0.0.0:6320`; `None` lets nobody.
    #[serde(default)]
    pub listen: Option<SocketAddr>,
    /// Where numbers for Prometheus are served, an address of this host's loopback; `None` serves none.
    #[serde(default)]
    pub metrics: Option<SocketAddr>,
    /// How lines of the log look.
    #[serde(default)]
    pub log_format: LogFormat,
    /// How much is logged; -v on the command line says otherwise.
    #[serde(default)]
    pub log_level: LogLevel,
}

/// Whether something is done.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Switch {
    /// It is.
    #[default]
    On,
    /// It is not.
    Off,
}

/// What the sources of this host's copies are trusted with.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Trusted {
    /// Everything that a tree can hold.
    #[default]
    Full,
    /// Content, names and rights: no device nodes, no set-user-ID and set-group-ID bits, no `trusted.*` and `security.*` xattrs.
    Restricted,
}

impl Trusted {
    /// The word in files.
    pub fn word(self) -> &'static str {
        match self {
            Trusted::Full => "full",
            Trusted::Restricted => "restricted",
        }
    }
}

/// Text that says neither.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is neither full nor restricted")]
pub struct TrustedProblem(String);

impl FromStr for Trusted {
    type Err = TrustedProblem;

    fn from_str(text: &str) -> Result<Trusted, TrustedProblem> {
        let both = [Trusted::Full, Trusted::Restricted];
        both.into_iter()
            .find(|trust| trust.word() == text)
            .ok_or_else(|| TrustedProblem(text.escape_debug().to_string()))
    }
}

/// How lines of the log look.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// One line for people; below systemd with the level in front, as sd-daemon(3) has it.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// How much is logged.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// What failed.
    Error,
    /// And what degraded.
    #[default]
    Warn,
    /// And what is done.
    Info,
    /// And how.
    Debug,
}

impl LogLevel {
    /// The word for a filter of events.
    pub fn word(self) -> &'static str {
        match self {
            LogLevel::Error => "error",
            LogLevel::Warn => "warn",
            LogLevel::Info => "info",
            LogLevel::Debug => "debug",
        }
    }
}

/// A length of time, written as `500ms`, `30s`, `5m`, `2h`, `1d` or plain seconds.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Deserialize)]
#[serde(try_from = "String")]
pub struct Seconds(pub Duration);

/// Text that is no length of time.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not a length of time; write it like 500ms, 30s, 5m or 2h")]
pub struct SecondsProblem(String);

/// What an inbox needs to take any batch while another one leaves it.
const LEAST_INBOX: ByteSize = ByteSize(32 << 20);

/// The longest first, because "ms" also ends with "s".
const UNITS: [(&str, u64); 5] = [("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];

impl FromStr for Seconds {
    type Err = SecondsProblem;

    fn from_str(text: &str) -> Result<Seconds, SecondsProblem> {
        let unit = UNITS.iter().find_map(|(unit, ms)| Some((text.strip_suffix(unit)?, *ms)));
        let (digits, unit_ms) = unit.unwrap_or((text, 1000));
        let number = digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse::<u64>().ok()).flatten();
        number
            .and_then(|n| n.checked_mul(unit_ms))
            .map(|ms| Seconds(Duration::from_millis(ms)))
            .ok_or_else(|| SecondsProblem(text.escape_debug().to_string()))
    }
}

impl TryFrom<String> for Seconds {
    type Error = SecondsProblem;

    fn try_from(text: String) -> Result<Seconds, SecondsProblem> {
        text.parse()
    }
}

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = self.0.as_millis() as u64;
        let exact = UNITS.iter().rev().find(|(_, unit)| ms != 0 && ms.is_multiple_of(*unit));
        let (unit, unit_ms) = exact.unwrap_or(&UNITS[1]);
        write!(f, "{}{unit}", ms / unit_ms)
    }
}

impl DaemonFile {
    /// Reads the file; a missing one is the default.
    ///
    /// # Errors
    /// When it cannot be read, trusted or understood; the error names file and line.
    pub fn load(paths: &Paths) -> Result<DaemonFile, ConfigError> {
        let file = paths.daemon_file();
        match atomic::read_trusted(&file)? {
            Some(bytes) => DaemonFile::parse(&file, &bytes),
            None => Ok(DaemonFile::default()),
        }
    }

    /// Reads `bytes` as the content of `file`, which is only used in messages.
    ///
    /// # Errors
    /// As [`DaemonFile::load`].
    pub fn parse(file: &Path, bytes: &[u8]) -> Result<DaemonFile, ConfigError> {
        let parsed: DaemonFile =
            toml_text::parse(file, bytes, "correct the line; the daemon does not start until then")?;
        let conflict = |problem, remedy: &str| {
            Err(ConfigError::Conflict { file: file.to_owned(), problem, remedy: remedy.to_owned() })
        };
        if let Some(address) = parsed.metrics.filter(|address| !address.ip().is_loopback()) {
            return conflict(
                format!("metrics = \"{address}\" is not an address of the loopback, and nobody is asked who he is"),
                "use 127.0.0.1:PORT, and a proxy where others shall read it",
            );
        }
        match parsed.inbox_cap.filter(|cap| *cap < LEAST_INBOX) {
            None => Ok(parsed),
            Some(cap) => conflict(
                format!("inbox_cap = \"{cap}\" is less than {LEAST_INBOX}: there has to be room for a few batches"),
                "give more, or leave the key out",
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<DaemonFile, ConfigError> {
        DaemonFile::parse(Path::new("dtfs.toml"), text.as_bytes())
    }

    #[test]
    fn reads_the_whole_form() {
        let file = parse("drain = \"5m\"\nmetrics = \"127.0.0.1:9847\"\nlog_format = \"json\"\nlog_level = \"info\"\n")
            .unwrap();
        assert_eq!(file.drain, Some(Seconds(Duration::from_secs(300))));
        assert_eq!((file.log_format, file.log_level), (LogFormat::Json, LogLevel::Info));
        assert_eq!(parse("").unwrap(), DaemonFile::default());
        assert_eq!((parse("guard = \"off\"\n").unwrap().guard, parse("").unwrap().guard), (Switch::Off, Switch::On));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let error = parse("\ndrian = \"5m\"\n").unwrap_err();
        assert_eq!((error.line(), error.remedy()), (Some(2), Some("did you mean \"drain\"?")));
        assert!(parse("drain = \"soon\"\n").unwrap_err().to_string().contains("is not a length of time"));
        assert!(parse("inbox_cap = \"1M\"\n").unwrap_err().to_string().contains("less than 32M"));
        assert_eq!(parse("inbox_cap = \"2G\"\n").unwrap().inbox_cap, Some(ByteSize(2 << 30)));
        assert!(parse("metrics = \"0.0.0.0:9\"\n").unwrap_err().to_string().contains("loopback"));
    }

    #[test]
    fn lengths_of_time() {
        for (text, ms) in [("500ms", 500), ("30s", 30_000), ("5m", 300_000), ("2h", 7_200_000), ("7", 7000)] {
            assert_eq!(text.parse(), Ok(Seconds(Duration::from_millis(ms))), "{text}");
        }
        assert_eq!("300s".parse::<Seconds>().unwrap().to_string(), "5m");
        for bad in ["", "s", "-1s", "1.5s", "x"] {
            assert!(bad.parse::<Seconds>().is_err(), "{bad}");
        }
    }
}
