//! Who reaches whom: nodes each other, the host the nodes, nodes the outside; two environments with the same addresses.

mod world;

use std::net::{IpAddr, UdpSocket};

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;
use offshoot_network::*;
use world::*;

#[test]
fn nodes_reach_each_other_by_name_with_their_own_addresses() {
    if !is_possible() {
        return;
    }
    let mut world = World::new();
    let env = world.environment(1, 2);
    let env = world.env(env);

    assert_eq!(env.ask(0, "web-2.", RecordType::A).unwrap(), ["10.9.0.11"]);
    assert_eq!(
        env.ask(0, "WEB-2.", RecordType::AAAA).unwrap(),
        ["fd6f:6666::b"]
    );
    assert_eq!(
        env.ask(1, "web-1.shop.", RecordType::A).unwrap(),
        ["10.9.0.10"]
    );
    let mut layer = env.ask(0, "web.", RecordType::A).unwrap();
    layer.sort();
    assert_eq!(layer, ["10.9.0.10", "10.9.0.11"]);
    assert_eq!(
        env.ask(0, "11.0.9.10.in-addr.arpa.", RecordType::PTR)
            .unwrap(),
        ["web-2."]
    );
    assert_eq!(
        env.ask(0, "example.org.", RecordType::A),
        Err(ResponseCode::NXDomain)
    );
    let over_tcp = env.nodes[0].run(|| ask_tcp(env.gateway(), "web-2.", RecordType::A));
    assert_eq!(over_tcp.unwrap(), ["10.9.0.11"]);
    let gateway6 = IpAddr::V6(env.spec.placement.inner6_at(GATEWAY_HOST).unwrap());
    let over_v6 = env.nodes[0].run(|| ask(gateway6, "web-2.", RecordType::A));
    assert_eq!(over_v6.unwrap(), ["10.9.0.11"]);

    let (listener, port) = env.nodes[1].run(listen);
    for (from, to) in env.inner(0).into_iter().zip(env.inner(1)) {
        let mut client = env.nodes[0].run(|| connect((to, port).into())).unwrap();
        let (mut server, peer) = listener.accept().unwrap();
        assert_eq!(peer.ip().to_canonical(), from);
        say(&mut client, &mut server, b"hello");
        say(&mut server, &mut client, b"world");
    }
    // Nothing of this was seen by the router's connection tracking.
    assert_eq!(tracked(env), 0);

    // The names change while the router runs.
    env.router()
        .set_names(&vec![("db".into(), vec![11])], None)
        .unwrap();
    assert_eq!(env.ask(0, "db.", RecordType::A).unwrap(), ["10.9.0.11"]);
    assert_eq!(
        env.ask(0, "web-2.", RecordType::A),
        Err(ResponseCode::NXDomain)
    );
}

