//! `cp`: files between this host and nodes, as tar streams, by the rules of `docker cp`.

mod pack;
mod place;
mod target;
mod transfer;
mod unpack;

use clap::Args;
use serde::Serialize;

use self::place::Place;
use crate::context::{Context, Format};
use crate::failure::Failure;

/// Copy files between this host and a node.
///
/// A directory is copied with all in it. Into a directory that exists, the source goes under its own name, or, when
/// it ends in `/.`, its content does; otherwise the target is the new name. `-` stands for a tar archive on standard
/// input or output.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    offshoot cp shop/web-1:/etc/nginx ./nginx          out of a node\n  \
    offshoot cp index.html shop/web-1:/var/www/html/   into it\n  \
    offshoot cp ./site/. shop/web:/var/www/html        the content of a directory\n  \
    offshoot cp shop/db-1:/var/log - | tar tv          as a tar archive\n  \
    offshoot cp ./a:b shop/web-1:/tmp                  a local name with a colon: write ./ before it")]
pub(crate) struct CpArgs {
    /// What to copy: a path here, ENV/NODE:PATH, or -
    #[arg(value_name = "SRC", allow_hyphen_values = true)]
    source: String,

    /// Where to: a path here, ENV/NODE:PATH, or -
    #[arg(value_name = "DST", allow_hyphen_values = true)]
    target: String,

    /// Keep owners and groups (numbers). Without it files belong to root in the node, and to you here
    #[arg(short, long)]
    archive: bool,

    /// When the local source is a symbolic link, copy what it leads to
    #[arg(short = 'L', long)]
    follow_link: bool,
}

/// Who owns what is copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Owners {
    /// As at the source, by number.
    Keep,
    /// root in a node; here, whoever runs this.
    Default,
}

/// Whether a symbolic link given as the source is followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Links {
    Follow,
    Copy,
}

/// What was copied.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Copied {
    /// Files, directories and links.
    entries: u64,
    /// Bytes in files.
    bytes: u64,
    /// What was left out, and why.
    skipped: Vec<String>,
}

pub(crate) async fn run(context: &Context, args: CpArgs) -> Result<(), Failure> {
    let owners = if args.archive {
        Owners::Keep
    } else {
        Owners::Default
    };
    let links = if args.follow_link {
        Links::Follow
    } else {
        Links::Copy
    };
    let copied = match (Place::parse(&args.source), Place::parse(&args.target)) {
        (Place::Remote(from), Place::Stream) => {
            transfer::to_stdout(context, &from).await?;
            return Ok(());
        }
        (Place::Remote(from), Place::Local(to)) => {
            transfer::out(context, &from, &to, owners).await?
        }
        (Place::Stream, Place::Remote(to)) => {
            transfer::from_stdin(context, &to).await?;
            return Ok(());
        }
        (Place::Local(from), Place::Remote(to)) => {
            transfer::into(context, &from, &to, owners, links).await?
        }
        (Place::Remote(_), Place::Remote(_)) => {
            return Err(Failure::Usage(
                "both sides are in nodes; join two commands: offshoot cp SRC - | offshoot cp - DST"
                    .to_owned(),
            ));
        }
        (Place::Local(_) | Place::Stream, Place::Local(_) | Place::Stream) => {
            return Err(Failure::Usage(
                "one side must be in a node: ENV/NODE:PATH, for instance shop/web-1:/etc/nginx"
                    .to_owned(),
            ));
        }
    };
    for skipped in &copied.skipped {
        context.warn(skipped);
    }
    if context.format == Format::Json {
        context.json(&copied)
    } else {
        Ok(())
    }
}
