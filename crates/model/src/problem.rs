//! The one shape of an error that a person sees: what happened, to what, whose fault, what to do next.

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Whose doing an error is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Fault {
    /// The request: another one would work.
    Request,
    /// The host: something is missing, full or broken there.
    Host,
    /// What runs inside the environment, or its image.
    Environment,
    /// A defect in Offshoot.
    Offshoot,
}

macro_rules! codes {
    ($($(#[$doc:meta])* $variant:ident = $text:literal, $status:literal;)+) => {
        /// Stable code of an error; scripts may compare it. Once released a code keeps its meaning.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
        pub enum Code { $($(#[$doc])* #[serde(rename = $text)] $variant,)+ }

        impl Code {
            /// Every code, for documentation and tests.
            pub const ALL: &'static [Code] = &[$(Code::$variant,)+];

            /// The code as text, for instance `name-taken`.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Code::$variant => $text,)+ }
            }

            /// HTTP status the API answers with (RFC 9110).
            #[must_use]
            pub fn http_status(self) -> u16 {
                match self { $(Code::$variant => $status,)+ }
            }
        }
    };
}

codes! {
    /// The request is not understood: bad JSON, a missing or unknown field.
    BadRequest = "bad-request", 400;
    /// No or a wrong API token.
    Unauthorized = "unauthorized", 401;
    /// A name is too long or has characters that are not allowed.
    NameInvalid = "name-invalid", 422;
    /// Another environment has the name.
    NameTaken = "name-taken", 409;
    /// No environment of that name or id.
    EnvironmentUnknown = "environment-unknown", 404;
    /// No such node or layer in the environment.
    NodeUnknown = "node-unknown", 404;
    /// No such operation.
    OperationUnknown = "operation-unknown", 404;
    /// No such path in the API.
    NotFound = "not-found", 404;
    /// The manifest has an error; `details` carry file, line and name.
    ManifestInvalid = "manifest-invalid", 422;
    /// The manifest asks for something that Offshoot does not do.
    ManifestUnsupported = "manifest-unsupported", 422;
    /// The image does not exist at its source.
    ImageNotFound = "image-not-found", 404;
    /// The image's source refused access.
    ImageAccessDenied = "image-access-denied", 403;
    /// The image's source could not be reached or broke off.
    ImageUnreachable = "image-unreachable", 502;
    /// The image is malformed or does not match its digest.
    ImageInvalid = "image-invalid", 422;
    /// An environment uses the image.
    ImageInUse = "image-in-use", 409;
    /// Making an image from packages failed.
    ImageBuildFailed = "image-build-failed", 422;
    /// A published port is taken.
    PortInUse = "port-in-use", 409;
    /// A host name or path that cannot be a custom domain here.
    DomainInvalid = "domain-invalid", 422;
    /// Another environment has the domain.
    DomainTaken = "domain-taken", 409;
    /// The environment has no such custom domain.
    DomainUnknown = "domain-unknown", 404;
    /// A certificate or its key cannot be used.
    CertificateInvalid = "certificate-invalid", 422;
    /// No certificate is for the host name.
    CertificateUnknown = "certificate-unknown", 404;
    /// The ACME server refused, or could not be reached.
    AcmeFailed = "acme-failed", 502;
    /// What should get a domain did not answer well, so nothing was switched.
    WarmFailed = "warm-failed", 504;
    /// The pool has too little room.
    PoolFull = "pool-full", 507;
    /// The pool cannot be used.
    PoolBroken = "pool-broken", 500;
    /// Somebody else holds what is needed, or too many already wait for it.
    Busy = "busy", 409;
    /// The environment's state does not allow this.
    WrongState = "wrong-state", 409;
    /// The node cannot be cloned with its memory.
    NotCheckpointable = "not-checkpointable", 422;
    /// The freeze passed its bound; the parent was let go.
    FreezeTimeout = "freeze-timeout", 504;
    /// The cut failed; the parent runs on.
    CutFailed = "cut-failed", 500;
    /// The memory could not be brought back in the clone.
    RestoreFailed = "restore-failed", 500;
    /// A node did not start.
    StartFailed = "start-failed", 500;
    /// A node that others wait for did not become healthy.
    Unhealthy = "unhealthy", 504;
    /// A command in a node could not be run.
    ExecFailed = "exec-failed", 422;
    /// The network could not be set up.
    NetworkFailed = "network-failed", 500;
    /// No free address range, uid range or port is left.
    Exhausted = "exhausted", 507;
    /// Something the host needs is missing; `doctor` says what.
    HostUnfit = "host-unfit", 503;
    /// The operation was cancelled.
    Cancelled = "cancelled", 409;
    /// The daemon stopped while the operation ran; it was undone after the restart.
    Interrupted = "interrupted", 409;
    /// The daemon does not answer.
    DaemonUnreachable = "daemon-unreachable", 503;
    /// A configuration error.
    ConfigInvalid = "config-invalid", 500;
    /// A defect in Offshoot.
    Internal = "internal", 500;
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// An error as a person sees it; the API's error body, `application/problem+json` in spirit (RFC 9457).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema, thiserror::Error)]
#[error("{what}")]
pub struct Problem {
    /// Stable code.
    pub code: Code,
    /// What happened and to what, one sentence without a final full stop.
    pub what: String,
    /// Whose doing it is.
    pub fault: Fault,
    /// What to do next, an imperative sentence; empty only when there is nothing to do.
    pub next: String,
    /// Causes and positions, outermost first: `compose.yaml:12: services.web.gpus is not supported`, the end of a
    /// command's stderr, CRIU's `Error (` lines.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub details: Vec<String>,
}

impl Problem {
    /// A problem without details.
    pub fn new(code: Code, fault: Fault, what: impl Into<String>, next: impl Into<String>) -> Self {
        Self {
            code,
            what: what.into(),
            fault,
            next: next.into(),
            details: Vec::new(),
        }
    }

    /// A defect in Offshoot: something that must never be was.
    pub fn internal(what: impl Into<String>) -> Self {
        Self::new(
            Code::Internal,
            Fault::Offshoot,
            what,
            "report this with the daemon's log",
        )
    }

    /// Adds a detail.
    #[must_use]
    pub fn detail(mut self, detail: impl Into<String>) -> Self {
        self.details.push(detail.into());
        self
    }

    /// Adds the chain of sources of `error`, outermost first.
    #[must_use]
    pub fn caused_by(mut self, error: &(dyn std::error::Error + 'static)) -> Self {
        let mut next = Some(error);
        while let Some(error) = next {
            self.details.push(error.to_string());
            next = error.source();
        }
        self
    }
}
