//! A router's life: started, found again, killed, started again, removed; and what it does with those who mean no good.

mod world;

use std::io::Write;
use std::net::{TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;
use offshoot_network::*;
use offshoot_sys::netns::{Holder, Netns};
use world::*;

/// Interfaces in the host's namespace but loopback.
fn host_links(world: &World) -> Vec<String> {
    let text = world.on_host(|| run("ip -o link show"));
    let name = |line: &str| {
        line.split(": ")
            .nth(1)
            .map(|name| name.split('@').next().unwrap_or(name).to_owned())
    };
    text.lines()
        .filter_map(name)
        .filter(|name| name != "lo")
        .collect()
}

#[test]
fn a_killed_router_leaves_nothing_and_can_be_started_again() {
    if !is_possible() {
        return;
    }
    let mut world = World::new();
    let index = world.environment(1, 2);
    let env = world.env(index);
    let link = host_link_name("t1", &env.spec.env);
    assert_eq!(host_links(&world), std::slice::from_ref(&link));
    let router = env.router();
    let first = router.pid();
    Holder::open(first).unwrap().kill().unwrap();

    until("the host's link is gone", || {
        host_links(&world).is_empty().then_some(())
    });
    assert_eq!(
        world.on_host(|| run("ip route show") + &run("ip -6 route show table all type unicast")),
        ""
    );
    for node in &env.nodes {
        until("the node's link is gone", || {
            node.run(|| !run("ip -o link show").contains(NODE_INTERFACE))
                .then_some(())
        });
    }
    assert!(matches!(
        Router::connect(&env.spec.run_dir),
        Err(NetworkError::NoRouter(_))
    ));
    assert!(matches!(
        attach(env.nodes[0].pid(), &env.link(0, Isolation::No)),
        Err(NetworkError::NoRouter(_))
    ));
    assert!(router.status().is_err());

    let router = world
        .on_host(|| ensure_router(&env.spec, &example("network-router")))
        .unwrap();
    assert_eq!(router.started(), Started::Now);
    assert_ne!(router.pid(), first);
    for (n, node) in env.nodes.iter().enumerate() {
        attach(node.pid(), &env.link(n as u8, Isolation::No)).unwrap();
    }
    assert_eq!(env.ask(0, "web-2.", RecordType::A).unwrap(), ["10.9.0.11"]);
    let (listener, port) = env.nodes[1].run(listen);
    let mut client = world
        .on_host(|| connect((env.outer(1)[0], port).into()))
        .unwrap();
    say(&mut client, &mut listener.accept().unwrap().0, b"again");
}

#[test]
fn a_router_is_restarted_at_once_over_what_the_killed_one_left() {
    if !is_possible() {
        return;
    }
    let mut world = World::new();
    let index = world.environment(1, 1);
    let env = world.env(index);
    // Connections of the host and of the node survive it: addresses and translation come back the same.
    let (listener, port) = env.nodes[0].run(listen);
    let mut client = world
        .on_host(|| connect((env.outer(0)[0], port).into()))
        .unwrap();
    let (mut server, _) = listener.accept().unwrap();
    say(&mut client, &mut server, b"before");
    for _ in 0..3 {
        let holder = Holder::open(env.router().pid()).unwrap();
        holder.kill().unwrap();
        assert!(holder.wait(SOON).unwrap());
        world
            .on_host(|| ensure_router(&env.spec, &example("network-router")))
            .unwrap();
        attach(env.nodes[0].pid(), &env.link(0, Isolation::No)).unwrap();
        assert_eq!(env.ask(0, "web-1.", RecordType::A).unwrap(), ["10.9.0.10"]);
        say(&mut client, &mut server, b"hello");
        say(&mut server, &mut client, b"again");
    }
}

#[test]
fn ensuring_a_running_router_keeps_it_and_updates_its_names() {
    if !is_possible() {
        return;
    }
    let mut world = World::new();
    let index = world.environment(1, 1);
    let env = world.env(index);
    let before = env.router();
    before.set_gate(Gate::Closed).unwrap();
    let mut spec = env.spec.clone();
    spec.names.push(("new".into(), vec![10]));
    let after = world
        .on_host(|| ensure_router(&spec, &example("network-router")))
        .unwrap();
    assert_eq!(
        (after.started(), after.pid()),
        (Started::Before, before.pid())
    );
    assert_eq!(
        after.status().unwrap().spec,
        RouterSpec {
            gate: Gate::Closed,
            ..spec.clone()
        }
    );
    assert_eq!(env.ask(0, "new.", RecordType::A).unwrap(), ["10.9.0.10"]);
    assert_eq!(
        after.status().unwrap().ports,
        [PortStatus {
            name: "n10".into(),
            isolated: false
        }]
    );

    // With other addresses it is another router.
    spec.placement.outer = "10.208.9.0/24".parse().unwrap();
    let other = world
        .on_host(|| ensure_router(&spec, &example("network-router")))
        .unwrap();
    assert_eq!(other.started(), Started::Now);
    assert_eq!(other.status().unwrap().spec.placement, spec.placement);
    assert!(!Holder::open(before.pid()).is_ok_and(|old| old.is_alive()));
}

#[test]
fn many_who_ensure_one_router_get_the_same() {
    if !is_possible() {
        return;
    }
    let mut world = World::new();
    let spec = world.spec(1, 1);
    let shim = example("network-router");
    let ensure = || world.on_host(|| ensure_router(&spec, &shim)).unwrap();
    let routers: Vec<Router> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..6).map(|_| scope.spawn(ensure)).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    });
    assert_eq!(
        routers
            .iter()
            .filter(|router| router.started() == Started::Now)
            .count(),
        1
    );
    assert!(
        routers
            .iter()
            .all(|router| router.pid() == routers[0].pid())
    );
    let found = list_routers(world.dir.path(), "t1").unwrap();
    assert_eq!(
        found,
        [RouterRecord {
            env: spec.env.clone(),
            run_dir: spec.run_dir.clone(),
            pid: Some(routers[0].pid())
        }]
    );
    assert_eq!(list_routers(world.dir.path(), "t2").unwrap(), []);
    assert_eq!(list_routers(Path::new("/nowhere"), "t1").unwrap(), []);
    for _ in 0..2 {
        world
            .on_host(|| ensure_router_removed(&spec.run_dir, &spec.env, "t1"))
            .unwrap();
        assert!(!Holder::open(routers[0].pid()).is_ok_and(|old| old.is_alive()));
        assert_eq!(host_links(&world), [""; 0]);
        assert!(!spec.run_dir.exists());
    }
    // Removing works on what a crash left at any point: a directory only, a link only.
    world.on_host(|| {
        run(&format!(
            "ip link add {} type bridge",
            host_link_name("t1", &spec.env)
        ))
    });
    std::fs::create_dir_all(&spec.run_dir).unwrap();
    world
        .on_host(|| ensure_router_removed(&spec.run_dir, &spec.env, "t1"))
        .unwrap();
    assert_eq!(host_links(&world), [""; 0]);
    // Also from a thread of an async runtime.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    runtime.block_on(async {
        ensure_router_removed(&spec.run_dir, &spec.env, "t1").unwrap();
    });
    // The kit has nothing to clean up; one more environment shows that the names are free again.
    world.environment(1, 0);
}

