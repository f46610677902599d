//! The layers put together: defaults, file, environment.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use config::{Environment, File, FileFormat};

use super::place::{Places, key_of_variable};
use super::{Config, Problem, Runtime, validate};

/// Why there is no configuration. Nothing has been bound or created.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read configuration file {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not TOML.
    #[error("cannot parse configuration file {path}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Line, column and reason.
        source: Box<toml::de::Error>,
    },
    /// The layers do not make a configuration.
    #[error("cannot use {key} ({place})")]
    Value {
        /// Path of the key, as far as known.
        key: String,
        /// Where it was set.
        place: String,
        /// What is wrong with it.
        source: Box<config::ConfigError>,
    },
    /// Unknown keys, or values out of range: all of them.
    #[error("{}", List(.0))]
    Problems(Vec<Problem>),
}

struct List<'a>(&'a [Problem]);

impl fmt::Display for List<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot use the configuration")?;
        self.0.iter().try_for_each(|problem| write!(f, "\n  {problem}"))
    }
}

/// Loads the configuration: defaults, then `file` if there is one, then `variables` (the process environment).
/// On success every value has been checked.
pub fn load(file: Option<&Path>, variables: &BTreeMap<String, String>) -> Result<Config, ConfigError> {
    let read = |path: &Path| std::fs::read_to_string(path);
    let failed = |path: &Path, source| ConfigError::Read { path: path.into(), source };
    let text = file.map(|path| read(path).map_err(|source| failed(path, source))).transpose()?;
    parse(file.zip(text.as_deref()), variables)
}

/// The same with a file's text.
pub(crate) fn parse(
    file: Option<(&Path, &str)>,
    variables: &BTreeMap<String, String>,
) -> Result<Config, ConfigError> {
    let mut places = Places::default();
    let mut builder = config::Config::builder().add_source(defaults()?);
    if let Some((path, text)) = file {
        places
            .add_file(path, text)
            .map_err(|source| ConfigError::Parse { path: path.into(), source: Box::new(source) })?;
        builder = builder.add_source(File::from_str(text, FileFormat::Toml));
    }
    places.add_environment(variables);
    refuse_unknown(&places)?;
    let loaded = builder
        .add_source(environment(variables))
        .build()
        .and_then(config::Config::try_deserialize::<Config>)
        .map_err(|source| value_error(&places, source))?;
    let problems = validate::problems(&loaded, &places);
    if problems.is_empty() { Ok(loaded) } else { Err(ConfigError::Problems(problems)) }
}

fn defaults() -> Result<config::Config, ConfigError> {
    config::Config::try_from(&Config::default()).map_err(|source| value_error(&Places::default(), source))
}

fn environment(variables: &BTreeMap<String, String>) -> Environment {
    let ours = variables.iter().filter(|(name, _)| key_of_variable(name).is_some());
    let source = ours.map(|(name, value)| (name.clone(), value.clone())).collect();
    Environment::with_prefix("PCLIVE").prefix_separator("_").separator("__").source(Some(source))
}

fn value_error(places: &Places, source: config::ConfigError) -> ConfigError {
    let key = match &source {
        config::ConfigError::Type { key, .. } | config::ConfigError::At { key, .. } => key.clone(),
        _ => None,
    };
    let key = key.unwrap_or_else(|| "the configuration".into());
    ConfigError::Value { place: places.of(&key), key, source: Box::new(source) }
}

fn refuse_unknown(places: &Places) -> Result<(), ConfigError> {
    let known = known_keys();
    let unknown: Vec<Problem> = places
        .iter()
        .filter(|(key, _)| !is_known(&known, key))
        .map(|(key, place)| Problem { key: key.into(), place: place.into(), what: "no such key".into() })
        .collect();
    if unknown.is_empty() { Ok(()) } else { Err(ConfigError::Problems(unknown)) }
}

/// Paths of all keys that have a default.
fn known_keys() -> Vec<String> {
    let mut keys = Vec::new();
    if let Ok(table) = toml::Table::try_from(Config::default()) {
        leaves("", &table, &mut keys);
    }
    keys
}

fn leaves(prefix: &str, table: &toml::Table, keys: &mut Vec<String>) {
    for (key, value) in table {
        let name = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
        match value.as_table() {
            Some(inner) => leaves(&name, inner, keys),
            None => keys.push(name),
        }
    }
}

