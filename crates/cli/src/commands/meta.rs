//! `completion` and `version`.

use clap::{Args, CommandFactory as _};
use clap_complete::Shell;
use serde_json::{Value, json};

use crate::api::Route;
use crate::args::Cli;
use crate::context::{Context, Format};
use crate::failure::Failure;
use crate::term::safe;

/// Print the completion script for a shell.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    offshoot completion bash > /etc/bash_completion.d/offshoot\n  \
    offshoot completion zsh > /usr/local/share/zsh/site-functions/_offshoot\n  \
    offshoot completion fish > ~/.config/fish/completions/offshoot.fish")]
pub(crate) struct CompletionArgs {
    /// The shell: bash, elvish, fish, powershell or zsh
    #[arg(value_name = "SHELL", hide_possible_values = true)]
    shell: Shell,
}

/// Print the version of this program and of the daemon.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  offshoot version\n  offshoot version -o json")]
pub(crate) struct VersionArgs {}

pub(crate) fn completion(context: &Context, args: &CompletionArgs) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "offshoot", &mut script);
    context.print(&String::from_utf8_lossy(&script))
}

pub(crate) async fn version(context: &Context, _args: VersionArgs) -> Result<(), Failure> {
    let ours = env!("CARGO_PKG_VERSION");
    let daemon = context.client.get::<Value>(&Route::to("version")).await;
    if context.format == Format::Json {
        return context.json(&json!({ "client": { "version": ours }, "daemon": daemon.ok() }));
    }
    let theirs = match &daemon {
        Ok(answer) => safe(
            answer
                .get("version")
                .and_then(Value::as_str)
                .unwrap_or("unknown"),
        )
        .into_owned(),
        Err(_) => "does not answer".to_owned(),
    };
    context.print(&format!("offshoot {ours}\ndaemon   {theirs}\n"))
}
