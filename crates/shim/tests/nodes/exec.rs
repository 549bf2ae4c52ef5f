//! Further processes in a node.

use crate::support::*;
use offshoot_runtime::*;
use std::fs::File;
use std::io::{Read, Write};
use std::time::Duration;

fn sh(script: &str) -> ExecSpec {
    ExecSpec {
        args: ["/bin/sh", "-c", script].map(String::from).to_vec(),
        ..Default::default()
    }
}

#[test]
fn a_session_has_streams_a_status_and_the_nodes_environment() {
    if !fit() {
        return;
    }
    let node =
        TestNode::new("sleep 1000").with(|spec| spec.process.env.push("GREETING=hello".into()));
    node.start();
    let mut what = sh("cat; echo $GREETING $EXTRA; id -u; pwd; echo err >&2; exit 9");
    what.env.push("EXTRA=more".into());
    what.cwd = Some("/tmp".into());
    what.user = Some("app".into());
    let mut session = exec(&node.spec, &what).unwrap();
    let mut stdin = File::from(session.streams.stdin.take().unwrap());
    stdin.write_all(b"typed\n").unwrap();
    drop(stdin);
    let (mut out, mut err) = (String::new(), String::new());
    File::from(session.streams.stdout.take().unwrap())
        .read_to_string(&mut out)
        .unwrap();
    File::from(session.streams.stderr.take().unwrap())
        .read_to_string(&mut err)
        .unwrap();
    assert_eq!(out, "typed\nhello more\n1000\n/tmp\n");
    assert_eq!(err, "err\n");
    assert_eq!(session.wait(LONG).unwrap(), Some(9));
    assert!(session.signal(15).is_err());
    let groups = exec(
        &node.spec,
        &ExecSpec {
            user: Some("app".into()),
            ..sh("id -G; echo $HOME")
        },
    )
    .unwrap();
    assert_eq!(
        groups.finish(LONG, 100).unwrap().output,
        "1000 2000\n/home/app\n"
    );
}

#[test]
fn a_terminal_is_a_terminal_and_follows_its_size() {
    if !fit() {
        return;
    }
    let node = TestNode::new("sleep 1000");
    node.start();
    let size = |columns, rows| TerminalSize { columns, rows };
    let what = ExecSpec {
        terminal: Some(size(91, 31)),
        ..sh("trap 'stty size' WINCH; tty; stty size; echo $TERM; while true; do sleep 0.05; done")
    };
    let session = exec(&node.spec, &what).unwrap();
    let mut terminal = File::from(
        session
            .streams
            .terminal
            .as_ref()
            .unwrap()
            .try_clone()
            .unwrap(),
    );
    let mut seen = String::new();
    let mut until = |text: &str| {
        wait_for(&format!("{text:?} on the terminal"), || {
            if !seen.contains(text) {
                let mut chunk = [0; 1000];
                let n = terminal.read(&mut chunk).unwrap();
                seen.push_str(&String::from_utf8_lossy(&chunk[..n]));
            }
            seen.contains(text).then_some(())
        });
    };
    until("/dev/pts/");
    until("31 91");
    until("xterm");
    session.resize(size(100, 50)).unwrap();
    until("50 100");
    // Ctrl-C, as typed.
    let mut keys = File::from(
        session
            .streams
            .terminal
            .as_ref()
            .unwrap()
            .try_clone()
            .unwrap(),
    );
    keys.write_all(b"\x03").unwrap();
    let mut session = session;
    assert_eq!(session.wait(LONG).unwrap(), Some(130));
}

#[test]
fn dropping_a_session_kills_its_process() {
    if !fit() {
        return;
    }
    let node = TestNode::new("sleep 1000");
    node.start();
    for terminal in [
        None,
        Some(TerminalSize {
            columns: 80,
            rows: 24,
        }),
    ] {
        let session = exec(
            &node.spec,
            &ExecSpec {
                terminal,
                ..sh("sleep 1000")
            },
        )
        .unwrap();
        let pid = session.pid();
        assert!(alive(pid));
        drop(session);
        wait_for("the session's end", || (!alive(pid)).then_some(()));
    }
    wait_for("the session's directory to go", || {
        let mut left = std::fs::read_dir(node.spec.run_dir.join("exec")).unwrap();
        left.next().is_none().then_some(())
    });
}

