//! What a clone needs: nodes cut off from each other for the length of a cut, a gate, connections to the outside closed.

mod world;

use std::io::Read;
use std::net::{IpAddr, UdpSocket};
use std::time::{Duration, Instant};

use offshoot_network::*;
use world::*;

/// Sends from node 0 to node 1, then from the host to node 1, and returns what arrived first.
fn first_heard(world: &World, env: &Environment, v: usize) -> Vec<u8> {
    let receiver = env.nodes[1].run(|| UdpSocket::bind("[::]:0")).unwrap();
    receiver.set_read_timeout(Some(SOON)).unwrap();
    let port = receiver.local_addr().unwrap().port();
    let (inner, outer) = (env.inner(1)[v], env.outer(1)[v]);
    env.nodes[0]
        .run(|| {
            UdpSocket::bind(any(inner))
                .unwrap()
                .send_to(b"node", (inner, port))
        })
        .unwrap();
    world
        .on_host(|| {
            UdpSocket::bind(any(outer))
                .unwrap()
                .send_to(b"host", (outer, port))
        })
        .unwrap();
    let mut buffer = [0; 16];
    let len = receiver.recv(&mut buffer).unwrap();
    buffer[..len].to_vec()
}

/// Waits until nodes reach each other again: one that asked for its neighbour's address in vain asks again soon.
fn become_connected(world: &World, env: &Environment) {
    until("the nodes reach each other", || {
        (are_connected(world, env) == [true, true]).then_some(())
    });
}

fn are_connected(world: &World, env: &Environment) -> [bool; 2] {
    [0, 1].map(|v| match first_heard(world, env, v).as_slice() {
        b"node" => true,
        b"host" => false,
        other => panic!("{other:?}"),
    })
}

#[test]
fn isolation_cuts_between_nodes_only_and_connections_survive_it() {
    if !is_possible() {
        return;
    }
    let mut world = World::new();
    let index = world.environment(1, 2);
    let env = world.env(index);
    let router = env.router();
    become_connected(&world, env);
    let (listener, port) = env.nodes[1].run(listen);
    let mut client = env.nodes[0]
        .run(|| connect((env.inner(1)[0], port).into()))
        .unwrap();
    let (mut server, _) = listener.accept().unwrap();
    say(&mut client, &mut server, b"before");

    let lease = router.isolate(Duration::from_secs(30)).unwrap();
    assert_eq!(lease.ports(), 2);
    assert!(router.status().unwrap().isolation_held);
    assert_eq!(are_connected(&world, env), [false, false]);
    // Sent while cut off: it waits for its retransmission.
    std::io::Write::write_all(&mut client, b"during").unwrap();
    assert!(
        matches!(
            router.isolate(Duration::from_secs(1)),
            Err(NetworkError::Refused { .. })
        ),
        "one at a time"
    );
    assert!(
        matches!(router.lift(), Err(NetworkError::Refused { .. })),
        "not over a lease's head"
    );
    let held = lease.lift().unwrap();
    assert!(held > Duration::ZERO);

    become_connected(&world, env);
    hear(&mut server, b"during");
    say(&mut server, &mut client, b"after");
    assert!(!router.status().unwrap().isolation_held);

    // Dropping a lease lifts it too.
    drop(router.isolate(Duration::from_secs(30)).unwrap());
    until("the dropped lease is lifted", || {
        (!router.status().unwrap().isolation_held).then_some(())
    });
    become_connected(&world, env);
}

#[test]
fn isolation_ends_at_its_time_and_its_holder_learns_that() {
    if !is_possible() {
        return;
    }
    let mut world = World::new();
    let index = world.environment(1, 2);
    let env = world.env(index);
    let router = env.router();
    let lease = router.isolate(Duration::from_millis(20)).unwrap();
    until("the time has passed", || {
        (!router.status().unwrap().isolation_held).then_some(())
    });
    become_connected(&world, env);
    assert!(matches!(lease.lift(), Err(NetworkError::IsolationEnded(_))));
    for bad in [Duration::ZERO, Duration::from_secs(121)] {
        assert!(matches!(
            router.isolate(bad),
            Err(NetworkError::Refused { .. })
        ));
    }
}

#[test]
fn isolation_ends_when_its_holder_is_killed() {
    if !is_possible() {
        return;
    }
    let mut world = World::new();
    let index = world.environment(1, 2);
    let env = world.env(index);
    let holder = start_and_wait(&example("network-hold"), &env.spec.run_dir);
    assert_eq!(are_connected(&world, env), [false, false]);
    drop(holder);
    until("the isolation is lifted", || {
        (!env.router().status().unwrap().isolation_held).then_some(())
    });
    become_connected(&world, env);
}

