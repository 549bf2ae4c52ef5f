//! A platform that only pretends: it notes what it is asked and answers what it is told to.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use offshoot_model::certificate::CertificatesView;
use offshoot_model::disk::{Changes, Directory};
use offshoot_model::domain::DomainView;
use offshoot_model::operation::{OperationKind, OperationState};
use offshoot_model::traffic::view::TrafficView;
use offshoot_model::view::{
    CloneRequest, DoctorReport, EnvironmentView, Event, ExecRequest, ImageView, LogLine, LogStream,
    PlanView, PoolView,
};
use offshoot_model::{Code, EnvironmentState, Fault, Manifest, Operation, OperationId, Problem};
use offshoot_operations::{
    ByteStream, ExecInput, ExecOutput, ExecSession, LogQuery, Platform, Request,
};
use tokio::sync::{Notify, mpsc, watch};

/// Ways to have a log or an archive fed by the test.
type Feed<T> = Mutex<Option<mpsc::Receiver<T>>>;

#[derive(Default)]
pub struct Fake {
    /// What was asked, in order.
    pub calls: Mutex<Vec<String>>,
    /// What every call answers, when set.
    pub refusal: Mutex<Option<Problem>>,
    /// All events so far, and news of them.
    pub events: watch::Sender<Vec<Event>>,
    pub log: Feed<LogLine>,
    pub archive: Feed<Result<Bytes, Problem>>,
    /// What came in by copy_in.
    pub received: Mutex<Vec<u8>>,
    /// Requests that are being answered now, and the most there were.
    pub inside: AtomicUsize,
    pub most_inside: AtomicUsize,
    /// When set, `environments` waits for `go`.
    pub wait_for: Mutex<Option<usize>>,
    pub go: Notify,
    /// Told when a command has ended because its session was dropped.
    pub exec_dropped: std::sync::Arc<Notify>,
    /// Bytes that `copy_in` takes before it refuses.
    pub refuse_archive_after: Mutex<Option<usize>>,
}

impl Fake {
    pub fn refuse(&self, problem: Problem) {
        *self.refusal.lock().unwrap() = Some(problem);
    }

    pub fn calls(&self) -> Vec<String> {
        std::mem::take(&mut *self.calls.lock().unwrap())
    }

    pub fn publish(&self, event: Event) {
        self.events.send_modify(|events| events.push(event));
    }

    fn note(&self, call: impl Into<String>) -> Result<(), Problem> {
        let call = call.into();
        assert!(!call.contains("defect"), "a defect was asked for");
        self.calls.lock().unwrap().push(call);
        match &*self.refusal.lock().unwrap() {
            Some(problem) => Err(problem.clone()),
            None => Ok(()),
        }
    }
}

pub fn problem(code: Code) -> Problem {
    Problem::new(
        code,
        Fault::Request,
        format!("{code} happened"),
        "do something else",
    )
    .detail("a detail")
}

pub fn operation(kind: OperationKind) -> Operation {
    Operation {
        id: OperationId::new(),
        kind,
        environment: None,
        subject: "shop".to_owned(),
        parent: None,
        state: OperationState::Running,
        created: "2026-01-01T00:00:00Z".parse().unwrap(),
        ended: None,
        steps: Vec::new(),
        problem: None,
        report: None,
        swap: None,
        traffic: None,
        notices: Vec::new(),
    }
}

pub fn event(seq: u64) -> Event {
    Event {
        seq,
        operation: operation(OperationKind::Create),
    }
}

pub fn line(text: &str) -> LogLine {
    LogLine {
        time: "2026-01-01T00:00:00Z".parse().unwrap(),
        node: "web-1".to_owned(),
        stream: LogStream::Stdout,
        line: text.to_owned(),
    }
}

pub fn environment(name: &str) -> EnvironmentView {
    EnvironmentView {
        id: "abcdefgh".parse().unwrap(),
        name: name.to_owned(),
        state: EnvironmentState::Running,
        healthy: true,
        url: None,
        domains: Vec::new(),
        held: offshoot_model::Hold::default(),
        parent: None,
        created: "2026-01-01T00:00:00Z".parse().unwrap(),
        layers: Vec::new(),
        volumes: Vec::new(),
        ports: Vec::new(),
        operation: None,
    }
}