#[test]
fn what_cannot_run_is_said() {
    if !fit() {
        return;
    }
    let node = TestNode::new("sleep 1000");
    let client = node.start();
    let missing = ExecSpec {
        args: vec!["nonsense".into()],
        ..Default::default()
    };
    let problem = exec(&node.spec, &missing)
        .unwrap_err()
        .problem_as(offshoot_model::Code::ExecFailed);
    assert!(
        problem.details.iter().any(|d| d.contains("nonsense")),
        "{problem:#?}"
    );
    let user = ExecSpec {
        user: Some("nobody-known".into()),
        ..sh("true")
    };
    assert!(
        exec(&node.spec, &user)
            .unwrap_err()
            .to_string()
            .contains("nobody-known")
    );
    let slow = exec(&node.spec, &sh("sleep 1000")).unwrap();
    assert!(matches!(
        slow.finish(Duration::from_millis(100), 10),
        Err(RuntimeError::Timeout { .. })
    ));
    client.kill().unwrap();
    assert!(matches!(
        exec(&node.spec, &sh("true")),
        Err(RuntimeError::NotRunning { .. })
    ));
}

#[test]
fn a_signal_s_status_and_bounded_output() {
    if !fit() {
        return;
    }
    let node = TestNode::new("sleep 1000");
    node.start();
    let finished = exec(&node.spec, &sh("yes | head -n 100000; kill -9 $$"))
        .unwrap()
        .finish(LONG, 1000)
        .unwrap();
    assert_eq!((finished.status, finished.output.len()), (137, 1000));
}

#[test]
fn sessions_run_side_by_side() {
    if !fit() {
        return;
    }
    let node = TestNode::new("sleep 1000");
    node.start();
    std::thread::scope(|scope| {
        for i in 0..6 {
            let node = &node;
            scope.spawn(move || {
                assert_eq!(
                    node.exec(&format!("echo {i}; exit {i}")),
                    Finished {
                        status: i,
                        output: format!("{i}\n")
                    }
                )
            });
        }
    });
}

#[test]
fn a_session_ends_with_its_process_whatever_its_children_hold() {
    if !fit() {
        return;
    }
    let node = TestNode::new("sleep 1000");
    node.start();
    let finished = node.exec("sleep 1000 & echo started");
    assert_eq!(
        finished,
        Finished {
            status: 0,
            output: "started\n".into()
        }
    );
    // The child lives on in the node, and with it.
    assert_eq!(node.cgroup().processes().len(), 2);
}

/// Not a test of its own: begins a session and is killed.
#[test]
#[ignore = "run by a_session_ends_with_who_began_it"]
fn begin_a_session() {
    let Some(path) = std::env::var_os("OFFSHOOT_TEST_SESSION") else {
        return;
    };
    let spec = NodeSpec::read(path.as_ref()).unwrap();
    let _session = exec(&spec, &sh("sleep 999")).unwrap();
    std::thread::sleep(LONG);
}

#[test]
fn a_session_ends_with_who_began_it() {
    if !fit() {
        return;
    }
    let node = TestNode::new("sleep 1000");
    node.start();
    let mut starter = std::process::Command::new(std::env::current_exe().unwrap())
        .args([
            "--ignored",
            "--exact",
            "exec::begin_a_session",
            "--nocapture",
        ])
        .env("OFFSHOOT_TEST_SESSION", node.spec.path())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let processes = |count| (node.cgroup().processes().len() == count).then_some(());
    let sleeping = |pid: &i32| {
        offshoot_sys::process::arguments(*pid).is_ok_and(|a| a.contains(&b"999".to_vec()))
    };
    wait_for("the session", || {
        node.cgroup().processes().iter().any(sleeping).then_some(())
    });
    starter.kill().unwrap();
    starter.wait().unwrap();
    wait_for("its end", || processes(1));
}
