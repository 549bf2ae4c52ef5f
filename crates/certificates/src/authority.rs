//! The instance's own authority: a root that people import once, and certificates signed by it.

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use offshoot_model::Problem;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, date_time_ymd,
};

use crate::{Files, Issued};

/// Name of the root's files.
pub(crate) const ROOT: &str = "ca";
/// Days that the root is valid.
const ROOT_DAYS: i64 = 3_650;
/// Days that a certificate is: browsers refuse much longer ones also of imported roots (Apple: 825).
const DAYS: i64 = 397;

/// The instance's own authority; made when it is first needed.
#[derive(Debug)]
pub struct Own {
    files: Files,
    instance: String,
}

impl Own {
    /// The authority of this instance, in these files.
    #[must_use]
    pub fn new(files: Files, instance: String) -> Self {
        Self { files, instance }
    }

    /// The root's certificate, PEM.
    ///
    /// # Errors
    /// When it is not there yet and cannot be made.
    pub fn root(&self) -> Result<String, Problem> {
        self.load_or_make().map(|root| root.chain)
    }

    /// A certificate for these host names, with a fresh key.
    ///
    /// # Errors
    /// When it cannot be signed.
    pub fn issue(&self, names: &[String]) -> Result<Issued, Problem> {
        let root = self.load_or_make()?;
        let sign = || {
            let issuer = Issuer::from_ca_cert_pem(&root.chain, KeyPair::from_pem(&root.key)?)?;
            let key = KeyPair::generate()?;
            let mut params = CertificateParams::new(names)?;
            params.distinguished_name = DistinguishedName::new();
            params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
            params.use_authority_key_identifier_extension = true;
            valid_for(&mut params, DAYS);
            let leaf = params.signed_by(&key, &issuer)?;
            Ok(Issued {
                chain: format!("{}{}", leaf.pem(), root.chain),
                key: key.serialize_pem(),
            })
        };
        sign().map_err(|error: rcgen::Error| failed(&error))
    }

    fn load_or_make(&self) -> Result<Issued, Problem> {
        if let Some(root) = self.files.load(ROOT)? {
            return Ok(root);
        }
        let root = self.make().map_err(|error| failed(&error))?;
        self.files.keep(ROOT, &root)?;
        tracing::info!(
            "the instance has an authority of its own now; `offshoot cert ca` prints its root"
        );
        Ok(root)
    }

    fn make(&self) -> Result<Issued, rcgen::Error> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name = DistinguishedName::new();
        // a name of its own: stores tell roots by it
        let made = Timestamp::now().as_second();
        let name = format!("Offshoot {} root {made}", self.instance);
        params.distinguished_name.push(DnType::CommonName, name);
        valid_for(&mut params, ROOT_DAYS);
        let certificate = params.self_signed(&key)?;
        Ok(Issued {
            chain: certificate.pem(),
            key: key.serialize_pem(),
        })
    }
}

/// From yesterday on, for clients whose clock is late.
fn valid_for(params: &mut CertificateParams, days: i64) {
    let day = |hours: i64| {
        let at = Timestamp::now() + SignedDuration::from_hours(hours);
        let date = TimeZone::UTC.to_datetime(at).date();
        date_time_ymd(
            i32::from(date.year()),
            date.month().unsigned_abs(),
            date.day().unsigned_abs(),
        )
    };
    params.not_before = day(-24);
    params.not_after = day(24 * days);
}

fn failed(error: &rcgen::Error) -> Problem {
    Problem::internal("the instance's own authority cannot sign").caused_by(error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check;

    #[test]
    fn the_root_is_made_once_and_signs() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::new(dir.path().to_owned());
        let own = Own::new(files.clone(), "os".to_owned());
        let names = ["a.localhost".to_owned(), "*.b.test".to_owned()];
        let issued = own.issue(&names).unwrap();
        let checked = check(&issued, &names, Timestamp::now()).unwrap();
        assert_eq!(checked.names, names);
        assert!(
            checked.issuer.starts_with("Offshoot os root"),
            "{}",
            checked.issuer
        );
        let root = own.root().unwrap();
        assert_eq!(Own::new(files, "os".to_owned()).root().unwrap(), root);
        assert!(issued.chain.ends_with(&root));
        let other = own.issue(&names).unwrap();
        assert_ne!(other.key, issued.key);
        check(&other, &names, Timestamp::now()).unwrap();
    }
}
