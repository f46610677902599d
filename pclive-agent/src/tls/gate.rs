//! What a caller may do: one decision for every call, before its service sees it.
//!
//! Whatever is not listed needs an operator, so that a new method is closed to viewers until somebody opens it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::future::{Either, Ready, ready};
use pclive_tls::Role;
use tonic::Status;
use tonic::codegen::http::{Request, Response};
use tower::{Layer, Service};

use super::Caller;
use crate::config::Config;
use crate::error::{ErrorCode, MigrationError};

/// What viewers may call.
const VIEWING: [&str; 8] = [
    "/pclive.control.v1.Control/GetMigration",
    "/pclive.control.v1.Control/ListMigrations",
    "/pclive.control.v1.Control/WatchMigration",
    "/pclive.control.v1.Control/CheckContainer",
    "/pclive.control.v1.Control/ListContainers",
    "/pclive.control.v1.Control/GetHost",
    "/grpc.health.v1.Health/Check",
    "/grpc.health.v1.Health/Watch",
];
/// Descriptions of the services.
const REFLECTION: &str = "/grpc.reflection.";

/// Decides about the calls of one listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Gate {
    /// Users: root and the agent's own user on the socket, roles on TCP.
    Control {
        /// The agent's user.
        uid: u32,
    },
    /// Other agents, by name.
    Peers {
        /// The configured peers, in lower case.
        names: BTreeSet<String>,
        /// Whether every agent of the CA is welcome.
        unlisted: bool,
    },
}

impl Gate {
    /// The gate of the control listeners.
    pub(crate) fn control() -> Self {
        Self::Control { uid: nix::unistd::geteuid().as_raw() }
    }

    /// The gate of the peer listener.
    pub(crate) fn peers(config: &Config) -> Self {
        Self::Peers {
            names: config.peers.keys().map(|name| name.to_ascii_lowercase()).collect(),
            unlisted: config.peer.accept_unlisted,
        }
    }

    /// Lets a call pass, or says why not.
    pub(crate) fn admit(&self, caller: &Caller, path: &str) -> Result<(), MigrationError> {
        match (self, caller) {
            (_, Caller::Anybody) => Ok(()),
            (Self::Control { uid: own }, Caller::Local { uid, .. }) if *uid == 0 || uid == own => Ok(()),
            (Self::Control { .. }, Caller::User { role, .. }) if *role >= needed(path) => Ok(()),
            (Self::Control { .. }, Caller::Local { uid, .. }) => Err(denied(
                format!("cannot let uid {uid} control this agent"),
                "only root and the agent's own user may: run it as root",
            )),
            (Self::Control { .. }, Caller::User { name, role }) => Err(denied(
                format!("cannot let {name} call {path}: its certificate has the role {role}"),
                "it needs a certificate with the role operator (pclivectl certs issue --role operator NAME)",
            )),
            (Self::Control { .. }, Caller::Agent { .. }) => Err(denied(
                format!("cannot let {caller} control this agent: it has no role"),
                "use a user's certificate (pclivectl certs issue --role operator NAME)",
            )),
            (Self::Peers { names, unlisted }, Caller::Agent { names: theirs }) => {
                if *unlisted || theirs.iter().any(|name| names.contains(&name.to_ascii_lowercase())) {
                    return Ok(());
                }
                Err(denied(
                    format!("cannot work with {caller}: it is not in [peers] here"),
                    "add it to [peers] of the agent that says this, or set peer.accept_unlisted there",
                ))
            }
            (Self::Peers { .. }, Caller::Local { .. } | Caller::User { .. }) => Err(denied(
                format!("cannot take {caller} for an agent"),
                "agents have certificates without a role (pclivectl certs issue NAME)",
            )),
        }
    }
}

fn needed(path: &str) -> Role {
    let viewing = VIEWING.contains(&path) || path.starts_with(REFLECTION);
    if viewing { Role::Viewer } else { Role::Operator }
}

