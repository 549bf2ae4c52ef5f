//! The sockets.

use std::fs::{self, DirBuilder, Metadata, Permissions};
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{
    DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _,
};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::time::timeout;

use crate::config::is_loopback;
use crate::error::ServeError;

/// How long somebody on an existing socket may take to accept; a full queue is somebody too.
const PROBE: Duration = Duration::from_secs(1);

/// A unix socket of mode 0600 in a directory that only its owner can change.
#[derive(Debug)]
pub(crate) struct PrivateSocket {
    pub(crate) listener: UnixListener,
    path: PathBuf,
    bound: Metadata,
}

impl PrivateSocket {
    /// Listens at `path`. A socket that is left over there is replaced when nobody answers on it.
    pub(crate) async fn bind(path: &Path) -> Result<Self, ServeError> {
        let dir = path.parent().unwrap_or(Path::new("/"));
        ensure_private(dir)?;
        ensure_free(path).await?;
        // Bound under another name and renamed: at no time can others connect, and whoever finds the socket is
        // answered.
        let mut beside = path.as_os_str().to_owned();
        beside.push(format!(".{}", std::process::id()));
        let beside = PathBuf::from(beside);
        match fs::remove_file(&beside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(ServeError::file("replace", &beside)(error));
            }
            _ => {}
        }
        let listener = UnixListener::bind(&beside).map_err(ServeError::file("listen at", path))?;
        let finish = || {
            fs::set_permissions(&beside, Permissions::from_mode(0o600))?;
            let bound = fs::symlink_metadata(&beside)?;
            fs::rename(&beside, path)?;
            Ok(bound)
        };
        let bound = finish().map_err(ServeError::file("listen at", path))?;
        Ok(Self {
            listener,
            path: path.to_owned(),
            bound,
        })
    }

    /// The user that the daemon runs as.
    pub(crate) fn owner(&self) -> u32 {
        self.bound.uid()
    }

    /// Takes the socket's name away, unless another daemon has taken it over.
    pub(crate) fn remove(&self) {
        let ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|there| (there.dev(), there.ino()) == (self.bound.dev(), self.bound.ino()));
        if ours && let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "the socket cannot be removed");
        }
    }
}

/// Makes the directory, mode 0700; one that is there must not be changeable by others.
fn ensure_private(dir: &Path) -> Result<(), ServeError> {
    match DirBuilder::new().mode(0o700).recursive(true).create(dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(ServeError::file("make the directory", dir)(error));
        }
        _ => {}
    }
    let meta = fs::metadata(dir).map_err(ServeError::file("look at", dir))?;
    if meta.is_dir() && meta.mode() & 0o022 == 0 {
        Ok(())
    } else {
        Err(ServeError::OpenDirectory {
            path: dir.to_owned(),
        })
    }
}

async fn ensure_free(path: &Path) -> Result<(), ServeError> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(ServeError::file("look at", path)(error)),
        Ok(meta) if !meta.file_type().is_socket() => {
            return Err(ServeError::NotASocket {
                path: path.to_owned(),
            });
        }
        Ok(_) => {}
    }
    match timeout(PROBE, UnixStream::connect(path)).await {
        Ok(Err(error))
            if matches!(
                error.kind(),
                io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound
            ) =>
        {
            Ok(())
        }
        Ok(Err(error)) => Err(ServeError::file("try", path)(error)),
        Ok(Ok(_)) | Err(_) => Err(ServeError::SocketInUse {
            path: path.to_owned(),
        }),
    }
}

/// Listens on a loopback TCP address.
pub(crate) async fn loopback(address: SocketAddr) -> Result<TcpListener, ServeError> {
    if !is_loopback(address.ip()) {
        return Err(ServeError::NotLoopback { address });
    }
    TcpListener::bind(address)
        .await
        .map_err(|source| ServeError::Listen { address, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_socket_is_private_and_goes_at_the_end() {
        let dir = tempfile::TempDir::new().unwrap();
        let path = dir.path().join("run/offshoot.sock");
        let socket = PrivateSocket::bind(&path).await.unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(
            fs::metadata(path.parent().unwrap()).unwrap().mode() & 0o777,
            0o700
        );
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
        socket.remove();
        assert!(!path.exists());
        socket.remove();
    }

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let dir = tempfile::TempDir::new().unwrap();
        let path = dir.path().join("offshoot.sock");
        drop(PrivateSocket::bind(&path).await.unwrap());
        assert!(path.exists(), "left over, as after kill -9");
        let live = PrivateSocket::bind(&path).await.unwrap();
        let error = PrivateSocket::bind(&path).await.unwrap_err();
        assert!(matches!(error, ServeError::SocketInUse { .. }), "{error}");
        UnixStream::connect(&path).await.unwrap();

        // One that was taken over is not removed by its former owner.
        fs::remove_file(&path).unwrap();
        let heir = PrivateSocket::bind(&path).await.unwrap();
        live.remove();
        assert!(path.exists());
        heir.remove();
    }

    #[tokio::test]
    async fn what_is_no_socket_stays() {
        let dir = tempfile::TempDir::new().unwrap();
        let path = dir.path().join("offshoot.sock");
        fs::write(&path, "mine").unwrap();
        let error = PrivateSocket::bind(&path).await.unwrap_err();
        assert!(matches!(error, ServeError::NotASocket { .. }), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "mine");
        fs::set_permissions(dir.path(), Permissions::from_mode(0o777)).unwrap();
        let error = PrivateSocket::bind(&dir.path().join("other.sock"))
            .await
            .unwrap_err();
        assert!(matches!(error, ServeError::OpenDirectory { .. }), "{error}");
    }

    #[tokio::test]
    async fn other_hosts_are_kept_out() {
        for address in ["0.0.0.0:0", "[::]:0", "192.0.2.1:0"] {
            let error = loopback(address.parse().unwrap()).await.unwrap_err();
            assert!(matches!(error, ServeError::NotLoopback { .. }), "{error}");
        }
        let first = loopback("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let error = loopback(first.local_addr().unwrap()).await.unwrap_err();
        assert_eq!(error.problem().code, offshoot_model::Code::PortInUse);
    }
}