#[test]
fn nodes_can_be_attached_cut_off_and_are_let_together_at_once() {
    if !is_possible() {
        return;
    }
    let mut world = World::new();
    let index = world.environment(1, 0);
    let node = || Process::unshared();
    let nodes = [node(), node()];
    for (n, node) in nodes.iter().enumerate() {
        let link = world.env(index).link(n as u8, Isolation::Yes);
        attach(node.pid(), &link).unwrap();
    }
    world.env_mut(index).nodes.extend(nodes);
    let env = world.env(index);
    assert_eq!(are_connected(&world, env), [false, false]);
    // A lease on top of it leaves them cut off: they were before.
    let lease = env.router().isolate(Duration::from_secs(5)).unwrap();
    assert_eq!(lease.ports(), 0);
    lease.lift().unwrap();
    assert_eq!(are_connected(&world, env), [false, false]);
    env.router().lift().unwrap();
    env.router().lift().unwrap();
    become_connected(&world, env);
    // Attaching again does not take that back.
    for n in 0..2 {
        attach(env.nodes[n].pid(), &env.link(n as u8, Isolation::Yes)).unwrap();
    }
    become_connected(&world, env);
}

/// What isolating ten nodes and attaching cost; printed, and bounded loosely because other tests run at the same time.
#[test]
fn isolating_and_attaching_are_fast() {
    if !is_possible() {
        return;
    }
    let mut world = World::new();
    let index = world.environment(1, 10);
    let env = world.env(index);
    let router = env.router();
    let best = (0..20)
        .map(|_| {
            let prepared = router.prepare_isolation().unwrap();
            let begun = Instant::now();
            let lease = prepared.isolate(Duration::from_secs(30)).unwrap();
            let (all, inside) = (begun.elapsed(), lease.took());
            assert_eq!(lease.ports(), 10);
            lease.lift().unwrap();
            (all, inside)
        })
        .min()
        .unwrap();
    let spec = world.spec(2, 1);
    let begun = Instant::now();
    world
        .on_host(|| ensure_router(&spec, &example("network-router")))
        .unwrap();
    let started = begun.elapsed();
    world
        .on_host(|| ensure_router_removed(&spec.run_dir, &spec.env, "t1"))
        .unwrap();
    let node = Process::unshared();
    let begun = Instant::now();
    attach(node.pid(), &env.link(20, Isolation::No)).unwrap();
    let attached = begun.elapsed();
    println!(
        "isolate 10 ports: {best:?} (seen by the caller, inside the router); attach: {attached:?}"
    );
    println!("start a router: {started:?}");
    assert!(best.0 < Duration::from_millis(20), "{best:?}");
    assert!(attached < Duration::from_millis(500), "{attached:?}");
}

