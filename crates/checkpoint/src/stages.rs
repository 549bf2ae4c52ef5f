//! Where the time of one node's part of the freeze goes.

use std::time::{Duration, Instant};

use offshoot_model::clone::Stage;

use crate::rpc::DumpStats;

/// CRIU at work on processes that it has stopped, until what it counted is known.
const CRIU: &str = "CRIU";
/// What it does first. It counts from when it was started.
const SEIZING: &str = "CRIU: seizing processes";

/// Stages since the node's memory began to be taken.
#[derive(Debug, Default)]
pub(crate) struct Stages {
    begun: Option<Instant>,
    list: Vec<Stage>,
}

impl Stages {
    /// CRIU got hold of the processes from `from` until now.
    pub(crate) fn seized(&mut self, from: Instant) {
        self.add(SEIZING, from);
    }

    /// CRIU was at work on them from `from` until now.
    pub(crate) fn criu(&mut self, from: Instant) {
        self.add(CRIU, from);
    }

    /// `what` was done from `from` until now.
    pub(crate) fn add(&mut self, what: &str, from: Instant) {
        let begun = *self.begun.get_or_insert(from);
        self.list.push(Stage {
            what: what.to_owned(),
            from_us: micros(from.saturating_duration_since(begun)),
            us: micros(from.elapsed()),
        });
    }

    /// The stages in order of their beginning; CRIU's by what it counted. It counts memory over all processes: here it is one piece.
    pub(crate) fn finish(mut self, counted: &DumpStats) -> Vec<Stage> {
        if let Some(at) = self.list.iter().position(|stage| stage.what == CRIU) {
            let whole = self.list.remove(at);
            self.list.splice(at..at, split(&whole, counted));
        }
        self.list.sort_by_key(|stage| stage.from_us);
        self.list
    }
}

fn split(whole: &Stage, counted: &DumpStats) -> [Stage; 2] {
    let memory = u64::from(counted.memory_dump_us).min(whole.us);
    let mut from_us = whole.from_us;
    [
        ("CRIU: memory", memory),
        ("CRIU: everything else", whole.us - memory),
    ]
    .map(|(what, us)| {
        let stage = Stage {
            what: what.to_owned(),
            from_us,
            us,
        };
        from_us += us;
        stage
    })
}

fn micros(span: Duration) -> u64 {
    u64::try_from(span.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_criu_counted_is_told_apart() {
        let mut stages = Stages::default();
        let begun = Instant::now();
        stages.add("shared memory", begun);
        stages.criu(begun);
        stages.add("changed pages", Instant::now());
        let whole = stages.list.get(1).unwrap().clone();
        let counted = DumpStats {
            memory_dump_us: u32::MAX,
            ..DumpStats::default()
        };
        let list = stages.finish(&counted);
        let names: Vec<_> = list.iter().map(|stage| stage.what.as_str()).collect();
        assert!(names.contains(&"shared memory") && names.contains(&"changed pages"));
        let criu = list.iter().filter(|stage| stage.what.starts_with("CRIU"));
        assert_eq!(
            criu.map(|stage| stage.us).sum::<u64>(),
            whole.us,
            "CRIU never counts more than it took"
        );
    }
}
