//! Directories that must not lie within one another: a data directory, a repository, the target of a
//! restore. Symbolic links and `..` make two names of one place, so names are resolved first.

use crate::config::Config;
use crate::{Error, Result};
use std::path::{Path, PathBuf};

/// `path` without symbolic links and `..`, as far as it exists.
#[must_use]
pub fn resolve(path: &Path) -> PathBuf {
    if let Ok(real) = path.canonicalize() {
        return real;
    }
    match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) => resolve(parent).join(name),
        _ => path.to_path_buf(),
    }
}

/// Refuses a place for a repository within a data directory: the configured one, or any.
///
/// # Errors
/// Kind Invalid, code `repository_in_data_directory`.
pub fn outside_data_directories(repository: &Path, configured: Option<&Path>) -> Result<()> {
    let place = resolve(repository);
    let is_data_directory = |above: &Path| above.join("global/pg_control").exists();
    if place.ancestors().any(is_data_directory)
        || configured.is_some_and(|configured| place.starts_with(resolve(configured)))
    {
        return Err(in_data_directory()
            .with_detail(format!("The repository is \"{}\".", place.display()))
            .with_hint("Choose a path outside, best on another disk or host."));
    }
    Ok(())
}

/// Refuses to back up a data directory that holds a repository: the backup would hold itself, and a
/// delta restore would remove what it restores from.
///
/// # Errors
/// Kind Invalid, code `repository_in_data_directory`.
pub fn holds_no_repository(config: &Config, data_directory: &Path) -> Result<()> {
    for path in config.repository.values().filter_map(|r| r.path.as_ref()) {
        outside_data_directories(path, Some(data_directory))?;
    }
    Ok(())
}

/// Refuses to restore over a repository or into one.
///
/// # Errors
/// Kind Invalid, code `target_in_repository` or `repository_in_data_directory`.
pub fn apart_from_repositories<'a>(
    config: &Config,
    target: &Path,
    tablespaces: impl Iterator<Item = &'a PathBuf>,
) -> Result<()> {
    let target = resolve(target);
    let places: Vec<PathBuf> = tablespaces.map(|place| resolve(place)).collect();
    for path in config.repository.values().filter_map(|r| r.path.as_ref()) {
        let repository = resolve(path);
        if repository.starts_with(&target) {
            return Err(in_data_directory()
                .with_detail(format!(
                    "The repository \"{}\" lies within the target directory.",
                    repository.display()
                ))
                .with_hint(
                    "Move the repository out of it, and correct the path in [repository.*].",
                ));
        }
        let mut places = std::iter::once(&target).chain(&places);
        if let Some(inside) = places.find(|place| place.starts_with(&repository)) {
            return Err(Error::invalid(
                "target_in_repository",
                format!("\"{}\" lies within a repository", inside.display()),
            )
            .with_hint("Choose a directory outside."));
        }
    }
    Ok(())
}

fn in_data_directory() -> Error {
    Error::invalid(
        "repository_in_data_directory",
        "a repository must not lie within the data directory it backs up",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_hides_the_place() {
        let here = tempfile::tempdir().unwrap();
        let here = here.path().canonicalize().unwrap();
        let data = here.join("data");
        std::fs::create_dir_all(data.join("global")).unwrap();
        std::fs::create_dir(here.join("other")).unwrap();
        std::os::unix::fs::symlink(&data, here.join("link")).unwrap();
        let config = |path: &Path| {
            let text = format!(
                "[repository.r]\nkind = \"posix\"\npath = \"{}\"\n",
                path.display()
            );
            Config::parse(&text).unwrap()
        };
        let inside = [
            data.join("repo"),
            here.join("link/repo"),
            here.join("other/../data/repo"),
            here.join("link/not/yet/there"),
        ];
        for path in &inside {
            assert!(outside_data_directories(path, Some(&data)).is_err());
            assert!(outside_data_directories(path, None).is_ok());
            assert!(holds_no_repository(&config(path), &here.join("link")).is_err());
            let over = apart_from_repositories(&config(path), &here.join("link"), [].iter());
            assert_eq!(over.unwrap_err().code(), "repository_in_data_directory");
        }
        std::fs::write(data.join("global/pg_control"), "").unwrap();
        for path in &inside {
            assert!(outside_data_directories(path, None).is_err());
        }

        let repository = config(&here.join("link"));
        let into = |target: &str, tablespaces: &[PathBuf]| {
            apart_from_repositories(&repository, &here.join(target), tablespaces.iter())
                .map_err(|e| e.code())
        };
        assert_eq!(into("data/x", &[]), Err("target_in_repository"));
        assert_eq!(
            into("other", &[data.join("x")]),
            Err("target_in_repository")
        );
        assert_eq!(into("other", &[here.join("data2")]), Ok(()));
        assert!(outside_data_directories(&here.join("data2"), Some(&data)).is_ok());
    }
}
