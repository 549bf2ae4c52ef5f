//! A database with its state in memory: settings changed at run time, an open transaction, several threads.

use crate::net::Net;
use crate::support::*;

#[test]
fn mariadb_goes_on_in_the_clone() {
    let Some(criu) = host() else { return };
    if !usr().join("sbin/mariadbd").exists() {
        println!(
            "SKIPPED: MariaDB is not installed (OFFSHOOT_TEST_USR may name a /usr that has it)"
        );
        return;
    }
    let place = Place::new();
    let net = Net::new();
    let start = "mkdir -p /run/mysqld /data/db /tmp && mariadb-install-db --no-defaults --user=web --datadir=/data/db \
                 --skip-test-db --force --auth-root-authentication-method=normal && chown -R web /run/mysqld && \
                 exec mariadbd --no-defaults --user=web --datadir=/data/db --socket=/run/mysqld/s --innodb-use-native-aio=0";
    let make = Make::new(&place, "maria-1", 400_000, &["sh", "-c", start]).net(&net, "10.9.0.6");
    let node = Node::start(&place, &make);
    until("it accepts connections", || {
        node.output().contains("ready for connections")
    });
    let ask = |node: &Node, sql: &str| {
        node.exec(&[
            "mariadb",
            "--no-defaults",
            "-S",
            "/run/mysqld/s",
            "-N",
            "-e",
            sql,
        ])
    };
    ask(
        &node,
        "set global max_connections = 77; create database d; create table d.t (n int); insert into d.t values (1)",
    );
    assert_eq!(
        offshoot_checkpoint::preflight(&node.container()).unwrap(),
        []
    );
    let report = cut(&place, &criu, &[&node], None);
    let clone_net = Net::new();
    let clone = clone_of(
        &place,
        &make,
        "maria-2",
        500_000,
        Some((&clone_net, "10.9.0.6")),
        &criu,
    );
    for (node, value) in [(&node, "2"), (&clone, "3")] {
        assert_eq!(ask(node, "select @@max_connections"), "77");
        ask(node, &format!("insert into d.t values ({value})"));
        assert_eq!(
            ask(node, "select group_concat(n order by n) from d.t"),
            format!("1,{value}")
        );
    }
    println!(
        "{:?} for {} MiB",
        report.freeze,
        report.nodes[0].memory_bytes >> 20
    );
}
