//! `certs`: a CA and its certificates, without an agent.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use pclive_tls::{Credentials, Files, Role};
use serde_json::Value;

use crate::ctl::{Ended, run_alone};

fn certs(directory: &Path, arguments: &[&str]) -> Ended {
    let directory = directory.to_str().unwrap();
    run_alone(&[&["--json", "certs", "--dir", directory], arguments].concat())
}

fn document(ended: &Ended) -> Value {
    serde_json::from_str(&ended.out).unwrap_or_else(|error| panic!("{error}: {ended:?}"))
}

fn load(directory: &Path, name: &str) -> Credentials {
    let file = |name: &str| directory.join(name);
    let (certificate, key) = (file(&format!("{name}.pem")), file(&format!("{name}.key")));
    Credentials::load(&Files { ca: file("ca.pem"), certificate, key }).unwrap()
}

#[test]
fn a_ca_issues_certificates_that_agents_and_users_can_use() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path().join("tls");
    assert_eq!(certs(&directory, &["init"]).code, 0);
    let issued = certs(&directory, &["issue", "host-a", "--address", "10.0.0.1", "--address", "fd00::1"]);
    assert_eq!(issued.code, 0, "{issued:?}");
    assert_eq!(load(&directory, "host-a").facts().holders(), "host-a, 10.0.0.1, fd00::1");
    assert_eq!(certs(&directory, &["issue", "kim", "--role", "viewer"]).code, 0);
    assert_eq!(load(&directory, "kim").facts().role, Some(Role::Viewer));
    for key in ["ca.key", "host-a.key", "kim.key"] {
        let mode = std::fs::metadata(directory.join(key)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{key}");
    }
    assert!(!issued.out.contains("PRIVATE"));
}

#[test]
fn show_tells_what_is_in_every_certificate_of_the_directory() {
    let directory = tempfile::tempdir().unwrap();
    certs(directory.path(), &["init", "--name", "Fleet"]);
    certs(directory.path(), &["issue", "host-a", "--valid", "30days"]);
    let shown = certs(directory.path(), &["show"]);
    let document = document(&shown);
    let [authority, agent] = document["certificates"].as_array().unwrap().as_slice() else {
        panic!("{shown:?}")
    };
    assert_eq!((&authority["kind"], &authority["subject"]), (&"ca".into(), &"Fleet".into()));
    assert_eq!((&agent["kind"], &agent["issuer"]), (&"agent".into(), &"Fleet".into()));
    assert_eq!(agent["names"], serde_json::json!(["host-a"]));
    assert_eq!(agent["fingerprint"].as_str().unwrap().len(), 32 * 3 - 1);
    let text = run_alone(&["certs", "--dir", directory.path().to_str().unwrap(), "show"]);
    assert!(text.out.contains("fingerprint") && text.out.contains("host-a"), "{text:?}");
}

#[test]
fn nothing_is_overwritten_unless_it_is_replaced_and_the_ca_never() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    certs(directory, &["init"]);
    certs(directory, &["issue", "host-a"]);
    let all = || {
        ["ca.pem", "ca.key", "host-a.pem", "host-a.key"].map(|f| std::fs::read(directory.join(f)).unwrap())
    };
    let before = all();
    for arguments in [&["init"][..], &["issue", "host-a"], &["issue", "ca"], &["issue", "ca", "--replace"]] {
        let refused = certs(directory, arguments);
        assert_eq!(refused.code, 1, "{arguments:?}: {refused:?}");
        let error = &document(&refused)["error"];
        assert!(
            error["code"] == "certs" && error["hint"].as_str().is_some_and(|hint| !hint.is_empty()),
            "{error}"
        );
    }
    assert!(all() == before);
    assert_eq!(certs(directory, &["issue", "host-a", "--replace"]).code, 0);
    let after = all();
    assert!(after[..2] == before[..2] && after[2] != before[2] && after[3] != before[3]);
    load(directory, "host-a");
}

#[test]
fn what_is_missing_or_no_certificate_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let refused = certs(directory.path(), &["issue", "host-a"]);
    assert!(document(&refused)["error"]["message"].as_str().unwrap().contains("ca.pem"), "{refused:?}");
    let file = directory.path().join("x.pem");
    std::fs::write(&file, "hello").unwrap();
    let refused = certs(directory.path(), &["show", file.to_str().unwrap()]);
    assert!(document(&refused)["error"]["message"].as_str().unwrap().contains("x.pem"), "{refused:?}");
}

#[test]
fn https_without_a_certificate_says_what_is_missing() {
    let ended = run_alone(&["--agent", "https://127.0.0.1:1", "list"]);
    assert_eq!(ended.code, 1);
    assert!(ended.err.contains("--cert") && ended.err.contains("hint"), "{ended:?}");
}
