//! What a certificate says, in plain types.
//!
//! Pure: bytes in, facts out. A certificate may come from anybody, so everything in it is text of a stranger;
//! control characters are replaced, and nothing here trusts it: the handshake has checked its signature, or nobody
//! has.

use std::net::IpAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;
use x509_parser::time::ASN1Time;
use x509_parser::x509::X509Name;

use crate::Role;

/// The bytes are no X.509 certificate.
#[derive(Debug, thiserror::Error)]
#[error("cannot parse the certificate")]
pub struct NotCertificate;

/// A certificate's contents, as far as PCLive uses them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// The subject's common name, or the whole subject.
    pub subject: String,
    /// The issuer's common name, or the whole issuer.
    pub issuer: String,
    /// dNSNames: an agent's names.
    pub names: Vec<String>,
    /// iPAddresses.
    pub addresses: Vec<IpAddr>,
    /// A user's role.
    pub role: Option<Role>,
    /// Whether it may sign others.
    pub is_authority: bool,
    /// First instant of its validity.
    pub not_before: SystemTime,
    /// Last instant of its validity.
    pub not_after: SystemTime,
    /// SHA-256 of the whole certificate, upper-case hexadecimal bytes with colons.
    pub fingerprint: String,
}

impl Facts {
    /// Reads a certificate in DER.
    pub fn of(der: &[u8]) -> Result<Self, NotCertificate> {
        let (_, parsed) = X509Certificate::from_der(der).map_err(|_| NotCertificate)?;
        let mut facts = Self {
            subject: name_of(parsed.subject()),
            issuer: name_of(parsed.issuer()),
            names: Vec::new(),
            addresses: Vec::new(),
            role: None,
            is_authority: parsed.is_ca(),
            not_before: instant(parsed.validity().not_before),
            not_after: instant(parsed.validity().not_after),
            fingerprint: fingerprint(der),
        };
        let alternatives = parsed.subject_alternative_name().map_err(|_| NotCertificate)?;
        let alternatives = alternatives.map(|extension| extension.value.general_names.as_slice());
        alternatives.unwrap_or_default().iter().for_each(|name| facts.add(name));
        Ok(facts)
    }

    fn add(&mut self, name: &GeneralName<'_>) {
        match name {
            GeneralName::DNSName(name) => self.names.push(printable(name)),
            GeneralName::URI(uri) => self.role = self.role.max(Role::from_uri(uri)),
            GeneralName::IPAddress(bytes) => self.addresses.extend(address(bytes)),
            // Kinds that mean nothing to PCLive; the enum is not ours.
            _ => {}
        }
    }

    /// Whether this is an agent of that name. Names of hosts have no case.
    pub fn is_named(&self, name: &str) -> bool {
        self.names.iter().any(|own| own.eq_ignore_ascii_case(name))
    }

    /// Names and addresses in one line, for messages; "nobody" when there are none.
    pub fn holders(&self) -> String {
        let addresses = self.addresses.iter().map(ToString::to_string);
        let all: Vec<String> = self.names.iter().cloned().chain(addresses).collect();
        if all.is_empty() { "nobody".into() } else { all.join(", ") }
    }
}

/// A moment as people and programs read it: `2026-11-28T01:30:00Z`.
pub(crate) fn moment(time: SystemTime) -> String {
    // Far outside of what certificates hold, the library would panic.
    let last = UNIX_EPOCH + Duration::from_secs(253_402_300_799);
    humantime::format_rfc3339_seconds(time.clamp(UNIX_EPOCH, last)).to_string()
}

fn name_of(name: &X509Name<'_>) -> String {
    let common = name.iter_common_name().next().and_then(|name| name.as_str().ok());
    common.map_or_else(|| printable(&name.to_string()), printable)
}

fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).take(253).collect()
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}

fn instant(time: ASN1Time) -> SystemTime {
    let seconds = u64::try_from(time.timestamp()).unwrap_or(0);
    UNIX_EPOCH.checked_add(Duration::from_secs(seconds)).unwrap_or(UNIX_EPOCH)
}

fn fingerprint(der: &[u8]) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, der);
    digest.as_ref().iter().map(|byte| format!("{byte:02X}")).collect::<Vec<_>>().join(":")
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, SanType};

    use super::*;

    fn facts(change: impl FnOnce(&mut CertificateParams)) -> Facts {
        let mut params = CertificateParams::new(vec!["host-a".to_owned()]).unwrap();
        change(&mut params);
        let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        Facts::of(certificate.der()).unwrap()
    }

    #[test]
    fn names_addresses_and_role_are_read() {
        let facts = facts(|params| {
            params.subject_alt_names.push(SanType::IpAddress("10.0.0.1".parse().unwrap()));
            params.subject_alt_names.push(SanType::URI("pclive:role:viewer".try_into().unwrap()));
        });
        assert_eq!((facts.names.as_slice(), facts.role), (&["host-a".to_owned()][..], Some(Role::Viewer)));
        assert_eq!(facts.holders(), "host-a, 10.0.0.1");
        assert!(facts.is_named("HOST-A") && !facts.is_named("host-b") && !facts.is_authority);
    }

    #[test]
    fn bytes_that_are_no_certificate_are_refused() {
        assert!(Facts::of(b"hello").is_err());
        assert!(Facts::of(&[0x30, 0x84, 0xff, 0xff, 0xff, 0xff]).is_err());
    }

    #[test]
    fn moments_of_every_certificate_can_be_printed() {
        assert_eq!(moment(UNIX_EPOCH), "1970-01-01T00:00:00Z");
        assert_eq!(
            moment(UNIX_EPOCH + Duration::from_secs(u64::from(u32::MAX) * 1000)),
            "9999-12-31T23:59:59Z"
        );
    }
}
