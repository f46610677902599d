//! `certs show`, and what `init` and `issue` say they made.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use pclive_tls::Facts;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde::Serialize;

use super::CertsError;
use super::files::Pair;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::output::Output;

#[derive(Serialize)]
struct Shown {
    file: PathBuf,
    /// Where its key was written; only after `init` and `issue`.
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<PathBuf>,
    kind: &'static str,
    subject: String,
    issuer: String,
    names: Vec<String>,
    addresses: Vec<IpAddr>,
    role: Option<String>,
    not_before: String,
    not_after: String,
    valid_now: bool,
    fingerprint: String,
}

#[derive(Serialize)]
struct Document {
    certificates: Vec<Shown>,
}

/// Shows files; without any, every certificate of the directory. Exits with 1 if one of them is not valid now.
pub(super) fn run(directory: &Path, files: Vec<PathBuf>, output: &mut Output) -> Result<Exit, Failure> {
    let files = if files.is_empty() { certificates_in(directory)? } else { files };
    let mut certificates = Vec::new();
    for file in files {
        certificates.extend(read(&file)?);
    }
    let valid = certificates.iter().all(|shown| shown.valid_now);
    let document = Document { certificates };
    output.result(&document, || document.certificates.iter().map(text).collect::<Vec<_>>().join("\n"))?;
    Ok(if valid { Exit::Ok } else { Exit::Failed })
}

/// Says what was made.
pub(super) fn made(pair: &Pair, output: &mut Output) -> Result<Exit, Failure> {
    let mut certificates = read(&pair.certificate)?;
    certificates.iter_mut().for_each(|shown| shown.key = Some(pair.key.clone()));
    let document = Document { certificates };
    output.result(&document, || document.certificates.iter().map(text).collect::<String>())?;
    Ok(Exit::Ok)
}

fn certificates_in(directory: &Path) -> Result<Vec<PathBuf>, CertsError> {
    let of = |source| CertsError::Read { path: directory.into(), source };
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(of)? {
        let path = entry.map_err(of)?.path();
        if path.extension().is_some_and(|ending| ending == "pem") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn read(file: &Path) -> Result<Vec<Shown>, CertsError> {
    let text = std::fs::read(file).map_err(|source| CertsError::Read { path: file.into(), source })?;
    let not_one = |source| CertsError::Contents { path: file.into(), source };
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    let found = found.unwrap_or_default();
    if found.is_empty() {
        return Err(not_one(pclive_tls::NotCertificate));
    }
    found.iter().map(|der| Facts::of(der).map(|facts| shown(file, facts)).map_err(not_one)).collect()
}

fn shown(file: &Path, facts: Facts) -> Shown {
    let moment = |time| humantime::format_rfc3339_seconds(time).to_string();
    Shown {
        file: file.into(),
        key: None,
        kind: match facts.role {
            _ if facts.is_authority => "ca",
            Some(_) => "user",
            None => "agent",
        },
        valid_now: (facts.not_before..=facts.not_after).contains(&SystemTime::now()),
        subject: facts.subject,
        issuer: facts.issuer,
        names: facts.names,
        addresses: facts.addresses,
        role: facts.role.map(|role| role.to_string()),
        not_before: moment(facts.not_before),
        not_after: moment(facts.not_after),
        fingerprint: facts.fingerprint,
    }
}

fn text(shown: &Shown) -> String {
    let Shown { subject, issuer, not_before, not_after, fingerprint, .. } = shown;
    let line = |name: &str, value: &str| format!("  {name:<12}{value}\n");
    let mut text = format!("{}\n", shown.file.display());
    text += &line("kind", shown.kind);
    text += &line("subject", subject);
    text += &line("issuer", issuer);
    let addresses = shown.addresses.iter().map(ToString::to_string);
    let names: Vec<String> = shown.names.iter().cloned().chain(addresses).collect();
    if !names.is_empty() {
        text += &line("for", &names.join(", "));
    }
    if let Some(role) = &shown.role {
        text += &line("role", role);
    }
    let validity = if shown.valid_now { "" } else { " (NOT VALID NOW)" };
    text += &line("valid", &format!("{not_before} to {not_after}{validity}"));
    text += &line("fingerprint", fingerprint);
    if let Some(key) = &shown.key {
        text += &line("key", &key.display().to_string());
    }
    text
}
