//! The agent's certificates, and their replacement while it runs.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use pclive_tls::{Connector, Credentials, CredentialsError, Files, acceptor};
use tokio_rustls::TlsAcceptor;

use crate::config::Config;

/// A certificate that ends within this time is warned about.
const SOON: Duration = Duration::from_secs(30 * 24 * 3600);

/// Why there are no certificates to work with.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The files cannot be used.
    #[error(
        "cannot secure the connections of agent {name}\n  make certificates with `pclivectl certs init` and \
         `pclivectl certs issue {name}`, and put ca.pem, {name}.pem and {name}.key where [tls] of the configuration \
         says;\n  or, for a try on one machine alone, set peer.insecure = true (plain text)\n "
    )]
    Files {
        /// The agent's name.
        name: String,
        /// What is wrong with them.
        source: Box<CredentialsError>,
    },
    /// The certificate is somebody else's.
    #[error(
        "cannot secure the connections of agent {name}: its certificate is for {holders}\n  issue one (`pclivectl \
         certs issue {name}`), or set agent.name"
    )]
    Name {
        /// The agent's name.
        name: String,
        /// For whom it is.
        holders: String,
    },
    /// The library refuses them.
    #[error("cannot secure the connections of agent {name}")]
    Library {
        /// The agent's name.
        name: String,
        /// Why.
        source: tokio_rustls::rustls::Error,
    },
}

/// What connections of one moment use.
#[derive(Clone)]
struct Current {
    acceptor: TlsAcceptor,
    connector: Connector,
}

/// Holds the certificates. New connections use what was loaded last.
pub struct Keeper {
    name: String,
    files: Files,
    current: RwLock<Current>,
}

impl std::fmt::Debug for Keeper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keeper").field("files", &self.files).finish_non_exhaustive()
    }
}

impl Keeper {
    /// Loads the certificates; `None` when the configuration needs none, because every listener is insecure.
    pub fn load(config: &Config) -> Result<Option<Arc<Self>>, TlsError> {
        let control = !config.control.tcp.is_empty() && !config.control.insecure;
        if config.peer.insecure && !control {
            return Ok(None);
        }
        let name = config.agent.display_name();
        let files = config.tls.files(&name);
        let current = RwLock::new(read(&name, &files)?);
        Ok(Some(Arc::new(Self { name, files, current })))
    }

    /// Reads the files again. On an error the certificates stay as they were.
    pub fn reload(&self) -> Result<(), TlsError> {
        let fresh = read(&self.name, &self.files)?;
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = fresh;
        Ok(())
    }

    pub(crate) fn acceptor(&self) -> TlsAcceptor {
        self.current().acceptor
    }

    pub(crate) fn connector(&self) -> Connector {
        self.current().connector
    }

    fn current(&self) -> Current {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn read(name: &str, files: &Files) -> Result<Current, TlsError> {
    let credentials = Credentials::load(files)
        .map_err(|source| TlsError::Files { name: name.into(), source: Box::new(source) })?;
    let facts = credentials.facts();
    if !facts.is_named(name) {
        return Err(TlsError::Name { name: name.into(), holders: facts.holders() });
    }
    if credentials.key_is_exposed() {
        tracing::warn!("key {} can be read by others than its owner: chmod 0600", files.key.display());
    }
    if facts.not_after < SystemTime::now() + SOON {
        tracing::warn!("certificate {} ends within 30 days: issue a new one", files.certificate.display());
    }
    let library = |source| TlsError::Library { name: name.into(), source };
    let current = Current {
        acceptor: acceptor(&credentials).map_err(library)?,
        connector: Connector::new(&credentials).map_err(library)?,
    };
    tracing::info!(certificate = %files.certificate.display(), fingerprint = facts.fingerprint, "certificates loaded");
    Ok(current)
}