#[test]
fn a_closed_gate_lets_nothing_through_and_loses_no_route() {
    if !is_possible() {
        return;
    }
    let mut world = World::new();
    world.with_outside();
    let pool6 = Some(OUTER_POOL6.parse().unwrap());
    world
        .on_host(|| ensure_host("t1", OUTER_POOL.parse().unwrap(), pool6, Forwarding::Enable))
        .unwrap();
    let index = world.environment(1, 2);
    let env = world.env(index);
    let router = env.router();
    let (listener, port) = world.outside().run(listen);
    let mut client = env.nodes[0]
        .run(|| connect((IpAddr::V4(OUTSIDE), port).into()))
        .unwrap();
    let (mut server, _) = listener.accept().unwrap();
    say(&mut client, &mut server, b"open");

    let routes = || {
        env.router_netns()
            .run(|| run("ip route show") + &run("ip -6 route show"))
            .unwrap()
    };
    let before = routes();
    for _ in 0..2 {
        router.set_gate(Gate::Closed).unwrap();
    }
    assert_eq!(router.status().unwrap().spec.gate, Gate::Closed);
    for v in 0..2 {
        let receiver = env.nodes[1].run(|| UdpSocket::bind("[::]:0")).unwrap();
        receiver.set_read_timeout(Some(SOON)).unwrap();
        let port = receiver.local_addr().unwrap().port();
        let (inner, outer) = (env.inner(1)[v], env.outer(1)[v]);
        world
            .on_host(|| {
                UdpSocket::bind(any(outer))
                    .unwrap()
                    .send_to(b"host", (outer, port))
            })
            .unwrap();
        env.nodes[0]
            .run(|| {
                UdpSocket::bind(any(inner))
                    .unwrap()
                    .send_to(b"node", (inner, port))
            })
            .unwrap();
        let mut buffer = [0; 16];
        let len = receiver.recv(&mut buffer).unwrap();
        assert_eq!(
            &buffer[..len],
            b"node",
            "what the host sent before did not arrive"
        );
    }
    // The other way: what a node sends is not seen on the host's end.
    let sink = world.on_host(|| UdpSocket::bind("0.0.0.0:0")).unwrap();
    let to = (
        env.spec.placement.outer_at(1),
        sink.local_addr().unwrap().port(),
    );
    env.nodes[0]
        .run(|| UdpSocket::bind("0.0.0.0:0").unwrap().send_to(b"node", to))
        .unwrap();
    // And an attempt from the host fails at once instead of waiting for a retransmission.
    let begun = Instant::now();
    let refused = world
        .on_host(|| connect((env.outer(0)[0], 9).into()))
        .unwrap_err();
    assert!(begun.elapsed() < Duration::from_secs(1), "{refused}");

    for _ in 0..2 {
        router.set_gate(Gate::Open).unwrap();
    }
    assert_eq!(routes(), before);
    env.nodes[0]
        .run(|| UdpSocket::bind("0.0.0.0:0").unwrap().send_to(b"open", to))
        .unwrap();
    sink.set_read_timeout(Some(SOON)).unwrap();
    let mut buffer = [0; 16];
    let len = sink.recv(&mut buffer).unwrap();
    assert_eq!(
        &buffer[..len],
        b"open",
        "the first to arrive was sent after the gate was opened"
    );
    // The connection from before goes on.
    say(&mut client, &mut server, b"again");
}

#[test]
fn connections_to_the_outside_are_closed_and_others_are_not() {
    if !is_possible() {
        return;
    }
    let mut world = World::new();
    let index = world.environment(1, 2);
    let env = world.env(index);
    // To the host, from the host, to another node, and to itself; the two outside ones over IPv4 and IPv6.
    let (outside, outside_port) = world.on_host(listen);
    let (inside, inside_port) = env.nodes[1].run(listen);
    let (own, own_port) = env.nodes[0].run(listen);
    let placement = &env.spec.placement;
    let host: [IpAddr; 2] = [
        placement.outer_at(1).into(),
        placement.outer6_at(1).unwrap().into(),
    ];
    let mut out = Vec::new();
    for host in host {
        let client = env.nodes[0]
            .run(|| connect((host, outside_port).into()))
            .unwrap();
        let (server, _) = outside.accept().unwrap();
        out.push((client, server));
    }
    for outer in env.outer(0) {
        let client = world.on_host(|| connect((outer, own_port).into())).unwrap();
        let (server, _) = own.accept().unwrap();
        out.push((server, client));
    }
    let mut kept = Vec::new();
    for inner in env.inner(1) {
        let client = env.nodes[0]
            .run(|| connect((inner, inside_port).into()))
            .unwrap();
        kept.push((client, inside.accept().unwrap().0));
    }
    for itself in [
        "127.0.0.1".parse().unwrap(),
        "::1".parse().unwrap(),
        env.inner(0)[0],
    ] {
        let client = env.nodes[0]
            .run(|| connect((itself, own_port).into()))
            .unwrap();
        kept.push((client, own.accept().unwrap().0));
    }
    let udp = env.nodes[0].run(|| {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.connect((host[0], 9)).unwrap();
        socket
    });

    env.router().set_gate(Gate::Closed).unwrap();
    assert_eq!(close_outside(env.nodes[0].pid(), placement).unwrap(), 5);
    assert_eq!(close_outside(env.nodes[0].pid(), placement).unwrap(), 0);
    for (node, _) in &mut out {
        let error = node.read(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionAborted);
    }
    assert!(udp.send(b"x").is_err() || udp.peer_addr().is_err());
    for (client, server) in &mut kept {
        say(client, server, b"still");
        say(server, client, b"here");
    }
    // The peers heard nothing of it: to them it is the parent that goes on.
    env.router().set_gate(Gate::Open).unwrap();
    for (_, peer) in &mut out {
        peer.set_nonblocking(true).unwrap();
        assert_eq!(
            peer.read(&mut [0]).unwrap_err().kind(),
            std::io::ErrorKind::WouldBlock
        );
    }
}
