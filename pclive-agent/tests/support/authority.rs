//! A CA for tests: certificates as `pclivectl certs` makes them, and such as it would never make.

use std::path::Path;
use std::time::{Duration, SystemTime};

use pclive_tls::Files;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, SanType};

pub struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    pub fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "test CA");
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        Self { pem: certificate.pem(), issuer: Issuer::from_ca_cert_der(certificate.der(), key).unwrap() }
    }

    /// Puts `ca.pem`, `NAME.pem` and `NAME.key` into a directory.
    pub fn issue(&self, directory: &Path, name: &str) -> Files {
        self.issue_with(directory, name, |params| {
            params.subject_alt_names.push(SanType::DnsName(name.try_into().unwrap()));
        })
    }

    /// The same for a user.
    pub fn issue_user(&self, directory: &Path, name: &str, role: &str) -> Files {
        self.issue_with(directory, name, |params| {
            let uri = format!("pclive:role:{role}");
            params.subject_alt_names.push(SanType::URI(uri.try_into().unwrap()));
        })
    }

    /// The same with whatever is in it.
    pub fn issue_with(
        &self,
        directory: &Path,
        name: &str,
        change: impl FnOnce(&mut CertificateParams),
    ) -> Files {
        let mut params = CertificateParams::default();
        let now = SystemTime::now();
        params.not_before = (now - Duration::from_secs(60)).into();
        params.not_after = (now + Duration::from_secs(90 * 24 * 3600)).into();
        params.distinguished_name.push(DnType::CommonName, name);
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let file = |name: String, text: String| {
            let path = directory.join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        std::fs::create_dir_all(directory).unwrap();
        Files {
            ca: file("ca.pem".into(), self.pem.clone()),
            certificate: file(format!("{name}.pem"), certificate.pem()),
            key: file(format!("{name}.key"), key.serialize_pem()),
        }
    }
}
