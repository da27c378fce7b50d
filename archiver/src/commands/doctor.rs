//! `pgark doctor`: what the extension's `health()` and `doctor()` say, and whether this host's agent is there.

use super::output::{Output, print_json, print_text};
use crate::agent::client;
use crate::catalog::{Connection, Opinion};
use crate::config::Config;
use crate::{Error, Result, exit_code};
use serde_json::json;

/// Says what is wrong with the extension, its jobs and the server's settings, and what mends it. Changes
/// nothing. "pgark check" tries repositories and archiving.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {}

/// Asks, and returns the exit code: 0, or 3 when something is wrong.
///
/// # Errors
/// None in fact: what cannot be asked is a line.
pub fn run(config: &Config, _args: &Args, output: Output) -> Result<u8> {
    let mut lines = vec![agent(config)];
    match Connection::open(config, "pgark doctor") {
        Ok(mut connection) => {
            lines.push(good(
                "extension",
                "it is installed, and this host may use it",
            ));
            match connection.opinions() {
                Ok(opinions) => lines.extend(opinions),
                Err(error) => lines.push(bad("extension", &error)),
            }
        }
        Err(error) => lines.push(bad("extension", &error)),
    }
    let wrong = lines.iter().any(|line| !line.ok);
    match output {
        Output::Json => {
            let checks = lines.iter().map(|line| {
                json!({"name": line.name, "ok": line.ok, "detail": line.detail, "hint": line.hint})
            });
            print_json(json!({"checks": checks.collect::<Vec<_>>()}));
        }
        Output::Text => {
            for line in &lines {
                let mark = if line.ok { "ok    " } else { "WRONG " };
                print_text(format_args!("{mark} {}: {}", line.name, line.detail));
                if let Some(hint) = &line.hint {
                    print_text(format_args!("       HINT: {hint}"));
                }
            }
        }
    }
    Ok(match wrong {
        true => exit_code::FINDINGS,
        false => exit_code::DONE,
    })
}

fn good(name: &str, detail: impl Into<String>) -> Opinion {
    Opinion {
        name: name.to_owned(),
        ok: true,
        detail: detail.into(),
        hint: None,
    }
}

fn bad(name: &str, error: &Error) -> Opinion {
    Opinion {
        name: name.to_owned(),
        ok: false,
        detail: format!("{error} (code {})", error.code()),
        hint: error.hint().map(str::to_owned),
    }
}

/// Without an agent nobody runs jobs.
fn agent(config: &Config) -> Opinion {
    let socket = config.agent.socket.display();
    match client::ping(&config.agent.socket) {
        Ok(version) => good(
            "agent of this host",
            format!("{version} answers at {socket}"),
        ),
        Err(error) => Opinion {
            hint: Some("Start it: pgark agent.".to_owned()),
            ..bad("agent of this host", &error)
        },
    }
}
