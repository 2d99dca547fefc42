//! How far a long command is: a line on a terminal, nothing elsewhere.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::Verbosity;
use super::status::{bytes, duration};
use crate::control::{MirrorReply, VerifyReply, printable};

const BAR: &str = "{elapsed_precise} [{bar:20}] {percent:>3}% {wide_msg}";

pub(super) struct Progress(ProgressBar);

impl Progress {
    /// Shown on standard error when that is a terminal, unless little is to be said.
    pub(super) fn new(verbosity: Verbosity) -> Progress {
        let shown = verbosity >= Verbosity::Normal && std::io::stderr().is_terminal();
        let target = if shown { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(None, target);
        if let Ok(style) = ProgressStyle::with_template("{spinner} {elapsed_precise} {wide_msg}") {
            bar.set_style(style);
        }
        Progress(bar)
    }

    /// How far a verification is.
    pub(super) fn verify(&self, reply: &VerifyReply) {
        let current = reply.current.as_deref().unwrap_or_default();
        let (objects, size, found) = (reply.objects, bytes(reply.bytes), reply.found);
        self.tell(&format!("{objects} objects, {size} compared, {found} differences  {current}"));
    }

    /// How far a mirror is: a bar as soon as it is known how much there is.
    pub(super) fn mirror(&self, reply: &MirrorReply) {
        if let (Some(total), Ok(style)) =
            (reply.total_bytes.filter(|total| *total > 0), ProgressStyle::with_template(BAR))
        {
            self.0.set_style(style);
            self.0.set_length(total);
            self.0.set_position(reply.bytes.min(total));
        }
        let total = reply.total_objects.map(|total| format!(" of {total}")).unwrap_or_default();
        let left = reply.seconds_left.map(|left| format!(", {} left", duration(left as f64))).unwrap_or_default();
        let (objects, size, rate) = (reply.objects, bytes(reply.bytes), bytes(reply.bytes_a_second));
        let current = reply.current.as_deref().unwrap_or_default();
        self.tell(&format!("{objects}{total} objects, {size}, {rate}/s{left}  {current}"));
    }

    fn tell(&self, text: &str) {
        self.0.set_message(printable(text).to_string());
        self.0.tick();
    }

    /// Takes the line away.
    pub(super) fn end(&self) {
        self.0.finish_and_clear();
    }
}
