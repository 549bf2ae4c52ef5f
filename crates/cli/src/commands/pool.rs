//! `pool`.

use clap::{Args, Subcommand};
use offshoot_model::Operation;
use offshoot_model::quantity::parse_bytes;
use offshoot_model::view::{PoolGrowRequest, PoolView};

use crate::api::Route;
use crate::context::Context;
use crate::failure::Failure;
use crate::follow::{Wait, complete};
use crate::human;
use crate::table::{fields, optional};
use crate::term::Paint;

/// See and grow the pool, where images, disks and volumes live.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    offshoot pool status\n  \
    offshoot pool grow 40GiB")]
pub(crate) struct PoolArgs {
    #[command(subcommand)]
    command: PoolCommand,
}

#[derive(Debug, Subcommand)]
enum PoolCommand {
    /// Show how large the pool is and how full
    #[command(after_help = "Examples:\n  offshoot pool status\n  offshoot pool status -o json")]
    Status,
    /// Make the pool larger, while everything runs
    #[command(
        after_help = "A pool in a file grows the file; the room is taken on the host's disk only as it is used.\n\n\
        Examples:\n  \
        offshoot pool grow 40GiB\n  \
        offshoot pool grow +10GiB       larger by that much"
    )]
    Grow {
        /// New size, for instance 40GiB, or what to add, for instance +10GiB
        #[arg(value_name = "SIZE", value_parser = parse_size)]
        size: Size,
        #[command(flatten)]
        wait: Wait,
    },
}

/// A size as typed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Size {
    To(u64),
    By(u64),
}

fn parse_size(text: &str) -> Result<Size, String> {
    match text.strip_prefix('+') {
        Some(more) => parse_bytes(more).map(Size::By),
        None => parse_bytes(text).map(Size::To),
    }
}

pub(crate) async fn run(context: &Context, args: PoolArgs) -> Result<(), Failure> {
    match args.command {
        PoolCommand::Status => {
            let pool = status(context).await?;
            context.answer(&pool, || render(&pool, context.out_paint))
        }
        PoolCommand::Grow { size, wait } => {
            let size = match size {
                Size::To(size) => size,
                Size::By(more) => status(context).await?.size.saturating_add(more),
            };
            let route = Route::to("pool").then("grow");
            let operation: Operation = context
                .client
                .post(&route, &PoolGrowRequest { size })
                .await?;
            let Some(operation) = complete(context, operation, wait).await? else {
                return Ok(());
            };
            let pool = status(context).await?;
            context.answer(&operation, || render(&pool, context.out_paint))
        }
    }
}

async fn status(context: &Context) -> Result<PoolView, Failure> {
    Ok(context.client.get(&Route::to("pool")).await?)
}

fn render(pool: &PoolView, paint: Paint) -> String {
    let percent = (pool.used as f64 / pool.size.max(1) as f64 * 100.0).min(100.0);
    let mut rows = vec![
        ("Where", format!("{} ({})", pool.path, pool.backing)),
        ("Size", human::bytes(pool.size)),
        (
            "Used",
            format!("{} ({percent:.0} %)", human::bytes(pool.used)),
        ),
        ("Free", human::bytes(pool.free)),
    ];
    if pool.host_bytes.is_some() {
        rows.push((
            "On the host's disk",
            optional(pool.host_bytes.map(human::bytes)),
        ));
    }
    fields(&rows, paint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pool_for_people() {
        let pool = PoolView {
            backing: "loop file".to_owned(),
            path: "/var/lib/offshoot/pool.img".to_owned(),
            size: 20 << 30,
            used: 5 << 30,
            free: 14 << 30,
            host_bytes: Some(6 << 30),
        };
        insta::assert_snapshot!(render(&pool, Paint::Plain), @r"
        Where:               /var/lib/offshoot/pool.img (loop file)
        Size:                20.0 GiB
        Used:                5.0 GiB (25 %)
        Free:                14.0 GiB
        On the host's disk:  6.0 GiB
        ");
    }

    #[test]
    fn sizes_to_and_by() {
        assert_eq!(parse_size("40GiB"), Ok(Size::To(40 << 30)));
        assert_eq!(parse_size("+1g"), Ok(Size::By(1 << 30)));
        assert!(parse_size("much").is_err());
    }
}