fn plan(name: &str) -> PlanView {
    PlanView {
        name: name.to_owned(),
        url: None,
        nodes: Vec::new(),
        volumes: Vec::new(),
        ports: Vec::new(),
        steps: Vec::new(),
        predicted_freeze_us: None,
        notices: Vec::new(),
    }
}

#[async_trait]
impl Platform for Fake {
    async fn submit(&self, request: Request) -> Result<Operation, Problem> {
        let (kind, call) = match &request {
            Request::Create(create) => (OperationKind::Create, format!("create {}", create.name)),
            Request::Clone(parent, clone) => {
                (OperationKind::Clone, format!("clone {parent} {clone:?}"))
            }
            Request::Rename(from, to) => {
                let redirect = if to.redirect { " and redirect" } else { "" };
                let call = format!("rename {from} {}{redirect}", to.name);
                (OperationKind::Rename, call)
            }
            Request::Hold(name, held) => {
                let call = format!("hold {name} {}", held.words().unwrap_or("nothing"));
                (OperationKind::Hold, call)
            }
            Request::Start(name) => (OperationKind::Start, format!("start {name}")),
            Request::Stop(name) => (OperationKind::Stop, format!("stop {name}")),
            Request::Remove(name) => (OperationKind::Remove, format!("remove {name}")),
            Request::ImagePull(source) => (
                OperationKind::ImagePull,
                format!("pull {}", source.display()),
            ),
            Request::PoolGrow(size) => (OperationKind::PoolGrow, format!("grow {size}")),
            Request::DomainAdd(name, add) => {
                let domains: Vec<_> = add.domains.iter().map(ToString::to_string).collect();
                let call = format!("add to {name}: {}", domains.join(" "));
                (OperationKind::DomainAdd, call)
            }
            Request::DomainRemove(name, domain) => (
                OperationKind::DomainRemove,
                format!("remove from {name}: {domain}"),
            ),
            Request::DomainHttps(domain, https) => {
                (OperationKind::DomainHttps, format!("{domain}: {https}"))
            }
            Request::CertificateAdd(request) => (
                OperationKind::CertificateAdd,
                format!("certificate {request:?}"),
            ),
            Request::CertificateRemove(name) => (
                OperationKind::CertificateRemove,
                format!("no certificate for {name}"),
            ),
            Request::CertificateRenew(name) => {
                (OperationKind::CertificateRenew, format!("renew for {name}"))
            }
            Request::Swap(name, swap) => (OperationKind::Swap, format!("swap {name} {swap:?}")),
            Request::TrafficSet(name, policy) => {
                let policy = serde_json::to_string(policy).unwrap();
                (OperationKind::TrafficSet, format!("lead {name} {policy}"))
            }
            Request::TrafficReplace { environment, .. } => {
                (OperationKind::TrafficSet, format!("replace {environment}"))
            }
            Request::TrafficClear(name) => (OperationKind::TrafficSet, format!("clear {name}")),
            Request::TrafficRamp(name, ramp) => {
                (OperationKind::TrafficRamp, format!("ramp {name} {ramp:?}"))
            }
            Request::Promote(name, promote) => (
                OperationKind::Promote,
                format!("promote {name} {promote:?}"),
            ),
        };
        self.note(call)?;
        Ok(operation(kind))
    }

    async fn plan_create(&self, name: &str, manifest: &Manifest) -> Result<PlanView, Problem> {
        self.note(format!("plan {name} of {} layers", manifest.layers.len()))?;
        Ok(plan(name))
    }

    async fn plan_clone(
        &self,
        environment: &str,
        request: &CloneRequest,
    ) -> Result<PlanView, Problem> {
        self.note(format!("plan clone {environment} {request:?}"))?;
        Ok(plan(environment))
    }

    async fn operation(&self, id: OperationId) -> Result<Operation, Problem> {
        self.note(format!("operation {id}"))?;
        Ok(Operation {
            id,
            ..operation(OperationKind::Create)
        })
    }

