//! The commands, a file for each group.

pub(crate) mod cert;
pub(crate) mod clone;
pub(crate) mod create;
pub(crate) mod diff;
pub(crate) mod doctor;
pub(crate) mod domain;
pub(crate) mod exec;
mod exec_session;
#[cfg(test)]
mod fixtures;
mod guard;
pub(crate) mod hold;
pub(crate) mod image;
pub(crate) mod login;
pub(crate) mod logs;
pub(crate) mod ls;
mod manifest;
pub(crate) mod meta;
pub(crate) mod op;
mod plan_view;
pub(crate) mod pool;
pub(crate) mod power;
pub(crate) mod promote;
pub(crate) mod show;
pub(crate) mod swap;
mod timing;
pub(crate) mod traffic;

use crate::args::Command;
use crate::context::Context;
use crate::failure::Failure;
use crate::{cp, serve};

/// Runs a command.
pub(crate) async fn run(context: &Context, command: Command) -> Result<(), Failure> {
    match command {
        Command::Create(args) => create::create(context, args).await,
        Command::Plan(args) => create::plan(context, args).await,
        Command::Clone(args) => clone::run(context, args).await,
        Command::Ls(args) => ls::ls(context, args).await,
        Command::Ps(args) => ls::ps(context, args).await,
        Command::Show(args) => show::run(context, args).await,
        Command::Diff(args) => diff::run(context, args).await,
        Command::Start(args) => power::start(context, args).await,
        Command::Stop(args) => power::stop(context, args).await,
        Command::Hold(args) => hold::hold(context, args).await,
        Command::Release(args) => hold::release(context, args).await,
        Command::Rename(args) => power::rename(context, args).await,
        Command::Rm(args) => power::rm(context, args).await,
        Command::Domain(args) => domain::run(context, args).await,
        Command::Swap(args) => swap::run(context, args).await,
        Command::Cert(args) => cert::run(context, args).await,
        Command::Traffic(args) => traffic::run(context, args).await,
        Command::Promote(args) => promote::run(context, args).await,
        Command::Exec(args) => exec::run(context, args).await,
        Command::Logs(args) => logs::run(context, args).await,
        Command::Cp(args) => cp::run(context, args).await,
        Command::Op(args) => op::run(context, args).await,
        Command::Image(args) => image::run(context, args).await,
        Command::Pool(args) => pool::run(context, args).await,
        Command::Doctor(args) => doctor::run(context, args).await,
        Command::Serve(args) => serve::run(context, args).await,
        Command::LoginLink(args) => login::run(context, args).await,
        Command::Completion(args) => meta::completion(context, &args),
        Command::Version(args) => meta::version(context, args).await,
    }
}
