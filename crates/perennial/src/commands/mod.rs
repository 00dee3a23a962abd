//! The commands: one file and one line each.

use std::process::ExitCode;

use clap::Subcommand;

use crate::terminal::Failure;

macro_rules! commands {
    ($($(#[$attribute:meta])* $module:ident::$name:ident;)*) => {
        $(mod $module;)*

        /// What to do. The help of each command is the comment on its type.
        #[derive(Debug, Subcommand)]
        #[allow(clippy::large_enum_variant, reason = "there is one")]
        pub enum Command {
            $($(#[$attribute])* $name($module::$name),)*
        }

        impl Command {
            /// Does it.
            pub fn execute(&self) -> ExitCode {
                let result: Result<ExitCode, Failure> = match self {
                    $(Self::$name(command) => command.execute(),)*
                };
                result.unwrap_or_else(|failure| failure.report())
            }
        }
    };
}

commands! {
    run::Run;
    check::Check;
    init::Init;
    schema::Schema;
    simulate::Simulate;
    checkpoint::Checkpoint;
    dlq::Dlq;
    errors::Errors;
    alerts::Alerts;
    #[command(name = "history")]
    history::Runs;
    #[command(hide = true)]
    reference::Reference;
}