fn tracked(env: &Environment) -> u32 {
    let count = env
        .router_netns()
        .run(|| std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count"));
    count.unwrap().unwrap().trim().parse().unwrap()
}

#[test]
fn two_environments_have_the_same_inner_addresses_and_their_own_outer_ones() {
    if !is_possible() {
        return;
    }
    let mut world = World::new();
    let pool6 = Some(OUTER_POOL6.parse().unwrap());
    world
        .on_host(|| ensure_host("t1", OUTER_POOL.parse().unwrap(), pool6, Forwarding::Enable))
        .unwrap();
    let envs = [world.environment(1, 2), world.environment(2, 2)];

    for index in envs {
        let env = world.env(index);
        let (listener, port) = env.nodes[1].run(listen);
        let host: [IpAddr; 2] = [
            env.spec.placement.outer_at(1).into(),
            env.spec.placement.outer6_at(1).unwrap().into(),
        ];
        for (outer, host) in env.outer(1).into_iter().zip(host) {
            let mut client = world.on_host(|| connect((outer, port).into())).unwrap();
            let (mut server, peer) = listener.accept().unwrap();
            assert_eq!(
                peer.ip().to_canonical(),
                host,
                "the node sees the host as its peer"
            );
            assert!(
                env.inner(1)
                    .contains(&server.local_addr().unwrap().ip().to_canonical())
            );
            let word = [index as u8; 4];
            say(&mut client, &mut server, &word);
            say(&mut server, &mut client, &word);
        }
    }

    // An environment does not reach another one, by whatever address.
    let (from, to) = (world.env(envs[0]), world.env(envs[1]));
    let (listener, port) = to.nodes[0].run(listen);
    for (v, outer) in to.outer(0).into_iter().enumerate() {
        let receiver = to.nodes[0].run(|| UdpSocket::bind(any(outer))).unwrap();
        let udp = receiver.local_addr().unwrap().port();
        receiver.set_read_timeout(Some(SOON)).unwrap();
        from.nodes[0]
            .run(|| {
                UdpSocket::bind(any(outer))
                    .unwrap()
                    .send_to(b"intruder", (outer, udp))
            })
            .unwrap();
        world
            .on_host(|| {
                UdpSocket::bind(any(outer))
                    .unwrap()
                    .send_to(b"host", (outer, udp))
            })
            .unwrap();
        let mut buffer = [0; 16];
        let len = receiver.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..len], b"host", "IPv{}", [4, 6][v]);
        drop(world.on_host(|| connect((outer, port).into())).unwrap());
        drop(listener.accept().unwrap());
    }
}

#[test]
fn outgoing_traffic_is_translated_when_the_host_may_forward() {
    if !is_possible() {
        return;
    }
    let mut world = World::new();
    let env = world.environment(1, 1);
    world.with_outside();
    let pool = OUTER_POOL.parse().unwrap();
    let pool6 = Some(OUTER_POOL6.parse().unwrap());
    let state = world
        .on_host(|| ensure_host("t1", pool, pool6, Forwarding::Leave))
        .unwrap();
    let off = ForwardingState {
        v4: false,
        v6: Some(false),
    };
    assert_eq!(
        (state, world.on_host(forwarding_state).unwrap()),
        (off, off)
    );
    let on = ForwardingState {
        v4: true,
        v6: Some(true),
    };
    assert_eq!(
        world
            .on_host(|| ensure_host("t1", pool, pool6, Forwarding::Enable))
            .unwrap(),
        on
    );
    assert_eq!(
        world
            .on_host(|| ensure_host("t1", pool, pool6, Forwarding::Leave))
            .unwrap(),
        on
    );

    let env = world.env(env);
    let (listener, port) = world.outside().run(listen);
    let mut client = env.nodes[0]
        .run(|| connect((IpAddr::V4(OUTSIDE), port).into()))
        .unwrap();
    let (mut server, peer) = listener.accept().unwrap();
    assert_eq!(
        peer.ip().to_canonical(),
        IpAddr::from([192, 0, 2, 1]),
        "the outside sees the host"
    );
    say(&mut client, &mut server, b"hello");
    say(&mut server, &mut client, b"world");

    // The other way there is none, even for someone with a route.
    let receiver = env.nodes[0].run(|| UdpSocket::bind("0.0.0.0:0")).unwrap();
    receiver.set_read_timeout(Some(SOON)).unwrap();
    let to = (env.outer(0)[0], receiver.local_addr().unwrap().port());
    world.outside().run(|| {
        run("ip route add default via 192.0.2.1");
        UdpSocket::bind("0.0.0.0:0")
            .unwrap()
            .send_to(b"intruder", to)
            .unwrap();
    });
    world
        .on_host(|| UdpSocket::bind("0.0.0.0:0").unwrap().send_to(b"host", to))
        .unwrap();
    let mut buffer = [0; 16];
    let len = receiver.recv(&mut buffer).unwrap();
    assert_eq!(&buffer[..len], b"host");

    for _ in 0..2 {
        world.on_host(|| ensure_host_removed("t1")).unwrap();
        assert_eq!(world.on_host(|| run("nft list ruleset")), "");
    }
}

