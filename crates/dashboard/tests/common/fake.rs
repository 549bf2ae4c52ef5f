//! A platform that only pretends.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use offshoot_model::certificate::CertificatesView;
use offshoot_model::disk::{Changes, Directory};
use offshoot_model::domain::DomainView;
use offshoot_model::manifest::VolumeClone;
use offshoot_model::operation::{OperationKind, OperationState, Progress, StepState};
use offshoot_model::traffic::view::TrafficView;
use offshoot_model::view::{
    CloneRequest, DoctorReport, EnvironmentView, Event, ExecRequest, ImageView, LogLine, LogStream,
    PlanView, PlannedNode, PlannedVolume, PoolView, RenameRequest,
};
use offshoot_model::{
    Code, EnvironmentState, Fault, Manifest, Memory, MemoryWay, Operation, OperationId, Problem,
    Rung, RungChoice,
};
use offshoot_operations::{
    ByteStream, ExecInput, ExecOutput, ExecSession, LogQuery, Platform, Request,
};
use tokio::sync::{broadcast, mpsc};

use super::sample;

pub struct Fake {
    pub calls: Mutex<Vec<String>>,
    pub environments: Mutex<Vec<EnvironmentView>>,
    pub operations: Arc<Mutex<Vec<Operation>>>,
    pub lines: Mutex<Vec<LogLine>>,
    pub news: broadcast::Sender<Operation>,
    /// How long each step of an operation takes; none at all when absent.
    pub pace: Option<Duration>,
    pub manifest: Mutex<Manifest>,
    /// By name; an environment without one answers all itself.
    pub traffic: Mutex<HashMap<String, TrafficView>>,
    pub certificates: Mutex<CertificatesView>,
    pub directory: Mutex<Directory>,
    pub changes: Mutex<Changes>,
    pub archive: Mutex<Vec<u8>>,
}

impl Fake {
    pub fn new(environments: Vec<EnvironmentView>, operations: Vec<Operation>) -> Self {
        Self {
            calls: Mutex::default(),
            environments: Mutex::new(environments),
            operations: Arc::new(Mutex::new(operations)),
            lines: Mutex::default(),
            news: broadcast::channel(64).0,
            pace: None,
            manifest: Mutex::default(),
            traffic: Mutex::default(),
            certificates: Mutex::new(CertificatesView {
                served: false,
                certificates: Vec::new(),
            }),
            directory: Mutex::new(sample::directory()),
            changes: Mutex::new(sample::changes()),
            archive: Mutex::default(),
        }
    }

    pub fn calls(&self) -> Vec<String> {
        std::mem::take(&mut *self.calls.lock().unwrap())
    }

    pub fn note(&self, call: impl Into<String>) {
        self.calls.lock().unwrap().push(call.into());
    }

    pub fn find(&self, name: &str) -> Result<EnvironmentView, Problem> {
        let environments = self.environments.lock().unwrap();
        let found = environments
            .iter()
            .find(|env| env.name == name || env.id.as_str() == name);
        found.cloned().ok_or_else(|| {
            Problem::new(
                Code::EnvironmentUnknown,
                Fault::Request,
                format!("there is no environment {name:?}"),
                "see `offshoot ls`",
            )
        })
    }

    /// From now on an environment is kept from mail and jobs: one node stands still, and one process of another.
    pub fn hold(&self, name: &str) {
        let mut environments = self.environments.lock().unwrap();
        let found = environments.iter_mut().find(|env| env.name == name);
        let env = found.unwrap();
        env.held = offshoot_model::Hold::ALL;
        env.layers[0].nodes[0].held = true;
        env.layers[1].nodes[0].held_processes = vec!["cron (process 7)".to_owned()];
    }

