//! `dtfs demote`.

use std::io::Write;

use super::Verbosity;
use super::args::DemoteArgs;
use super::commands::log_line;
use super::print::say;
use crate::config::Paths;
use crate::control::ops::{self, resolve_volume};
use crate::control::{Demoted, ExitCode, Failure, OwnVersions};

pub(super) fn demote(
    paths: &Paths,
    verbosity: Verbosity,
    args: &DemoteArgs,
    output: &mut dyn Write,
) -> Result<ExitCode, Failure> {
    let volume = resolve_volume(paths, &args.volume)?;
    let own = if args.discard { OwnVersions::Discard } else { OwnVersions::Keep };
    let demoted = ops::demote(paths, &volume, own)?;
    if verbosity >= Verbosity::Normal {
        tell(&demoted, output)?;
    }
    Ok(ExitCode::Ok)
}

fn tell(demoted: &Demoted, output: &mut dyn Write) -> Result<(), Failure> {
    let Demoted { dir, shared_uuid, shared, own, only_here, differing, kept } = demoted;
    if !only_here.is_empty() {
        say(output, &format!("only here: the changes behind {shared}, up to {own}"))?;
        only_here.iter().try_for_each(|entry| say(output, &log_line(entry)))?;
    }
    if let Some((kept, count)) = kept {
        say(output, &format!("kept {count} objects as they were here in {}", kept.display()))?;
    }
    say(
        output,
        &format!("{} is a copy of {shared_uuid} at {shared} now; {differing} objects are asked for", dir.display()),
    )?;
    say(output, &format!("at its new source: dtfs define target VOL with {} of this host", dir.display()))
}