#[test]
fn bridged_frames_stay_untouched_when_br_netfilter_is_on() {
    if !is_possible() {
        return;
    }
    let mut world = World::new();
    let env = world.environment(1, 2);
    let env = world.env(env);
    // Somebody may load the module after the router started: then every namespace has it on.
    let switched = env
        .router_netns()
        .run(|| std::fs::write("/proc/sys/net/bridge/bridge-nf-call-iptables", "1"))
        .unwrap();
    if switched.is_err() {
        println!("SKIPPED: this kernel has no br_netfilter");
        return;
    }
    let _ = env
        .router_netns()
        .run(|| std::fs::write("/proc/sys/net/bridge/bridge-nf-call-ip6tables", "1"));
    let (listener, port) = env.nodes[1].run(listen);
    for (from, to) in env.inner(0).into_iter().zip(env.inner(1)) {
        let mut client = env.nodes[0].run(|| connect((to, port).into())).unwrap();
        let (mut server, peer) = listener.accept().unwrap();
        assert_eq!(peer.ip().to_canonical(), from);
        say(&mut client, &mut server, b"hello");
    }
    assert_eq!(tracked(env), 0);
}

#[test]
fn a_router_starts_with_br_netfilter_off() {
    if !is_possible() {
        return;
    }
    let mut world = World::new();
    let env = world.environment(1, 0);
    let text = world
        .env(env)
        .router_netns()
        .run(|| std::fs::read_to_string("/proc/sys/net/bridge/bridge-nf-call-iptables"));
    match text.unwrap() {
        Ok(text) => assert_eq!(text.trim(), "0"),
        Err(_) => println!("SKIPPED: this kernel has no br_netfilter"),
    }
}

#[test]
fn other_names_are_asked_of_the_hosts_servers() {
    if !is_possible() {
        return;
    }
    let mut world = World::new();
    let env = world.environment(1, 1);
    // On the host's loopback, which no packet from a node reaches.
    let server = world.on_host(|| UdpSocket::bind("127.0.0.1:0")).unwrap();
    let silent = world.on_host(|| UdpSocket::bind("127.0.0.1:0")).unwrap();
    let env = world.env(env);
    let upstream = [silent.local_addr().unwrap(), server.local_addr().unwrap()];
    let names = env.spec.names.clone();
    env.router().set_names(&names, Some(&upstream)).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut buffer = [0; 4096];
            let (len, client) = server.recv_from(&mut buffer).unwrap();
            let question = hickory_proto::op::Message::from_vec(&buffer[..len]).unwrap();
            let name = question.queries[0].name().clone();
            // A forged answer first: it has another id.
            let mut forged = question.clone().into_response();
            forged.metadata.id ^= 1;
            server.send_to(&forged.to_vec().unwrap(), client).unwrap();
            let mut answer = question.into_response();
            let data = hickory_proto::rr::RData::A(std::net::Ipv4Addr::new(203, 0, 113, 7).into());
            answer.add_answer(hickory_proto::rr::Record::from_rdata(name, 60, data));
            server.send_to(&answer.to_vec().unwrap(), client).unwrap();
        });
        assert_eq!(
            env.ask(0, "example.org.", RecordType::A).unwrap(),
            ["203.0.113.7"]
        );
    });
    // Not those without a dot, and nothing while the gate is closed.
    assert_eq!(
        env.ask(0, "typo.", RecordType::A),
        Err(ResponseCode::NXDomain)
    );
    env.router().set_gate(Gate::Closed).unwrap();
    assert_eq!(
        env.ask(0, "example.org.", RecordType::A),
        Err(ResponseCode::ServFail)
    );
    assert_eq!(env.ask(0, "web-1.", RecordType::A).unwrap(), ["10.9.0.10"]);
}
