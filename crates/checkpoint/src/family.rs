//! Which children of a node's processes are none of the node's.

use std::fs;

/// Whether a child is a twin (`offshoot_sys::inject::Twin`), of this clone or of an earlier one.
pub(crate) fn is_twin(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stands_unheard(&stat))
}

/// Whether `/proc/<pid>/stat` is of a process that stands in a debugger's stop and whose parent will hear no signal of its end
/// (proc_pid_stat(5), fields 3 and 38).
fn stands_unheard(stat: &str) -> bool {
    // The name stands in brackets and may hold anything.
    let rest = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let mut fields = rest.split_ascii_whitespace();
    fields.next() == Some("t") && fields.nth(34) == Some("0")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_twin_is_told_from_other_children() {
        let stat = |state: &str, signal: u8| {
            let between = "0 ".repeat(34);
            format!("7 (a) b) {state} {between}{signal} 1 0 0 0 0 0")
        };
        assert!(stands_unheard(&stat("t", 0)));
        assert!(!stands_unheard(&stat("t", 17)));
        assert!(!stands_unheard(&stat("S", 0)));
        assert!(!stands_unheard(""));
        let me = fs::read_to_string("/proc/self/stat").unwrap();
        let signal = me.rsplit_once(')').unwrap().1.split_whitespace().nth(35);
        assert_eq!(signal, Some("17"));
    }
}
