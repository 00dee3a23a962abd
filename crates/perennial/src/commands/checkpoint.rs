//! `perennial checkpoint`: looking into checkpoints, mending them, moving them.

mod backup;
mod copy;
mod diff;
mod export;
mod fork;
mod gc;
mod import;
mod ls;
pub mod output;
mod place;
mod repair;
mod restore;
mod rewind;
mod set_offsets;
mod show;
mod sinks;
mod verify;

use std::process::ExitCode;

use clap::Subcommand;
use perennial::run;

use crate::terminal::Failure;

/// Look into checkpoints, mend them, move them.
///
/// CHECKPOINT is the job file, or the directory or `s3://` URL that its `checkpoint` names. With the job file, the commands know the sinks and
/// say what a change means for each. A running job's checkpoint is only ever read; commands that change something show what they
/// would do, and do it with `--yes`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  perennial checkpoint ls job.yaml\n  perennial checkpoint show job.yaml per_minute --state\n  \
                        perennial checkpoint verify job.yaml\n  perennial checkpoint rewind job.yaml per_minute --to 41\n\n\
                        Exit codes: 0 done, 1 damage was found or it failed, 2 wrong usage or --yes is missing, 78 the job file is wrong."
)]
pub struct Checkpoint {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
#[allow(clippy::large_enum_variant, reason = "there is one")]
enum Action {
    Ls(ls::Ls),
    Show(show::Show),
    Verify(verify::Verify),
    Repair(repair::Repair),
    Rewind(rewind::Rewind),
    SetOffsets(set_offsets::SetOffsets),
    Fork(fork::Fork),
    Backup(backup::Backup),
    Restore(restore::Restore),
    Diff(diff::Diff),
    Gc(gc::Gc),
    Import(import::Import),
    Export(export::Export),
}

impl Checkpoint {
    pub fn execute(&self) -> Result<ExitCode, Failure> {
        run::runtime()?.block_on(async {
            match &self.action {
                Action::Ls(command) => command.execute().await,
                Action::Show(command) => command.execute().await,
                Action::Verify(command) => command.execute().await,
                Action::Repair(command) => command.execute().await,
                Action::Rewind(command) => command.execute().await,
                Action::SetOffsets(command) => command.execute().await,
                Action::Fork(command) => command.execute().await,
                Action::Backup(command) => command.execute().await,
                Action::Restore(command) => command.execute().await,
                Action::Diff(command) => command.execute().await,
                Action::Gc(command) => command.execute().await,
                Action::Import(command) => command.execute().await,
                Action::Export(command) => command.execute().await,
            }
        })
    }
}
