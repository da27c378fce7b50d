//! `pgark repo ls` and `pgark repo get`: what is stored, object by object.

use crate::commands::output::{
    Output, choose_repository, human_bytes, open_repository, print_json, print_text,
};
use crate::config::Config;
use crate::crashsafe::{RealFs, write_new_durable};
use crate::repository::layout;
use crate::storage::Key;
use crate::wal::container;
use crate::{Error, Result};
use serde_json::json;
use std::io::Write as _;
use std::path::{Path, PathBuf};

/// `pgark repo ls`.
#[derive(Debug, Clone, clap::Args)]
pub struct LsArgs {
    /// Only objects whose keys begin with this [default: all]
    #[arg(default_value = "", hide_default_value = true)]
    pub prefix: String,
    /// The repository [default: the first required one]
    #[arg(long, value_name = "NAME")]
    pub repository: Option<String>,
}

/// `pgark repo get`.
#[derive(Debug, Clone, clap::Args)]
pub struct GetArgs {
    /// The object's key, as "pgark repo ls" prints it
    pub key: String,
    /// The file to write, which must not exist; "-" for standard output
    #[arg(long, value_name = "FILE")]
    pub to: PathBuf,
    /// The bytes as they are stored, of WAL too: compressed, and encrypted where the repository is.
    #[arg(long)]
    pub raw: bool,
    /// The repository [default: the first required one]
    #[arg(long, value_name = "NAME")]
    pub repository: Option<String>,
}

/// Lists objects. Needs no key.
///
/// # Errors
/// Kind Invalid for an unknown repository; the storage's errors.
pub(super) fn ls(config: &Config, args: &LsArgs, output: Output) -> Result<()> {
    let (name, _, storage) = choose_repository(config, args.repository.as_deref())?;
    let mut objects = storage.list(&args.prefix)?;
    objects.sort_by(|a, b| a.key.cmp(&b.key));
    let bytes: u64 = objects.iter().map(|o| o.size).sum();
    if output == Output::Json {
        let listed = objects.iter().map(
            |o| json!({"key": o.key.as_str(), "bytes": o.size, "modified": o.modified.to_rfc3339()}),
        );
        let listed: Vec<_> = listed.collect();
        print_json(json!({"repository": name, "bytes": bytes, "objects": listed}));
        return Ok(());
    }
    for object in &objects {
        print_text(format_args!(
            "{:>12}  {}  {}",
            object.size,
            object.modified.format("%Y-%m-%dT%H:%M:%SZ"),
            object.key
        ));
    }
    print_text(format_args!(
        "{} objects, {}",
        objects.len(),
        human_bytes(bytes)
    ));
    Ok(())
}

/// Fetches one object. A WAL file comes out as Postgres wrote it, verified in full, unless `raw`.
///
/// # Errors
/// Kind Invalid: `object_key`, `target_file_exists`; `object_not_found`; kind Data when a WAL file is
/// damaged; the storage's errors. Nothing is written then.
pub(super) fn get(config: &Config, args: &GetArgs, output: Output) -> Result<()> {
    let key = layout::recorded(&args.key).map_err(|e| {
        Error::invalid("object_key", format!("\"{}\" is no object key", args.key))
            .with_detail(e.to_string())
            .with_hint("Run \"pgark repo ls\" for the keys there are.")
    })?;
    let to_stdout = args.to == Path::new("-");
    if !to_stdout && std::fs::symlink_metadata(&args.to).is_ok() {
        return Err(crate::crashsafe::exists(&args.to));
    }
    let (bytes, decoded) = read(config, args, &key)?;
    if to_stdout {
        let mut stdout = std::io::stdout().lock();
        let written = stdout.write_all(&bytes).and_then(|()| stdout.flush());
        return written.map_err(|e| Error::io("could not write the object", e));
    }
    write_new_durable(&RealFs, &args.to, &bytes, 0o600)?;
    match output {
        Output::Json => print_json(json!({"key": key.as_str(), "bytes": bytes.len(),
            "decoded": decoded, "file": args.to.display().to_string()})),
        Output::Text => print_text(format_args!(
            "{key}: {} bytes{} written to \"{}\"",
            bytes.len(),
            if decoded { " of WAL" } else { "" },
            args.to.display()
        )),
    }
    Ok(())
}

/// The object's content, and whether it was decoded.
fn read(config: &Config, args: &GetArgs, key: &Key) -> Result<(Vec<u8>, bool)> {
    if !args.raw
        && let Some((system_id, file)) = layout::wal_of(key)
    {
        let repository = open_repository(config, args.repository.as_deref())?;
        let bytes = repository.storage().get(key, u64::MAX)?;
        repository.require_key()?;
        return Ok((
            container::decode(&repository, system_id, file, &bytes)?,
            true,
        ));
    }
    let (_, _, storage) = choose_repository(config, args.repository.as_deref())?;
    Ok((storage.get(key, u64::MAX)?, false))
}
