//! Mail that is held: refused at once to the outside by both protocols, inside as ever, and let go in one step.

mod world;

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, TcpListener};

use offshoot_network::*;
use offshoot_sys::netns::Holder;
use world::*;

/// A listener on a port where mail is taken.
fn mail_server(port: u16) -> TcpListener {
    TcpListener::bind(("::", port)).unwrap()
}

/// The host's addresses on an environment's uplink.
fn host_addresses(env: &Environment) -> [IpAddr; 2] {
    let placement = &env.spec.placement;
    [
        placement.outer_at(GATEWAY_HOST).into(),
        placement.outer6_at(GATEWAY_HOST).unwrap().into(),
    ]
}

/// How an attempt of the first node to reach `to` ends.
fn attempt(env: &Environment, to: IpAddr, port: u16) -> Result<(), ErrorKind> {
    env.nodes[0]
        .run(|| connect((to, port).into()))
        .map(drop)
        .map_err(|e| e.kind())
}

fn ensure(world: &World, spec: &RouterSpec) -> Router {
    world
        .on_host(|| ensure_router(spec, &example("network-router")))
        .unwrap()
}

#[test]
fn mail_is_refused_outside_and_passes_inside_until_it_is_let_go() {
    if !is_possible() {
        return;
    }
    let mut world = World::new();
    let index = world.environment(1, 2);
    let _servers: Vec<_> = [25, 465, 587, 2525, 8025]
        .into_iter()
        .map(|port| world.on_host(|| mail_server(port)))
        .collect();
    let env = world.env(index);
    let _catcher = env.nodes[1].run(|| mail_server(25));
    let mut open = Vec::new();
    for to in host_addresses(env) {
        let stream = env.nodes[0].run(|| connect((to, 25).into())).unwrap();
        open.push(stream);
    }

    let held = RouterSpec {
        mail: Mail::Held,
        ..env.spec.clone()
    };
    let before = env.router().pid();
    let router = ensure(&world, &held);
    assert_eq!(
        (router.pid(), router.status().unwrap().spec.mail),
        (before, Mail::Held)
    );
    let check_held = || {
        for to in host_addresses(env) {
            for port in [25, 465, 587, 2525] {
                assert_eq!(
                    attempt(env, to, port),
                    Err(ErrorKind::ConnectionRefused),
                    "{to} {port}"
                );
            }
            assert_eq!(attempt(env, to, 8025), Ok(()), "{to}");
        }
        for to in env.inner(1) {
            assert_eq!(attempt(env, to, 25), Ok(()), "{to}");
        }
    };
    check_held();
    // What was open ends at its next word.
    for mut stream in open {
        let mut end = [0];
        let ended = stream
            .write_all(b"QUIT\r\n")
            .and_then(|()| stream.read(&mut end));
        assert_eq!(ended.map_err(|e| e.kind()), Err(ErrorKind::ConnectionReset));
    }

    // A router that has to be started again holds it from its first moment.
    let holder = Holder::open(before).unwrap();
    holder.kill().unwrap();
    assert!(holder.wait(SOON).unwrap());
    assert_eq!(ensure(&world, &held).started(), Started::Now);
    for (n, node) in env.nodes.iter().enumerate() {
        attach(node.pid(), &env.link(n as u8, Isolation::No)).unwrap();
    }
    check_held();

    let router = ensure(&world, &env.spec);
    assert_eq!(router.status().unwrap().spec.mail, Mail::Passes);
    for to in host_addresses(env) {
        assert_eq!(attempt(env, to, 25), Ok(()), "{to}");
    }
}