    async fn operations(&self, limit: usize) -> Result<Vec<Operation>, Problem> {
        self.note(format!("operations {limit}"))?;
        Ok(vec![
            operation(OperationKind::Create),
            operation(OperationKind::Clone),
        ])
    }

    async fn cancel(&self, id: OperationId) -> Result<Operation, Problem> {
        self.note(format!("cancel {id}"))?;
        Ok(Operation {
            id,
            ..operation(OperationKind::Create)
        })
    }

    async fn events(&self, seq: u64) -> Result<mpsc::Receiver<Event>, Problem> {
        self.note(format!("events {seq}"))?;
        let (sender, receiver) = mpsc::channel(4);
        let mut news = self.events.subscribe();
        tokio::spawn(async move {
            let mut after = seq;
            loop {
                let new: Vec<Event> = news
                    .borrow_and_update()
                    .iter()
                    .filter(|e| e.seq > after)
                    .cloned()
                    .collect();
                for event in new {
                    after = event.seq;
                    if sender.send(event).await.is_err() {
                        return;
                    }
                }
                tokio::select! {
                    changed = news.changed() => if changed.is_err() { return },
                    () = sender.closed() => return,
                }
            }
        });
        Ok(receiver)
    }

    async fn environments(&self) -> Result<Vec<EnvironmentView>, Problem> {
        let inside = self.inside.fetch_add(1, Ordering::SeqCst) + 1;
        self.most_inside.fetch_max(inside, Ordering::SeqCst);
        let wanted = *self.wait_for.lock().unwrap();
        if let Some(wanted) = wanted {
            let go = self.go.notified();
            if inside >= wanted {
                self.go.notify_waiters();
            } else {
                go.await;
            }
        }
        self.inside.fetch_sub(1, Ordering::SeqCst);
        self.note("environments")?;
        Ok(vec![environment("blog"), environment("shop")])
    }

    async fn environment(&self, name: &str) -> Result<EnvironmentView, Problem> {
        self.note(format!("environment {name}"))?;
        Ok(environment(name))
    }

    async fn certificates(&self) -> Result<CertificatesView, Problem> {
        self.note("certificates")?;
        Ok(CertificatesView {
            served: false,
            certificates: Vec::new(),
        })
    }

    async fn certificate_root(&self) -> Result<String, Problem> {
        self.note("root")?;
        Ok("PEM".to_owned())
    }

    async fn domains(&self, environment: &str) -> Result<Vec<DomainView>, Problem> {
        self.note(format!("domains {environment}"))?;
        Ok(vec![DomainView {
            host: "shop.example.com".to_owned(),
            path: "/".to_owned(),
            added: "2026-01-01T00:00:00Z".parse().unwrap(),
            https: offshoot_model::domain::DomainHttps::Offer,
            redirect: None,
        }])
    }

    async fn traffic(&self, environment: &str) -> Result<TrafficView, Problem> {
        self.note(format!("traffic {environment}"))?;
        Ok(TrafficView::default())
    }

    async fn traffic_back(&self, environment: &str) -> Result<TrafficView, Problem> {
        self.note(format!("back {environment}"))?;
        Ok(TrafficView::default())
    }

    async fn manifest(&self, name: &str) -> Result<Manifest, Problem> {
        self.note(format!("manifest {name}"))?;
        Ok(Manifest {
            layers: Vec::new(),
            volumes: BTreeMap::new(),
        })
    }

