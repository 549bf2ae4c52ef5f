//! Where the milliseconds of a cut go. Run by hand: `cargo nextest run -p offshoot-checkpoint --run-ignored only --no-capture`.

use crate::support::*;

const FOUR: &[(&str, &[&str])] = &[
    ("redis-1", &["redis-server", "--save", ""]),
    ("redis-2", &["redis-server", "--save", ""]),
    (
        "python-1",
        &[
            "python3",
            "-c",
            "import time, os\nprint('Ready to accept', flush=True)\nfor i in range(3):\n  if os.fork() == 0: break\nwhile True: time.sleep(1)",
        ],
    ),
    (
        "python-2",
        &[
            "python3",
            "-c",
            "import time, os\nprint('Ready to accept', flush=True)\nfor i in range(3):\n  if os.fork() == 0: break\nwhile True: time.sleep(1)",
        ],
    ),
];

#[test]
#[ignore = "a measurement"]
fn where_the_time_goes() {
    let Some(criu) = host() else { return };
    let place = Place::new();
    let nodes: Vec<Node> = FOUR
        .iter()
        .map(|(id, args)| {
            let node = Node::start(&place, &Make::new(&place, id, 400_000, args));
            until("it runs", || node.output().contains("Ready to accept"));
            node
        })
        .collect();
    for count in [1, 1, 1, 2, 2, 4, 4, 4, 4] {
        let chosen: Vec<&Node> = nodes.iter().take(count).collect();
        let freezer = ByHand::of(&chosen);
        let _ = std::fs::remove_dir_all(place.images("").parent().unwrap());
        let request = request(&criu, nodes_of(&place, &chosen), &freezer);
        let (report, _tracking) = offshoot_checkpoint::cut(request, &|| Ok(())).unwrap();
        let parts: Vec<_> = report
            .parts
            .iter()
            .map(|p| format!("{} {:.1}", p.what, p.us as f64 / 1000.0))
            .collect();
        let dumps: Vec<_> = report
            .nodes
            .iter()
            .map(|n| format!("{:.1}", n.dump.as_secs_f64() * 1000.0))
            .collect();
        println!(
            "{count} nodes: freeze {:?}; ms: {}; dumps {dumps:?}",
            report.freeze,
            parts.join(", ")
        );
    }
}
