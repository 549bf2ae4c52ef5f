//! MariaDB under sysbench.

use offshoot_e2e::TestDaemon;
use offshoot_e2e::support::sh;

use super::{clone_twice, create, log_without, number, report, told};

/// One statement, thus one snapshot: the transfers, what all accounts have, how many of them have not what the transfers say, and
/// the rows of sysbench's own tables, which its transactions do not change in number.
const SUMS: &str = "SELECT (SELECT COUNT(*) FROM transfer), (SELECT SUM(balance) FROM account), \
    (SELECT COUNT(*) FROM account WHERE balance <> 1000 \
        + (SELECT COALESCE(SUM(amount), 0) FROM transfer WHERE target = account.id) \
        - (SELECT COALESCE(SUM(amount), 0) FROM transfer WHERE source = account.id)), \
    (SELECT COUNT(*) FROM sbtest1), (SELECT COUNT(*) FROM sbtest2)";

fn client(query: &str) -> String {
    format!("mariadb -h 127.0.0.1 -ubench -pbench bench -BNe '{query}'")
}

fn ask(daemon: &TestDaemon, environment: &str, query: &str) -> String {
    sh(daemon, environment, "server", &client(query))
}

pub(crate) fn whole(daemon: &TestDaemon) {
    create(daemon, "mariadb");
    let clones = clone_twice(daemon, "mariadb", |name| {
        number(
            daemon,
            name,
            "server",
            &client("SELECT COUNT(*) FROM transfer"),
        )
    });
    let all = ["mariadb", &clones[0].name, &clones[1].name];
    for name in all {
        sh(daemon, name, "load", "touch /tmp/stop");
    }
    for name in all {
        let report = report(daemon, name, "load", 0);
        let committed = told(&report, "committed transfers:");
        let sums = ask(daemon, name, SUMS);
        assert_eq!(
            sums.split_whitespace().collect::<Vec<_>>(),
            [committed.to_string().as_str(), "50000", "0", "2000", "2000"],
            "{name}"
        );
        let checked = ask(
            daemon,
            name,
            "CHECK TABLE account, transfer, sbtest1, sbtest2 EXTENDED",
        );
        let fine = checked
            .lines()
            .filter(|line| line.ends_with("\tstatus\tOK"));
        assert_eq!(fine.count(), 4, "{name}: {checked}");
        log_without(
            daemon,
            name,
            &["[ERROR]", "orrupt", "Assertion", "got signal"],
        );
        println!("{name}: {committed} transfers");
    }
}
