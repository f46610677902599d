//! Names of containers.

/// A name that is safe as a file name and as an argument: what runc accepts, and not longer than a file name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ContainerId(String);

impl ContainerId {
    /// Checks a name; `None` for one that no runtime would have.
    pub fn parse(name: &str) -> Option<Self> {
        let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_+-.".contains(&b));
        let usable = plain && (1..=200).contains(&name.len()) && !name.starts_with(['.', '-']);
        usable.then(|| Self(name.into()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for ContainerId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinary_names_are_accepted() {
        for name in ["redis-1", "a", "Web_2.backend+x"] {
            assert!(ContainerId::parse(name).is_some(), "{name}");
        }
    }

    #[test]
    fn names_that_lead_elsewhere_are_refused() {
        for name in ["", "..", ".", "a/b", "../etc", "-rf", "a b", "a\0b", "\u{e9}", &"x".repeat(201)] {
            assert!(ContainerId::parse(name).is_none(), "{name}");
        }
    }
}
