//! Who called.

use pclive_tls::{Facts, Role};

use crate::error::{ErrorCode, MigrationError};

/// The other end of a connection, as the connection itself proves it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Caller {
    /// A process of this host.
    Local {
        /// Its user.
        uid: u32,
        /// Its id, if this agent sees it.
        pid: Option<i32>,
    },
    /// Whoever reaches a listener that is configured to be insecure.
    Anybody,
    /// An agent, by its certificate.
    Agent {
        /// The names in it.
        names: Vec<String>,
    },
    /// A user, by certificate.
    User {
        /// The certificate's subject.
        name: String,
        /// What the certificate allows.
        role: Role,
    },
}

impl Caller {
    /// The holder of a certificate that the handshake has checked. One with a role is never an agent.
    pub(crate) fn certified(facts: Facts) -> Self {
        match facts.role {
            Some(role) => Self::User { name: facts.subject, role },
            None => Self::Agent { names: facts.names },
        }
    }

    /// Refuses an agent that says it is another than its certificate does.
    pub(crate) fn speaks_for(&self, agent: &str) -> Result<(), MigrationError> {
        match self {
            Self::Anybody => Ok(()),
            Self::Agent { names } if names.iter().any(|name| name.eq_ignore_ascii_case(agent)) => Ok(()),
            Self::Agent { .. } | Self::Local { .. } | Self::User { .. } => {
                let shown: String = agent.chars().filter(|c| !c.is_control()).take(253).collect();
                let message = format!("cannot take {self} for agent {shown}");
                Err(MigrationError::new(ErrorCode::AccessDenied, message)
                    .hint("agent.name must be the name in the agent's certificate"))
            }
        }
    }
}

impl std::fmt::Display for Caller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Local { uid, .. } => write!(f, "uid {uid}"),
            Self::Anybody => f.write_str("an unknown caller"),
            Self::Agent { names } if names.is_empty() => f.write_str("a certificate without a name"),
            Self::Agent { names } => write!(f, "the certificate of {}", names.join(", ")),
            Self::User { name, role } => write!(f, "{role} {name}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_speaks_for_the_names_of_its_certificate_alone() {
        let agent = Caller::Agent { names: vec!["host-a".into()] };
        assert!(agent.speaks_for("Host-A").is_ok());
        let error = agent.speaks_for("host-b").unwrap_err();
        assert_eq!(error.code, ErrorCode::AccessDenied);
        assert!(error.message.contains("host-a") && error.message.contains("host-b"), "{error}");
    }
}
