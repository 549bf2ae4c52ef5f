//! A daemon in a network namespace and directories of its own.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use offshoot_sys::netns::Netns;
use offshoot_sys::process;
use serde_json::Value;
use tempfile::TempDir;

use crate::{http, image, program, residue, stretch, wait_for};

/// Where every test daemon's edge listens: namespaces keep them apart.
pub const EDGE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8080);

/// A daemon for one test. Dropping it ends everything that it started, also when the test fails; and fails the test when
/// the daemon's log has warnings or errors that nobody expects ([`TestDaemon::may_complain`]).
pub struct TestDaemon {
    /// Label in the name of everything it owns on the host.
    pub instance: String,
    dir: TempDir,
    netns: Netns,
    child: Option<Child>,
    provoked: Mutex<Vec<&'static str>>,
}

impl TestDaemon {
    /// Makes the directories and starts the daemon.
    ///
    /// # Panics
    /// When it does not come up: then no test makes sense.
    #[must_use]
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// As [`Self::start`], with environment variables for the daemon.
    ///
    /// # Panics
    /// As [`Self::start`].
    #[must_use]
    pub fn start_with(env: &[(&str, &str)]) -> Self {
        let mut daemon = Self::prepare().expect("a place for a daemon");
        daemon.launch(env);
        daemon.wait_up();
        daemon
    }

    /// As [`Self::start`], with memory shared: the kernel's switches for that are the host's, so other tests leave them alone.
    ///
    /// # Panics
    /// As [`Self::start`].
    #[must_use]
    pub fn start_sharing() -> Self {
        let mut daemon = Self::prepare().expect("a place for a daemon");
        let file = daemon.path("offshoot.toml");
        let config = fs::read_to_string(&file).expect("a configuration");
        let config = config.replace("share_memory = false", "share_memory = true");
        fs::write(file, config).expect("a configuration");
        daemon.launch(&[]);
        daemon.wait_up();
        daemon
    }

    /// As [`Self::start`], with a changed configuration: told the daemon's directory and the file's text.
    ///
    /// # Panics
    /// As [`Self::start`].
    #[must_use]
    pub fn start_changed(change: impl FnOnce(&Path, String) -> String) -> Self {
        let mut daemon = Self::prepare().expect("a place for a daemon");
        let file = daemon.path("offshoot.toml");
        let config = fs::read_to_string(&file).expect("a configuration");
        fs::write(file, change(daemon.dir.path(), config)).expect("a configuration");
        daemon.launch(&[]);
        daemon.wait_up();
        daemon
    }