#[test]
fn a_router_that_cannot_start_says_why_and_leaves_nothing() {
    if !is_possible() {
        return;
    }
    let world = World::new();
    let spec = world.spec(1, 1);
    let silent = world
        .on_host(|| ensure_router(&spec, Path::new("/bin/false")))
        .unwrap_err();
    assert!(matches!(&silent, NetworkError::Start { .. }), "{silent}");
    let absent = world
        .on_host(|| ensure_router(&spec, Path::new("/nowhere/shim")))
        .unwrap_err();
    assert_eq!(absent.problem().code, offshoot_model::Code::NetworkFailed);
    let mut blocked = spec.clone();
    blocked.placement.outer = "224.0.0.0/24".parse().unwrap();
    let refused = world
        .on_host(|| ensure_router(&blocked, &example("network-router")))
        .unwrap_err();
    assert!(refused.to_string().contains("224.0.0.1"), "{refused}");
    until("nothing is left on the host", || {
        host_links(&world).is_empty().then_some(())
    });
    assert!(matches!(
        Router::connect(&spec.run_dir),
        Err(NetworkError::NoRouter(_))
    ));

    for change in [
        |spec: &mut RouterSpec| spec.instance = "too-long-a-name".into(),
        |spec: &mut RouterSpec| spec.instance = String::new(),
        |spec: &mut RouterSpec| spec.names.push(("a b".into(), vec![10])),
        |spec: &mut RouterSpec| spec.placement.outer = "10.0.0.0/16".parse().unwrap(),
        |spec: &mut RouterSpec| spec.placement.outer6 = None,
        |spec: &mut RouterSpec| spec.placement.outer = spec.placement.inner,
    ] {
        let mut bad = spec.clone();
        change(&mut bad);
        assert!(
            matches!(
                ensure_router(&bad, &example("network-router")),
                Err(NetworkError::Invalid(_))
            ),
            "{bad:?}"
        );
    }
    world
        .on_host(|| ensure_router_removed(&spec.run_dir, &spec.env, "t1"))
        .unwrap();
}

