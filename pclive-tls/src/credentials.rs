//! A CA, a certificate and its key, as files and in memory.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::Facts;
use crate::certificate::moment;

/// Where the three files are (PEM).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    /// The CA's certificate; several during a change of CAs.
    pub ca: PathBuf,
    /// The certificate, and certificates between it and the CA after it.
    pub certificate: PathBuf,
    /// The certificate's key.
    pub key: PathBuf,
}

/// Why files are no credentials. Nothing has been changed.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// A file cannot be read.
    #[error("cannot read {what} {path}")]
    Read {
        /// What it should hold.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file holds something else.
    #[error("cannot use {path}: it holds no {what} in PEM")]
    Contents {
        /// What it should hold.
        what: &'static str,
        /// The file.
        path: PathBuf,
    },
    /// Certificate and key are not a pair, or the key is of a kind that TLS 1.3 does not know.
    #[error("cannot use {certificate} with {key}")]
    Pair {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// Why.
        source: rustls::Error,
    },
    /// The certificate is from another time.
    #[error("cannot use certificate {path}: it is valid from {from} to {to}")]
    Validity {
        /// The certificate's file.
        path: PathBuf,
        /// First moment.
        from: String,
        /// Last moment.
        to: String,
    },
    /// The CA's certificate cannot be one.
    #[error("cannot use {path} as a CA")]
    Authority {
        /// The file.
        path: PathBuf,
        /// Why.
        source: rustls::Error,
    },
    /// A CA's certificate is used as an end's own.
    #[error("cannot use certificate {path}: it is a CA's")]
    OwnAuthority {
        /// The file.
        path: PathBuf,
    },
}

/// A certificate with its key, and the CA that others are checked against.
#[derive(Debug)]
pub struct Credentials {
    pub(crate) roots: Arc<RootCertStore>,
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) key: PrivateKeyDer<'static>,
    facts: Facts,
    /// Whether others than its owner can read the key's file.
    key_is_exposed: bool,
}

impl Credentials {
    /// Reads and checks the files. On success a handshake can use them now.
    pub fn load(files: &Files) -> Result<Self, CredentialsError> {
        let roots = roots(&files.ca)?;
        let chain = certificates("certificate", &files.certificate)?;
        let text = read("key", &files.key)?;
        let key = PrivateKeyDer::from_pem_slice(&text)
            .map_err(|_| CredentialsError::Contents { what: "key", path: files.key.clone() })?;
        let facts = own_facts(&files.certificate, &chain)?;
        let mode = fs::metadata(&files.key).map(|metadata| metadata.permissions().mode()).unwrap_or(0);
        let credentials =
            Self { roots: Arc::new(roots), chain, key, facts, key_is_exposed: mode & 0o077 != 0 };
        credentials.pair().map_err(|source| CredentialsError::Pair {
            certificate: files.certificate.clone(),
            key: files.key.clone(),
            source,
        })?;
        Ok(credentials)
    }

    fn pair(&self) -> Result<(), rustls::Error> {
        let key = crate::provider().key_provider.load_private_key(self.key.clone_key())?;
        rustls::sign::CertifiedKey::new(self.chain.clone(), key).keys_match()
    }

    /// What the own certificate says.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// Whether the key's file can be read by others than its owner.
    pub fn key_is_exposed(&self) -> bool {
        self.key_is_exposed
    }
}

fn roots(path: &Path) -> Result<RootCertStore, CredentialsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates("CA certificate", path)? {
        roots.add(certificate).map_err(|source| CredentialsError::Authority { path: path.into(), source })?;
    }
    Ok(roots)
}

fn own_facts(path: &Path, chain: &[CertificateDer<'_>]) -> Result<Facts, CredentialsError> {
    let not_one = || CredentialsError::Contents { what: "certificate", path: path.into() };
    let facts = Facts::of(chain.first().ok_or_else(not_one)?).map_err(|_| not_one())?;
    if facts.is_authority {
        return Err(CredentialsError::OwnAuthority { path: path.into() });
    }
    if !(facts.not_before..=facts.not_after).contains(&SystemTime::now()) {
        let (from, to) = (moment(facts.not_before), moment(facts.not_after));
        return Err(CredentialsError::Validity { path: path.into(), from, to });
    }
    Ok(facts)
}

fn certificates(what: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, CredentialsError> {
    let text = read(what, path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    let found = found.unwrap_or_default();
    if found.is_empty() { Err(CredentialsError::Contents { what, path: path.into() }) } else { Ok(found) }
}

fn read(what: &'static str, path: &Path) -> Result<Vec<u8>, CredentialsError> {
    fs::read(path).map_err(|source| CredentialsError::Read { what, path: path.into(), source })
}
