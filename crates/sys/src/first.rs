//! Which thread has processor time before others of its session (setpriority(2), which is about one thread on Linux).

use std::marker::PhantomData;

/// The calling thread does, until this is dropped there. Threads that it starts meanwhile inherit it.
#[derive(Debug)]
#[must_use]
pub struct First(PhantomData<*const ()>);

/// The niceness of such a thread.
const FIRST: i32 = -15;

impl First {
    /// From now on, as far as that is granted.
    pub fn begin() -> Self {
        let _ = rustix::process::setpriority_process(None, FIRST);
        Self(PhantomData)
    }
}

impl Drop for First {
    fn drop(&mut self) {
        in_turn();
    }
}

/// Takes back what the calling thread inherited of a [`First`].
pub fn in_turn() {
    let _ = rustix::process::setpriority_process(None, 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_goes_first_and_gives_it_back() {
        let nice = || rustix::process::getpriority_process(None).unwrap();
        let before = nice();
        let first = First::begin();
        let during = nice();
        let inherited = std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                let inherited = nice();
                in_turn();
                (inherited, nice())
            });
            thread.join().unwrap()
        });
        drop(first);
        if during == before {
            println!("SKIPPED: no priority is granted here");
            return;
        }
        assert_eq!((during, inherited), (FIRST, (FIRST, 0)));
        assert_eq!(nice(), 0);
    }
}