#[test]
fn a_pid_that_now_is_another_process_is_not_touched() {
    if !is_possible() {
        return;
    }
    let world = World::new();
    let spec = world.spec(1, 1);
    std::fs::create_dir_all(&spec.run_dir).unwrap();
    let mut bystander = Command::new("sleep").arg("infinity").spawn().unwrap();
    let holder = Holder::open(bystander.id() as i32).unwrap();
    // Without the lock the pid means nothing; with it, the start time says that it is another process.
    std::fs::write(
        spec.run_dir.join("router.pid"),
        format!("{} 1\n", bystander.id()),
    )
    .unwrap();
    assert!(matches!(
        Router::connect(&spec.run_dir),
        Err(NetworkError::NoRouter(_))
    ));
    world
        .on_host(|| ensure_router_removed(&spec.run_dir, &spec.env, "t1"))
        .unwrap();
    let untouched = holder.is_alive();
    bystander.kill().unwrap();
    bystander.wait().unwrap();
    assert!(untouched);
}

#[test]
fn attaching_is_repeatable_and_refuses_what_is_no_node() {
    if !is_possible() {
        return;
    }
    let mut world = World::new();
    let index = world.environment(1, 1);
    let link = world.env(index).link(0, Isolation::No);
    // Without what the kernel makes of the hardware address, in its own time.
    let show = |node: &Process| {
        let all =
            node.run(|| run("ip -o addr show") + &run("ip route show") + &run("ip -6 route show"));
        all.lines()
            .filter(|line| !line.contains("fe80::"))
            .collect::<Vec<_>>()
            .join("\n")
    };
    let before = show(&world.env(index).nodes[0]);
    for _ in 0..3 {
        attach(world.env(index).nodes[0].pid(), &link).unwrap();
    }
    assert_eq!(show(&world.env(index).nodes[0]), before);
    for text in [
        "10.9.0.10/24",
        "fd6f:6666::a/64",
        "default via 10.9.0.1 dev eth0",
        "default via fd6f:6666::1 dev eth0",
    ] {
        assert!(before.contains(text), "{text} in {before}");
    }
    assert!(!before.contains("tentative"), "{before}");
    assert!(
        world.env(index).nodes[0]
            .run(|| run("ip -o link show eth0"))
            .contains("02:00:00:00:00:0a")
    );

    // The node ends and its successor takes the same port at once, while the kernel still cleans up.
    for _ in 0..3 {
        world.env_mut(index).nodes.clear();
        let next = Process::unshared();
        attach(next.pid(), &link).unwrap();
        assert_eq!(show(&next), before);
        world.env_mut(index).nodes.push(next);
    }

    // Not into the namespace of the host or of the router, nor of nobody.
    let ours = std::process::id() as i32;
    assert!(matches!(attach(ours, &link), Err(NetworkError::Invalid(_))));
    let router = world.env(index).router().pid();
    assert!(matches!(
        attach(router, &link),
        Err(NetworkError::Invalid(_))
    ));
    assert!(attach(i32::MAX, &link).is_err());
    assert!(attach(-1, &link).is_err());
    assert!(close_outside(i32::MAX, &link.placement).is_err());
}

