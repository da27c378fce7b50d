//! The `pgark` binary: parse, trace, run, and turn the error into an exit code.

use clap::error::{ContextKind, ContextValue};
use clap::{CommandFactory, Parser};
use pgark_archiver::cli::{Cli, Command, ConfigCommand, LogFormat};
use pgark_archiver::config::Config;
use pgark_archiver::signals::cancel_on_signal;
use pgark_archiver::{Error, Result, commands, exit_code};
use pgark_types::ArchiveFile;
use std::io::Write as _;
use std::process::ExitCode;

fn main() -> ExitCode {
    abort_on_panic();
    let is_get = std::env::args_os().any(|arg| means_get(&arg.to_string_lossy()));
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            let is_get = is_get || is_slip_of_get(&error);
            let code = match (error.use_stderr(), is_get) {
                (false, _) => exit_code::DONE,
                (true, true) => exit_code::GET_USAGE,
                (true, false) => exit_code::USAGE,
            };
            return ExitCode::from(code);
        }
    };
    trace(&cli);
    if cli.output == commands::Output::Json {
        pgark_archiver::progress::without_bars();
    }
    match run(&cli) {
        Ok(code) => ExitCode::from(match commands::lost() {
            Some(error) => {
                report(&error, cli.log_format);
                code.max(exit_code::of(&error))
            }
            None => code,
        }),
        Err(error) => {
            report(&error, cli.log_format);
            ExitCode::from(exit_code::of(&error))
        }
    }
}

/// Whether archive-get was meant, misspelt perhaps: `restore_command` with a slip in it must not look like
/// "no more WAL" either.
fn means_get(word: &str) -> bool {
    let letters = word.chars().filter(char::is_ascii_alphabetic);
    let word: String = letters.map(|c| c.to_ascii_lowercase()).collect();
    word.starts_with("archiveg") || word.starts_with("getwal") || word.starts_with("walget")
}

/// Whether the word in the verb's place is most like archive-get, or is the WAL file's name.
fn is_slip_of_get(error: &clap::Error) -> bool {
    let Some(ContextValue::String(verb)) = error.get(ContextKind::InvalidSubcommand) else {
        return false;
    };
    let likeliest = match error.get(ContextKind::SuggestedSubcommand) {
        Some(ContextValue::String(name)) => Some(name),
        // The likeliest stands last.
        Some(ContextValue::Strings(names)) => names.last(),
        _ => None,
    };
    verb.parse::<ArchiveFile>().is_ok() || likeliest.is_some_and(|name| name == "archive-get")
}

/// A panic must not look like "no more WAL" to a recovery: 101 would (`docs/reference/exit-codes.md`).
fn abort_on_panic() {
    let default = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        default(info);
        std::process::abort();
    }));
}

fn trace(cli: &Cli) {
    let builder = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::from(cli.log_level))
        // It would complain on standard error, and panic when that is what does not work: a full
        // disk under a log must not end the agent.
        .log_internal_errors(false)
        .with_writer(std::io::stderr);
    let builder = builder.with_target(false);
    match cli.log_format {
        LogFormat::Text => builder.with_ansi(false).init(),
        LogFormat::Json => builder.json().init(),
    }
}

fn run(cli: &Cli) -> Result<u8> {
    let path = Some(cli.config.as_path());
    let output = cli.output;
    pgark_archiver::fault::point("main:run");
    match &cli.command {
        Command::ArchivePush(args) => commands::archive_push::run(path, args)?,
        Command::ArchiveGet(args) => return Ok(commands::archive_get::run(path, args)),
        Command::Agent(args) => commands::agent::run(path, args)?,
        Command::Init(args) => commands::init::run(&Config::load(path)?, args, output)?,
        Command::Info(args) => {
            let cancel = cancel_on_signal()?;
            return commands::info::run(&Config::load(path)?, args, output, &cancel);
        }
        Command::Wal(args) => commands::wal::run(&Config::load(path)?, args, output)?,
        Command::Key(args) => commands::key::run(&Config::load(path)?, args, output)?,
        Command::Cluster(args) => commands::cluster::run(&Config::load(path)?, args, output)?,
        Command::Promote(args) => {
            let cancel = cancel_on_signal()?;
            commands::promote::run(&Config::load(path)?, args, output, &cancel)?;
        }
        Command::Retention(args) => commands::retention::run(&Config::load(path)?, args, output)?,
        Command::Expire(args) => commands::expire::run(&Config::load(path)?, args, output)?,
        Command::Undelete(args) => commands::mark::undelete(&Config::load(path)?, args, output)?,
        Command::Pin(args) => commands::mark::pin(&Config::load(path)?, args, output)?,
        Command::Unpin(args) => commands::mark::unpin(&Config::load(path)?, args, output)?,
        Command::Annotate(args) => commands::mark::annotate(&Config::load(path)?, args, output)?,
        Command::Gc(args) => {
            commands::gc::run(&Config::load(path)?, args, output, &cancel_on_signal()?)?;
        }
        Command::Catalog(args) => {
            return commands::catalog::run(&Config::load(path)?, args, output);
        }
        Command::Check(args) => {
            let cancel = cancel_on_signal()?;
            return commands::check::run(&Config::load(path)?, args, output, &cancel);
        }
        Command::Doctor(args) => {
            return commands::doctor::run(&Config::load(path)?, args, output);
        }
        Command::Repo(args) => {
            return commands::repo::run(&Config::load(path)?, args, output, &cancel_on_signal()?);
        }
        Command::Verify(args) => {
            let cancel = cancel_on_signal()?;
            return commands::verify::run(&Config::load(path)?, args, output, &cancel);
        }
        Command::Backup(args) => {
            let cancel = cancel_on_signal()?;
            return commands::backup::run(&Config::load(path)?, args, output, &cancel);
        }
        Command::Restore(args) => {
            let cancel = cancel_on_signal()?;
            return commands::restore::run(&Config::load(path)?, path, args, output, &cancel);
        }
        Command::RestoreSet(args) => {
            let cancel = cancel_on_signal()?;
            return commands::restore_set::run(&Config::load(path)?, path, args, output, &cancel);
        }
        Command::Assess(args) => {
            let cancel = cancel_on_signal()?;
            return commands::assess::run(&Config::load(path)?, args, output, &cancel);
        }
        Command::Reconcile(args) => {
            let cancel = cancel_on_signal()?;
            return commands::reconcile::run(&Config::load(path)?, args, output, &cancel);
        }
        Command::Config(ConfigCommand::Check) => {
            commands::config::check(&cli.config, output)?;
        }
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), "pgark", &mut script);
            commands::print_text(String::from_utf8_lossy(&script).trim_end());
        }
    }
    Ok(exit_code::DONE)
}

/// Errors go to the user. When they cannot, the exit code still says which kind it was.
fn report(error: &Error, format: LogFormat) {
    if let LogFormat::Json = format {
        // One kind of line in one log.
        tracing::error!(
            code = error.code(),
            detail = error.detail(),
            hint = error.hint(),
            "{error}"
        );
        return;
    }
    let mut text = format!("ERROR:  {error} (code {})\n", error.code());
    if let Some(detail) = error.detail() {
        text += &format!("DETAIL:  {detail}\n");
    }
    if let Some(hint) = error.hint() {
        text += &format!("HINT:  {hint}\n");
    }
    let text = commands::visible(&text);
    let _ = std::io::stderr().lock().write_all(text.as_bytes());
}
