//! A component's backup from one repository into another: read, checked, and written anew, as
//! `backup::replicate` does with a cluster's. Chunks end elsewhere there, for the key is another; what the
//! other repository has of an earlier backup is not stored again.

use super::capture::Capture;
use super::capture::lane::{Facts, Lane, Plan, put_label};
use super::drivers::files::REDACTED;
use super::scratch::Scratch;
use super::source::{self, entry_of};
use super::{EntryKind, Sink as _, Source as _};
use crate::Result;
use crate::backup::Arrived;
use crate::backup::earlier::Earlier;
use crate::backup::replicate::Replication;
use crate::repository::backups;
use crate::repository::component::ComponentBackup;
use crate::repository::format::component::{AnyManifest, ComponentLabel, ComponentManifest};
use std::sync::atomic::AtomicU64;

impl Replication<'_> {
    /// Copies the committed backup that `label` records.
    ///
    /// # Errors
    /// As [`Replication::run`].
    pub(crate) fn component(&self, label: &ComponentLabel) -> Result<Arrived> {
        let (component, name) = (&label.component, &label.label);
        let from = std::slice::from_ref(self.from);
        let source = source::open_in(from, None, component, Some(name), self.clock)?;
        let there = backups::any_manifest(self.to, component, name)?;
        if let Some((there, digest)) = there {
            let same = match &there {
                AnyManifest::Component(there) => source::is_copy(source.manifest(), there),
                AnyManifest::Postgres(_) => false,
            };
            let earlier = Earlier {
                component,
                label: name,
                session: there.session(),
                objects: there.objects(),
                bytes_source: label.bytes_source,
                digest: &digest,
            };
            let record = || match &there {
                AnyManifest::Component(there) => put_label(self.to, there, digest).map(drop),
                AnyManifest::Postgres(_) => Ok(()),
            };
            return earlier.settle(self, same, &record);
        }
        backups::refuse_half_lost(self.to, component, name)?;
        let scratch = Scratch::anywhere()?;
        let plan = Plan {
            component,
            kind: &label.kind,
            label: name,
            full: false,
            level: self.level,
            scratch: scratch.path(),
            clock: self.clock,
        };
        let lanes = [Lane::begin(self.to, &plan, true)?];
        let backup = ComponentBackup::open(self.from, component, name)?;
        self.entries(&backup, &source, &lanes)?;
        let [lane] = &lanes;
        let ComponentManifest {
            point,
            set,
            annotations,
            ..
        } = source.manifest().clone();
        let manifest = lane.write(&Facts {
            point,
            set,
            annotations,
        })?;
        self.cancel.check()?;
        crate::fault::point("copy:before_manifest");
        // From here on an abort would keep the label taken: who comes next completes it.
        match lane.publish(&manifest) {
            Ok(written) => lane.commit_or_leave(&written)?,
            Err(error) => {
                lane.leave();
                return Err(error);
            }
        }
        Ok(Arrived::Copied)
    }

    fn entries(
        &self,
        backup: &ComponentBackup,
        source: &source::OpenSource,
        lanes: &[Lane],
    ) -> Result<()> {
        let bytes = AtomicU64::new(0);
        let sink = Capture::new(lanes, self.cancel, &bytes);
        for line in backup.lines() {
            let line = line?;
            let entry = entry_of(&line)?;
            self.progress.add(entry.size);
            if entry.kind != EntryKind::File {
                sink.entry(entry)?;
            } else if entry.token == REDACTED || !sink.unchanged(&entry)? {
                // What was masked may have changed under the same token.
                let mut content = source.read(&entry.path)?;
                sink.file(entry, &mut content)?;
            }
        }
        Ok(())
    }
}
