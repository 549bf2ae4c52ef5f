//! Files of nodes, as tar archives of any size. Nothing is kept in memory: whoever is slow slows the other side.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use bytes::Bytes;
use futures::StreamExt as _;
use http::StatusCode;
use http_body_util::BodyExt as _;
use offshoot_model::{Code, Fault, Problem};
use offshoot_operations::ByteStream;
use serde::Deserialize;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use utoipa::IntoParams;

use super::Api;
use crate::answer::{ApiError, Path, Query, body_of, detached};

/// Pieces of an upload that may wait for the platform.
const PIECES: usize = 8;
/// An upload that brings nothing for so long has failed.
const STALL: Duration = Duration::from_secs(120);
/// How much of an upload that was refused is still read, and for how long, so that the client comes to the answer.
const DISCARD_MAX: usize = 16 << 20;
const DISCARD_TIME: Duration = Duration::from_secs(2);

/// Which files are meant.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct FilesQuery {
    /// Absolute path inside the node.
    pub(super) path: String,
}

/// A file or directory of a node as a tar archive. A stream that breaks off is no complete archive: the connection
/// ends without the last chunk.
#[utoipa::path(
    get, path = "/environments/{environment}/nodes/{node}/files", tag = "nodes", operation_id = "copy_out",
    params(
        ("environment" = String, Path, description = "Name or id"),
        ("node" = String, Path, description = "Node, or a layer for its first node"),
        FilesQuery,
    ),
    responses(
        (status = 200, content_type = "application/x-tar", body = inline(String), description = "A tar archive"),
        ApiError,
    ),
)]
pub(super) async fn copy_out(
    State(api): State<Api>,
    Path((environment, node)): Path<(String, String)>,
    Query(FilesQuery { path }): Query<FilesQuery>,
) -> Result<Response, ApiError> {
    let room = api.stream()?;
    let mut pieces = api.platform.copy_out(&environment, &node, &path).await?;
    // The first piece tells whether there is anything: a problem can still be the answer.
    let first = pieces.recv().await.transpose()?;
    let pieces = futures::stream::iter(first.map(Ok)).chain(ReceiverStream::new(pieces)).map(move |piece| {
        let _held = &room;
        piece.inspect_err(|problem| tracing::info!(%problem, details = ?problem.details, "an archive broke off"))
    });
    Ok(body_of("application/x-tar", Body::from_stream(pieces)))
}

/// Unpacks a tar archive into a directory of a node.
#[utoipa::path(
    put, path = "/environments/{environment}/nodes/{node}/files", tag = "nodes", operation_id = "copy_in",
    params(
        ("environment" = String, Path, description = "Name or id"),
        ("node" = String, Path, description = "Node, or a layer for its first node"),
        FilesQuery,
    ),
    request_body(content = inline(String), content_type = "application/x-tar", description = "A tar archive"),
    responses((status = 204, description = "All is there"), ApiError),
)]
pub(super) async fn copy_in(
    State(api): State<Api>,
    Path((environment, node)): Path<(String, String)>,
    Query(FilesQuery { path }): Query<FilesQuery>,
    request: Request,
) -> Result<StatusCode, ApiError> {
    let room = api.stream()?;
    let (sender, archive): (_, ByteStream) = mpsc::channel(PIECES);
    let upload = tokio::spawn(pass_on(request.into_body(), sender));
    let platform = Arc::clone(&api.platform);
    let unpacked = detached(async move {
        let _held = room;
        platform.copy_in(&environment, &node, &path, archive).await
    })
    .await;
    // On success it has ended; else it reads on a little.
    let _ = timeout(DISCARD_TIME, upload).await;
    unpacked.map(|()| StatusCode::NO_CONTENT)
}

/// Passes a body on piece by piece; when nobody wants it any more, reads on for a bounded while.
async fn pass_on(mut body: Body, sender: mpsc::Sender<Result<Bytes, Problem>>) {
    let mut discarded = 0;
    while discarded <= DISCARD_MAX {
        let piece = match timeout(STALL, body.frame()).await {
            Ok(None) => return,
            Ok(Some(Ok(frame))) => match frame.into_data() {
                Ok(data) => Ok(data),
                Err(_trailers) => continue,
            },
            // Said, not left out: the end of the channel would make half an archive a whole one.
            Ok(Some(Err(error))) => Err(broken(&format!("the upload broke off: {error}"))),
            Err(_) => Err(broken(&format!(
                "the upload stood still for {} s",
                STALL.as_secs()
            ))),
        };
        let size = piece.as_ref().map_or(usize::MAX, Bytes::len);
        let ended = piece.is_err();
        if sender.send(piece).await.is_err() {
            discarded = discarded.saturating_add(size);
        }
        if ended {
            return;
        }
    }
}

fn broken(what: &str) -> Problem {
    Problem::new(
        Code::BadRequest,
        Fault::Request,
        what,
        "copy again; files that had arrived may be there already",
    )
}
