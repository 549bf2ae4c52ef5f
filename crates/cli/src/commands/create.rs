//! `create` and `plan`.

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;

use clap::Args;
use offshoot_compose::LoadRequest;
use offshoot_model::view::{CreateRequest, PlanView};
use offshoot_model::{Code, Operation};

use super::manifest::{self, Read};
use super::plan_view;
use super::show::summary;
use crate::api::Route;
use crate::context::Context;
use crate::failure::Failure;
use crate::follow::{Wait, complete_and_show};

/// Which Compose files make up the application.
#[derive(Debug, Args)]
pub(crate) struct FileArgs {
    /// Compose file; several are merged in this order, `-` is standard input [default: compose.yaml, compose.yml,
    /// docker-compose.yaml or docker-compose.yml here or in a directory above, with its override file]
    #[arg(short, long = "file", value_name = "FILE")]
    pub(crate) files: Vec<PathBuf>,

    /// Name of the environment and first part of its address [default: `name:` of the file, else the directory's
    /// name]
    #[arg(long)]
    pub(crate) name: Option<String>,

    /// File with variables for `${...}` in the Compose file [default: .env next to it]
    #[arg(long = "env-file", value_name = "FILE")]
    pub(crate) env_files: Vec<PathBuf>,

    /// Also run the services of this profile; may be repeated
    #[arg(long = "profile", value_name = "PROFILE")]
    pub(crate) profiles: Vec<String>,

    /// Directory that relative paths start from [default: that of the first file]
    #[arg(long, value_name = "DIR")]
    pub(crate) project_directory: Option<PathBuf>,
}

/// Create an environment from a Compose file and start it.
///
/// Fetches or makes the images, sets up volumes and a private network, starts the services in the order they depend
/// on each other, and waits until their health checks pass; a check that is late is told, and the environment stays
/// to be looked at. If anything else goes wrong, everything is taken back.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    offshoot create                                  the compose.yaml here, named after the directory\n  \
    offshoot create -f compose.yaml --name shop\n  \
    offshoot create -f compose.yaml -f test.yaml     the second file changes the first\n  \
    offshoot create --detach                         do not wait; `offshoot op ls` shows how it goes")]
pub(crate) struct CreateArgs {
    #[command(flatten)]
    files: FileArgs,
    #[command(flatten)]
    wait: Wait,
}

/// Show what `create` would do, without doing it.
///
/// Reads the Compose files and prints the nodes, addresses, volumes and ports that the environment would have, and
/// everything in the files that would be ignored or refused. Without a running daemon the files are still read and
/// checked, but addresses are not known.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    offshoot plan -f compose.yaml\n  \
    offshoot plan -f compose.yaml -o json            for programs")]
pub(crate) struct PlanArgs {
    #[command(flatten)]
    files: FileArgs,
}

impl FileArgs {
    fn load_request(&self) -> LoadRequest {
        LoadRequest {
            files: self.files.clone(),
            project_dir: self.project_directory.clone().unwrap_or_default(),
            env_files: self.env_files.clone(),
            profiles: self.profiles.clone(),
            environment: variables(),
        }
    }
}

/// This process's environment variables, as far as they are text.
pub(crate) fn variables() -> BTreeMap<String, String> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect()
}

fn read(context: &Context, args: &FileArgs) -> Result<Read, Failure> {
    let read = manifest::read(args.load_request(), args.name.as_deref())?;
    let mut said = HashSet::new();
    for warning in read.warnings.iter().filter(|warning| said.insert(*warning)) {
        context.warn(warning);
    }
    Ok(read)
}

pub(crate) async fn create(context: &Context, args: CreateArgs) -> Result<(), Failure> {
    let read = read(context, &args.files)?;
    let request = CreateRequest {
        name: read.name,
        manifest: read.manifest,
    };
    let operation: Operation = context
        .client
        .post(&Route::to("environments"), &request)
        .await?;
    complete_and_show(context, operation, args.wait, |_, view| {
        summary(view, context.out_paint)
    })
    .await
}

pub(crate) async fn plan(context: &Context, args: PlanArgs) -> Result<(), Failure> {
    let read = read(context, &args.files)?;
    let request = CreateRequest {
        name: read.name,
        manifest: read.manifest,
    };
    let plan: PlanView = match context.client.post(&Route::to("plan"), &request).await {
        Ok(plan) => plan,
        Err(problem) if problem.code == Code::DaemonUnreachable => {
            context.warn(&format!(
                "{}; addresses are not known without it",
                problem.what
            ));
            plan_view::offline(&request)
        }
        Err(problem) => return Err(problem.into()),
    };
    context.answer(&plan, || plan_view::render(&plan, context.out_paint))
}
