//! What belongs to no known environment goes: a crash may have left anything.

use std::collections::BTreeSet;
use std::fs;

use offshoot_model::{EnvId, Problem};
use offshoot_pool::Pool;

use crate::config::LocalConfig;
use crate::cut;
use crate::net::router_dir;
use crate::nodes;

/// Environments of this instance that left anything on the host.
fn found(config: &LocalConfig, pool: &Pool) -> Result<BTreeSet<EnvId>, Problem> {
    let mut found = pool.list_envs().map_err(|e| e.problem())?;
    for dir in [config.run_envs(), config.state_envs(), config.cuts()] {
        found.extend(
            nodes::names_in(&dir)
                .iter()
                .filter_map(|name| name.parse::<EnvId>().ok()),
        );
    }
    found.extend(
        nodes::names_in(&nodes::group_dir(config))
            .iter()
            .filter_map(|name| name.parse::<EnvId>().ok()),
    );
    for record in offshoot_network::list_routers(&config.run_dir, &config.instance)
        .map_err(|e| e.problem())?
    {
        found.insert(record.env);
    }
    Ok(found)
}

/// Removes what belongs to no `known` environment, and says of which.
pub(crate) fn sweep(
    config: &LocalConfig,
    pool: &Pool,
    known: &[EnvId],
) -> Result<Vec<String>, Problem> {
    let mut removed = Vec::new();
    for env in found(config, pool)?
        .into_iter()
        .filter(|env| !known.contains(env))
    {
        match ensure_removed(config, pool, &env) {
            Ok(()) => removed.push(format!("environment {env}")),
            Err(problem) => {
                tracing::warn!(%env, %problem, details = ?problem.details, "what it left could not be removed");
            }
        }
    }
    Ok(removed)
}

/// Takes away the processes, the network and the run-time state of an environment.
pub(crate) fn ensure_halted(config: &LocalConfig, env: &EnvId) -> Result<(), Problem> {
    let nodes = nodes::ensure_halted(config, env);
    let router =
        offshoot_network::ensure_router_removed(&router_dir(config, env), env, &config.instance)
            .map_err(|e| e.problem());
    nodes.and(router)?;
    remove_dir(&config.run_envs().join(env.as_str()))
}

/// Takes away everything of an environment.
pub(crate) fn ensure_removed(
    config: &LocalConfig,
    pool: &Pool,
    env: &EnvId,
) -> Result<(), Problem> {
    let halted = ensure_halted(config, env);
    let memory = cut::ensure_forgotten(&config.cuts(), env);
    let disks = pool.ensure_env_removed(env).map_err(|e| e.problem());
    let logs = remove_dir(&config.state_envs().join(env.as_str()));
    halted.and(memory).and(disks).and(logs)
}

fn remove_dir(dir: &std::path::Path) -> Result<(), Problem> {
    match fs::remove_dir_all(dir) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(Problem::internal(format!("{} cannot be removed", dir.display())).caused_by(&e))
        }
        _ => Ok(()),
    }
}
