//! The ways to take a node's memory, from the shortest freeze to the longest, and which of them this host has.

use offshoot_model::clone::{Memory, MemoryWay};
use offshoot_sys::pagemap::{Pagemap, marks_soft_dirty};
use offshoot_sys::preload;

/// What this host's kernel can do. Whether CRIU goes along is seen when it is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ladder {
    tracked: Option<String>,
    pre_dump: Option<String>,
}

impl Ladder {
    /// Asks the running kernel.
    #[must_use]
    pub fn of_host() -> Self {
        let release = rustix::system::uname()
            .release()
            .to_string_lossy()
            .into_owned();
        let tracked = if !Pagemap::is_supported() {
            Some(format!(
                "Linux 6.7 or newer tracks memory while it runs; this is {release}"
            ))
        } else if preload::CRIU.is_empty() {
            Some("this build cannot keep CRIU from copying memory".to_owned())
        } else {
            None
        };
        let pre_dump = (!marks_soft_dirty()).then(|| {
            format!(
                "this kernel ({release}) does not mark written pages (CONFIG_MEM_SOFT_DIRTY), which CRIU needs for copying ahead"
            )
        });
        Self { tracked, pre_dump }
    }

    /// Every way in order, with the reason where this host has not got it.
    #[must_use]
    pub fn ways(&self) -> [(MemoryWay, Option<&str>); 3] {
        [
            (MemoryWay::Tracked, self.tracked.as_deref()),
            (MemoryWay::PreDump, self.pre_dump.as_deref()),
            (MemoryWay::Dump, None),
        ]
    }

    /// The best way, and why not a better one.
    #[must_use]
    pub fn best(&self) -> Memory {
        let mut reasons = Vec::new();
        for (way, why_not) in self.ways() {
            match why_not {
                Some(reason) => reasons.push(reason),
                None => return memory(way, &reasons),
            }
        }
        memory(MemoryWay::Dump, &reasons)
    }
}

fn memory(way: MemoryWay, reasons: &[&str]) -> Memory {
    Memory {
        way,
        why: (!reasons.is_empty()).then(|| reasons.join("; ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_way_says_why_not_a_better_one() {
        let host = |tracked: Option<&str>, pre_dump: Option<&str>| Ladder {
            tracked: tracked.map(str::to_owned),
            pre_dump: pre_dump.map(str::to_owned),
        };
        let best = |host: Ladder| {
            let memory = host.best();
            (memory.way, memory.why.unwrap_or_default())
        };
        assert_eq!(
            best(host(None, Some("b"))),
            (MemoryWay::Tracked, String::new())
        );
        assert_eq!(
            best(host(Some("a"), None)),
            (MemoryWay::PreDump, "a".to_owned())
        );
        assert_eq!(
            best(host(Some("a"), Some("b"))),
            (MemoryWay::Dump, "a; b".to_owned())
        );
    }

    #[test]
    fn this_kernel_is_asked() {
        let best = Ladder::of_host().best();
        println!("{best:?}");
        assert_eq!(best.why.is_none(), best.way == MemoryWay::Tracked);
    }
}
