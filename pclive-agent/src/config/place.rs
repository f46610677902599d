//! Where a configuration key was set, so that every complaint about it can say so.

use std::collections::BTreeMap;
use std::path::Path;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// What variables of the environment start with.
pub(crate) const ENV_PREFIX: &str = "PCLIVE_";

/// The tables of the configuration.
const SECTIONS: [&str; 10] =
    ["agent", "log", "control", "peer", "tls", "peers", "runtimes", "network", "migration", "hooks"];

/// Key path (`migration.max_rounds`) -> the place that set it last.
#[derive(Debug, Default)]
pub struct Places(BTreeMap<String, String>);

impl Places {
    /// Adds the keys of a configuration file.
    pub(crate) fn add_file(&mut self, path: &Path, text: &str) -> Result<(), toml::de::Error> {
        let document = DeTable::parse(text)?;
        self.add_table(path, text, "", document.get_ref());
        Ok(())
    }

    fn add_table(&mut self, path: &Path, text: &str, prefix: &str, table: &DeTable<'_>) {
        for (key, value) in table {
            let name = join(prefix, key.get_ref());
            match value.get_ref() {
                DeValue::Table(inner) => self.add_table(path, text, &name, inner),
                DeValue::String(_)
                | DeValue::Integer(_)
                | DeValue::Float(_)
                | DeValue::Boolean(_)
                | DeValue::Datetime(_)
                | DeValue::Array(_) => {
                    self.0.insert(name, format!("{}:{}", path.display(), line_of(text, key)));
                }
            }
        }
    }

    /// Adds the keys of the environment.
    pub(crate) fn add_environment(&mut self, variables: &BTreeMap<String, String>) {
        for variable in variables.keys() {
            if let Some(key) = key_of_variable(variable) {
                self.0.insert(key, format!("environment variable {variable}"));
            }
        }
    }

    /// The place of a key, or that it is a default.
    pub fn of(&self, key: &str) -> String {
        self.0.get(key).cloned().unwrap_or_else(|| "built-in default".into())
    }

    /// Every key that was set, with its place.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(key, place)| (key.as_str(), place.as_str()))
    }
}

/// The key that an environment variable sets; `None` for a variable that is not the agent's: other programs of
/// PCLive have theirs (`PCLIVE_AGENT`). One that starts like a table's name is meant for the agent even if its
/// underscores are too few.
pub(crate) fn key_of_variable(variable: &str) -> Option<String> {
    let name = variable.strip_prefix(ENV_PREFIX)?.to_lowercase();
    let ours = match name.split_once('_') {
        Some((section, _)) => name.contains("__") || SECTIONS.contains(&section),
        None => false,
    };
    ours.then(|| name.replace("__", "."))
}

fn join(prefix: &str, key: &str) -> String {
    if prefix.is_empty() { key.into() } else { format!("{prefix}.{key}") }
}

fn line_of<T>(text: &str, item: &Spanned<T>) -> usize {
    1 + text.bytes().take(item.span().start).filter(|byte| *byte == b'\n').count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_of_a_file_has_its_line() {
        let mut places = Places::default();
        places
            .add_file(Path::new("a.toml"), "[agent]\n\nname = \"x\"\n[runtimes.runc]\nroot = \"/r\"\n")
            .unwrap();
        assert_eq!(places.of("agent.name"), "a.toml:3");
        assert_eq!(places.of("runtimes.runc.root"), "a.toml:5");
        assert_eq!(places.of("agent.state_dir"), "built-in default");
    }

    #[test]
    fn a_variable_names_its_key_and_overrides_the_file() {
        let mut places = Places::default();
        places.add_file(Path::new("a.toml"), "agent.name = \"x\"").unwrap();
        places.add_environment(&BTreeMap::from([("PCLIVE_AGENT__NAME".into(), "y".into())]));
        assert_eq!(places.of("agent.name"), "environment variable PCLIVE_AGENT__NAME");
    }

    #[test]
    fn variables_of_other_programs_are_not_keys() {
        assert_eq!(key_of_variable("PCLIVE_AGENT"), None);
        assert_eq!(key_of_variable("PCLIVE_TEST_LOG"), None);
        assert_eq!(key_of_variable("HOME"), None);
        assert_eq!(key_of_variable("PCLIVE_MIGRATION__MAX_ROUNDS").as_deref(), Some("migration.max_rounds"));
    }
}