    /// Lets an operation go through its steps.
    fn play(&self, mut operation: Operation, at_end: Operation) {
        self.operations.lock().unwrap().insert(0, operation.clone());
        let (all, news) = (Arc::clone(&self.operations), self.news.clone());
        let Some(pace) = self.pace else { return };
        tokio::spawn(async move {
            let put = |operation: &Operation| {
                let mut all = all.lock().unwrap();
                let kept = all.iter_mut().find(|kept| kept.id == operation.id);
                *kept.unwrap() = operation.clone();
                drop(all);
                let _ = news.send(operation.clone());
            };
            for index in 0..operation.steps.len() {
                operation.steps[index].state = StepState::Running;
                operation.steps[index].progress = Some(Progress {
                    done: 3 << 20,
                    total: 8 << 20,
                    unit: "bytes".to_owned(),
                    note: "mariadb-1".to_owned(),
                });
                put(&operation);
                tokio::time::sleep(pace).await;
                operation.steps[index].state = StepState::Done;
                operation.steps[index].us = Some(pace.as_micros() as u64);
                operation.steps[index].progress = None;
            }
            put(&Operation {
                id: operation.id,
                ..at_end
            });
        });
    }
}

#[async_trait]
impl Platform for Fake {
    async fn submit(&self, request: Request) -> Result<Operation, Problem> {
        let mut operation = match request {
            Request::Create(create) => {
                self.note(format!(
                    "create {} of {} layers",
                    create.name,
                    create.manifest.layers.len()
                ));
                sample::operation(OperationKind::Create, &create.name)
            }
            Request::Clone(parent, clone) => {
                let name = clone
                    .name
                    .clone()
                    .unwrap_or_else(|| format!("{parent}-clone"));
                let mut call = format!(
                    "clone {parent} as {name} {:?} {:?}",
                    clone.rung, clone.max_freeze_ms
                );
                if let Some(words) = clone.hold.words() {
                    call += &format!(" holding {words}");
                }
                if !clone.start {
                    call += " stopped";
                }
                self.note(call);
                if self.find(&name).is_ok() {
                    return Err(Problem::new(
                        Code::NameTaken,
                        Fault::Request,
                        format!("an environment named {name} exists already"),
                        "choose another name",
                    ));
                }
                let env = sample::environment(&name, Some(&parent));
                self.environments.lock().unwrap().push(env);
                let done = sample::cloned(&parent, &name);
                let operation = Operation {
                    state: OperationState::Running,
                    ended: None,
                    report: None,
                    steps: sample::STEPS
                        .iter()
                        .map(|name| sample::step(name, StepState::Pending, None))
                        .collect(),
                    ..done.clone()
                };
                self.play(operation.clone(), done);
                return Ok(operation);
            }
            Request::Rename(from, RenameRequest { name: to, redirect }) => {
                let kept = if redirect { " redirect" } else { "" };
                self.note(format!("rename {from} {to}{kept}"));
                if to.is_empty() || to.contains('!') {
                    return Err(Problem::new(
                        Code::NameInvalid,
                        Fault::Request,
                        format!("{to:?} is no name"),
                        "choose another name",
                    ));
                }
                sample::operation(OperationKind::Rename, &to)
            }
            Request::Hold(name, held) => {
                self.note(format!("hold {name} {}", held.words().unwrap_or("nothing")));
                sample::operation(OperationKind::Hold, &self.find(&name)?.name)
            }
            Request::Start(name) => {
                self.note(format!("start {name}"));
                sample::operation(OperationKind::Start, &self.find(&name)?.name)
            }
            Request::Stop(name) => {
                self.note(format!("stop {name}"));
                let mut environments = self.environments.lock().unwrap();
                for env in environments.iter_mut().filter(|env| env.name == name) {
                    env.state = EnvironmentState::Stopped;
                }
                sample::operation(OperationKind::Stop, &name)
            }
            Request::Remove(name) => {
                self.note(format!("remove {name}"));
                sample::operation(OperationKind::Remove, &name)
            }
            other => match self.change_traffic(&other) {
                Some(outcome) => outcome?,
                None => panic!("{other:?} was not expected"),
            },
        };
        operation.created = jiff::Timestamp::now();
        self.operations.lock().unwrap().insert(0, operation.clone());
        let _ = self.news.send(operation.clone());
        Ok(operation)
    }

    async fn plan_create(&self, _: &str, _: &Manifest) -> Result<PlanView, Problem> {
        unreachable!("the dashboard does not plan creations")
    }

