//! Kernel and file work off the asynchronous threads.

use offshoot_model::Problem;

/// Runs `work` on a thread that may block.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Problem> + Send + 'static,
) -> Result<T, Problem> {
    match tokio::task::spawn_blocking(work).await {
        Ok(answer) => answer,
        Err(error) => Err(Problem::internal(format!("a worker thread ended: {error}"))),
    }
}
