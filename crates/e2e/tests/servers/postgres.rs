//! PostgreSQL under pgbench.

use offshoot_e2e::TestDaemon;
use offshoot_e2e::support::sh;

use super::{clone_twice, create, log_without, number, report, told};

/// One statement, thus one snapshot.
const SUMS: &str = "psql bench -AtF' ' -c 'SELECT (SELECT count(*) FROM pgbench_history), \
    (SELECT sum(delta) FROM pgbench_history), (SELECT sum(tbalance) FROM pgbench_tellers), \
    (SELECT sum(bbalance) FROM pgbench_branches), (SELECT sum(abalance) FROM pgbench_accounts), \
    (SELECT coalesce(sum(checksum_failures), 0) FROM pg_stat_database)'";

/// Every row that an index should have is in it, and everything is in order.
const AMCHECK: &str = "/usr/lib/postgresql/15/bin/pg_amcheck --install-missing --heapallindexed --parent-check \
    --rootdescend -d bench 2>&1; echo ended with $?";

pub(crate) fn whole(daemon: &TestDaemon) {
    create(daemon, "postgres");
    let clones = clone_twice(daemon, "postgres", |name| {
        // Not before the tables are there, which would be an error in the server's log.
        let count = "test -e /tmp/report && \
            psql -h server bench -Atc 'SELECT count(*) FROM pgbench_history'";
        number(daemon, name, "load", count)
    });
    let all = ["postgres", &clones[0].name, &clones[1].name];
    for name in all {
        // Its clock has run out: every client ends its transaction, and all is told.
        sh(daemon, name, "load", "kill -ALRM $(pidof pgbench)");
    }
    for name in all {
        let report = report(daemon, name, "load", 0);
        let processed = told(&report, "number of transactions actually processed:");
        assert_eq!(
            told(&report, "number of failed transactions:"),
            0,
            "{report}"
        );
        let sums = sh(daemon, name, "server", SUMS);
        let sums: Vec<i64> = sums
            .split(' ')
            .map(|n| n.parse().expect("a number"))
            .collect();
        let [rows, history, tellers, branches, accounts, broken] = sums[..] else {
            panic!("{name}: {sums:?}")
        };
        assert_eq!(
            rows.try_into(),
            Ok(processed),
            "{name}: each transaction once"
        );
        assert_eq!([tellers, branches, accounts], [history; 3], "{name}");
        assert_eq!(broken, 0, "{name}: pages with wrong checksums");
        let checked = sh(daemon, name, "server", AMCHECK);
        assert_eq!(checked, "ended with 0", "{name}");
        log_without(daemon, name, &["ERROR:", "PANIC:", "by signal"]);
        println!("{name}: {processed} transactions");
    }
}
