//! What can be typed: the options that every command has, and the list of commands.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::commands::{
    cert, clone, create, diff, doctor, domain, hold, image, login, ls, meta, op, pool, power,
    promote, show, swap, traffic,
};
use crate::commands::{exec, logs};
use crate::context::Format;
use crate::{cp, serve};

/// Runs application environments and clones them alive.
#[derive(Debug, Parser)]
#[command(
    name = "offshoot",
    version,
    max_term_width = 100,
    propagate_version = false,
    subcommand_required = true,
    arg_required_else_help = true,
    long_about = "Runs application environments and clones them alive.\n\n\
        An environment is one application: layers of containers (a web server, a database, ...), their volumes and a \
        private network, described by a Compose file. `offshoot clone` copies a running environment as it stands, \
        disks and memory, while the original goes on; the copy gets an address of its own.",
    after_help = "Examples:\n  \
        offshoot doctor                                 see whether this host is ready\n  \
        offshoot create -f compose.yaml --name shop     run an application\n  \
        offshoot clone shop --name experiment           copy it while it runs\n  \
        offshoot ls                                     see both\n  \
        offshoot exec -it experiment web-1 -- sh        look inside the copy\n  \
        offshoot rm experiment                          throw the copy away\n\n\
        `offshoot COMMAND --help` explains a command."
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Options of every command.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Options for every command")]
pub(crate) struct Global {
    /// How to print the answer: a table for people, JSON for programs (streams: a document per line)
    #[arg(
        short,
        long,
        global = true,
        value_enum,
        default_value_t,
        value_name = "table|json",
        hide_possible_values = true
    )]
    pub(crate) output: Format,

    /// The daemon's socket [default: the one in the configuration file, else /run/offshoot/offshoot.sock]
    #[arg(
        long,
        global = true,
        env = "OFFSHOOT_SOCKET",
        value_name = "PATH",
        hide_env_values = true
    )]
    pub(crate) socket: Option<PathBuf>,

    /// Configuration file [default: /etc/offshoot/offshoot.toml, when it exists]
    #[arg(
        long,
        global = true,
        env = "OFFSHOOT_CONFIG",
        value_name = "FILE",
        hide_env_values = true
    )]
    pub(crate) config: Option<PathBuf>,

    /// Say only what was asked for: no progress, no messages; lists show names alone
    #[arg(short, long, global = true)]
    pub(crate) quiet: bool,

    /// No colours (so does the variable NO_COLOR)
    #[arg(long, global = true)]
    pub(crate) no_color: bool,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    // Environments.
    Create(create::CreateArgs),
    Plan(create::PlanArgs),
    Clone(clone::CloneArgs),
    Ls(ls::LsArgs),
    Ps(ls::PsArgs),
    Show(show::ShowArgs),
    Diff(diff::DiffArgs),
    Start(power::StartArgs),
    Stop(power::StopArgs),
    Hold(hold::HoldArgs),
    Release(hold::ReleaseArgs),
    Rename(power::RenameArgs),
    Rm(power::RmArgs),
    // What leads to them.
    Domain(domain::DomainArgs),
    Swap(swap::SwapArgs),
    Cert(cert::CertArgs),
    Traffic(traffic::TrafficArgs),
    Promote(promote::PromoteArgs),
    // Inside nodes.
    Exec(exec::ExecArgs),
    Logs(logs::LogsArgs),
    Cp(cp::CpArgs),
    // The host.
    Op(op::OpArgs),
    Image(image::ImageArgs),
    Pool(pool::PoolArgs),
    Doctor(doctor::DoctorArgs),
    Serve(serve::ServeArgs),
    LoginLink(login::LoginLinkArgs),
    // This program.
    Completion(meta::CompletionArgs),
    Version(meta::VersionArgs),
}
