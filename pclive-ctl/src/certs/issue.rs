//! `certs init` and `certs issue`.

use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, SystemTime};

use pclive_tls::{Facts, Role};
use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, DnsName};

use super::files::Pair;
use super::{AUTHORITY, CertsError, show};
use crate::args::Issue;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::output::Output;

/// Clocks of hosts differ: a certificate is valid a little before it is made.
const SKEW: Duration = Duration::from_secs(3600);

/// Makes the CA.
pub(super) fn authority(
    directory: &Path,
    name: &str,
    valid: Duration,
    output: &mut Output,
) -> Result<Exit, Failure> {
    let pair = Pair::of(directory, AUTHORITY);
    pair.is_free()?;
    let mut params = params(name, valid, None);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let key = KeyPair::generate().map_err(CertsError::Make)?;
    let certificate = params.self_signed(&key).map_err(CertsError::Make)?;
    pair.write(&certificate.pem(), &key.serialize_pem(), false)?;
    show::made(&pair, output)
}

/// Issues a certificate of the directory's CA.
pub(super) fn certificate(directory: &Path, order: &Issue, output: &mut Output) -> Result<Exit, Failure> {
    let alternatives = alternatives(&order.name, order.role, &order.address)?;
    let pair = Pair::of(directory, &order.name);
    if !order.replace {
        pair.is_free()?;
    }
    let (issuer, end) = issuer(directory)?;
    let mut params = params(&order.name, order.valid, Some(end));
    params.subject_alt_names = alternatives;
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = match order.role {
        // An agent calls and is called.
        None => vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
        Some(_) => vec![ExtendedKeyUsagePurpose::ClientAuth],
    };
    let key = KeyPair::generate().map_err(CertsError::Make)?;
    let certificate = params.signed_by(&key, &issuer).map_err(CertsError::Make)?;
    pair.write(&certificate.pem(), &key.serialize_pem(), order.replace)?;
    show::made(&pair, output)
}

/// The CA, and its last moment.
fn issuer(directory: &Path) -> Result<(Issuer<'static, KeyPair>, SystemTime), CertsError> {
    let pair = Pair::of(directory, AUTHORITY);
    let read = |path: &Path| {
        std::fs::read_to_string(path).map_err(|source| CertsError::NoAuthority { path: path.into(), source })
    };
    let (certificate, key) = (read(&pair.certificate)?, read(&pair.key)?);
    let not_one =
        |_| CertsError::Contents { path: pair.certificate.clone(), source: pclive_tls::NotCertificate };
    let der = CertificateDer::from_pem_slice(certificate.as_bytes()).map_err(not_one)?;
    let end = Facts::of(&der)
        .map_err(|source| CertsError::Contents { path: pair.certificate.clone(), source })?
        .not_after;
    Ok((Issuer::from_ca_cert_der(&der, KeyPair::from_pem(&key)?)?, end))
}

/// Subject and validity; at most until `end`.
fn params(name: &str, valid: Duration, end: Option<SystemTime>) -> CertificateParams {
    let now = SystemTime::now();
    let wanted = now.checked_add(valid).unwrap_or(now);
    let mut params = CertificateParams::default();
    params.not_before = (now - SKEW).into();
    params.not_after = end.map_or(wanted, |end| wanted.min(end)).into();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

/// What the certificate is for: an agent's name and addresses, or a user's role.
fn alternatives(name: &str, role: Option<Role>, addresses: &[IpAddr]) -> Result<Vec<SanType>, CertsError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let unusable = || CertsError::Name(name.into());
    if name.is_empty()
        || name.len() > 64
        || name.starts_with('.')
        || name == AUTHORITY
        || !name.chars().all(plain)
    {
        return Err(unusable());
    }
    if let Some(role) = role {
        return Ok(vec![SanType::URI(Ia5String::try_from(role.uri())?)]);
    }
    DnsName::try_from(name).map_err(|_| unusable())?;
    let mut all = vec![SanType::DnsName(Ia5String::try_from(name)?)];
    all.extend(addresses.iter().map(|address| SanType::IpAddress(*address)));
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_paths_or_the_cas_are_refused() {
        for bad in ["", "ca", "../x", "a/b", ".hidden", "a b", "-", &"x".repeat(65)] {
            assert!(alternatives(bad, None, &[]).is_err(), "{bad}");
        }
        assert!(alternatives("host-a.example.org", None, &[]).is_ok());
        assert!(alternatives("kim_1", Some(Role::Viewer), &[]).is_ok());
    }
}
