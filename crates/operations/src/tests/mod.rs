//! Operations over a pretended engine and a real store; time is tokio's paused clock.
#![allow(clippy::unwrap_used)]

mod clone;
mod domains;
mod engine;
mod health;
mod hold;
mod https;
mod power;
mod promote;
mod queue;
mod recover;
mod supervise;
mod traffic;

use std::sync::Arc;
use std::time::Duration;

use offshoot_engine::Reach;
use offshoot_model::manifest::{Condition, Dependency, HealthCheck};
use offshoot_model::view::{CloneRequest, CreateRequest, RenameRequest};
use offshoot_model::{
    EnvId, Environment, EnvironmentState, Layer, Manifest, NodeId, Operation, OperationId,
    OperationState,
};
use offshoot_plan::Host;
use offshoot_store::Store;
use serde_json::json;
use tempfile::TempDir;

use crate::platform::Request;
use crate::shared::{Settings, Shared};
use engine::Pretend;

/// Longest wait for anything, on the paused clock.
const LONG: Duration = Duration::from_secs(3_600);

/// A daemon's operations, on a host that outlives it.
struct World {
    engine: Arc<Pretend>,
    dir: Arc<TempDir>,
    shared: Arc<Shared>,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self::on(Arc::new(dir), Arc::default())
    }

    /// A daemon on a host where another one was.
    fn on(dir: Arc<TempDir>, engine: Arc<Pretend>) -> Self {
        let store = Store::open(&dir.path().join("offshoot.db")).unwrap();
        let settings = Settings {
            host: Host {
                outer_pool: "10.208.0.0/12".parse().unwrap(),
                inner: "10.99.0.0/24".parse().unwrap(),
                outer_pool6: None,
                inner6: None,
                id_base: 1_000_000,
                id_count: 65_536,
                id_ranges: 1_000,
                base_domain: "localhost".to_owned(),
                edge_port: 80,
            },
            max_freeze_ms: 5_000,
            ready_timeout: Duration::from_secs(120),
            https: https::settings(dir.path(), &engine),
        };
        let shared = Arc::new(Shared::new(Arc::new(store), engine.clone(), settings));
        Self {
            engine,
            dir,
            shared,
        }
    }

    async fn submit(&self, request: Request) -> OperationId {
        self.shared.submit(request).await.unwrap().id
    }

    /// Does a request and gives the operation as it ended.
    async fn run(&self, request: Request) -> Operation {
        let id = self.submit(request).await;
        self.ended(id).await
    }

    async fn ended(&self, id: OperationId) -> Operation {
        self.until("the operation to end", || {
            let (operation, _) = self.shared.store.operation(id).unwrap().unwrap();
            (operation.state.is_final() && self.shared.live_of(id).is_none()).then_some(operation)
        })
        .await
    }

    async fn until<R>(&self, what: &str, mut look: impl FnMut() -> Option<R>) -> R {
        let looking = async {
            loop {
                match look() {
                    Some(found) => return found,
                    None => tokio::time::sleep(Duration::from_millis(10)).await,
                }
            }
        };
        let waited = tokio::time::timeout(LONG, looking).await;
        waited.unwrap_or_else(|_| panic!("waited in vain for {what}"))
    }

    /// An environment that runs; the calls that made it are forgotten.
    async fn created(&self, name: &str, layers: Vec<Layer>) -> Environment {
        let operation = self.run(create(name, layers)).await;
        assert_eq!(operation.state, OperationState::Done, "{operation:?}");
        self.engine.calls();
        self.named(name).unwrap()
    }

    fn named(&self, name: &str) -> Option<Environment> {
        self.shared.store.environment_by_name(name).unwrap()
    }

    fn state(&self, name: &str) -> Option<EnvironmentState> {
        self.named(name).map(|environment| environment.state)
    }

    fn reach(&self, name: &str) -> Option<Reach> {
        let domain = format!("{name}.localhost");
        self.engine.host().exposed.get(&domain).copied()
    }

    /// All nodes of the environment run.
    fn runs(&self, id: &EnvId) -> bool {
        let environment = self.shared.by_id(id).unwrap();
        let host = self.engine.host();
        let runs = |node: &NodeId| {
            matches!(
                host.nodes.get(node),
                Some(offshoot_model::NodeState::Running { .. })
            )
        };
        environment.nodes.iter().all(|node| runs(&node.id))
    }
}

fn create(name: &str, layers: Vec<Layer>) -> Request {
    let manifest = Manifest {
        layers,
        ..Manifest::default()
    };
    Request::Create(CreateRequest {
        name: name.to_owned(),
        manifest,
    })
}

fn rename(name: &str, to: &str) -> Request {
    let request = RenameRequest {
        name: to.to_owned(),
        redirect: false,
    };
    Request::Rename(name.to_owned(), request)
}

fn clone_of(name: &str) -> Request {
    Request::Clone(name.to_owned(), CloneRequest::default())
}

fn layer(name: &str) -> Layer {
    serde_json::from_value(json!({
        "name": name,
        "image": {"kind": "registry", "reference": "registry.test/any:1"},
        "role": "other", "scaling": "stateful", "clone": "each",
        "replicas": 1, "stop_grace_ms": 100,
    }))
    .unwrap()
}

fn after(mut layer: Layer, other: &str, condition: Condition) -> Layer {
    layer.depends_on.push(Dependency {
        layer: other.parse().unwrap(),
        condition,
        required: true,
    });
    layer
}

fn checked(mut layer: Layer) -> Layer {
    layer.healthcheck = Some(check());
    layer
}

fn check() -> HealthCheck {
    HealthCheck {
        test: vec!["/healthy".to_owned()],
        interval_ms: 30_000,
        timeout_ms: 5_000,
        retries: 3,
        start_period_ms: 0,
        start_interval_ms: 500,
    }
}
