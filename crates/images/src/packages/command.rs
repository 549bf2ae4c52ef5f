//! Commands that make images: in namespaces of their own, so that whatever ends them, nothing of theirs is left.
//!
//! util-linux does the work: setpriv(1) ties the command's life to ours, unshare(1) gives it its own mounts, processes,
//! IPC and host name and kills all of them with itself.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::ImageError;
use crate::job::{Job, TICK};

/// Lines of output that an error shows.
const TAIL_LINES: usize = 25;
const LINE_MAX: u64 = 4096;

/// Where programs of the host are looked for; not where an administrator puts his own.
const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";

/// What becomes of a line of output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OnLine {
    /// An error shows it.
    Keep,
    /// It was progress and says nothing to people.
    Drop,
}

/// A command to be run.
pub(crate) struct Command {
    what: String,
    program: String,
    args: Vec<String>,
    env: Vec<(&'static str, String)>,
    limit: Duration,
    package: &'static str,
    /// Shell commands that prepare the namespace's mounts; `$1` is `prepare_arg`.
    prepare: String,
    prepare_arg: String,
}

impl Command {
    /// `what` names it in errors: `installing nginx`.
    pub(crate) fn new(what: String, program: &str, args: Vec<String>, limit: Duration) -> Self {
        Self {
            what,
            program: program.into(),
            args,
            env: Vec::new(),
            limit,
            package: "util-linux",
            prepare: ":".into(),
            prepare_arg: String::new(),
        }
    }

    /// The package that has the program, for an error that says so.
    pub(crate) fn package(mut self, package: &'static str) -> Self {
        self.package = package;
        self
    }

    pub(crate) fn env(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.env.push((name, value.into()));
        self
    }

    /// Shell commands run in the new namespaces before the program, with `argument` as `$1`.
    pub(crate) fn prepare(mut self, script: &str, argument: &Path) -> Self {
        self.prepare = script.to_owned();
        self.prepare_arg = argument.display().to_string();
        self
    }

