//! Who is who inside the processes' user namespace (user_namespaces(7)): CRIU reads the maps of its ids, and so does this.

use core::cell::UnsafeCell;
use core::ffi::{c_char, c_int};

use crate::{SYS_OPENAT, close, numbers, syscall};

/// Ids from `inside` on are those from `outside` on.
#[derive(Clone, Copy)]
struct Range {
    inside: u32,
    outside: u32,
    count: u32,
}

/// Users and groups of one user namespace.
#[derive(Clone, Copy)]
pub(crate) struct Owners {
    users: Option<Range>,
    groups: Option<Range>,
}

struct Global(UnsafeCell<Owners>);
// SAFETY: CRIU has one thread.
unsafe impl Sync for Global {}

static NOW: Global = Global(UnsafeCell::new(Owners {
    users: None,
    groups: None,
}));

/// Those of the namespace that CRIU asked about last.
pub(crate) fn owners() -> Owners {
    // SAFETY: CRIU has one thread.
    unsafe { *NOW.0.get() }
}

/// CRIU opens file `name` of the process at `dir`.
pub(crate) fn opened(dir: c_int, path: *const c_char, name: &[u8]) {
    let is_users = name == b"uid_map";
    if !is_users && name != b"gid_map" {
        return;
    }
    // SAFETY: the caller's string; no file is made.
    let file = unsafe { syscall(SYS_OPENAT, dir, path, 0, 0) as c_int };
    let mut read = [0; 3];
    let mut count = 0;
    if file >= 0 {
        numbers(file, |number| {
            if let Some(place) = read.get_mut(count) {
                *place = number;
            }
            count += 1;
        });
        // SAFETY: opened above.
        unsafe { close(file) };
    }
    let [inside, outside, length] = read;
    let range = (count == read.len()).then_some(Range {
        inside,
        outside,
        count: length,
    });
    // SAFETY: CRIU has one thread.
    let now = unsafe { &mut *NOW.0.get() };
    if is_users {
        now.users = range;
    } else {
        now.groups = range;
    }
}

impl Owners {
    /// A user as seen inside; `None` when there is none, or it cannot be told.
    pub(crate) fn user(&self, outside: u32) -> Option<u32> {
        self.users?.inside(outside)
    }

    /// A group as seen inside.
    pub(crate) fn group(&self, outside: u32) -> Option<u32> {
        self.groups?.inside(outside)
    }
}

impl Range {
    fn inside(&self, outside: u32) -> Option<u32> {
        let at = outside.checked_sub(self.outside)?;
        (at < self.count).then(|| self.inside.checked_add(at))?
    }
}
