//! Bodies of any length between threads that block and the connection: tar archives.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::{Frame, Incoming};
use offshoot_model::Problem;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::{Client, Route};

/// An upload or download that moves nothing for so long has failed.
const STALL: Duration = Duration::from_secs(120);
/// Pieces that may wait between the two sides.
const PIECES: usize = 16;

/// A body that a blocking thread writes.
pub(crate) struct Upload {
    receiver: mpsc::Receiver<io::Result<Bytes>>,
    moved: Arc<AtomicU64>,
}

/// The blocking end of an [`Upload`]. Dropped before [`UploadWriter::finish`] it makes the upload fail, so that the
/// other side does not take a part for the whole.
pub(crate) struct UploadWriter {
    sender: mpsc::Sender<io::Result<Bytes>>,
    finished: bool,
}

impl Upload {
    /// A body and the writer that fills it.
    pub(crate) fn new() -> (UploadWriter, Self) {
        let (sender, receiver) = mpsc::channel(PIECES);
        (
            UploadWriter {
                sender,
                finished: false,
            },
            Self {
                receiver,
                moved: Arc::default(),
            },
        )
    }

    /// How many bytes have gone.
    pub(crate) fn moved(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.moved)
    }

    /// Sends it as a tar archive and waits until the daemon has unpacked it.
    pub(crate) async fn send(self, client: &Client, route: &Route) -> Result<(), Problem> {
        let moved = self.moved();
        let sending = client.put(route, "application/x-tar", self.boxed_unsync());
        tokio::pin!(sending);
        loop {
            let before = moved.load(Ordering::Relaxed);
            match timeout(STALL, &mut sending).await {
                Ok(outcome) => return outcome,
                Err(_) if moved.load(Ordering::Relaxed) == before => {
                    return Err(client.unreachable(&format!(
                        "the upload stood still for {} s",
                        STALL.as_secs()
                    )));
                }
                Err(_) => {}
            }
        }
    }
}

impl hyper::body::Body for Upload {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        self.receiver.poll_recv(cx).map(|piece| {
            piece.map(|piece| {
                piece.map(|bytes| {
                    self.moved.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                    Frame::data(bytes)
                })
            })
        })
    }
}

impl UploadWriter {
    /// All was written.
    pub(crate) fn finish(mut self) {
        self.finished = true;
    }
}

impl Drop for UploadWriter {
    fn drop(&mut self) {
        if !self.finished {
            // When the other side is gone it knows.
            let _ = self
                .sender
                .blocking_send(Err(io::Error::other("the archive was not finished")));
        }
    }
}

impl io::Write for UploadWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.sender
            .blocking_send(Ok(Bytes::copy_from_slice(bytes)))
            .map_err(|_| io::Error::from(io::ErrorKind::ConnectionAborted))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A download as a blocking reader. Dropping the reader ends the download.
pub(crate) fn download(body: Incoming) -> Download {
    let (sender, receiver) = mpsc::channel(PIECES);
    tokio::spawn(async move {
        let mut body = body;
        loop {
            let piece = match timeout(STALL, body.frame()).await {
                Err(_) => Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    "the daemon stopped sending",
                )),
                Ok(None) => break,
                Ok(Some(Err(error))) => Err(io::Error::other(error)),
                Ok(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => Ok(data),
                    Err(_) => continue,
                },
            };
            let failed = piece.is_err();
            if sender.send(piece).await.is_err() || failed {
                break;
            }
        }
    });
    Download {
        receiver,
        current: Bytes::new(),
    }
}

/// See [`download`].
pub(crate) struct Download {
    receiver: mpsc::Receiver<io::Result<Bytes>>,
    current: Bytes,
}

impl io::Read for Download {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            match self.receiver.blocking_recv() {
                None => return Ok(0),
                Some(piece) => self.current = piece?,
            }
        }
        let count = into.len().min(self.current.len());
        let piece = self.current.split_to(count);
        into.get_mut(..count)
            .unwrap_or_default()
            .copy_from_slice(&piece);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};

    use super::*;

    /// What the other side of an upload gets, and whether it ended well.
    fn received(write: impl FnOnce(UploadWriter) + Send + 'static) -> (Vec<u8>, bool) {
        let (writer, mut upload) = Upload::new();
        let writing = std::thread::spawn(move || write(writer));
        let mut all = Vec::new();
        let mut well = true;
        while let Some(piece) = upload.receiver.blocking_recv() {
            match piece {
                Ok(piece) => all.extend_from_slice(&piece),
                Err(_) => well = false,
            }
        }
        writing.join().unwrap();
        (all, well)
    }

    #[test]
    fn an_upload_that_is_not_finished_fails() {
        let whole = received(|mut writer| {
            writer.write_all(b"whole").unwrap();
            writer.finish();
        });
        assert_eq!(whole, (b"whole".to_vec(), true));
        let part = received(|mut writer| writer.write_all(b"part").unwrap());
        assert_eq!(part, (b"part".to_vec(), false));
    }

    #[test]
    fn a_download_is_read_in_any_pieces() {
        let (sender, receiver) = mpsc::channel(4);
        for piece in ["abc", "", "defg"] {
            sender.blocking_send(Ok(Bytes::from(piece))).unwrap();
        }
        sender
            .blocking_send(Err(io::Error::other("broke")))
            .unwrap();
        let mut download = Download {
            receiver,
            current: Bytes::new(),
        };
        let mut seven = [0; 7];
        download.read_exact(&mut seven).unwrap();
        assert_eq!(&seven, b"abcdefg");
        assert!(download.read(&mut seven).is_err());
    }
}
