//! JSON for programs.
//!
//! Field names and the values of enumerations are part of the interface (docs/CLI.md) and never change their
//! meaning; new fields may come. Times are nanoseconds (`_ns`), milliseconds (`_ms`) or Unix milliseconds
//! (`_unix_ms`); what the agent did not tell is null.

mod event;
mod inventory;
mod migration;
mod plan;

use pclive_proto::control::{Blocker as WireBlocker, Error as WireError};
use serde::Serialize;

use super::name;

pub(crate) use event::Line;
pub(crate) use inventory::{Cancelling, Check, Containers, Host};
pub(crate) use migration::{Migration, Migrations, Resolved, Undone};
pub(crate) use plan::Plan;

/// An error of the API.
#[derive(Debug, Serialize)]
pub(crate) struct Error<'a> {
    code: &'a str,
    role: Option<&'static str>,
    phase: Option<&'static str>,
    message: &'a str,
    hint: &'a str,
    retryable: bool,
    blockers: Vec<Blocker<'a>>,
}

impl<'a> From<&'a WireError> for Error<'a> {
    fn from(error: &'a WireError) -> Self {
        Self {
            code: &error.code,
            role: name::role(error.role()),
            phase: name::phase_json(error.phase()),
            message: &error.message,
            hint: &error.hint,
            retryable: error.retryable,
            blockers: error.blockers.iter().map(Blocker::from).collect(),
        }
    }
}

/// One thing that cannot be migrated.
#[derive(Debug, Serialize)]
pub(crate) struct Blocker<'a> {
    pid: i32,
    container_pid: i32,
    comm: &'a str,
    place: &'a str,
    what: &'a str,
    hint: &'a str,
}

impl<'a> From<&'a WireBlocker> for Blocker<'a> {
    fn from(blocker: &'a WireBlocker) -> Self {
        Self {
            pid: blocker.pid,
            container_pid: blocker.container_pid,
            comm: &blocker.comm,
            place: &blocker.place,
            what: &blocker.what,
            hint: &blocker.hint,
        }
    }
}

/// The command itself failed.
#[derive(Debug, Serialize)]
pub(crate) struct Failed<'a> {
    event: &'static str,
    error: Error<'a>,
}

impl<'a> From<&'a WireError> for Failed<'a> {
    fn from(error: &'a WireError) -> Self {
        Self { event: "error", error: error.into() }
    }
}

/// None for an empty text: the agent did not tell.
fn told(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}

#[cfg(test)]
mod tests {
    use pclive_proto::control::{
        CheckContainerResponse, Container, Feature, Host as WireHost, Migration as WireMigration, Peer,
        Phase, Role,
    };
    use serde_json::Value;

    use super::*;
    use crate::render::{plan, report};

    /// Every field name in a document.
    fn names(value: &Value, found: &mut Vec<String>) {
        match value {
            Value::Object(fields) => {
                for (name, value) in fields {
                    found.push(name.clone());
                    names(value, found);
                }
            }
            Value::Array(values) => values.iter().for_each(|value| names(value, found)),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }

    #[test]
    fn every_field_is_documented() {
        let blocked = WireError { blockers: vec![WireBlocker::default()], ..WireError::default() };
        let migration = WireMigration {
            report: Some(report::tests::sample()),
            error: Some(blocked.clone()),
            ..WireMigration::default()
        };
        let host = WireHost {
            peers: vec![Peer::default()],
            features: vec![Feature::default()],
            ..WireHost::default()
        };
        let found = CheckContainerResponse::default();
        let documents = [
            serde_json::to_value(Migrations::from([migration].as_slice())),
            serde_json::to_value(Failed::from(&blocked)),
            serde_json::to_value(Check::new("c", None, &found)),
            serde_json::to_value(Containers::from([Container::default()].as_slice())),
            serde_json::to_value(Host::from(&host)),
            serde_json::to_value(Cancelling::new("m", Phase::Frozen)),
            serde_json::to_value(Plan::new("c", None, &plan::tests::sample())),
        ];
        let mut found = Vec::new();
        documents.into_iter().for_each(|document| names(&document.unwrap(), &mut found));
        assert!(found.len() > 60, "{found:?}");
        let text = include_str!("../../../../docs/CLI.md");
        let missing: Vec<_> = found.iter().filter(|name| !text.contains(&format!("`{name}`"))).collect();
        assert!(missing.is_empty(), "not in docs/CLI.md: {missing:?}");
    }

    #[test]
    fn an_error_names_its_role_and_phase_or_null() {
        let error = WireError {
            code: "blocked".into(),
            role: Role::Source.into(),
            phase: Phase::PreCopy.into(),
            message: "no".into(),
            blockers: vec![WireBlocker { pid: 8, what: "x".into(), ..WireBlocker::default() }],
            ..WireError::default()
        };
        assert_eq!(
            serde_json::to_string(&Failed::from(&error)).unwrap(),
            r#"{"event":"error","error":{"code":"blocked","role":"source","phase":"pre_copy","message":"no","hint":"","retryable":false,"blockers":[{"pid":8,"container_pid":0,"comm":"","place":"","what":"x","hint":""}]}}"#
        );
        let nothing = serde_json::to_value(Error::from(&WireError::default())).unwrap();
        assert_eq!(
            (&nothing["role"], &nothing["phase"]),
            (&serde_json::Value::Null, &serde_json::Value::Null)
        );
    }
}