    /// `cat` gives back what it is given, on both streams in turn, and says what else it hears; `wall` writes without
    /// reading until its output is taken no more.
    async fn exec(
        &self,
        environment: &str,
        node: &str,
        request: ExecRequest,
    ) -> Result<ExecSession, Problem> {
        self.note(format!("exec {environment} {node} {request:?}"))?;
        let (input, mut heard) = mpsc::channel(2);
        let (say, output) = mpsc::channel(2);
        let dropped = std::sync::Arc::clone(&self.exec_dropped);
        let program = request.args.first().cloned().unwrap_or_default();
        tokio::spawn(async move {
            if program == "wall" {
                let brick = Bytes::from(vec![b'x'; 64 << 10]);
                while say.send(ExecOutput::Stdout(brick.clone())).await.is_ok() {}
                dropped.notify_one();
                return;
            }
            if program == "mute" {
                return;
            }
            let mut first = true;
            while let Some(input) = heard.recv().await {
                let answer = match input {
                    ExecInput::Stdin(bytes) if bytes.is_empty() => {
                        ExecOutput::Problem(problem(Code::ExecFailed))
                    }
                    ExecInput::Stdin(bytes) if first => ExecOutput::Stdout(bytes),
                    ExecInput::Stdin(bytes) => ExecOutput::Stderr(bytes),
                    ExecInput::Resize(size) => {
                        ExecOutput::Stdout(format!("{}x{}", size.cols, size.rows).into())
                    }
                    ExecInput::Signal(signal) => ExecOutput::Stdout(signal.into()),
                    ExecInput::CloseStdin => ExecOutput::Exit(7),
                };
                first = !first;
                let last = matches!(answer, ExecOutput::Exit(_) | ExecOutput::Problem(_));
                if say.send(answer).await.is_err() || last {
                    return;
                }
            }
            dropped.notify_one();
        });
        Ok(ExecSession { input, output })
    }

    async fn logs(
        &self,
        environment: &str,
        query: LogQuery,
    ) -> Result<mpsc::Receiver<LogLine>, Problem> {
        self.note(format!("logs {environment} {query:?}"))?;
        Ok(self
            .log
            .lock()
            .unwrap()
            .take()
            .unwrap_or_else(|| mpsc::channel(1).1))
    }

    async fn list(&self, environment: &str, node: &str, path: &str) -> Result<Directory, Problem> {
        self.note(format!("list {environment} {node} {path}"))?;
        Ok(Directory {
            entries: Vec::new(),
            left_out: 3,
        })
    }

    async fn changes(&self, environment: &str, other: Option<&str>) -> Result<Changes, Problem> {
        self.note(format!("changes {environment} {other:?}"))?;
        Ok(Changes {
            with: other.map(str::to_owned),
            cut: None,
            disks: Vec::new(),
        })
    }

    async fn copy_out(
        &self,
        environment: &str,
        node: &str,
        path: &str,
    ) -> Result<ByteStream, Problem> {
        self.note(format!("copy out {environment} {node} {path}"))?;
        Ok(self
            .archive
            .lock()
            .unwrap()
            .take()
            .unwrap_or_else(|| mpsc::channel(1).1))
    }

    async fn copy_in(
        &self,
        environment: &str,
        node: &str,
        path: &str,
        mut archive: ByteStream,
    ) -> Result<(), Problem> {
        self.note(format!("copy in {environment} {node} {path}"))?;
        let refuse_after = *self.refuse_archive_after.lock().unwrap();
        let mut count = 0;
        while let Some(piece) = archive.recv().await {
            let piece = match piece {
                Ok(piece) => piece,
                Err(problem) => {
                    self.calls
                        .lock()
                        .unwrap()
                        .push(format!("broken upload: {problem}"));
                    return Err(problem);
                }
            };
            count += piece.len();
            if refuse_after.is_some_and(|most| count > most) {
                return Err(problem(Code::PoolFull));
            }
            self.received.lock().unwrap().extend_from_slice(&piece);
        }
        self.calls
            .lock()
            .unwrap()
            .push(format!("whole upload: {count}"));
        Ok(())
    }

    async fn images(&self) -> Result<Vec<ImageView>, Problem> {
        self.note("images")?;
        Ok(Vec::new())
    }

    async fn image_remove(&self, image: &str) -> Result<(), Problem> {
        self.note(format!("image remove {image}"))
    }

    async fn root_bytes(&self, _: &str) -> Result<Option<u64>, Problem> {
        unreachable!("the API does not tell it")
    }

    async fn pool(&self) -> Result<PoolView, Problem> {
        self.note("pool")?;
        Ok(PoolView {
            backing: "loop file".to_owned(),
            path: "/pool.img".to_owned(),
            size: 3,
            used: 1,
            free: 2,
            host_bytes: None,
        })
    }

    async fn doctor(&self) -> Result<DoctorReport, Problem> {
        self.note("doctor")?;
        Ok(DoctorReport {
            fit: true,
            checks: Vec::new(),
        })
    }
}
