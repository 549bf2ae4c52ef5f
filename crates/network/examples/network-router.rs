//! `network-router router --spec FILE`, as `offshoot-shim router` does it: the program that this crate's tests start.

use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [command, option, spec] = args.as_slice() else {
        eprintln!("usage: network-router router --spec FILE");
        return ExitCode::FAILURE;
    };
    if (command.as_str(), option.as_str()) != ("router", "--spec") {
        eprintln!("usage: network-router router --spec FILE");
        return ExitCode::FAILURE;
    }
    match offshoot_network::router::run(spec.as_ref()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}", error.problem());
            ExitCode::FAILURE
        }
    }
}
