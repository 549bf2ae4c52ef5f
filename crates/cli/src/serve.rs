//! `serve`: the daemon's beginning and end. What it does lies below the server and the operations.

use std::io::IsTerminal as _;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use offshoot_model::view::DoctorReport;
use offshoot_model::{Code, Fault, Problem};
use offshoot_server::{Config, Dashboard};
use tracing_subscriber::EnvFilter;

use crate::args::Global;
use crate::context::Context;
use crate::failure::{Failure, STATUS_PROBLEM};
use crate::signals::Interrupts;

/// Run the daemon that holds the environments. Needs root.
///
/// It works in the foreground until SIGTERM or Ctrl-C; packages start it with systemd. Environments go on when it
/// ends, and are taken up again when it starts.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    offshoot serve\n  \
    offshoot serve --config ./offshoot.toml --log debug\n  \
    systemctl enable --now offshoot         as a service")]
pub(crate) struct ServeArgs {
    /// How to write the log on standard error
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    log_format: LogFormat,

    /// What to log: error, warn, info, debug, trace, also by part (info,offshoot_network=debug) [default: the
    /// configuration's `log`]
    #[arg(
        long,
        env = "OFFSHOOT_LOG",
        value_name = "FILTER",
        hide_env_values = true
    )]
    log: Option<String>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    /// Lines for people.
    #[default]
    Text,
    /// A JSON document per line, for programs.
    Json,
}

/// The socket to ask at: the one said, else the configuration's. A configuration that cannot be read is the daemon's
/// trouble; whoever only asks it then looks at the usual place.
pub(crate) fn socket(global: &Global) -> PathBuf {
    match &global.socket {
        Some(socket) => socket.clone(),
        None => Config::load(global.config.as_deref())
            .unwrap_or_default()
            .socket(),
    }
}

pub(crate) async fn run(context: &Context, args: ServeArgs) -> Result<(), Failure> {
    let config = Config::load(context.config.as_deref()).map_err(|error| error.problem())?;
    start_log(&config, &args)?;
    let mut interrupts = Interrupts::listen()?;
    let shutdown = async move {
        let signal = interrupts.next().await;
        tracing::info!(?signal, "stopping; environments go on");
        // Whoever asks twice does not want to wait; what is not finished is taken up at the next start.
        tokio::spawn(async move {
            interrupts.next().await;
            tracing::warn!("stopping at once");
            std::process::exit(STATUS_PROBLEM);
        });
    };
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        instance = config.instance.as_str(),
        "starting"
    );
    offshoot_daemon::run(config, greet, shutdown).await?;
    tracing::info!("stopped");
    Ok(())
}

/// Says where the dashboard is. A link that signs in is printed on a terminal only: whoever reads a log shall not come
/// in by it.
fn greet(dashboard: &Dashboard) {
    tracing::info!(
        at = dashboard.origin(),
        "the dashboard is there; `offshoot login-link` prints a link to sign in"
    );
    if !std::io::stderr().is_terminal() {
        return;
    }
    match dashboard.login_link() {
        Ok(link) => eprintln!("Sign in to the dashboard: {}", link.url),
        Err(error) => tracing::warn!(%error, "no link to sign in could be made"),
    }
}

fn start_log(config: &Config, args: &ServeArgs) -> Result<(), Problem> {
    let (filter, place) = match &args.log {
        Some(filter) => (filter, "given with --log or in OFFSHOOT_LOG"),
        None => (&config.log, "`log` in the configuration"),
    };
    let filter = EnvFilter::try_new(filter).map_err(|error| {
        Problem::new(
            Code::ConfigInvalid,
            Fault::Request,
            format!("{filter:?}, {place}, is not a log filter"),
            "write a level such as info, or parts with levels such as info,offshoot_network=debug",
        )
        .detail(error.to_string())
    })?;
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    let started = match args.log_format {
        LogFormat::Text => log.with_ansi(std::io::stderr().is_terminal()).try_init(),
        LogFormat::Json => log.json().flatten_event(true).try_init(),
    };
    started.map_err(|error| Problem::internal(format!("the log could not be started: {error}")))
}

/// The host's checks without a daemon, which cannot be asked.
pub(crate) async fn host_doctor(context: &Context) -> Result<DoctorReport, Failure> {
    let config = Config::load(context.config.as_deref()).map_err(|error| error.problem())?;
    let checked = tokio::task::spawn_blocking(move || offshoot_daemon::doctor(&config)).await;
    Ok(checked.map_err(|error| Problem::internal(format!("the checks broke off: {error}")))??)
}
