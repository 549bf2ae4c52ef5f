//! `exec`.

use std::io::{self, IsTerminal as _};

use clap::Args;
use offshoot_model::view::{ExecRequest, TerminalSize};

use super::exec_session::{self, Input};
use crate::api::Route;
use crate::context::Context;
use crate::failure::Failure;
use crate::term;

/// Size given when the terminal does not tell its own.
const SIZE: TerminalSize = TerminalSize { rows: 24, cols: 80 };

/// Run a command in a node.
///
/// Ends with the command's exit status (128 + signal when a signal ended it). With -t, Ctrl-C and all other keys go
/// to the command; without, Ctrl-C sends it an interrupt, and a third one gives up on it.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    offshoot exec -it shop web-1 -- sh            a shell; end it with exit\n  \
    offshoot exec shop db -- mysqldump wordpress > dump.sql\n  \
    offshoot exec -i shop db -- mysql wordpress < dump.sql\n  \
    offshoot exec -u www-data -w /var/www -e DEBUG=1 shop web -- ./check.sh")]
pub(crate) struct ExecArgs {
    /// Pass standard input on to the command
    #[arg(short, long)]
    interactive: bool,

    /// Give the command a terminal
    #[arg(short, long)]
    tty: bool,

    /// User: name, number, or either with a group (www-data:adm) [default: the node's]
    #[arg(short, long)]
    user: Option<String>,

    /// Directory it starts in [default: the node's]
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,

    /// Variable for the command; without a value it is taken from here
    #[arg(short, long = "env", value_name = "NAME[=VALUE]")]
    env: Vec<String>,

    /// Environment, by name or id
    #[arg(value_name = "ENV")]
    environment: String,

    /// Node (web-1) or layer (web: its first node)
    #[arg(value_name = "NODE")]
    node: String,

    /// Command and its arguments
    #[arg(
        value_name = "COMMAND",
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true
    )]
    command: Vec<String>,
}

pub(crate) async fn run(context: &Context, args: ExecArgs) -> Result<(), Failure> {
    if args.tty && args.interactive && !io::stdin().is_terminal() {
        return Err(Failure::Usage(
            "-t with -i needs a terminal on standard input; leave -t out in scripts and pipes"
                .to_owned(),
        ));
    }
    let request = ExecRequest {
        args: args.command,
        env: variables(&args.env)?,
        cwd: args.workdir,
        user: args.user,
        tty: args.tty.then(|| term::size().unwrap_or(SIZE)),
    };
    let route = Route::node(&args.environment, &args.node).then("exec");
    let input = match (args.interactive, args.tty) {
        (false, _) => Input::None,
        (true, false) => Input::Bytes,
        (true, true) => Input::Keys,
    };
    match exec_session::run(context, &route, &request, input).await? {
        0 => Ok(()),
        status => Err(Failure::Status(status)),
    }
}

/// `NAME=value` as given; `NAME` with the value it has here, if it has one.
fn variables(given: &[String]) -> Result<Vec<String>, Failure> {
    let mut out = Vec::new();
    for variable in given {
        let name = variable.split('=').next().unwrap_or_default();
        if name.is_empty() {
            return Err(Failure::Usage(format!(
                "{variable:?} is no variable; write NAME=VALUE"
            )));
        }
        if variable.contains('=') {
            out.push(variable.clone());
        } else if let Ok(value) = std::env::var(name) {
            out.push(format!("{name}={value}"));
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_as_given_or_from_here() {
        let home = std::env::var("PATH").unwrap();
        let given = [
            "A=1=2".to_owned(),
            "PATH".to_owned(),
            "OFFSHOOT_NOT_SET_ANYWHERE".to_owned(),
        ];
        assert_eq!(
            variables(&given).unwrap(),
            ["A=1=2".to_owned(), format!("PATH={home}")]
        );
        assert!(variables(&["=1".to_owned()]).is_err());
    }
}
