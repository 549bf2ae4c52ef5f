//! A certificate comes, or comes anew: got, recorded, shown by the edge.
//!
//! Until it is shown the old one is. An order that is cut short is begun again: what the server knows of it expires.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use jiff::Timestamp;
use offshoot_certificates::{Issued, Order, check};
use offshoot_model::certificate::{Certificate, CertificateKind};
use offshoot_model::{Code, Fault, Problem};
use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, OwnedMutexGuard};

use super::{record, renewal};
use crate::runner::cancelled;
use crate::saga::{Cx, Saga};
use crate::shared::{Change, store_problem};

/// Gets a certificate and has it shown.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Install {
    /// The certificate's id, and the name of its files.
    id: String,
    kind: CertificateKind,
    names: Vec<String>,
    /// The certificate that it renews.
    renews: Option<String>,
    /// Certificates that lose names to it, as they were.
    before: Vec<Certificate>,
    #[serde(skip)]
    order: UnderWay,
    #[serde(skip)]
    held: Option<Arc<OwnedMutexGuard<()>>>,
}

/// An order under way; gone after a restart of the daemon.
#[derive(Clone, Default)]
struct UnderWay(Arc<Mutex<Option<Box<dyn Order>>>>);

impl fmt::Debug for UnderWay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an order")
    }
}

impl Install {
    pub(super) fn new(
        id: String,
        kind: CertificateKind,
        names: Vec<String>,
        renews: Option<String>,
    ) -> Self {
        Self {
            id,
            kind,
            names,
            renews,
            before: Vec::new(),
            order: UnderWay::default(),
            held: None,
        }
    }

    pub(crate) fn is_renewal(&self) -> bool {
        self.renews.is_some()
    }

    /// Ids whose files it may still need.
    pub(super) fn files_needed(&self) -> Vec<String> {
        let before = self.before.iter().map(|one| one.id.clone());
        std::iter::once(self.id.clone()).chain(before).collect()
    }

    async fn begin(&self, cx: &Cx) -> Result<Box<dyn Order>, Problem> {
        match &cx.shared.settings.https.acme {
            Some(acme) => acme.order(&self.names).await,
            None => Err(Problem::new(
                Code::WrongState,
                Fault::Request,
                "no ACME server is configured any longer",
                "add the table [edge.acme] to the configuration and restart the daemon",
            )),
        }
    }

    async fn validate(&self, cx: &Cx) -> Result<(), Problem> {
        let mut under_way = self.order.0.lock().await;
        let mut order = match under_way.take() {
            Some(order) => order,
            None => self.begin(cx).await?,
        };
        if !order.proofs().is_empty() {
            let id = cx.live.id();
            cx.shared.proofs.show(id, order.proofs().to_vec());
            let verdict = match cx.expose(Change::None).await {
                Ok(()) => tokio::select! {
                    verdict = order.validate() => verdict,
                    () = cx.live.until_cancelled() => Err(cancelled()),
                },
                Err(problem) => Err(problem),
            };
            cx.shared.proofs.hide(id);
            verdict?;
            cx.expose(Change::None).await?;
        }
        *under_way = Some(order);
        Ok(())
    }

    async fn finalise(&self, cx: &Cx) -> Result<(), Problem> {
        if self.order.0.lock().await.is_none() {
            self.validate(cx).await?;
        }
        let Some(mut order) = self.order.0.lock().await.take() else {
            return Err(Problem::internal("an order is gone"));
        };
        let issued = order.finalise().await?;
        self.keep(cx, &issued)
    }

    fn keep(&self, cx: &Cx, issued: &Issued) -> Result<(), Problem> {
        check(issued, &self.names, Timestamp::now())?;
        cx.shared.settings.https.files.keep(&self.id, issued)
    }

    /// From here to the end no other certificate is recorded: what this one takes names from is known.
    async fn hold(&mut self, cx: &Cx) {
        if self.held.is_none() {
            let lock = Arc::clone(&cx.shared.certifying);
            self.held = Some(Arc::new(lock.lock_owned().await));
        }
    }

    /// Notes who loses names, before anybody does.
    async fn look(&mut self, cx: &Cx) -> Result<(), Problem> {
        self.hold(cx).await;
        let all = cx.shared.store.certificates().map_err(store_problem)?;
        let loses = |other: &Certificate| {
            other.id != self.id && other.names.iter().any(|name| self.names.contains(name))
        };
        let before: Vec<_> = all.into_iter().filter(loses).collect();
        self.before = before;
        Ok(())
    }

    fn record(&self, cx: &Cx) -> Result<(), Problem> {
        let files = &cx.shared.settings.https.files;
        let Some(issued) = files.load(&self.id)? else {
            return Err(Problem::new(
                Code::CertificateInvalid,
                Fault::Host,
                "the certificate's files are gone",
                "ask for it again",
            ));
        };
        let checked = check(&issued, &self.names, Timestamp::now())?;
        let new = record(&self.id, self.kind, self.names.clone(), checked);
        cx.shared
            .store
            .place_certificate(&new)
            .map(|_| ())
            .map_err(store_problem)
    }
}

#[async_trait]
impl Saga for Install {
    fn steps(&self) -> &'static [&'static str] {
        match self.kind {
            CertificateKind::Acme => &[
                "order", "validate", "finalise", "look", "record", "route", "tidy",
            ],
            CertificateKind::SelfSigned => &["sign", "look", "record", "route", "tidy"],
            CertificateKind::Uploaded => &["look", "record", "route", "tidy"],
        }
    }

    async fn run(&mut self, step: &'static str, cx: &Cx) -> Result<(), Problem> {
        match step {
            "order" => {
                let order = self.begin(cx).await?;
                *self.order.0.lock().await = Some(order);
                Ok(())
            }
            "validate" => self.validate(cx).await,
            "finalise" => self.finalise(cx).await,
            "sign" => {
                let issued = cx.shared.settings.https.own.issue(&self.names)?;
                self.keep(cx, &issued)
            }
            "look" => self.look(cx).await,
            "record" => {
                self.hold(cx).await;
                self.record(cx)
            }
            "route" => {
                self.hold(cx).await;
                cx.expose(Change::None).await
            }
            _ => {
                cx.shared.remove_files(&self.before);
                Ok(())
            }
        }
    }

    async fn undo(&mut self, cx: &Cx) -> Result<(), Problem> {
        self.hold(cx).await;
        cx.shared.proofs.hide(cx.live.id());
        cx.shared
            .store
            .take_certificate_back(&self.id, &self.before)
            .map_err(store_problem)?;
        if let (Some(id), Some(problem)) = (&self.renews, cx.live.snapshot().problem)
            && problem.code != Code::Cancelled
        {
            renewal::note_failure(&cx.shared, id, problem)?;
        }
        cx.expose(Change::None).await?;
        cx.shared.settings.https.files.remove(&self.id)
    }
}
