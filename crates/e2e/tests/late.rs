//! A clone answers while most of its memory is still on its way, and never sees anything but what its parent had.

use std::time::{Duration, Instant};

use offshoot_e2e::support::rungs;
use offshoot_e2e::{TestDaemon, wait_for};

const HEAVY: &str = r#"
services:
  web:
    image: IMAGE
    environment: {BALLAST_MIB: "256"}
    stop_grace_period: 200ms
    x-offshoot: {entry: 8080}
"#;

#[test]
fn a_clone_of_a_clone_whose_memory_still_comes() {
    let daemon = TestDaemon::start();
    daemon.create("shop", HEAVY);
    // It fills its memory before it listens.
    wait_for("the parent", Duration::from_secs(60), || {
        daemon.node("shop", "/set?v=kept").ok()
    });
    let boot = daemon.node("shop", "/").expect("it answers")["boot"].clone();
    let names = ["shop", "second", "third", "fourth"];
    for pair in names.windows(2) {
        let began = Instant::now();
        let operation = daemon.json(&["clone", pair[0], "--name", pair[1]]);
        println!("{} after {:?}", pair[1], began.elapsed());
        assert_eq!(rungs(&operation)["web-1"], "live", "{operation:#}");
    }
    for name in names {
        let answer = daemon.node(name, "/ballast").expect("it answers");
        assert_eq!(answer["ballast"], true, "{name}: {answer}");
        assert_eq!((&answer["value"], &answer["boot"]), (&"kept".into(), &boot));
    }
    daemon.finish(&names);
}
