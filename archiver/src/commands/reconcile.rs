//! `pgark reconcile`.

use super::output::{Output, on_one_line, print_json, print_text};
use crate::cancel::CancelToken;
use crate::component::drivers;
use crate::component::reconcile::{self, Options, Side};
use crate::config::Config;
use crate::{Error, Result, exit_code};
use serde_json::json;

/// Lists ids that a component lacks, and ids that no row stands for, by `[component.NAME.reconcile]`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// The component.
    #[arg(long, value_name = "NAME")]
    pub component: String,
    /// Write all of them into this table too, which is made when it is not there: found_at, component,
    /// side (missing or orphaned), id.
    #[arg(long, value_name = "SCHEMA.TABLE")]
    pub into_table: Option<String>,
    /// How many ids of each side are listed.
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub limit: u32,
}

/// Compares, prints, and returns the exit code: 3 when something differs.
///
/// # Errors
/// As [`reconcile::run`]; kind Invalid for a component without the section.
pub fn run(config: &Config, args: &Args, output: Output, cancel: &CancelToken) -> Result<u8> {
    let name = &args.component;
    config.select_components(std::slice::from_ref(name), &[])?;
    let section = config.component.get(name);
    let rule = section.and_then(|s| s.common.reconcile.as_ref());
    let (Some(section), Some(rule)) = (section, rule) else {
        return Err(Error::invalid(
            "reconcile_not_configured",
            format!("[component.{name}.reconcile] is not in the configuration"),
        )
        .with_hint("Add it with query and collection."));
    };
    let driver = drivers::open(name, &section.common.kind, &section.settings)?;
    let options = Options {
        limit: i64::from(args.limit),
        into_table: args.into_table.clone(),
    };
    let found = reconcile::run(config, name, driver.as_ref(), rule, &options, cancel)?;
    match output {
        Output::Json => {
            let side = |side: &Side| json!({"count": side.count, "ids": side.ids});
            print_json(json!({
                "component": name,
                "collection": rule.collection,
                "postgres": found.wanted,
                "store": found.found,
                "missing": side(&found.missing),
                "orphaned": side(&found.orphaned),
                "into_table": args.into_table,
            }));
        }
        Output::Text => {
            print_text(format_args!(
                "{name}: {} ids by the query, {} in the store",
                found.wanted, found.found
            ));
            print_side("missing in the store", &found.missing);
            print_side("in the store alone", &found.orphaned);
        }
    }
    Ok(match found.missing.count + found.orphaned.count {
        0 => exit_code::DONE,
        _ => exit_code::FINDINGS,
    })
}

fn print_side(what: &str, side: &Side) {
    print_text(format_args!("  {}: {what}", side.count));
    for id in &side.ids {
        print_text(format_args!("    {}", on_one_line(id)));
    }
    let listed = i64::try_from(side.ids.len()).unwrap_or(i64::MAX);
    if listed < side.count {
        print_text(format_args!("    and {} more", side.count - listed));
    }
}
