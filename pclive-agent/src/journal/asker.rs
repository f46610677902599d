//! Who asked for a migration, as far as the connection proved it.

use serde::{Deserialize, Serialize};

use crate::tls::Caller;

/// Most names of a certificate that are kept, and bytes of each: a DNS name's.
const MOST_NAMES: usize = 8;
const MOST_BYTES: usize = 253;

/// Who asked.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Asker {
    /// Nobody wrote it down: a record of an older version.
    #[default]
    Unknown,
    /// A process of this host, by `SO_PEERCRED`.
    Local {
        /// Its user.
        uid: u32,
        /// As the agent sees it; absent if it does not. It may have ended.
        pid: Option<i32>,
    },
    /// A user, by certificate.
    User {
        /// The certificate's subject.
        name: String,
        /// The certificate's role.
        role: String,
    },
    /// An agent, by certificate.
    Agent {
        /// The names in it.
        names: Vec<String>,
    },
    /// Whoever reached a listener that is configured to be insecure.
    Anybody,
}

impl From<&Caller> for Asker {
    fn from(caller: &Caller) -> Self {
        let cut = |text: &String| text[..text.floor_char_boundary(MOST_BYTES)].to_owned();
        match caller {
            Caller::Local { uid, pid } => Self::Local { uid: *uid, pid: *pid },
            Caller::Anybody => Self::Anybody,
            Caller::Agent { names } => {
                Self::Agent { names: names.iter().take(MOST_NAMES).map(cut).collect() }
            }
            Caller::User { name, role } => Self::User { name: cut(name), role: role.to_string() },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_of_a_certificate_is_bounded() {
        let names = vec!["\u{e9}".repeat(10_000); 100];
        let Asker::Agent { names } = Asker::from(&Caller::Agent { names }) else { panic!() };
        assert_eq!(names.len(), MOST_NAMES);
        assert!(names.iter().all(|name| name.len() <= MOST_BYTES && name.starts_with('\u{e9}')));
    }

    #[test]
    fn a_user_is_known_by_name_and_role() {
        let user = Caller::User { name: "kim".into(), role: pclive_tls::Role::Operator };
        assert_eq!(Asker::from(&user), Asker::User { name: "kim".into(), role: "operator".into() });
    }
}
