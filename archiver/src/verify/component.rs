//! A backup of a component beside Postgres as a whole.

use super::{Level, Verification};
use crate::Result;
use crate::component::source::entry_of;
use crate::repository::component::{ComponentBackup, Line};
use crate::repository::format::component::LineKind;
use crate::repository::layout;
use crate::{Error, ErrorKind};
use pgark_types::BackupLabel;

impl Verification<'_> {
    /// Follows the manifest: its objects, every frame of its entry table, and at level Pages the content
    /// of every file.
    pub(super) fn component(&mut self, component: &str, label: &BackupLabel) -> Result<()> {
        let key = layout::manifest(component, label)?;
        let backup = match ComponentBackup::open(self.repository, component, label) {
            Ok(backup) => backup,
            Err(error) => return self.report.note(key.as_str(), "damaged", Err(error)),
        };
        self.expect(&backup.manifest.objects);
        let mut totals = (0_u64, 0_u64, 0_u64);
        for number in 0..backup.table_len() {
            self.cancel.check()?;
            let lines = match backup.table_frame(number) {
                Ok(lines) => lines,
                Err(error) => {
                    self.report.note(key.as_str(), "damaged", Err(error))?;
                    continue;
                }
            };
            for line in lines.iter() {
                self.cancel.check()?;
                totals.0 += 1;
                if line.line.kind == LineKind::File {
                    totals.1 += 1;
                    totals.2 = totals.2.saturating_add(line.line.size);
                }
                match self.line(&backup, line) {
                    Err(error) if error.kind() == ErrorKind::Data => {
                        let detail = format!("entry \"{}\": {error}", line.line.path.0);
                        self.report.find(key.as_str(), "page", detail);
                    }
                    other => other?,
                }
            }
        }
        let manifest = &backup.manifest;
        let said = (
            manifest.entry_count,
            manifest.file_count,
            manifest.bytes_source,
        );
        let result = match said == totals || !self.report.findings.is_empty() {
            true => Ok(()),
            false => Err(Error::data(
                "entry_table_damaged",
                format!(
                    "the entry table holds {totals:?} entries, files and bytes instead of {said:?}"
                ),
            )),
        };
        self.report.note(key.as_str(), "damaged", result)
    }

    fn line(&self, backup: &ComponentBackup, line: &Line) -> Result<()> {
        entry_of(line)?;
        match self.level >= Level::Pages {
            true => backup.check_content(&line.line),
            false => Ok(()),
        }
    }
}
