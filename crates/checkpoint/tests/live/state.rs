//! One of everything that a process can hold comes back, for several users, in another range of ids.

use std::fs;

use crate::net::Net;
use crate::support::*;

#[test]
fn everything_a_process_holds_comes_along() {
    let Some(criu) = host() else { return };
    let place = Place::new();
    let net = Net::new();
    let make = Make::new(
        &place,
        "all-1",
        400_000,
        &["python3", "-c", include_str!("state.py")],
    )
    .net(&net, "10.9.0.4");
    let node = Node::start(&place, &make);
    until("the state is set up", || node.output().contains("ready"));
    assert_eq!(
        offshoot_checkpoint::preflight(&node.container()).unwrap(),
        []
    );
    let report = cut(&place, &criu, &[&node], None);
    assert_eq!(
        report.nodes[0].processes, 8,
        "python, three users with a child each, a zombie"
    );

    let clone_net = Net::new();
    let clone = clone_of(
        &place,
        &make,
        "all-2",
        700_000,
        Some((&clone_net, "10.9.0.4")),
        &criu,
    );
    for node in [&clone, &node] {
        fs::write(node.rootfs.join("data/check"), "").unwrap();
        until("the checks", || node.rootfs.join("data/result").exists());
        assert_eq!(node.read("data/result"), "[]", "{}", node.id);
    }
}
