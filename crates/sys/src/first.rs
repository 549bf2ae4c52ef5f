//! Which thread has processor time before others of its session (setpriority(2), which is about one thread on Linux).

use std::marker::PhantomData;

use rustix::process::Pid;

/// The calling thread does, until this is dropped there. Threads that it starts meanwhile inherit it.
#[derive(Debug)]
#[must_use]
pub struct First {
    usual: Usual,
    /// It is about the thread that it was made in.
    _here: PhantomData<*const ()>,
}

/// The niceness of such a thread.
const FIRST: i32 = -15;

/// Another process does (its first thread, and what that starts from then on), for good.
pub fn put_first(process: Pid) {
    let _ = rustix::process::setpriority_process(Some(process), FIRST);
}

/// The niceness that a thread has otherwise.
#[derive(Debug, Clone, Copy)]
pub struct Usual(i32);

impl First {
    /// From now on, as far as that is granted.
    pub fn begin() -> Self {
        let usual = rustix::process::getpriority_process(None).unwrap_or(0);
        let _ = rustix::process::setpriority_process(None, FIRST.min(usual));
        Self {
            usual: Usual(usual),
            _here: PhantomData,
        }
    }

    /// For a thread that is started meanwhile and is to have its turn as usual.
    #[must_use]
    pub fn usual(&self) -> Usual {
        self.usual
    }
}

impl Drop for First {
    fn drop(&mut self) {
        self.usual.take();
    }
}

impl Usual {
    /// The calling thread has it from now on.
    pub fn take(self) {
        let _ = rustix::process::setpriority_process(None, self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_goes_first_and_gives_it_back() {
        let nice = || rustix::process::getpriority_process(None).unwrap();
        let before = nice();
        let first = First::begin();
        let (during, usual) = (nice(), first.usual());
        let inherited = std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                let inherited = nice();
                usual.take();
                (inherited, nice())
            });
            thread.join().unwrap()
        });
        drop(first);
        if during == before {
            println!("SKIPPED: no priority is granted here");
            return;
        }
        assert_eq!((during, inherited), (FIRST, (FIRST, before)));
        assert_eq!(nice(), before);
    }
}
