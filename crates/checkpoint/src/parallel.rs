//! Several things at the same time.

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
    let work = &work;
    let each = items.len().div_ceil(threads).max(1);
    std::thread::scope(|scope| {
        let threads: Vec<_> = items
            .chunks_mut(each)
            .map(|part| scope.spawn(move || part.iter_mut().map(work).collect::<Vec<R>>()))
            .collect();
        threads
            .into_iter()
            .flat_map(|thread| {
                thread
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            })
            .collect()
    })
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
