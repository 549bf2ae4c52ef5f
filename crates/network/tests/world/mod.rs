//! A host of its own for every test: a network namespace that plays the host, one that plays the outside, routers
//! and nodes in it. All of it is gone when the value is dropped, also on a panic.

#![allow(dead_code, unreachable_pub)]

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use offshoot_model::EnvId;
use offshoot_model::environment::{MacAddr, Placement};
use offshoot_network::*;
use offshoot_sys::netns::Netns;

/// Longest wait for a condition.
pub const SOON: Duration = Duration::from_secs(30);
/// An address outside of the host.
pub const OUTSIDE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 9);
pub const OUTER_POOL: &str = "10.208.0.0/12";
pub const OUTER_POOL6: &str = "fd6f:6667::/48";

/// Whether the machine can do this at all; says so when it cannot.
pub fn is_possible() -> bool {
    let possible = Netns::create().is_ok() && Command::new("nft").arg("--version").output().is_ok();
    if !possible {
        println!("SKIPPED: needs root with network namespaces, and nft");
    }
    possible
}

pub fn example(name: &str) -> PathBuf {
    let mut path = std::env::current_exe().unwrap();
    path.pop();
    path.pop();
    path.push("examples");
    path.push(name);
    assert!(
        path.exists(),
        "{} is not built: cargo build -p offshoot-network --examples",
        path.display()
    );
    path
}

pub fn until<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + SOON;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < end, "{what}: not within {SOON:?}");
        std::thread::yield_now();
    }
}

/// A process that is killed when the value is dropped.
pub struct Process(pub Child);

impl Process {
    pub fn pid(&self) -> i32 {
        self.0.id() as i32
    }

    pub fn netns(&self) -> Netns {
        Netns::of_process(self.pid()).unwrap()
    }

    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.netns().run(work).unwrap()
    }

    /// A node that is not attached.
    pub fn unshared() -> Self {
        Self::sleeper("-Urn")
    }

    /// A sleeping process with new namespaces of these kinds (unshare(1)).
    fn sleeper(namespaces: &str) -> Self {
        let child = Command::new("unshare")
            .args([namespaces, "--", "sleep", "infinity"])
            .spawn()
            .unwrap();
        let process = Self(child);
        let ours = Netns::current().unwrap().id().unwrap();
        until("a sleeping process", || {
            let comm = std::fs::read_to_string(format!("/proc/{}/comm", process.pid())).ok()?;
            let netns = Netns::of_process(process.pid()).ok()?.id().ok()?;
            (comm.trim() == "sleep" && netns != ours).then_some(())
        });
        process
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub struct World {
    pub host: Netns,
    pub dir: tempfile::TempDir,
    pub instance: String,
    envs: Vec<Environment>,
    outside: Option<Process>,
}

/// One environment with its nodes.
pub struct Environment {
    pub spec: RouterSpec,
    pub nodes: Vec<Process>,
}

impl World {
    pub fn new() -> Self {
        let host = Netns::create().unwrap();
        host.run(|| run("ip link set lo up")).unwrap();
        let dir = tempfile::tempdir().unwrap();
        Self {
            host,
            dir,
            instance: "t1".into(),
            envs: Vec::new(),
            outside: None,
        }
    }

    pub fn on_host<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.host.run(work).unwrap()
    }

    /// Environment number `number` with a router and `nodes` attached nodes `web-1`, `web-2`, ...
    pub fn environment(&mut self, number: u8, nodes: u8) -> usize {
        let spec = self.spec(number, nodes);
        self.on_host(|| ensure_router(&spec, &example("network-router")))
            .unwrap();
        let mut environment = Environment {
            spec,
            nodes: Vec::new(),
        };
        for n in 0..nodes {
            let node = Process::sleeper("-Urn");
            attach(node.pid(), &environment.link(n, Isolation::No)).unwrap();
            environment.nodes.push(node);
        }
        self.envs.push(environment);
        self.envs.len() - 1
    }

    pub fn spec(&self, number: u8, nodes: u8) -> RouterSpec {
        let env = EnvId::random();
        let mut names: Names = (0..nodes)
            .map(|n| (format!("web-{}", n + 1), vec![10 + n]))
            .collect();
        names.push(("web".into(), (0..nodes).map(|n| 10 + n).collect()));
        names.push(("web-1.shop".into(), vec![10]));
        RouterSpec {
            run_dir: self
                .dir
                .path()
                .join("envs")
                .join(env.as_str())
                .join("router"),
            env,
            instance: self.instance.clone(),
            placement: Placement {
                id_base: 100_000,
                id_count: 65_536,
                inner: "10.9.0.0/24".parse().unwrap(),
                outer: format!("10.208.{number}.0/24").parse().unwrap(),
                inner6: Some("fd6f:6666::/64".parse().unwrap()),
                outer6: Some(format!("fd6f:6667:0:{number}::/64").parse().unwrap()),
            },
            names,
            upstream_dns: Vec::new(),
            gate: Gate::Open,
            mail: Mail::Passes,
        }
    }

    pub fn env(&self, index: usize) -> &Environment {
        &self.envs[index]
    }

    pub fn env_mut(&mut self, index: usize) -> &mut Environment {
        &mut self.envs[index]
    }

    /// A process outside: behind the host, with no route back but to the host itself.
    pub fn with_outside(&mut self) {
        let outside = Process::sleeper("-n");
        let pid = outside.pid();
        self.on_host(|| {
            run(&format!(
                "ip link add out0 type veth peer name eth0 netns {pid}"
            ));
            run("ip addr add 192.0.2.1/24 dev out0");
            run("ip link set out0 up");
        });
        outside.run(|| {
            run("ip addr add 192.0.2.9/24 dev eth0");
            run("ip link set eth0 up");
            run("ip link set lo up");
        });
        self.outside = Some(outside);
    }

    pub fn outside(&self) -> &Process {
        self.outside.as_ref().unwrap()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for environment in &self.envs {
            let RouterSpec {
                run_dir,
                env,
                instance,
                ..
            } = &environment.spec;
            let removed = self
                .host
                .run(|| ensure_router_removed(run_dir, env, instance));
            if !std::thread::panicking() {
                removed.unwrap().unwrap();
            }
        }
    }
}

