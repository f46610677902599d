//! The lines of `migrate` and `watch`.

use pclive_proto::control::Event;
use pclive_proto::control::event::Event as Kind;
use serde::Serialize;

use super::Error;
use super::migration::{Report, Round};
use crate::follow::{Outcome, Subject};
use crate::render::name;

/// One line: something that happened to a migration.
#[derive(Debug, Serialize)]
pub(crate) struct Line<'a> {
    event: &'static str,
    migration_id: &'a str,
    #[serde(flatten)]
    fields: Fields<'a>,
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Fields<'a> {
    Started {
        container: &'a str,
        peer: &'a str,
    },
    Phase {
        at_ms: u64,
        phase: Option<&'static str>,
    },
    Round {
        at_ms: u64,
        #[serde(flatten)]
        round: Round,
    },
    Progress {
        at_ms: u64,
        round: u32,
        bytes: u64,
        total_bytes: u64,
        bytes_per_second: u64,
    },
    Warning {
        at_ms: u64,
        message: &'a str,
    },
    Policy {
        at_ms: u64,
        policy: Option<&'static str>,
        message: &'a str,
        predicted_downtime_ns: u64,
        max_downtime_ns: u64,
        cpu_percent: u32,
    },
    Note {
        message: &'a str,
    },
    Done {
        report: Option<Box<Report<'a>>>,
    },
    Failed {
        error: Error<'a>,
    },
    Left {},
}

impl<'a> Line<'a> {
    /// The first line.
    pub(crate) fn started(subject: &'a Subject) -> Self {
        let fields = Fields::Started { container: &subject.container, peer: &subject.peer };
        Self { event: "started", migration_id: &subject.id, fields }
    }

    /// Something that `pclivectl` itself has to say.
    pub(crate) fn note(subject: &'a Subject, message: &'a str) -> Self {
        Self { event: "note", migration_id: &subject.id, fields: Fields::Note { message } }
    }

    /// An event; `None` for the last ones, which become the outcome.
    pub(crate) fn event(subject: &'a Subject, event: &'a Event) -> Option<Self> {
        let at_ms = event.at_ms;
        let (event, fields) = match event.event.as_ref()? {
            Kind::Phase(change) => {
                ("phase", Fields::Phase { at_ms, phase: name::phase_json(change.phase()) })
            }
            Kind::Round(round) => ("round", Fields::Round { at_ms, round: round.into() }),
            Kind::Progress(progress) => (
                "progress",
                Fields::Progress {
                    at_ms,
                    round: progress.round,
                    bytes: progress.bytes,
                    total_bytes: progress.total_bytes,
                    bytes_per_second: progress.bytes_per_second,
                },
            ),
            Kind::Warning(warning) => ("warning", Fields::Warning { at_ms, message: &warning.message }),
            Kind::PolicyApplied(applied) => (
                "policy",
                Fields::Policy {
                    at_ms,
                    policy: name::policy_json(applied.policy()),
                    message: &applied.message,
                    predicted_downtime_ns: applied.predicted_downtime_ns,
                    max_downtime_ns: applied.max_downtime_ns,
                    cpu_percent: applied.cpu_percent,
                },
            ),
            Kind::Done(_) | Kind::Failed(_) => return None,
        };
        Some(Self { event, migration_id: &subject.id, fields })
    }

    /// The last line.
    pub(crate) fn outcome(subject: &'a Subject, outcome: &'a Outcome) -> Self {
        let (event, fields) = match outcome {
            Outcome::Migrated(report) => (
                "done",
                Fields::Done { report: report.as_deref().map(|report| Box::new(Report::from(report))) },
            ),
            Outcome::Failed(error) => ("failed", Fields::Failed { error: error.as_ref().into() }),
            Outcome::Unknown(error) => ("unknown", Fields::Failed { error: error.as_ref().into() }),
            Outcome::Left => ("left", Fields::Left {}),
        };
        Self { event, migration_id: &subject.id, fields }
    }
}

#[cfg(test)]
mod tests {
    use pclive_proto::control::{Phase, PhaseChanged, Policy, PolicyApplied, Progress, Role, Warning};

    use super::*;
    use crate::render::report::tests::rounds_sample;

    fn subject() -> Subject {
        Subject { id: "3f".into(), container: "redis-1".into(), peer: "host-b".into(), role: Role::Source }
    }

    fn json(event: Kind) -> String {
        let event = Event { at_ms: 7, event: Some(event) };
        serde_json::to_string(&Line::event(&subject(), &event)).unwrap()
    }

    #[test]
    fn every_event_is_one_flat_object() {
        let phase = Kind::Phase(PhaseChanged { phase: Phase::PreCopy.into() });
        assert_eq!(json(phase), r#"{"event":"phase","migration_id":"3f","at_ms":7,"phase":"pre_copy"}"#);
        let progress = Progress { round: 1, bytes: 2, total_bytes: 3, bytes_per_second: 4 };
        assert_eq!(
            json(Kind::Progress(progress)),
            r#"{"event":"progress","migration_id":"3f","at_ms":7,"round":1,"bytes":2,"total_bytes":3,"bytes_per_second":4}"#
        );
        assert_eq!(
            json(Kind::Round(rounds_sample()[2])),
            r#"{"event":"round","migration_id":"3f","at_ms":7,"number":2,"final":true,"data_pages":1068,"zero_pages":0,"hole_pages":0,"bytes":4374528,"duration_ns":21900000,"dirty_pages":0,"bytes_per_second":199747000,"predicted_downtime_ns":0}"#
        );
        let applied = PolicyApplied {
            policy: Policy::Throttle.into(),
            message: "m".into(),
            predicted_downtime_ns: 2,
            max_downtime_ns: 1,
            cpu_percent: 50,
        };
        assert_eq!(
            json(Kind::PolicyApplied(applied)),
            r#"{"event":"policy","migration_id":"3f","at_ms":7,"policy":"throttle","message":"m","predicted_downtime_ns":2,"max_downtime_ns":1,"cpu_percent":50}"#
        );
        assert_eq!(
            json(Kind::Warning(Warning { message: "a\nb".into() })),
            r#"{"event":"warning","migration_id":"3f","at_ms":7,"message":"a\nb"}"#
        );
    }

    #[test]
    fn the_first_and_the_last_line_frame_the_events() {
        let subject = subject();
        assert_eq!(
            serde_json::to_string(&Line::started(&subject)).unwrap(),
            r#"{"event":"started","migration_id":"3f","container":"redis-1","peer":"host-b"}"#
        );
        let outcomes = [
            (Outcome::Migrated(None), r#"{"event":"done","migration_id":"3f","report":null}"#),
            (Outcome::Left, r#"{"event":"left","migration_id":"3f"}"#),
        ];
        for (outcome, expected) in outcomes {
            assert_eq!(serde_json::to_string(&Line::outcome(&subject, &outcome)).unwrap(), expected);
        }
        let unknown = Outcome::Unknown(Box::default());
        let text = serde_json::to_string(&Line::outcome(&subject, &unknown)).unwrap();
        assert!(text.starts_with(r#"{"event":"unknown","migration_id":"3f","error":{"code":"","#), "{text}");
    }
}
