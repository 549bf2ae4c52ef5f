//! Several things at the same time.

use std::sync::{Mutex, PoisonError};

/// Does `work` on every item at the same time, each in a thread of its own.
pub(crate) fn parallel<T: Send, R: Send>(
    items: &mut [T],
    work: impl Fn(&mut T) -> R + Sync,
) -> Vec<R> {
    shared_out(items, usize::MAX, work)
}

/// Does `work` on every item, with as many threads as there are processors.
pub(crate) fn by_processors<T: Send, R: Send>(
    items: &mut [T],
    work: impl Fn(&mut T) -> R + Sync,
) -> Vec<R> {
    let processors = std::thread::available_parallelism().map_or(1, |n| n.get());
    shared_out(items, processors, work)
}

fn shared_out<T: Send, R: Send>(
    items: &mut [T],
    threads: usize,
    work: impl Fn(&mut T) -> R + Sync,
) -> Vec<R> {
    let threads = items.len().min(threads);
    // Whoever is through takes the next: items differ in size.
    let queue = Mutex::new(items.iter_mut().enumerate());
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).next();
    let some = || {
        let mut done = Vec::new();
        while let Some((at, item)) = next() {
            done.push((at, work(item)));
        }
        done
    };
    let mut done: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(some)).collect();
        threads
            .into_iter()
            .flat_map(|thread| {
                thread
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            })
            .collect()
    });
    done.sort_by_key(|(at, _)| *at);
    done.into_iter().map(|(_, result)| result).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_done_and_told_in_order() {
        for count in [0, 1, 2, 7] {
            for threads in [1, 2, 3, usize::MAX] {
                let mut items: Vec<usize> = (0..count).collect();
                let told = shared_out(&mut items, threads, |item| {
                    *item += 1;
                    *item
                });
                assert_eq!(told, items);
                assert_eq!(items, (1..=count).collect::<Vec<_>>());
            }
        }
    }
}