impl Environment {
    pub fn link(&self, n: u8, isolation: Isolation) -> NodeLink {
        NodeLink {
            router_dir: self.spec.run_dir.clone(),
            port_name: format!("n{}", 10 + n),
            ifname: NODE_INTERFACE.into(),
            mac: MacAddr([2, 0, 0, 0, 0, 10 + n]),
            host: 10 + n,
            placement: self.spec.placement.clone(),
            ports_isolated: isolation,
        }
    }

    pub fn router(&self) -> Router {
        Router::connect(&self.spec.run_dir).unwrap()
    }

    pub fn router_netns(&self) -> Netns {
        Netns::of_process(self.router().pid()).unwrap()
    }

    pub fn gateway(&self) -> IpAddr {
        self.spec.placement.inner_at(GATEWAY_HOST).into()
    }

    /// Inner addresses of a node, IPv4 and IPv6.
    pub fn inner(&self, n: usize) -> [IpAddr; 2] {
        let host = 10 + n as u8;
        [
            self.spec.placement.inner_at(host).into(),
            self.spec.placement.inner6_at(host).unwrap().into(),
        ]
    }

    /// Outer addresses of a node, IPv4 and IPv6.
    pub fn outer(&self, n: usize) -> [IpAddr; 2] {
        let host = 10 + n as u8;
        [
            self.spec.placement.outer_at(host).into(),
            self.spec.placement.outer6_at(host).unwrap().into(),
        ]
    }

    pub fn ask(&self, n: usize, name: &str, kind: RecordType) -> Result<Vec<String>, ResponseCode> {
        self.nodes[n].run(|| ask(self.gateway(), name, kind))
    }
}

/// Runs a command line in the calling thread's namespaces; it must succeed. Returns what it printed.
pub fn run(line: &str) -> String {
    let mut words = line.split(' ');
    let out = Command::new(words.next().unwrap())
        .args(words)
        .output()
        .unwrap();
    assert!(
        out.status.success(),
        "{line}: {}",
        String::from_utf8_lossy(&out.stderr)
    );
    String::from_utf8(out.stdout).unwrap()
}

/// Asks the name server at `server` over UDP.
pub fn ask(server: IpAddr, name: &str, kind: RecordType) -> Result<Vec<String>, ResponseCode> {
    let socket = UdpSocket::bind(any(server)).unwrap();
    socket.set_read_timeout(Some(SOON)).unwrap();
    socket.connect((server, 53)).unwrap();
    let mut question = Message::query();
    question.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    socket.send(&question.to_vec().unwrap()).unwrap();
    let mut buffer = [0; 4096];
    let len = socket.recv(&mut buffer).unwrap();
    decode(&question, &buffer[..len])
}

/// Asks over TCP.
pub fn ask_tcp(server: IpAddr, name: &str, kind: RecordType) -> Result<Vec<String>, ResponseCode> {
    let mut stream = connect((server, 53).into()).unwrap();
    let mut question = Message::query();
    question.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    let bytes = question.to_vec().unwrap();
    stream
        .write_all(&(bytes.len() as u16).to_be_bytes())
        .unwrap();
    stream.write_all(&bytes).unwrap();
    let mut len = [0; 2];
    stream.read_exact(&mut len).unwrap();
    let mut answer = vec![0; u16::from_be_bytes(len).into()];
    stream.read_exact(&mut answer).unwrap();
    decode(&question, &answer)
}

fn decode(question: &Message, bytes: &[u8]) -> Result<Vec<String>, ResponseCode> {
    let answer = Message::from_vec(bytes).unwrap();
    assert_eq!(answer.metadata.id, question.metadata.id);
    assert_eq!(answer.queries, question.queries);
    match answer.metadata.response_code {
        ResponseCode::NoError => Ok(answer.answers.iter().map(|r| r.data.to_string()).collect()),
        code => Err(code),
    }
}

pub fn any(like: IpAddr) -> SocketAddr {
    match like {
        IpAddr::V4(_) => "0.0.0.0:0".parse().unwrap(),
        IpAddr::V6(_) => "[::]:0".parse().unwrap(),
    }
}

/// A listener in the calling thread's namespace, IPv4 and IPv6, on a port of its own.
pub fn listen() -> (TcpListener, u16) {
    let listener = TcpListener::bind("[::]:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

/// Connects from the calling thread's namespace.
pub fn connect(to: SocketAddr) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&to, SOON)?;
    stream.set_read_timeout(Some(SOON))?;
    Ok(stream)
}

/// Sends `word` through `from` and receives it at `to`.
pub fn say(from: &mut TcpStream, to: &mut TcpStream, word: &[u8]) {
    from.write_all(word).unwrap();
    hear(to, word);
}

pub fn hear(to: &mut TcpStream, word: &[u8]) {
    to.set_read_timeout(Some(SOON)).unwrap();
    let mut heard = vec![0; word.len()];
    to.read_exact(&mut heard).unwrap();
    assert_eq!(heard, word);
}

/// Starts a program that says one line when it is ready, in the calling thread's namespaces.
pub fn start_and_wait(program: &Path, arg: &Path) -> Process {
    let mut child = Command::new(program)
        .arg(arg)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let process = Process(child);
    let mut line = [0; 5];
    stdout.read_exact(&mut line).unwrap();
    process
}
