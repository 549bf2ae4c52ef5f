//! A daemon of its own for the demo and the benchmark, beside any other on the host, and its command line.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use offshoot_model::view::EnvironmentView;
use serde::de::DeserializeOwned;

use crate::commands::{output, run};

/// First line of the configuration: what has it may be removed.
const WRITTEN: &str = "# written by cargo xtask";
const START_TIMEOUT: Duration = Duration::from_secs(90);

/// Where a daemon keeps what.
pub(crate) struct Instance {
    /// Label of everything it makes on the host.
    pub(crate) label: &'static str,
    /// What lasts.
    pub(crate) state: PathBuf,
    /// What does not.
    pub(crate) run: PathBuf,
    /// Port of the edge on loopback.
    pub(crate) port: u16,
    /// Where the programs are.
    pub(crate) programs: PathBuf,
    /// Networks and ids, so that daemons side by side do not meet.
    pub(crate) number: u8,
}

impl Instance {
    fn config_path(&self) -> PathBuf {
        self.state.join("offshoot.toml")
    }

    fn log_path(&self) -> PathBuf {
        self.state.join("daemon.log")
    }

    fn pid_path(&self) -> PathBuf {
        self.run.join("daemon.pid")
    }

    fn binary(&self) -> PathBuf {
        self.programs.join("offshoot")
    }

    fn config(&self) -> String {
        let Self {
            label,
            state,
            run,
            port,
            number,
            ..
        } = self;
        // a /16 of the private 10.0.0.0/8 and as many /64 holds 256 environments
        format!(
            "{WRITTEN}\ninstance = \"{label}\"\nstate_dir = {state:?}\nrun_dir = {run:?}\n\
             [dashboard]\nlisten = \"\"\n[edge]\nlisten = [\"127.0.0.1:{port}\", \"[::1]:{port}\"]\n\
             [network]\nouter_pool = \"10.{number}.0.0/16\"\nouter_pool6 = \"fd6f:6673:6{number:02x}::/56\"\n\
             [ids]\nbase = {}\nranges = 256\n",
            1_000_000_000 + u32::from(*number) * 256 * 65_536
        )
    }

