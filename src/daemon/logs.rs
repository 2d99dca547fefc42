//! Lines of the log on standard error.

use std::fmt;

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::{Format, Full, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use crate::config::LogFormat;

/// Sends events of `level` and above to standard error; `DTFS_LOG` chooses more finely (as `dtfs::sender=debug`).
pub fn log_to_stderr(level: &str, format: LogFormat) {
    let filter = EnvFilter::builder().with_env_var("DTFS_LOG").try_from_env().unwrap_or_else(|_| EnvFilter::new(level));
    let colours = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(colours);
    // A second subscriber is refused: the first one goes on, which is what a test wants.
    let _ = match format {
        LogFormat::Json => lines.json().flatten_event(true).try_init(),
        LogFormat::Text if below_journald() => {
            // The journal adds the time itself.
            let inner = tracing_subscriber::fmt::format().with_ansi(false).without_time();
            lines.event_format(Prioritised { inner }).try_init()
        }
        LogFormat::Text => lines.try_init(),
    };
}

/// systemd sets this for a service whose standard error goes to its journal (systemd.exec(5)).
fn below_journald() -> bool {
    std::env::var_os("JOURNAL_STREAM").is_some()
}

/// A line with its priority in front, as sd-daemon(3) has it.
struct Prioritised {
    inner: Format<Full, ()>,
}

impl<S, N> FormatEvent<S, N> for Prioritised
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, ctx: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        write!(writer, "<{}>", priority(*event.metadata().level()))?;
        self.inner.format_event(ctx, writer, event)
    }
}

/// The numbers of syslog(3).
fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        _ => 7,
    }
}
