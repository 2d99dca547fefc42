//! Where a target is.

use std::fmt;
use std::path::{Component, Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{TargetName, VolumeName};

/// The port on which a daemon listens for sources unless it is told otherwise.
pub const DEFAULT_PORT: u16 = 6320;

/// The place of a target's tree and the way there.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
#[non_exhaustive]
pub enum TargetUrl {
    /// `local:DIR`: a directory of this host. Absolute, without `.` and `..`.
    Local(PathBuf),
    /// `ssh://[user@]host[:port]/DIR`: a directory of another host, reached by the ssh program.
    Ssh(SshPlace),
    /// `tls://host[:port]/VOLUME`: a daemon that listens on another host, and what it calls the copy.
    Tls(TlsPlace),
}

/// A directory behind ssh.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SshPlace {
    /// Who to be there; `None` leaves it to ssh.
    pub user: Option<String>,
    /// A name or address, or what ssh's configuration calls it.
    pub host: String,
    /// Its port; `None` leaves it to ssh.
    pub port: Option<u16>,
    /// Absolute, without `.` and `..`.
    pub dir: PathBuf,
}

/// A copy behind a daemon that listens.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TlsPlace {
    /// A name or address; also the name of the peer whose key is expected there.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// What the copy is called there.
    pub volume: VolumeName,
}

/// Text that is not a target's URL.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UrlProblem {
    /// Another transport.
    #[error("\"{0}\" is not understood: write local:DIR, ssh://[user@]host[:port]/DIR or tls://host[:port]/VOLUME")]
    Unknown(String),
    /// A relative path, or one with `..` in it.
    #[error("\"{0}\" needs an absolute path without \"..\", such as local:/srv/replica or ssh://host/srv/replica")]
    NotAbsolute(String),
    /// A host, user or port that cannot be one.
    #[error("\"{0}\": {1}")]
    Host(String, &'static str),
}

impl FromStr for TargetUrl {
    type Err = UrlProblem;

    fn from_str(text: &str) -> Result<TargetUrl, UrlProblem> {
        let problem = |kind: fn(String) -> UrlProblem| kind(text.escape_debug().to_string());
        if let Some(dir) = text.strip_prefix("local:") {
            let dir = absolute(dir).ok_or_else(|| problem(UrlProblem::NotAbsolute))?;
            return Ok(TargetUrl::Local(dir));
        }
        let wrong = |what| UrlProblem::Host(text.escape_debug().to_string(), what);
        if let Some(rest) = text.strip_prefix("ssh://") {
            let (place, dir) = split(rest);
            let dir = absolute(dir).ok_or_else(|| problem(UrlProblem::NotAbsolute))?;
            let (user, place) = match place.rsplit_once('@') {
                Some((user, place)) => {
                    (Some(checked_word(user).ok_or_else(|| wrong("no user has such a name"))?), place)
                }
                None => (None, place),
            };
            let (host, port) = host_and_port(place).map_err(wrong)?;
            return Ok(TargetUrl::Ssh(SshPlace { user, host, port, dir }));
        }
        if let Some(rest) = text.strip_prefix("tls://") {
            let (place, volume) = split(rest);
            let (host, port) = host_and_port(place).map_err(wrong)?;
            let volume = VolumeName::new(volume.strip_prefix('/').unwrap_or(volume))
                .map_err(|_| wrong("what the copy is called there is missing, or no name: tls://host/VOLUME"))?;
            return Ok(TargetUrl::Tls(TlsPlace { host, port: port.unwrap_or(DEFAULT_PORT), volume }));
        }
        Err(problem(UrlProblem::Unknown))
    }
}

/// Before and from the first slash.
fn split(text: &str) -> (&str, &str) {
    text.split_at(text.find('/').unwrap_or(text.len()))
}

/// Collecting components also drops doubled and trailing slashes.
fn absolute(dir: &str) -> Option<PathBuf> {
    let path = Path::new(dir);
    let fits = path.is_absolute() && !path.components().any(|part| part == Component::ParentDir);
    (fits && !dir.contains(char::is_control)).then(|| path.components().collect())
}

/// `host`, `host:port` or `[address]:port`.
fn host_and_port(text: &str) -> Result<(String, Option<u16>), &'static str> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (address, port) = rest.split_once(']').ok_or("a ']' is missing")?;
            address.parse::<std::net::Ipv6Addr>().map_err(|_| "between '[' and ']' stands an address of IPv6")?;
            (address.to_owned(), port)
        }
        None => {
            let (host, port) = text.split_at(text.find(':').unwrap_or(text.len()));
            (checked_word(host).ok_or("the host is missing, or no host has such a name")?, port)
        }
    };
    match port.strip_prefix(':') {
        None if port.is_empty() => Ok((host, None)),
        Some(digits) => match digits.parse::<u16>() {
            Ok(port) if port != 0 && digits.bytes().all(|b| b.is_ascii_digit()) => Ok((host, Some(port))),
            _ => Err("a port is a number from 1 to 65535"),
        },
        None => Err("behind the ']' only a port may stand"),
    }
}

