//! The edge: the way in for all environments of an instance.
//!
//! HTTP/1.1, HTTP/2 and WebSocket by host name, with and without TLS, published TCP and UDP ports, in a process of its own so that
//! traffic goes on while the daemon restarts. The daemon writes the routes file and says `reload` on the control
//! socket; the edge switches from one complete table of routes to the next.
//!
//! `docs/edge.md` says what it does and does not do.

mod access_log;
mod background;
mod certificates;
mod checks;
mod clients;
mod control;
mod hosts;
mod lines;
mod metrics;
mod mirror;
mod moved;
mod plain;
mod ports;
mod proxy;
mod rotating;
mod server;
mod sockets;
mod table;
mod traffic;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use offshoot_edge_api::EdgeConfig;

/// A request makes many small allocations that live as long as it; `cargo xtask bench edge` shows what the C library's own
/// allocator costs.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The way in for all environments: HTTP by host name, published TCP and UDP ports. Started by `offshoot serve`.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Configuration (JSON), written by the daemon.
    #[arg(long)]
    config: PathBuf,
    /// Run in the background: returns once the edge serves, or with its messages when it does not.
    #[arg(long, conflicts_with = "background")]
    detach: bool,
    /// Be the process in the background that --detach starts.
    #[arg(long, hide = true)]
    background: bool,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("offshoot-edge: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let config = EdgeConfig::read(&arguments.config).context("configuration")?;
    if arguments.detach {
        return background::detach(&arguments.config, &config);
    }
    let _lock = background::become_the_edge(&config, arguments.background)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let result = runtime.block_on(server::serve(config));
    // what did not drain in its time is dropped, not waited for
    runtime.shutdown_background();
    result
}
