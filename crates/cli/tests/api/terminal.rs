//! On a terminal: raw mode and its end, sizes, questions. The terminal is a pty, the program its session's leader.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use axum::routing::get;
use axum::{Json, Router};
use offshoot_model::{OperationKind, OperationState};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};

use crate::exec::{Ears, Heard, Reaction, command, exit, out};
use crate::fake::{Fake, operation, until, wait};
use crate::reading::environment;

/// The program on a terminal of 30 rows and 100 columns.
struct OnTerminal {
    child: Child,
    master: OwnedFd,
    screen: Arc<Mutex<String>>,
}

impl OnTerminal {
    /// Begins the program, or prints why that cannot be.
    fn begin(fake: &Fake, args: &[&str]) -> Option<Self> {
        let master = match openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC) {
            Ok(master) => master,
            Err(error) => {
                println!("SKIPPED: no pty can be made here: {error}");
                return None;
            }
        };
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        tcsetwinsize(&master, size(30, 100)).unwrap();
        let name = ptsname(&master, Vec::new()).unwrap().into_string().unwrap();
        let slave = || Stdio::from(File::options().read(true).write(true).open(&name).unwrap());
        // setsid(1) makes the pty the controlling terminal, so that resizes send SIGWINCH; to do that in this process
        // would need unsafe code.
        let program = fake.command(args);
        let child = Command::new("setsid")
            .arg("--ctty")
            .arg(program.get_program())
            .args(program.get_args())
            .current_dir(fake.dir())
            .env_clear()
            .envs(
                program
                    .get_envs()
                    .filter_map(|(name, value)| Some((name, value?))),
            )
            .env("TERM", "xterm")
            .stdin(slave())
            .stdout(slave())
            .stderr(slave())
            .spawn();
        let child = match child {
            Ok(child) => child,
            Err(error) => {
                println!("SKIPPED: setsid(1) is missing: {error}");
                return None;
            }
        };
        let screen: Arc<Mutex<String>> = Arc::default();
        let (mut reader, shown) = (File::from(master.try_clone().unwrap()), Arc::clone(&screen));
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            // EIO when the last one closed the other side.
            while let Ok(count @ 1..) = reader.read(&mut buffer) {
                shown
                    .lock()
                    .unwrap()
                    .push_str(&String::from_utf8_lossy(&buffer[..count]));
            }
        });
        Some(Self {
            child,
            master,
            screen,
        })
    }

    fn type_keys(&self, keys: &[u8]) {
        File::from(self.master.try_clone().unwrap())
            .write_all(keys)
            .unwrap();
    }

    fn wait_shown(&self, text: &str) {
        until(|| self.screen.lock().unwrap().contains(text), text);
    }

    /// Whether keys come line by line and Ctrl-C is a signal, as terminals are by default.
    fn is_cooked(&self) -> bool {
        let modes = tcgetattr(&self.master).unwrap().local_modes;
        modes.contains(LocalModes::ICANON | LocalModes::ISIG | LocalModes::ECHO)
    }

    fn end(mut self) -> (i32, String) {
        let status = wait(&mut self.child).code().unwrap_or(-1);
        let screen = self.screen.lock().unwrap().clone();
        (status, screen)
    }
}

impl Drop for OnTerminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn size(rows: u16, cols: u16) -> Winsize {
    Winsize {
        ws_row: rows,
        ws_col: cols,
        ws_xpixel: 0,
        ws_ypixel: 0,
    }
}

/// Ends at the key `q`.
fn until_q(heard: &Heard) -> Option<Vec<axum::extract::ws::Message>> {
    heard
        .stdin
        .contains(&b'q')
        .then(|| vec![out(1, "bye\r\n"), exit(3)])
}

#[test]
fn keys_sizes_and_the_end_of_raw_mode() {
    let ears = Ears::default();
    let fake = Fake::start(command(
        &ears,
        vec![out(1, "prompt> ")],
        until_q as Reaction,
    ));
    let Some(terminal) = OnTerminal::begin(&fake, &["exec", "-it", "shop", "web-1", "--", "sh"])
    else {
        return;
    };
    terminal.wait_shown("prompt> ");
    assert!(!terminal.is_cooked());
    let tty = ears.lock().unwrap().request.tty.unwrap();
    assert_eq!((tty.rows, tty.cols), (30, 100));

    // Ctrl-C is a key like any other.
    terminal.type_keys(b"a\x03");
    until(|| ears.lock().unwrap().stdin == b"a\x03", "the keys");
    tcsetwinsize(&terminal.master, size(50, 132)).unwrap();
    let wanted = serde_json::json!({"resize": {"rows": 50, "cols": 132}});
    until(
        || ears.lock().unwrap().texts.contains(&wanted),
        "the new size",
    );

    let master = terminal.master.try_clone().unwrap();
    terminal.type_keys(b"q");
    terminal.wait_shown("bye");
    until(
        || tcgetattr(&master).is_ok_and(|modes| modes.local_modes.contains(LocalModes::ICANON)),
        "the old mode",
    );
    assert!(terminal.is_cooked());
    assert_eq!(terminal.end().0, 3);
}

#[test]
fn a_broken_connection_leaves_the_terminal_as_it_was() {
    let ears = Ears::default();
    let mut fake = Fake::start(command(&ears, vec![out(1, "prompt> ")], |_| None));
    let Some(terminal) = OnTerminal::begin(&fake, &["exec", "-it", "shop", "web-1", "--", "sh"])
    else {
        return;
    };
    terminal.wait_shown("prompt> ");
    fake.stop();
    terminal.wait_shown("daemon-unreachable");
    assert!(terminal.is_cooked());
    assert_eq!(terminal.end().0, 1);
}

fn removable() -> Router {
    let done = operation(OperationKind::Remove, "shop", OperationState::Done);
    let look = done.clone();
    Router::new()
        .route(
            "/environments/shop",
            get(|| async { Json(environment("shop", "aaaaaaaa", None)) })
                .delete(move || async move { Json(done) }),
        )
        .route("/operations/{id}", get(move || async move { Json(look) }))
}

#[test]
fn removing_asks_for_the_name() {
    let fake = Fake::start(removable());
    let Some(terminal) = OnTerminal::begin(&fake, &["rm", "shop"]) else {
        return;
    };
    terminal.wait_shown("Type its name");
    terminal.type_keys(b"shop\n");
    assert_eq!(terminal.end().0, 0);
    assert!(fake.asked().iter().any(|asked| asked.starts_with("DELETE")));
}

#[test]
fn another_answer_removes_nothing() {
    let fake = Fake::start(removable());
    let Some(terminal) = OnTerminal::begin(&fake, &["rm", "shop"]) else {
        return;
    };
    terminal.wait_shown("Type its name");
    terminal.type_keys(b"yes\n");
    terminal.wait_shown("was not removed");
    let (status, _) = terminal.end();
    assert_eq!(status, 1);
    assert!(!fake.asked().iter().any(|asked| asked.starts_with("DELETE")));
}

#[test]
fn colours_on_a_terminal_unless_refused() {
    let fake = Fake::absent();
    let Some(terminal) = OnTerminal::begin(&fake, &["ls"]) else {
        return;
    };
    terminal.wait_shown("daemon-unreachable");
    assert!(terminal.end().1.contains("\u{1b}[1;31m"));
    let Some(terminal) = OnTerminal::begin(&fake, &["--no-color", "ls"]) else {
        return;
    };
    terminal.wait_shown("daemon-unreachable");
    assert!(!terminal.end().1.contains('\u{1b}'));
}