/// Peers and runtimes have names of the administrator's choice; every other key is in the defaults.
fn is_known(known: &[String], key: &str) -> bool {
    let parts: Vec<&str> = key.split('.').collect();
    match parts.as_slice() {
        ["peers", _, ..] => true,
        ["runtimes", _, field] => {
            toml::Table::try_from(Runtime::default()).is_ok_and(|t| t.contains_key(*field))
        }
        _ => known.iter().any(|name| name == key),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::config::{LogFormat, Strategy};

    fn file(text: &str) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        file
    }

    fn load_with(text: &str, variables: &[(&str, &str)]) -> Result<Config, ConfigError> {
        let variables = variables.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        load(Some(file(text).path()), &variables)
    }

    fn complaint(text: &str, variables: &[(&str, &str)]) -> String {
        use std::error::Error as _;
        let error = load_with(text, variables).unwrap_err();
        match error.source() {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        }
    }

    #[test]
    fn nothing_given_is_the_defaults() {
        assert_eq!(load(None, &BTreeMap::new()).unwrap(), Config::default());
    }

    #[test]
    fn the_example_file_holds_every_key_with_its_default() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/agent.toml");
        let text = std::fs::read_to_string(&path).unwrap();
        let example: toml::Table = text.parse().unwrap();
        let mut present = Vec::new();
        leaves("", &example, &mut present);
        let mut known = known_keys();
        present.sort();
        known.sort();
        assert_eq!(present, known);
        assert_eq!(load(Some(&path), &BTreeMap::new()).unwrap(), Config::default());
    }

    #[test]
    fn the_environment_wins_over_the_file_and_the_file_over_defaults() {
        let text =
            "[migration]\nmax_rounds = 3\nstrategy = \"one-shot\"\n[peers]\nhost-b = \"10.0.0.2:7413\"\n";
        let variables = [("PCLIVE_MIGRATION__MAX_ROUNDS", "7"), ("PCLIVE_LOG__FORMAT", "json")];
        let config = load_with(text, &variables).unwrap();
        assert_eq!(config.migration.max_rounds, 7);
        assert_eq!(config.migration.strategy, Strategy::OneShot);
        assert_eq!(config.log.format, LogFormat::Json);
        assert_eq!(config.peers["host-b"], "10.0.0.2:7413");
        assert_eq!(config.migration.max_downtime_ms, 300);
    }

    #[test]
    fn a_peer_may_have_the_name_of_a_host_with_its_domain() {
        let config = load_with("[peers]\n\"host-b.example.org\" = \"10.0.0.2:7413\"\n", &[]).unwrap();
        assert_eq!(config.peers["host-b.example.org"], "10.0.0.2:7413");
    }

    #[test]
    fn a_peer_can_come_from_the_environment() {
        let config = load_with("", &[("PCLIVE_PEERS__HOSTB", "10.0.0.2:7413")]).unwrap();
        assert_eq!(config.peers["hostb"], "10.0.0.2:7413");
    }

    #[test]
    fn unknown_keys_are_all_refused_with_file_and_line() {
        let said = complaint("[agent]\nnmae = \"x\"\n\n[runtimes.runc]\nrot = \"/\"\n", &[]);
        assert!(said.contains("agent.nmae") && said.contains(":2"), "{said}");
        assert!(said.contains("runtimes.runc.rot") && said.contains(":5"), "{said}");
    }

    #[test]
    fn unknown_variables_are_refused_by_name() {
        let said = complaint("", &[("PCLIVE_MIGRATION_MAX_ROUNDS", "1")]);
        assert!(said.contains("environment variable PCLIVE_MIGRATION_MAX_ROUNDS"), "{said}");
    }

    #[test]
    fn a_value_of_the_wrong_type_names_its_key_and_line() {
        let said = complaint("[migration]\nmax_rounds = \"many\"\n", &[]);
        assert!(
            said.contains("migration.max_rounds") && said.contains(":2") && said.contains("many"),
            "{said}"
        );
        let said = complaint("", &[("PCLIVE_MIGRATION__MAX_ROUNDS", "many")]);
        assert!(said.contains("PCLIVE_MIGRATION__MAX_ROUNDS"), "{said}");
    }

    #[test]
    fn an_unknown_strategy_lists_the_known_ones() {
        let said = complaint("migration.strategy = \"magic\"", &[]);
        assert!(said.contains("magic") && said.contains("one-shot"), "{said}");
    }

    #[test]
    fn a_broken_file_is_refused_with_its_line() {
        let said = complaint("[agent]\nname = \n", &[]);
        assert!(said.contains("line 2"), "{said}");
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = load(Some(Path::new("/nonexistent/agent.toml")), &BTreeMap::new()).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/agent.toml"));
    }
}