    async fn plan_clone(&self, name: &str, request: &CloneRequest) -> Result<PlanView, Problem> {
        let parent = self.find(name)?;
        let wanted = request
            .name
            .clone()
            .unwrap_or_else(|| format!("{name}-clone"));
        let nodes = parent.layers.iter().flat_map(|layer| {
            layer.nodes.iter().map(|node| {
                let rung = match (layer.name.as_str(), request.rung) {
                    ("app", _) | (_, RungChoice::Image) => Rung::Image,
                    ("redis", _) | (_, RungChoice::Disk) => Rung::Disk,
                    _ => Rung::Live,
                };
                PlannedNode {
                    name: node.name.clone(),
                    image: layer.image.clone(),
                    inner: node.inner.clone(),
                    outer: node.outer.clone(),
                    hostname: node.hostname.clone(),
                    rung: Some(rung),
                    why: (rung == Rung::Disk)
                        .then(|| "it has a socket that leads out of the node".to_owned()),
                    memory: (rung == Rung::Live).then_some(Memory {
                        way: MemoryWay::Tracked,
                        why: None,
                    }),
                    memory_bytes: (rung == Rung::Live).then_some(node.memory_bytes).flatten(),
                    held: None,
                }
            })
        });
        Ok(PlanView {
            url: Some(format!("http://{wanted}.localhost:8080/")),
            name: wanted,
            nodes: nodes.collect(),
            volumes: parent
                .volumes
                .iter()
                .map(|volume| PlannedVolume {
                    name: volume.name.clone(),
                    clone: VolumeClone::Copy,
                })
                .collect(),
            ports: Vec::new(),
            steps: sample::STEPS.map(str::to_owned).to_vec(),
            predicted_freeze_us: (request.rung != RungChoice::Image).then_some(150_400),
            notices: vec![
                "layer app is stateless: its nodes start from their image".to_owned(),
                format!(
                    "outer addresses, host names and the domain differ from {name}; nothing inside has to"
                ),
            ],
        })
    }

    async fn operation(&self, id: OperationId) -> Result<Operation, Problem> {
        let operations = self.operations.lock().unwrap();
        let found = operations.iter().find(|operation| operation.id == id);
        found.cloned().ok_or_else(|| {
            Problem::new(
                Code::OperationUnknown,
                Fault::Request,
                format!("there is no operation {id}"),
                "see `offshoot op ls`",
            )
        })
    }

    async fn operations(&self, limit: usize) -> Result<Vec<Operation>, Problem> {
        let operations = self.operations.lock().unwrap();
        Ok(operations.iter().take(limit).cloned().collect())
    }

    async fn cancel(&self, id: OperationId) -> Result<Operation, Problem> {
        self.note("cancel");
        self.operation(id).await
    }

    async fn events(&self, _: u64) -> Result<mpsc::Receiver<Event>, Problem> {
        let (sender, receiver) = mpsc::channel(16);
        let mut news = self.news.subscribe();
        tokio::spawn(async move {
            while let Ok(operation) = news.recv().await {
                if sender.send(Event { seq: 1, operation }).await.is_err() {
                    return;
                }
            }
        });
        Ok(receiver)
    }

    async fn environments(&self) -> Result<Vec<EnvironmentView>, Problem> {
        Ok(self.environments.lock().unwrap().clone())
    }

    async fn environment(&self, environment: &str) -> Result<EnvironmentView, Problem> {
        self.find(environment)
    }

    async fn domains(&self, environment: &str) -> Result<Vec<DomainView>, Problem> {
        Ok(self.find(environment)?.domains)
    }

    async fn traffic(&self, environment: &str) -> Result<TrafficView, Problem> {
        Ok(self.traffic_of(&self.find(environment)?.name))
    }

    async fn traffic_back(&self, environment: &str) -> Result<TrafficView, Problem> {
        Ok(self.bring_back(&self.find(environment)?.name))
    }

    async fn certificates(&self) -> Result<CertificatesView, Problem> {
        Ok(self.certificates.lock().unwrap().clone())
    }

    async fn certificate_root(&self) -> Result<String, Problem> {
        Ok("-----BEGIN CERTIFICATE-----\nroot\n".to_owned())
    }

    async fn manifest(&self, _: &str) -> Result<Manifest, Problem> {
        Ok(self.manifest.lock().unwrap().clone())
    }

