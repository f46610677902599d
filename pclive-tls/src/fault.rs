//! Why a handshake failed, in words that an administrator can act on.

use std::error::Error as StdError;
use std::io;
use std::time::{Duration, UNIX_EPOCH};

use rustls::pki_types::UnixTime;
use rustls::{AlertDescription, CertificateError, Error};

use crate::certificate::moment;

const RENEW: &str =
    "issue a new certificate (pclivectl certs issue NAME --replace) and reload the agent that uses it";
const SAME_CA: &str = "all ends must have certificates of one CA: compare them with pclivectl certs show";
const RENAME: &str = "use the name that the certificate carries, or issue one for this name or address (pclivectl \
                      certs issue NAME --address IP)";
const NO_TLS: &str = "both ends must use TLS, or both must have insecure = true";

/// Who the fault is told to; the other end is "it".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The end that called.
    Client,
    /// The end that was called.
    Server,
}

/// What went wrong in a handshake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// What, in words about the other end.
    pub what: String,
    /// What to do about it.
    pub hint: &'static str,
}

impl Fault {
    /// The TLS fault at the bottom of an error; `None` when TLS is not what failed.
    pub fn of(error: &(dyn StdError + 'static), end: End) -> Option<Self> {
        let causes = std::iter::successors(Some(error), |error| deeper(*error));
        causes.filter_map(|error| error.downcast_ref::<Error>()).next().map(|error| explain(error, end))
    }
}

/// `io::Error` hides what it wraps from `source`, which skips to the source of that.
fn deeper<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a (dyn StdError + 'static)> {
    let wrapped = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
    wrapped.map(|inner| inner as &(dyn StdError + 'static)).or_else(|| error.source())
}

fn explain(error: &Error, end: End) -> Fault {
    match error {
        Error::InvalidCertificate(error) => certificate(error),
        Error::AlertReceived(alert) => refused(*alert),
        Error::NoCertificatesPresented => {
            fault("it shows no certificate", "callers need a certificate of the same CA")
        }
        Error::PeerIncompatible(_) => {
            fault("it does not speak TLS 1.3", "no older version of TLS is accepted")
        }
        Error::InvalidMessage(_) => match end {
            End::Client => fault("it does not answer in TLS", NO_TLS),
            End::Server => fault("it does not speak TLS", NO_TLS),
        },
        Error::NoApplicationProtocol => fault("it does not speak HTTP/2", ""),
        // The enum is not ours and grows.
        other => fault(format!("TLS failed: {other}"), ""),
    }
}

fn certificate(error: &CertificateError) -> Fault {
    match error {
        CertificateError::ExpiredContext { not_after, .. } => {
            fault(format!("its certificate expired at {}", at(*not_after)), RENEW)
        }
        CertificateError::Expired => fault("its certificate has expired", RENEW),
        CertificateError::NotValidYetContext { not_before, .. } => {
            let what = format!("its certificate is not valid before {}", at(*not_before));
            fault(what, "compare the clocks of the two hosts")
        }
        CertificateError::UnknownIssuer => fault("its certificate is of another CA", SAME_CA),
        CertificateError::BadSignature
        | CertificateError::UnsupportedSignatureAlgorithmForPublicKeyContext { .. } => {
            fault("its certificate has a signature that the CA did not make", SAME_CA)
        }
        CertificateError::NotValidForNameContext { expected, presented } => {
            let names: Vec<&str> = presented.iter().map(|name| bare(name)).collect();
            let names = if names.is_empty() { "nobody".into() } else { names.join(", ") };
            fault(format!("its certificate is not for {} but for {names}", expected.to_str()), RENAME)
        }
        CertificateError::InvalidPurposeContext { .. } | CertificateError::InvalidPurpose => fault(
            "its certificate is not for this end of a connection",
            "an agent's certificate has no role; a user's cannot be an agent's",
        ),
        // The enum is not ours and grows.
        other => fault(format!("its certificate is not accepted: {other}"), SAME_CA),
    }
}

/// What the other end said of our certificate; alerts are all that it can say.
fn refused(alert: AlertDescription) -> Fault {
    let (why, hint) = match alert {
        AlertDescription::CertificateExpired => ("it has expired, or is not valid yet", RENEW),
        AlertDescription::UnknownCA => ("it is of another CA", SAME_CA),
        AlertDescription::CertificateRequired => {
            ("there is none", "callers need a certificate of the same CA")
        }
        AlertDescription::DecryptError => ("its signature is not the CA's", SAME_CA),
        AlertDescription::UnsupportedCertificate => ("it is not for callers", SAME_CA),
        AlertDescription::ProtocolVersion => {
            return fault("it does not speak TLS 1.3", "no older version of TLS is accepted");
        }
        other => return fault(format!("it refused the connection (TLS alert {other:?})"), "see its log"),
    };
    fault(format!("it refused the certificate that it was shown: {why}"), hint)
}

fn fault(what: impl Into<String>, hint: &'static str) -> Fault {
    Fault { what: what.into(), hint }
}

/// `DnsName("host-b")` and `IpAddress(10.0.0.1)`, as rustls writes them, without the wrapping.
fn bare(name: &str) -> &str {
    let inner = name.split_once('(').map_or(name, |(_, rest)| rest.trim_end_matches(')'));
    inner.trim_matches('"')
}

fn at(time: UnixTime) -> String {
    moment(UNIX_EPOCH + Duration::from_secs(time.as_secs().min(u64::from(u32::MAX) * 60)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lose_their_wrapping() {
        assert_eq!(bare("DnsName(\"host-b\")"), "host-b");
        assert_eq!(bare("IpAddress(10.0.0.1)"), "10.0.0.1");
        assert_eq!(bare("host-b"), "host-b");
    }

    #[test]
    fn a_fault_is_found_below_other_errors() {
        let error = io::Error::new(io::ErrorKind::InvalidData, Error::NoCertificatesPresented);
        let outer = io::Error::other(error);
        assert_eq!(Fault::of(&outer, End::Server).unwrap().what, "it shows no certificate");
        assert_eq!(Fault::of(&io::Error::other("no"), End::Server), None);
    }

    #[test]
    fn an_expired_certificate_is_told_with_its_end() {
        let error = CertificateError::ExpiredContext {
            time: UnixTime::since_unix_epoch(Duration::from_secs(100)),
            not_after: UnixTime::since_unix_epoch(Duration::from_secs(60)),
        };
        assert!(certificate(&error).what.contains("1970-01-01T00:01:00Z"));
    }
}