fn denied(message: String, hint: &str) -> MigrationError {
    MigrationError::new(ErrorCode::AccessDenied, message).hint(hint)
}

/// Puts a [`Gate`] in front of services.
#[derive(Debug, Clone)]
pub(crate) struct GateLayer(Arc<Gate>);

impl GateLayer {
    /// A layer that asks this gate.
    pub(crate) fn new(gate: Gate) -> Self {
        Self(Arc::new(gate))
    }
}

impl<S> Layer<S> for GateLayer {
    type Service = Gated<S>;

    fn layer(&self, service: S) -> Gated<S> {
        Gated { gate: Arc::clone(&self.0), service }
    }
}

/// A service behind a gate.
#[derive(Debug, Clone)]
pub(crate) struct Gated<S> {
    gate: Arc<Gate>,
    service: S,
}

impl<S, B, A: Default> Service<Request<B>> for Gated<S>
where
    S: Service<Request<B>, Response = Response<A>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Either<S::Future, Ready<Result<S::Response, S::Error>>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.service.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let path = request.uri().path();
        let admitted = match request.extensions().get::<Caller>() {
            Some(caller) => self.gate.admit(caller, path),
            None => Err(denied("cannot tell who calls".into(), "")),
        };
        match admitted {
            Ok(()) => Either::Left(self.service.call(request)),
            Err(error) => {
                tracing::warn!(code = error.code.as_str(), path, "refused a call: {error}");
                Either::Right(ready(Ok(Status::from(error).into_http())))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: &str = "/pclive.control.v1.Control/StartMigration";
    const CANCEL: &str = "/pclive.control.v1.Control/CancelMigration";

    fn user(role: Role) -> Caller {
        Caller::User { name: "kim".into(), role }
    }

    fn agent(name: &str) -> Caller {
        Caller::Agent { names: vec![name.into()] }
    }

    #[test]
    fn viewers_look_and_operators_do_everything() {
        let gate = Gate::Control { uid: 7 };
        for path in VIEWING.into_iter().chain(["/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"]) {
            assert!(gate.admit(&user(Role::Viewer), path).is_ok(), "{path}");
        }
        for path in [START, CANCEL, "/pclive.control.v1.Control/NotYetInvented"] {
            assert!(gate.admit(&user(Role::Operator), path).is_ok(), "{path}");
            let error = gate.admit(&user(Role::Viewer), path).unwrap_err();
            assert_eq!(error.code, ErrorCode::AccessDenied);
            assert!(error.message.contains("viewer") && error.hint.contains("operator"), "{error:?}");
        }
    }

    #[test]
    fn the_socket_is_for_root_and_the_agents_own_user() {
        let gate = Gate::Control { uid: 7 };
        assert!(gate.admit(&Caller::Local { uid: 0, pid: None }, START).is_ok());
        assert!(gate.admit(&Caller::Local { uid: 7, pid: None }, START).is_ok());
        assert!(gate.admit(&Caller::Local { uid: 8, pid: None }, VIEWING[0]).is_err());
    }

    #[test]
    fn agents_do_not_control_and_users_are_no_agents() {
        let mut config = Config::default();
        config.peers.insert("Host-B".into(), "10.0.0.2:1".into());
        let peers = Gate::peers(&config);
        assert!(Gate::Control { uid: 0 }.admit(&agent("host-b"), VIEWING[0]).is_err());
        assert!(peers.admit(&user(Role::Operator), "/x").is_err());
        assert!(peers.admit(&agent("host-b"), "/x").is_ok());
        let error = peers.admit(&agent("host-c"), "/x").unwrap_err();
        assert!(error.message.contains("host-c") && error.hint.contains("accept_unlisted"), "{error:?}");
        config.peer.accept_unlisted = true;
        assert!(Gate::peers(&config).admit(&agent("host-c"), "/x").is_ok());
    }

    #[test]
    fn without_peers_no_agent_is_welcome() {
        assert!(Gate::peers(&Config::default()).admit(&agent("host-b"), "/x").is_err());
    }
}
