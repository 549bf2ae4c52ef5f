//! `network-hold DIR`: isolates the nodes of the router at DIR and holds that until it is killed; for this crate's tests.

use std::io::Read;
use std::time::Duration;

fn main() {
    let dir = std::env::args().nth(1).expect("usage: network-hold DIR");
    let router = offshoot_network::Router::connect(dir.as_ref()).expect("a router");
    let lease = router.isolate(Duration::from_secs(60)).expect("isolation");
    println!("held");
    let _ = std::io::stdin().read(&mut [0]);
    drop(lease);
}