    /// Runs it to its end; each line of output goes to `on_line`.
    pub(crate) fn run(
        self,
        job: &Job,
        on_line: &mut (dyn FnMut(&str) -> OnLine + Send),
    ) -> Result<(), ImageError> {
        job.check()?;
        if !PATH
            .split(':')
            .any(|dir| Path::new(dir).join(&self.program).exists())
        {
            return Err(ImageError::Host {
                what: format!("{} is not installed", self.program),
                next: format!(
                    "install the package {}, or use an image from a registry",
                    self.package
                ),
            });
        }
        let argv = format!("{} {}", self.program, self.args.join(" "));
        let failed = |status: String, tail: &VecDeque<String>| ImageError::Build {
            what: self.what.clone(),
            status,
            argv: argv.clone(),
            output: tail
                .iter()
                .map(String::as_str)
                .collect::<Vec<_>>()
                .join("\n"),
        };
        let pipe = |e| ImageError::io("make a pipe for", &self.program)(e);
        let (output, stdout) = std::io::pipe().map_err(pipe)?;
        let stderr = stdout.try_clone().map_err(pipe)?;
        let script = format!(
            "set -e\nmount --make-rprivate /\n{}\nshift\nexec \"$@\"",
            self.prepare
        );
        let mut command = std::process::Command::new("setpriv");
        command
            .args([
                "--pdeathsig",
                "KILL",
                "unshare",
                "--mount",
                "--pid",
                "--ipc",
                "--uts",
                "--fork",
            ])
            .args([
                "--kill-child=KILL",
                "--mount-proc",
                "sh",
                "-c",
                &script,
                "sh",
                &self.prepare_arg,
            ])
            .arg(&self.program)
            .args(&self.args)
            .env_clear()
            .env("PATH", PATH)
            .env("HOME", "/root")
            .env("LC_ALL", "C.UTF-8")
            .envs(self.env.iter().map(|(name, value)| (*name, value.as_str())))
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(stdout)
            .stderr(stderr);
        let spawned = command.spawn();
        // Our copies of the pipe's writing end would keep it open for ever.
        drop(command);
        let mut child = spawned.map_err(|e| ImageError::Host {
            what: format!("setpriv cannot be started: {e}"),
            next: "install the package util-linux".into(),
        })?;
        let mut tail = VecDeque::new();
        let deadline = Instant::now() + self.limit;
        let ended = std::thread::scope(|scope| {
            let reader = scope.spawn(|| read_lines(output, &mut tail, on_line));
            let ended = loop {
                match child.try_wait() {
                    Ok(Some(status)) => break Ok(status),
                    Ok(None) => {}
                    Err(e) => break Err(format!("the error {e}")),
                }
                let stop = match job.check() {
                    Err(_) => Some(None),
                    Ok(()) if Instant::now() > deadline => {
                        Some(Some(format!("it took longer than {:?}", self.limit)))
                    }
                    Ok(()) => None,
                };
                if let Some(why) = stop {
                    // unshare takes everything in its process namespace with it.
                    let _ = child.kill();
                    let _ = child.wait();
                    break Err(why.unwrap_or_default());
                }
                std::thread::sleep(TICK / 4);
            };
            // Everything that could write is gone; the reader sees the end.
            let _ = reader.join();
            ended
        });
        match ended {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => Err(failed(status.to_string(), &tail)),
            Err(_) if job.check().is_err() => Err(ImageError::Cancelled),
            Err(why) => Err(failed(why, &tail)),
        }
    }
}

fn read_lines(
    output: impl Read,
    tail: &mut VecDeque<String>,
    on_line: &mut (dyn FnMut(&str) -> OnLine + Send),
) {
    let mut output = BufReader::new(output);
    let mut line = Vec::new();
    loop {
        line.clear();
        match (&mut output).take(LINE_MAX).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        let text = String::from_utf8_lossy(&line);
        // Progress bars overwrite their line.
        let text = text.trim_end().rsplit('\r').next().unwrap_or_default();
        if text.is_empty() || on_line(text) == OnLine::Drop {
            continue;
        }
        if tail.len() == TAIL_LINES {
            tail.pop_front();
        }
        tail.push_back(text.to_owned());
    }
}

/// Mounts what maintainer scripts expect in the directory `$1`, which stays a directory of the host's tree.
pub(crate) const MOUNTS: &str = r#"
mount -t proc -o nosuid,nodev,noexec proc "$1/proc"
for name in sys sysrq-trigger irq bus fs; do
  if [ -e "$1/proc/$name" ]; then
    mount --bind "$1/proc/$name" "$1/proc/$name"
    mount -o remount,bind,ro "$1/proc/$name"
  fi
done
mount -t tmpfs -o nosuid,noexec,mode=755,size=1m dev "$1/dev"
for name in null zero full random urandom tty; do
  : > "$1/dev/$name"
  mount --bind "/dev/$name" "$1/dev/$name"
done
mkdir -m 1777 "$1/dev/shm"
mkdir "$1/dev/pts"
ln -s /proc/self/fd "$1/dev/fd"
ln -s /proc/self/fd/0 "$1/dev/stdin"
ln -s /proc/self/fd/1 "$1/dev/stdout"
ln -s /proc/self/fd/2 "$1/dev/stderr"
mount -t tmpfs -o nosuid,nodev,mode=1777 shm "$1/dev/shm"
"#;

/// Leaves the host's tree: only its programs, read-only, and the image at /image remain in sight. Then a `chroot` that is
/// broken out of leads to nothing, and the capabilities that could bring more are dropped before it.
const CONFINE: &str = r#"
# Entered before /tmp is covered: the image may lie below it.
cd "$1"
mount -t tmpfs -o mode=755,size=1m root /tmp
mkdir /tmp/image /tmp/old /tmp/proc
mount -t proc -o nosuid,nodev,noexec proc /tmp/proc
for name in usr bin sbin lib lib32 lib64 libx32; do
  if [ -L "/$name" ]; then cp -P "/$name" "/tmp/$name"
  elif [ -d "/$name" ]; then
    mkdir "/tmp/$name"
    mount --bind "/$name" "/tmp/$name"
    mount -o remount,bind,ro "/tmp/$name"
  fi
done
mount --no-canonicalize --rbind . /tmp/image
cd /tmp
pivot_root . old
umount -l /old
rmdir /old
mount -o remount,ro /
# umount(8) reads it; nobody after it needs it.
umount -l /proc
"#;

/// What Docker leaves to a build, without making devices.
const CAPABILITIES: &str = "-all,+chown,+dac_override,+fowner,+fsetid,+kill,+setgid,+setuid,+setpcap,+net_bind_service,+sys_chroot,+setfcap,+audit_write";

/// Runs a shell command of a recipe in the image at `root`, as its root and with as little of the host in reach
/// as a container has.
pub(crate) fn run_inside(
    root: &Path,
    script: &str,
    limit: Duration,
    job: &Job,
) -> Result<(), ImageError> {
    let shown: String = script
        .lines()
        .next()
        .unwrap_or_default()
        .chars()
        .take(80)
        .collect();
    let args = [
        "--bounding-set",
        CAPABILITIES,
        "--inh-caps",
        "-all",
        "--no-new-privs",
        "chroot",
        "/image",
        "/bin/sh",
        "-ec",
        script,
    ];
    let args = args.into_iter().map(str::to_owned).collect();
    Command::new(format!("running {shown:?}"), "setpriv", args, limit)
        .prepare(&format!("{MOUNTS}\n{CONFINE}"), root)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .run(job, &mut |_| OnLine::Keep)
}