    /// A shell that shows what is typed, and ends at an `x`.
    async fn exec(
        &self,
        environment: &str,
        node: &str,
        request: ExecRequest,
    ) -> Result<ExecSession, Problem> {
        self.note(format!("exec {environment} {node} {:?}", request.tty));
        let (input, mut typed) = mpsc::channel(16);
        let (sender, output) = mpsc::channel(16);
        tokio::spawn(async move {
            let prompt = b"\x1b[1;32mroot@shop\x1b[0m:\x1b[38;2;120;160;255m/\x1b[0m# ";
            let mut next = ExecOutput::Stdout(prompt.as_slice().into());
            while sender.send(next).await.is_ok() {
                next = match typed.recv().await {
                    Some(ExecInput::Stdin(bytes)) if bytes.contains(&b'x') => ExecOutput::Exit(7),
                    Some(ExecInput::Stdin(bytes)) => ExecOutput::Stdout(bytes),
                    Some(other) => ExecOutput::Stdout(format!("{other:?}\r\n").into()),
                    None => return,
                };
            }
        });
        Ok(ExecSession { input, output })
    }

    async fn logs(
        &self,
        environment: &str,
        query: LogQuery,
    ) -> Result<mpsc::Receiver<LogLine>, Problem> {
        self.note(format!("logs {environment} {query:?}"));
        let lines = self.lines.lock().unwrap().clone();
        let (sender, receiver) = mpsc::channel(16);
        tokio::spawn(async move {
            for line in lines {
                if sender.send(line).await.is_err() {
                    return;
                }
            }
            if query.follow {
                sender.closed().await;
            }
        });
        Ok(receiver)
    }

    async fn list(&self, environment: &str, node: &str, path: &str) -> Result<Directory, Problem> {
        self.note(format!("list {environment} {node} {path}"));
        if path.contains("none") {
            return Err(Problem::new(
                Code::NotFound,
                Fault::Request,
                format!("reading {path}: No such file or directory"),
                "see what is there with `offshoot exec ENV NODE -- ls`",
            ));
        }
        Ok(self.directory.lock().unwrap().clone())
    }

    async fn changes(&self, environment: &str, other: Option<&str>) -> Result<Changes, Problem> {
        self.note(format!("changes {environment} {other:?}"));
        Ok(Changes {
            with: other.map(str::to_owned),
            ..self.changes.lock().unwrap().clone()
        })
    }

    /// An archive in small pieces.
    async fn copy_out(
        &self,
        environment: &str,
        node: &str,
        path: &str,
    ) -> Result<ByteStream, Problem> {
        self.note(format!("copy out {environment} {node} {path}"));
        let archive = self.archive.lock().unwrap().clone();
        let (sender, receiver) = mpsc::channel(1);
        tokio::spawn(async move {
            for piece in archive.chunks(2_048) {
                let piece = Ok(bytes::Bytes::copy_from_slice(piece));
                if sender.send(piece).await.is_err() {
                    return;
                }
            }
        });
        Ok(receiver)
    }

    async fn copy_in(&self, _: &str, _: &str, _: &str, _: ByteStream) -> Result<(), Problem> {
        unreachable!("no page copies files")
    }

    async fn images(&self) -> Result<Vec<ImageView>, Problem> {
        Ok(Vec::new())
    }

    async fn image_remove(&self, _: &str) -> Result<(), Problem> {
        unreachable!("no page removes images")
    }

    async fn root_bytes(&self, name: &str) -> Result<Option<u64>, Problem> {
        self.find(name)?;
        Ok(Some(5 << 20))
    }

    async fn pool(&self) -> Result<PoolView, Problem> {
        Ok(PoolView {
            backing: "loop file".to_owned(),
            path: "/pool.img".to_owned(),
            size: 64 << 30,
            used: 11 << 30,
            free: 53 << 30,
            host_bytes: None,
        })
    }

    async fn doctor(&self) -> Result<DoctorReport, Problem> {
        unreachable!("no page examines the host")
    }
}

pub fn line(node: &str, text: &str, stream: LogStream) -> LogLine {
    LogLine {
        time: "2026-11-28T16:04:11.223Z".parse().unwrap(),
        node: node.to_owned(),
        stream,
        line: text.to_owned(),
    }
}