    /// Makes the directories and the namespace; nothing runs yet.
    pub(crate) fn prepare() -> Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix("offshoot-e2e-")
            .tempdir_in("/var/tmp")?;
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o711))?;
        let instance = format!("t{}", &uuid::Uuid::new_v4().simple().to_string()[..5]);
        let root = dir.path().display();
        let config = format!(
            "instance = \"{instance}\"\nstate_dir = \"{root}/state\"\nrun_dir = \"{root}/run\"\n\
             [edge]\nlisten = [\"{EDGE}\"]\n[images]\nauth_file = \"{root}/auth.json\"\n[pool]\nsize = \"4g\"\n[clone]\nready_timeout = \"{}s\"\nmax_freeze = \"{}s\"\nshare_memory = false\n",
            30 * stretch(),
            (5 * stretch()).min(60)
        );
        fs::write(dir.path().join("offshoot.toml"), config)?;
        image::write(&dir.path().join("image.tar"), &program("offshoot-testnode"))?;
        let netns = Netns::create()?;
        netns.run(process::loopback_up)??;
        Ok(Self {
            instance,
            dir,
            netns,
            child: None,
            provoked: Mutex::default(),
        })
    }

    /// Starts the daemon's process. It need not come up: see [`Self::wait_up`].
    ///
    /// # Panics
    /// When the program cannot be started.
    pub fn launch(&mut self, env: &[(&str, &str)]) {
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.path("daemon.log"))
            .expect("a log");
        let mut command = Command::new(program("offshoot"));
        command
            .arg("--config")
            .arg(self.path("offshoot.toml"))
            .arg("serve")
            .stdin(Stdio::null());
        command
            .envs(env.iter().copied())
            .env("OFFSHOOT_LOG", "info,offshoot=debug");
        command.stdout(log.try_clone().expect("a log")).stderr(log);
        let child = self
            .netns
            .run(|| command.spawn())
            .expect("a thread")
            .expect("offshoot can be started");
        self.child = Some(child);
    }

    /// Waits until the API answers.
    ///
    /// # Panics
    /// When it does not, with the daemon's log.
    pub fn wait_up(&mut self) {
        for _ in 0..3_000 * stretch() {
            if self
                .try_run(&["version"])
                .is_ok_and(|output| output.status.success())
                && self.path("run/offshoot.sock").exists()
                && self
                    .try_run(&["ls"])
                    .is_ok_and(|output| output.status.success())
            {
                return;
            }
            if let Some(status) = self
                .child
                .as_mut()
                .and_then(|child| child.try_wait().ok().flatten())
            {
                panic!("the daemon ended with {status}:\n{}", self.log());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("the daemon did not come up:\n{}", self.log());
    }

    /// What the daemon wrote.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.path("daemon.log")).unwrap_or_default()
    }

    /// Warnings and errors with this text in the daemon's log do not fail the test: it provokes them.
    ///
    /// # Panics
    /// When another thread panicked in here.
    pub fn may_complain(&self, text: &'static str) {
        self.provoked.lock().expect("not poisoned").push(text);
    }

    /// Warnings and errors in the daemon's log that the test does not provoke.
    fn complaints(&self) -> Vec<String> {
        let provoked = self.provoked.lock().map(|all| all.clone());
        let provoked = provoked.unwrap_or_default();
        let log = self.log();
        let complains = |line: &&str| {
            let level = line.split_whitespace().nth(1);
            matches!(level, Some("WARN" | "ERROR"))
                && !provoked.iter().any(|text| line.contains(text))
        };
        log.lines().filter(complains).map(str::to_owned).collect()
    }

    /// Ends the daemon with SIGKILL; nodes, routers and the edge go on.
    ///
    /// # Panics
    /// When it cannot be waited for.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            child.wait().expect("the daemon is ours");
        }
    }

    /// Asks the daemon to end, as a service manager does, and waits.
    ///
    /// # Panics
    /// When it does not end.
    pub fn terminate(&mut self) {
        let child = self.child.as_ref().expect("it was started");
        let pid = i32::try_from(child.id()).expect("a pid");
        let process = process::Process::open(pid).expect("it runs");
        process.signal(15).expect("it is ours");
        self.wait_dead();
    }

    /// Waits until the daemon ended by itself (a failpoint).
    ///
    /// # Panics
    /// When it does not in a minute.
    pub fn wait_dead(&mut self) {
        let child = self.child.as_mut().expect("it was started");
        wait_for("the daemon's end", Duration::from_secs(60), || {
            child.try_wait().expect("it is ours")
        });
        self.child = None;
    }

    /// Starts the daemon again.
    pub fn restart(&mut self) {
        self.kill();
        self.launch(&[]);
        self.wait_up();
    }

    /// A file or directory of this daemon.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Runs a command of the command line, as it is.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub fn try_run(&self, args: &[&str]) -> Result<Output> {
        let mut command = Command::new(program("offshoot"));
        command
            .arg("--config")
            .arg(self.path("offshoot.toml"))
            .args(args)
            .stdin(Stdio::null());
        self.netns
            .run(|| command.output())?
            .context("running offshoot")
    }

    /// Runs a command that must succeed; gives its standard output.
    ///
    /// # Panics
    /// When it fails, with what it printed and the daemon's log.
    #[track_caller]
    pub fn run(&self, args: &[&str]) -> String {
        let output = self.try_run(args).expect("offshoot can be run");
        assert!(
            output.status.success(),
            "offshoot {} failed:\n{}\n--- daemon:\n{}",
            args.join(" "),
            String::from_utf8_lossy(&output.stderr),
            self.log()
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Runs a command that must succeed, with `-o json`.
    ///
    /// # Panics
    /// As [`Self::run`], and when it prints no JSON.
    #[track_caller]
    pub fn json(&self, args: &[&str]) -> Value {
        let mut all = vec!["-o", "json"];
        all.extend(args);
        let text = self.run(&all);
        serde_json::from_str(&text)
            .unwrap_or_else(|e| panic!("{args:?} printed no JSON: {e}\n{text}"))
    }

    /// Runs a command that must fail; gives its problem.
    ///
    /// # Panics
    /// When it succeeds or prints no problem.
    #[track_caller]
    pub fn refused(&self, args: &[&str]) -> Value {
        let mut all = vec!["-o", "json"];
        all.extend(args);
        let output = self.try_run(&all).expect("offshoot can be run");
        assert!(
            !output.status.success(),
            "{args:?} succeeded: {}",
            String::from_utf8_lossy(&output.stdout)
        );
        let text = String::from_utf8_lossy(&output.stderr);
        let from = text
            .find('{')
            .unwrap_or_else(|| panic!("no problem in {text:?}"));
        serde_json::Deserializer::from_str(&text[from..])
            .into_iter::<Value>()
            .next()
            .and_then(Result::ok)
            .unwrap_or_else(|| panic!("no problem in {text:?}"))
    }

    /// Writes a Compose file whose services use the test image (`IMAGE` in the text).
    ///
    /// # Panics
    /// When it cannot be written.
    #[must_use]
    pub fn compose(&self, name: &str, text: &str) -> String {
        let path = self.path(name);
        let image = format!("docker-archive:{}", self.path("image.tar").display());
        fs::write(&path, text.replace("IMAGE", &image)).expect("a file can be written");
        path.display().to_string()
    }

    /// Creates an environment from a Compose file with this text; gives the file.
    ///
    /// # Panics
    /// When it cannot be created.
    #[track_caller]
    pub fn create(&self, name: &str, text: &str) -> String {
        let file = self.compose(&format!("{name}.yaml"), text);
        self.run(&["create", "-f", &file, "--name", name]);
        file
    }

    /// Removes these environments, the last there are: nothing may be left on the host.
    ///
    /// # Panics
    /// When something is.
    #[track_caller]
    pub fn finish(&self, environments: &[&str]) {
        let mut all = vec!["rm", "--force"];
        all.extend(environments);
        self.run(&all);
        let left = self.residue();
        assert!(left.is_empty(), "left behind: {left:#?}");
    }

    /// `GET path` of an environment through the edge.
    ///
    /// # Errors
    /// When the edge does not answer.
    pub fn get(&self, environment: &str, path: &str) -> Result<http::Answer> {
        let host = format!("{environment}.localhost");
        self.netns.run(|| http::get(EDGE, &host, path))?
    }

    /// What the test node behind an environment's entry says.
    ///
    /// # Errors
    /// When it does not answer 200 with JSON.
    pub fn node(&self, environment: &str, path: &str) -> Result<Value> {
        let answer = self.get(environment, path)?;
        if answer.status != 200 {
            bail!(
                "{environment}{path} answered {}: {}",
                answer.status,
                answer.body
            );
        }
        Ok(serde_json::from_str(&answer.body)?)
    }

    /// Runs `work` in the daemon's network namespace.
    ///
    /// # Panics
    /// When the namespace cannot be entered.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.netns.run(work).expect("the namespace can be entered")
    }

    /// What is on the host by this daemon's name, sorted. Empty sets once all environments are removed.
    #[must_use]
    pub fn residue(&self) -> residue::Residue {
        residue::of(self.dir.path(), &self.instance, &self.netns)
    }
}

impl Drop for TestDaemon {
    fn drop(&mut self) {
        if std::thread::panicking() {
            print_end("the daemon's log", &self.log(), 80);
            for log in residue::shim_logs(self.dir.path()) {
                let text = fs::read_to_string(&log).unwrap_or_default();
                print_end(&log.display().to_string(), &text, 20);
            }
        }
        self.kill();
        residue::remove(self.dir.path(), &self.instance);
        if !std::thread::panicking() {
            let complaints = self.complaints();
            assert!(
                complaints.is_empty(),
                "the daemon complained of what the test does not provoke: {complaints:#?}"
            );
        }
    }
}

/// Shows the last lines of a log of a test that failed.
fn print_end(what: &str, text: &str, lines: usize) {
    let lines: Vec<_> = text.lines().rev().take(lines).collect();
    eprintln!("--- end of {what}:");
    for line in lines.into_iter().rev() {
        eprintln!("{line}");
    }
}

/// Whether a directory exists and has entries.
#[must_use]
pub fn has_entries(dir: &Path) -> bool {
    fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_some())
}