#[test]
fn a_router_keeps_no_capability_but_one() {
    if !is_possible() {
        return;
    }
    let mut world = World::new();
    let index = world.environment(1, 0);
    let threads =
        std::fs::read_dir(format!("/proc/{}/task", world.env(index).router().pid())).unwrap();
    let mut seen = 0;
    for thread in threads {
        let status = std::fs::read_to_string(thread.unwrap().path().join("status")).unwrap();
        for set in ["CapPrm", "CapEff"] {
            // CAP_NET_ADMIN is 12.
            assert!(
                status.contains(&format!("{set}:\t0000000000001000\n")),
                "{status}"
            );
        }
        seen += 1;
    }
    assert_eq!(seen, 2, "the router's thread and the host side's");
}

#[test]
fn noise_does_not_stop_a_router() {
    if !is_possible() {
        return;
    }
    let mut world = World::new();
    let index = world.environment(1, 1);
    let env = world.env(index);
    let socket = env.spec.run_dir.join("control.sock");
    let idle: Vec<UnixStream> = (0..8)
        .map(|_| UnixStream::connect(&socket).unwrap())
        .collect();
    for noise in [
        &b"\n"[..],
        b"{}\n",
        b"{\"do\":\"dance\"}\n",
        b"\xff\xfe\n",
        b"half a line",
    ] {
        let mut stream = UnixStream::connect(&socket).unwrap();
        stream.write_all(noise).unwrap();
    }
    let mut endless = UnixStream::connect(&socket).unwrap();
    // Closed by the router after 1 MiB.
    let written = (0..4096).try_for_each(|_| endless.write_all(&[b'x'; 1024]));
    assert!(written.is_err());
    assert_eq!(env.router().status().unwrap().spec, env.spec);
    drop(idle);

    let gateway = env.gateway();
    let mut silent: Vec<TcpStream> = Vec::new();
    env.nodes[0].run(|| {
        let socket = UdpSocket::bind(any(gateway)).unwrap();
        for noise in [
            &b""[..],
            b"x",
            &[0xff; 4],
            &[0; 12],
            &[0xff; 512],
            &[0; 4096],
        ] {
            let _ = socket.send_to(noise, (gateway, 53));
        }
        for _ in 0..24 {
            silent.push(connect((gateway, 53).into()).unwrap());
        }
        silent[0].write_all(&[0xff, 0xff, 1, 2, 3]).unwrap();
        silent[1].write_all(&[0, 4, 1, 2, 3, 4]).unwrap();
    });
    assert_eq!(env.ask(0, "web-1.", RecordType::A).unwrap(), ["10.9.0.10"]);
    assert_eq!(
        env.nodes[0].run(|| ask_tcp(gateway, "nothing.", RecordType::A)),
        Err(ResponseCode::NXDomain)
    );
    // And nothing else of the router listens to nodes.
    let refused = env.nodes[0].run(|| {
        let socket = UdpSocket::bind(any(gateway)).unwrap();
        socket.connect((gateway, 54)).unwrap();
        socket.send(b"x").unwrap();
        ask(gateway, "web-1.", RecordType::A)
    });
    assert!(refused.is_ok());
}

#[test]
fn a_router_can_be_run_by_hand_and_only_once() {
    if !is_possible() {
        return;
    }
    let mut world = World::new();
    let index = world.environment(1, 0);
    let env = world.env(index);
    let again = world.on_host(|| {
        Command::new(example("network-router"))
            .args(["router", "--spec"])
            .arg(env.spec.run_dir.join("spec.json"))
            .output()
            .unwrap()
    });
    assert!(!again.status.success());
    assert!(
        String::from_utf8_lossy(&again.stderr).contains("another router"),
        "{again:?}"
    );
    assert_eq!(env.router().status().unwrap().spec, env.spec);
    // What was meant for the namespace of the router did not happen to the one it was started from.
    assert_ne!(env.router_netns().id().unwrap(), world.host.id().unwrap());
    assert_ne!(
        Netns::current().unwrap().id().unwrap(),
        world.host.id().unwrap()
    );
}
