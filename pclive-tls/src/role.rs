//! What the holder of a user's certificate may do.

use std::fmt;
use std::str::FromStr;

/// What every role's URI starts with.
const PREFIX: &str = "pclive:role:";

/// A user's right, carried by a certificate as the URI `pclive:role:ROLE`. Agents have none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// May look, and change nothing.
    Viewer,
    /// May do everything.
    Operator,
}

impl Role {
    /// The URI in the certificate's subjectAltName.
    pub fn uri(self) -> String {
        format!("{PREFIX}{self}")
    }

    /// The role of a URI; `None` for any other URI, and for roles that this version does not know.
    pub fn from_uri(uri: &str) -> Option<Self> {
        uri.strip_prefix(PREFIX)?.parse().ok()
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
        })
    }
}

/// Not the name of a role.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is neither viewer nor operator")]
pub struct NotRole(String);

impl FromStr for Role {
    type Err = NotRole;

    fn from_str(text: &str) -> Result<Self, NotRole> {
        match text {
            "viewer" => Ok(Self::Viewer),
            "operator" => Ok(Self::Operator),
            other => Err(NotRole(other.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_role_survives_the_way_through_its_uri() {
        for role in [Role::Viewer, Role::Operator] {
            assert_eq!(Role::from_uri(&role.uri()), Some(role));
        }
        assert_eq!(Role::from_uri("pclive:role:emperor"), None);
        assert_eq!(Role::from_uri("https://example.org"), None);
    }

    #[test]
    fn an_operator_has_more_rights_than_a_viewer() {
        assert!(Role::Operator > Role::Viewer);
    }
}
