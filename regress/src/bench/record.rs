//! `bench.json` (DESIGN 15), and the table of ratios that is printed from it.

use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;

/// One counted run.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Run {
    pub(super) operation: &'static str,
    pub(super) tool: &'static str,
    /// Which configuration of the tool.
    pub(super) variant: String,
    /// Number of the run, from 1.
    pub(super) run: u32,
    pub(super) seconds: f64,
    pub(super) cpu_seconds: f64,
    pub(super) max_rss_bytes: u64,
    /// By the harness: disk space of what the operation stored or read.
    pub(super) stored_bytes: u64,
    /// By the tool's own `info`.
    pub(super) stored_bytes_told: Option<u64>,
    /// WAL segments that were moved.
    pub(super) segments: u32,
    pub(super) argv: Vec<String>,
    pub(super) config: String,
    pub(super) version: String,
    pub(super) seed: u64,
    /// BLAKE3 of what came out; see `digests` at the top of the file.
    pub(super) digest: String,
    /// The tool's own `info`.
    pub(super) info: Value,
}

/// Where counted runs are kept, a line each, as soon as they are made: a bench that fails in its second hour
/// leaves those of the first.
const KEPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/results/bench-runs.jsonl");

/// Nothing is kept yet.
pub(super) fn begin() {
    std::fs::create_dir_all(Path::new(KEPT).parent().unwrap()).unwrap();
    std::fs::write(KEPT, "").unwrap();
}

/// Keeps a run.
pub(super) fn keep(run: &Run) {
    let mut file = std::fs::File::options().append(true).open(KEPT).unwrap();
    writeln!(file, "{}", serde_json::to_string(run).unwrap()).unwrap();
}

/// Everything that is written.
#[derive(Debug, Serialize)]
pub(super) struct Record {
    pub(super) format: u32,
    pub(super) commit: String,
    pub(super) postgres: String,
    pub(super) host: String,
    pub(super) scale: f64,
    /// Tables and indexes of the cluster, by the server.
    pub(super) data_bytes: u64,
    pub(super) complete: bool,
    pub(super) method: &'static str,
    /// Whether the page cache could be emptied.
    pub(super) caches_dropped: bool,
    pub(super) digests: &'static str,
    pub(super) started_at: String,
    pub(super) seconds: f64,
    pub(super) runs: Vec<Run>,
}

impl Record {
    pub(super) fn write(&self, path: &Path) {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let text = serde_json::to_string_pretty(self).unwrap() + "\n";
        std::fs::write(path, text).unwrap();
    }

    /// Medians of each operation, and their ratio to that of the others: pgBackRest's at each of its levels,
    /// restic's.
    pub(super) fn table(&self) -> String {
        let mut groups: BTreeMap<(&str, &str, &str), Vec<&Run>> = BTreeMap::new();
        for run in &self.runs {
            let key = (run.operation, run.tool, run.variant.as_str());
            groups.entry(key).or_default().push(run);
        }
        let mut text = format!(
            "{:<22} {:<20} {:>3} {:>9} {:>9} {:>9} {:>10} {:>7}\n",
            "operation", "tool", "n", "seconds", "cpu s", "rss MiB", "stored MiB", "ratio"
        );
        for ((operation, tool, variant), runs) in &groups {
            let seconds = median(runs.iter().map(|run| run.seconds));
            let pgark = groups
                .iter()
                .find(|((o, t, v), _)| o == operation && *t == "pgark" && *v == "default")
                .map(|(_, runs)| median(runs.iter().map(|run| run.seconds)));
            let ratio = match pgark {
                Some(pgark) if *tool != "pgark" => format!("{:.2}", pgark / seconds),
                _ => String::new(),
            };
            let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
            text += &format!(
                "{operation:<22} {:<20} {:>3} {seconds:>9.2} {:>9.2} {:>9.1} {:>10.1} {ratio:>7}\n",
                format!("{tool} {variant}"),
                runs.len(),
                median(runs.iter().map(|run| run.cpu_seconds)),
                runs.iter()
                    .map(|run| mib(run.max_rss_bytes))
                    .fold(0.0, f64::max),
                median(runs.iter().map(|run| mib(run.stored_bytes))),
            );
        }
        text + "ratio: pgark's median over this one's; at most 1.05 is not slower; files_unchanged is to be at most 0.20, within 256 MiB. rss: the largest of the runs.\n"
    }
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => 0.0,
        n if n % 2 == 1 => values[n / 2],
        n => f64::midpoint(values[n / 2 - 1], values[n / 2]),
    }
}

#[cfg(test)]
mod tests {
    use super::median;

    #[test]
    fn medians() {
        assert_eq!(median([3.0, 1.0, 2.0].into_iter()), 2.0);
        assert_eq!(median([4.0, 1.0, 2.0, 3.0].into_iter()), 2.5);
    }
}