/// What may stand in an argument of ssh: never an option, never anything a shell would read.
fn checked_word(text: &str) -> Option<String> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    (!text.is_empty() && text.len() <= 253 && !text.starts_with(['-', '.']) && text.bytes().all(plain))
        .then(|| text.to_owned())
}

impl TargetUrl {
    /// What the target is called unless the operator says otherwise: for a directory of this host its last component, else
    /// the host.
    pub fn default_name(&self) -> Option<TargetName> {
        match self {
            TargetUrl::Local(dir) => TargetName::new(dir.file_name()?.to_str()?).ok(),
            TargetUrl::Ssh(SshPlace { host, .. }) | TargetUrl::Tls(TlsPlace { host, .. }) => TargetName::new(host).ok(),
        }
    }

    /// The directory, when it is one of this host.
    pub fn local_dir(&self) -> Option<&Path> {
        match self {
            TargetUrl::Local(dir) => Some(dir),
            TargetUrl::Ssh(_) | TargetUrl::Tls(_) => None,
        }
    }
}

impl fmt::Display for TargetUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bracketed = |host: &str| if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
        let port = |port: Option<u16>| port.map(|port| format!(":{port}")).unwrap_or_default();
        f.pad(&match self {
            TargetUrl::Local(dir) => format!("local:{}", dir.display()),
            TargetUrl::Ssh(place) => {
                let user = place.user.as_ref().map(|user| format!("{user}@")).unwrap_or_default();
                format!("ssh://{user}{}{}{}", bracketed(&place.host), port(place.port), place.dir.display())
            }
            TargetUrl::Tls(place) => {
                let shown = port((place.port != DEFAULT_PORT).then_some(place.port));
                format!("tls://{}{shown}/{}", bracketed(&place.host), place.volume)
            }
        })
    }
}

impl TryFrom<String> for TargetUrl {
    type Error = UrlProblem;

    fn try_from(text: String) -> Result<TargetUrl, UrlProblem> {
        text.parse()
    }
}

impl From<TargetUrl> for String {
    fn from(url: TargetUrl) -> String {
        url.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_of_this_host() {
        assert_eq!("local:/a//b/".parse(), Ok(TargetUrl::Local("/a/b".into())));
        assert_eq!("local:/a/b".parse::<TargetUrl>().unwrap().to_string(), "local:/a/b");
        assert_eq!("local:/a/b".parse::<TargetUrl>().unwrap().default_name(), TargetName::new("b").ok());
        assert!(matches!("local:b".parse::<TargetUrl>(), Err(UrlProblem::NotAbsolute(_))));
        assert!(matches!("local:/a/../b".parse::<TargetUrl>(), Err(UrlProblem::NotAbsolute(_))));
        assert!(matches!("http://host/dir".parse::<TargetUrl>(), Err(UrlProblem::Unknown(_))));
    }

    #[test]
    fn other_hosts_are_read_and_written_the_same() {
        for text in [
            "ssh://host/srv/copy",
            "ssh://root@host.example:2222/srv/a copy's",
            "ssh://[fe80::1]:22/srv",
            "tls://host/data",
            "tls://192.0.2.1:7000/data",
        ] {
            let url = text.parse::<TargetUrl>().unwrap_or_else(|problem| panic!("{problem}"));
            assert_eq!(url.to_string(), text);
            assert_eq!(url.to_string().parse::<TargetUrl>().unwrap(), url);
        }
        assert_eq!("tls://h:6320/v".parse::<TargetUrl>().unwrap().to_string(), "tls://h/v");
        assert_eq!("ssh://u@cellar/d".parse::<TargetUrl>().unwrap().default_name(), TargetName::new("cellar").ok());
    }

    #[test]
    fn nothing_that_ssh_would_take_for_an_option() {
        for text in [
            "ssh://-oProxyCommand=id/srv",
            "ssh://-l@host/srv",
            "ssh://host:-1/srv",
            "ssh://host:0/srv",
            "ssh://host:22x/srv",
            "ssh://a b/srv",
            "ssh://a;b/srv",
            "ssh:///srv",
            "ssh://host",
            "ssh://host/srv/../etc",
            "ssh://host/srv\n",
            "ssh://[::1/srv",
            "tls://host/",
            "tls://host",
            "tls://host/a/b",
            "tls://host/..",
            "tls://$(id)/data",
        ] {
            assert!(text.parse::<TargetUrl>().is_err(), "{text}");
        }
    }
}