    /// Starts the daemon unless it answers already; waits until it does.
    pub(crate) fn start(&self) -> anyhow::Result<()> {
        fs::create_dir_all(&self.state)
            .with_context(|| format!("cannot make {}", self.state.display()))?;
        fs::create_dir_all(&self.run)
            .with_context(|| format!("cannot make {}", self.run.display()))?;
        fs::write(self.config_path(), self.config())?;
        if self.answers() {
            println!("The daemon of {} already runs.", self.state.display());
            return Ok(());
        }
        let mut log = File::options()
            .create(true)
            .append(true)
            .read(true)
            .open(self.log_path())?;
        let before = log.seek(SeekFrom::End(0))?;
        let mut child = Command::new(self.binary())
            .arg("serve")
            .arg("--config")
            .arg(self.config_path())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log.try_clone()?)
            // Ctrl-C here does not reach it
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {}", self.binary().display()))?;
        fs::write(self.pid_path(), child.id().to_string())?;
        let deadline = Instant::now() + START_TIMEOUT;
        while !self.answers() {
            let ended = child.try_wait()?;
            if ended.is_some() || Instant::now() > deadline {
                log.seek(SeekFrom::Start(before))?;
                let mut messages = String::new();
                log.take(64 << 10).read_to_string(&mut messages)?;
                match ended {
                    Some(status) => bail!("the daemon ended with {status}:\n{messages}"),
                    None => {
                        bail!("the daemon did not answer within {START_TIMEOUT:?}:\n{messages}")
                    }
                }
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    fn answers(&self) -> bool {
        let asked = self
            .offshoot()
            .args(["ls", "-o", "json"])
            .stdin(Stdio::null())
            .output();
        asked.is_ok_and(|output| output.status.success())
    }

    /// The command line program, speaking to this daemon.
    pub(crate) fn offshoot(&self) -> Command {
        let mut command = Command::new(self.binary());
        command.arg("--config").arg(self.config_path());
        // what the caller has set is for another daemon
        command
            .env_remove("OFFSHOOT_SOCKET")
            .env_remove("OFFSHOOT_CONFIG");
        command
    }

    /// Runs a command with its progress on the terminal.
    pub(crate) fn show_command(&self, arguments: &[&str]) -> anyhow::Result<()> {
        run(self.offshoot().args(arguments))
    }

    /// Runs a command and understands its JSON.
    pub(crate) fn json<T: DeserializeOwned>(&self, arguments: &[&str]) -> anyhow::Result<T> {
        let text = output(self.offshoot().args(["-o", "json"]).args(arguments))?;
        serde_json::from_str(&text)
            .with_context(|| format!("offshoot {} answered {text:?}", arguments.join(" ")))
    }

    /// Runs a command in a node and returns what it printed.
    pub(crate) fn exec(
        &self,
        environment: &str,
        node: &str,
        command: &[&str],
    ) -> anyhow::Result<String> {
        let text = output(
            self.offshoot()
                .args(["exec", environment, node, "--"])
                .args(command),
        )?;
        Ok(text.trim().to_owned())
    }

    /// All environments.
    pub(crate) fn environments(&self) -> anyhow::Result<Vec<EnvironmentView>> {
        self.json(&["ls"])
    }

    /// Removes environments of these names where they exist.
    pub(crate) fn ensure_absent(&self, names: &[&str]) -> anyhow::Result<()> {
        for environment in self.environments()? {
            if names.contains(&environment.name.as_str()) {
                output(
                    self.offshoot()
                        .args(["--quiet", "rm", "--force", &environment.name]),
                )?;
            }
        }
        Ok(())
    }

    /// Removes everything: environments, daemon, edge, what is on the host, files. Goes on after an error.
    pub(crate) fn remove(&self) -> anyhow::Result<()> {
        if self.state.exists()
            && !fs::read_to_string(self.config_path())
                .unwrap_or_default()
                .starts_with(WRITTEN)
        {
            bail!(
                "{} was not made by cargo xtask: nothing is removed",
                self.state.display()
            );
        }
        let mut errors = Vec::new();
        let mut attempt = |what: &str, done: anyhow::Result<()>| {
            if let Err(error) = done {
                errors.push(format!("{what}: {error:#}"));
            }
        };
        if self.config_path().exists() {
            // the environments must be removed by a daemon
            attempt(
                "environments",
                self.start().and_then(|()| {
                    let names: Vec<_> = self
                        .environments()?
                        .into_iter()
                        .map(|environment| environment.name)
                        .collect();
                    self.ensure_absent(&names.iter().map(String::as_str).collect::<Vec<_>>())
                }),
            );
        }
        attempt("daemon", self.stop_daemon());
        let edge = self.run.join("edge/control.json");
        if edge.exists() {
            attempt(
                "edge",
                offshoot_edge_api::EdgeConfig::read(&edge)
                    .and_then(|config| offshoot_edge_api::stop(&config))
                    .map_err(Into::into),
            );
        }
        let pool = self.state.join("pool");
        match mount_points() {
            Ok(points) if points.contains(&pool) => {
                attempt("pool", run(Command::new("umount").arg(&pool)))
            }
            Ok(_) => {}
            Err(error) => attempt("pool", Err(error)),
        }
        let table = format!("offshoot_{}", self.label);
        let listed = Command::new("nft")
            .args(["list", "table", "inet", &table])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        if listed.is_ok_and(|status| status.success()) {
            attempt(
                "nft table",
                run(Command::new("nft").args(["delete", "table", "inet", &table])),
            );
        }
        if errors.is_empty() {
            for directory in [&self.run, &self.state]
                .into_iter()
                .filter(|directory| directory.exists())
            {
                if let Err(error) = remove_files(directory) {
                    errors.push(format!("{}: {error:#}", directory.display()));
                }
            }
        }
        if errors.is_empty() {
            Ok(())
        } else {
            bail!("not everything could be removed:\n{}", errors.join("\n"))
        }
    }

    fn stop_daemon(&self) -> anyhow::Result<()> {
        let Ok(text) = fs::read_to_string(self.pid_path()) else {
            return Ok(());
        };
        let process = Path::new("/proc").join(text.trim());
        let ours = |process: &Path| {
            let command = fs::read(process.join("cmdline")).unwrap_or_default();
            let config = self.config_path();
            command
                .split(|byte| *byte == 0)
                .any(|word| word == config.as_os_str().as_encoded_bytes())
        };
        if !ours(&process) {
            return Ok(());
        }
        run(Command::new("kill").args(["-TERM", text.trim()]))?;
        let deadline = Instant::now() + START_TIMEOUT;
        while ours(&process) {
            if Instant::now() > deadline {
                bail!("process {} does not end", text.trim());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

/// Removes a directory unless something is mounted below it.
fn remove_files(directory: &Path) -> anyhow::Result<()> {
    if let Some(mount) = mount_points()?
        .into_iter()
        .find(|at| at.starts_with(directory))
    {
        bail!("{} is still mounted", mount.display());
    }
    Ok(fs::remove_dir_all(directory)?)
}

fn mount_points() -> anyhow::Result<Vec<PathBuf>> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("/proc/self/mounts")?;
    Ok(mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(1))
        .map(PathBuf::from)
        .collect())
}
