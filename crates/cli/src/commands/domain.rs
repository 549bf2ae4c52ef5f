//! `domain`: the names that people bring.

use clap::{Args, Subcommand};
use jiff::Timestamp;
use offshoot_model::domain::{DomainHttps, DomainHttpsRequest, DomainView};
use offshoot_model::view::{DomainAddRequest, EnvironmentView};
use offshoot_model::{Domain, Operation};
use serde::Serialize;

use crate::api::Route;
use crate::context::{Context, Format};
use crate::failure::Failure;
use crate::follow::{Wait, complete_all};
use crate::human;
use crate::table::Grid;
use crate::term::Paint;

/// See and change the custom domains of environments.
///
/// An environment answers at its default domain, which follows from its name, and at any custom domains. That their names
/// lead to this host is up to your DNS.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    offshoot domain add shop shop.example.com www.example.com\n  \
    offshoot domain ls\n  \
    offshoot domain rm shop www.example.com")]
pub(crate) struct DomainArgs {
    #[command(subcommand)]
    command: DomainCommand,
}

#[derive(Debug, Subcommand)]
enum DomainCommand {
    /// Give an environment custom domains, all in one step
    #[command(after_help = "Examples:\n  \
        offshoot domain add shop shop.example.com\n  \
        offshoot domain add shop shop.example.com www.example.com -o json")]
    Add {
        /// Environment, by name or id
        #[arg(value_name = "ENV")]
        environment: String,
        /// Host names, also *.example.com for all below it, also with a path: shop.example.com/api
        #[arg(value_name = "DOMAIN", required = true)]
        domains: Vec<String>,
        #[command(flatten)]
        wait: Wait,
    },
    /// Take custom domains away from an environment
    #[command(after_help = "Examples:\n  offshoot domain rm shop www.example.com")]
    Rm {
        /// Environment, by name or id
        #[arg(value_name = "ENV")]
        environment: String,
        /// Host names, also *.example.com for all below it, also with a path: shop.example.com/api
        #[arg(value_name = "DOMAIN", required = true)]
        domains: Vec<String>,
        #[command(flatten)]
        wait: Wait,
    },
    /// Say what requests without TLS get at a custom domain
    ///
    /// `redirect` sends them to the same address with https; `offer`, as at the beginning, answers them.
    #[command(after_help = "Examples:\n  offshoot domain https shop.example.com redirect")]
    Https {
        /// Host name, with its path where it has one
        #[arg(value_name = "DOMAIN")]
        domain: String,
        /// What they get
        #[arg(value_name = "redirect|offer", value_parser = https)]
        https: DomainHttps,
        #[command(flatten)]
        wait: Wait,
    },
    /// List custom domains, and former default domains that lead on
    #[command(after_help = "Examples:\n  \
        offshoot domain ls                  of all environments\n  \
        offshoot domain ls shop -o json")]
    Ls {
        /// Only those of this environment, by name or id
        #[arg(value_name = "ENV")]
        environment: Option<String>,
    },
}

/// A domain with whose it is.
#[derive(Debug, Serialize)]
struct Line {
    environment: String,
    #[serde(flatten)]
    domain: DomainView,
}

pub(crate) async fn run(context: &Context, args: DomainArgs) -> Result<(), Failure> {
    match args.command {
        DomainCommand::Add {
            environment,
            domains,
            wait,
        } => {
            let request = DomainAddRequest {
                domains: domains.iter().map(|text| Domain::split(text)).collect(),
            };
            let route = Route::environment(&environment).then("domains");
            let begun = context.client.post::<Operation>(&route, &request).await;
            complete_all(context, vec![begun], wait).await
        }
        DomainCommand::Rm {
            environment,
            domains,
            wait,
        } => {
            let mut begun = Vec::new();
            for domain in &domains {
                let route = Route::environment(&environment)
                    .then("domains")
                    .then(domain);
                begun.push(context.client.delete::<Operation>(&route).await);
            }
            complete_all(context, begun, wait).await
        }
        DomainCommand::Https {
            domain,
            https,
            wait,
        } => {
            let route = Route::to("domains").then(&domain).then("https");
            let request = DomainHttpsRequest { https };
            let begun = context.client.set::<Operation>(&route, &request).await;
            complete_all(context, vec![begun], wait).await
        }
        DomainCommand::Ls { environment } => {
            let views: Vec<EnvironmentView> = match environment {
                Some(name) => vec![context.client.get(&Route::environment(&name)).await?],
                None => context.client.get(&Route::to("environments")).await?,
            };
            let lines = lines(views);
            if context.is_quiet() && context.format == Format::Table {
                let names = lines
                    .iter()
                    .map(|line| format!("{}\n", line.domain.domain()));
                return context.print(&names.collect::<String>());
            }
            context.answer(&lines, || list(&lines, context.out_paint, Timestamp::now()))
        }
    }
}

fn https(text: &str) -> Result<DomainHttps, String> {
    match text {
        "redirect" => Ok(DomainHttps::Redirect),
        "offer" => Ok(DomainHttps::Offer),
        _ => Err("write redirect or offer".to_owned()),
    }
}

fn lines(views: Vec<EnvironmentView>) -> Vec<Line> {
    let of_one = |view: EnvironmentView| {
        let name = view.name;
        view.domains.into_iter().map(move |domain| Line {
            environment: name.clone(),
            domain,
        })
    };
    views.into_iter().flat_map(of_one).collect()
}

fn list(lines: &[Line], paint: Paint, now: Timestamp) -> String {
    let mut grid = Grid::new(&["DOMAIN", "ENVIRONMENT", "ADDED", "HTTPS"], paint);
    for line in lines {
        grid.row([
            line.domain.domain().to_string(),
            line.environment.clone(),
            human::age(line.domain.added, now),
            match &line.domain.redirect {
                Some(to) => format!("leads to {to}"),
                None => line.domain.https.to_string(),
            },
        ]);
    }
    grid.render()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::fixtures;

    #[test]
    fn domains_for_people() {
        let lines = lines(vec![fixtures::clone(), fixtures::shop_with_domains()]);
        insta::assert_snapshot!(list(&lines, Paint::Plain, fixtures::now()), @r"
        DOMAIN             ENVIRONMENT   ADDED          HTTPS
        shop.example.com   shop          2 hours ago    offer
        www.example.com    shop          1 minute ago   offer
        ");
    }
}
