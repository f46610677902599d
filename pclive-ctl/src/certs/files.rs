//! A certificate and its key on disk.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::CertsError;

/// Mode of certificates, which are public.
const PUBLIC: u32 = 0o644;
/// Mode of keys.
const SECRET: u32 = 0o600;

/// `NAME.pem` and `NAME.key` in a directory.
#[derive(Debug, Clone)]
pub(super) struct Pair {
    pub(super) certificate: PathBuf,
    pub(super) key: PathBuf,
}

impl Pair {
    /// The pair of a name; nothing is touched.
    pub(super) fn of(directory: &Path, name: &str) -> Self {
        let path = |ending: &str| directory.join(format!("{name}.{ending}"));
        Self { certificate: path("pem"), key: path("key") }
    }

    /// Refuses if one of the two is there.
    pub(super) fn is_free(&self) -> Result<(), CertsError> {
        match [&self.certificate, &self.key].into_iter().find(|path| path.symlink_metadata().is_ok()) {
            Some(path) => Err(CertsError::Exists(path.clone())),
            None => Ok(()),
        }
    }

    /// Writes both beside their places first, so that no agent ever reads half a file, then moves them there.
    pub(super) fn write(&self, certificate: &str, key: &str, replace: bool) -> Result<(), CertsError> {
        if !replace {
            self.is_free()?;
        }
        if let Some(directory) = self.key.parent() {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(directory)
                .map_err(write_error(directory))?;
        }
        let fresh_key = write_beside(&self.key, key, SECRET)?;
        let fresh = write_beside(&self.certificate, certificate, PUBLIC)
            .inspect_err(|_| drop(fs::remove_file(&fresh_key)))?;
        fs::rename(&fresh_key, &self.key).map_err(write_error(&self.key))?;
        fs::rename(&fresh, &self.certificate).map_err(write_error(&self.certificate))
    }
}

fn write_beside(path: &Path, text: &str, mode: u32) -> Result<PathBuf, CertsError> {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    let beside = PathBuf::from(name);
    // What an interrupted run left; not a file that anybody uses.
    let _ = fs::remove_file(&beside);
    let file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&beside);
    let written = file.and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all()));
    written.map_err(write_error(&beside)).map(|()| beside)
}

fn write_error(path: &Path) -> impl FnOnce(std::io::Error) -> CertsError {
    let path = path.to_owned();
    move |source| CertsError::Write { path, source }
}
