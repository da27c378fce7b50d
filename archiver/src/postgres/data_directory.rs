//! The data directory of the server that one is connected to.

use super::control_file::ControlFile;
use super::session::{Session, column};
use crate::{Error, Result};
use pgark_types::SystemId;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// A data directory that was proven to be the server's.
pub(crate) struct OfServer {
    /// What the server calls it.
    pub(crate) shown: PathBuf,
    /// What it is called here.
    pub(crate) path: PathBuf,
    /// Its control file.
    pub(crate) control: ControlFile,
}

/// Makes sure that the `configured` data directory, or else the one that the server names, is the server's.
///
/// # Errors
/// Kind Invalid, `data_directory_mismatch`; those of the server and of [`ControlFile::read`].
pub(crate) fn of_server(session: &mut Session, configured: Option<&Path>) -> Result<OfServer> {
    let shown = PathBuf::from(session.show("data_directory")?);
    let path = configured.map_or_else(|| shown.clone(), Path::to_path_buf);
    let (control, _) = ControlFile::read(&path)?;
    let query = "SELECT system_identifier::text FROM pg_control_system()";
    let reported: SystemId = column::<&str>(&session.query_one(query, &[])?, 0)?.parse()?;
    if reported != control.system_identifier {
        let ids = format!(
            "The server's system identifier is {reported}, the directory's is {}.",
            control.system_identifier
        );
        return Err(mismatch(&path, ids));
    }
    same_directory(session, &shown, &path)?;
    Ok(OfServer {
        shown,
        path,
        control,
    })
}

fn mismatch(data_directory: &Path, detail: String) -> Error {
    Error::invalid(
        "data_directory_mismatch",
        format!(
            "\"{}\" is not the data directory of the server",
            data_directory.display()
        ),
    )
    .with_detail(detail)
    .with_hint("Check conninfo and data_directory in [cluster].")
}

/// Makes sure that `data_directory` is the one the server runs in. A restored copy has the same
/// system identifier, and a backup of its files with the server's LSNs would be worthless. A
/// container may know the directory by another name (`shown`): the content of `postmaster.pid`
/// tells then.
///
/// # Errors
/// Kind Invalid, code `data_directory_mismatch`.
fn same_directory(session: &mut Session, shown: &Path, data_directory: &Path) -> Result<()> {
    let inode = |path: &Path| {
        let metadata = std::fs::metadata(path).ok()?;
        Some((metadata.dev(), metadata.ino()))
    };
    if inode(data_directory).is_some_and(|own| inode(shown) == Some(own)) {
        return Ok(());
    }
    // Process, directory and start time; what follows may change.
    let start = |text: &str| text.lines().take(3).collect::<Vec<_>>().join("\n");
    let here = std::fs::read_to_string(data_directory.join("postmaster.pid")).ok();
    let there = session
        .query_one("SELECT pg_read_file('postmaster.pid')", &[])
        .and_then(|row| column::<String>(&row, 0));
    if let (Some(here), Ok(there)) = (&here, &there)
        && start(here) == start(there)
    {
        return Ok(());
    }
    match there {
        Err(e) if here.is_some() && e.code() == "sql_privilege" => {
            Err(not_comparable(shown, data_directory, e))
        }
        _ => Err(another_directory(shown, data_directory)),
    }
}

/// The server may not say what is in its directory. The membership in `pg_read_server_files` alone
/// does not permit it.
fn not_comparable(shown: &Path, data_directory: &Path, refused: Error) -> Error {
    Error::invalid(
        "data_directory_mismatch",
        format!(
            "cannot tell whether \"{}\" is the data directory of the server",
            data_directory.display()
        ),
    )
    .with_source(refused)
    .with_detail(format!(
        "The server calls its data directory \"{}\", which is not the same directory here, and its postmaster.pid cannot be compared.",
        shown.display()
    ))
    .with_hint("Connect as a superuser, or GRANT EXECUTE ON FUNCTION pg_read_file(text) to the user in conninfo, in the database it connects to. If the path is wrong, correct data_directory in [cluster].")
}

fn another_directory(shown: &Path, data_directory: &Path) -> Error {
    mismatch(
        data_directory,
        format!("It is a copy: the server runs in \"{}\".", shown.display()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_may_not_be_compared_says_what_to_grant() {
        let refused = Error::invalid("sql_privilege", "permission denied");
        let error = not_comparable(Path::new("/there"), Path::new("/here"), refused);
        assert_eq!(error.code(), "data_directory_mismatch");
        assert!(error.to_string().contains("permission denied"), "{error}");
        assert!(
            error
                .hint()
                .unwrap()
                .contains("GRANT EXECUTE ON FUNCTION pg_read_file(text)")
        );
    }
}
