//! `login-link`.

use clap::Args;
use offshoot_model::view::LoginLink;

use crate::api::Route;
use crate::context::Context;
use crate::failure::Failure;

/// Print a link that signs you in to the dashboard.
///
/// It works once, within 15 minutes. Whoever has it until then can do everything that you can do with this command.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    offshoot login-link\n  \
    xdg-open \"$(offshoot login-link)\"        straight into a browser\n  \
    ssh -L 9440:127.0.0.1:9440 HOST           first, when the daemon is on another host")]
pub(crate) struct LoginLinkArgs {}

pub(crate) async fn run(context: &Context, _args: LoginLinkArgs) -> Result<(), Failure> {
    let route = Route::to("login-links");
    let link: LoginLink = context.client.post_empty(&route).await?;
    context.answer(&link, || link.url.clone())
}
