//! WAL of two timelines with restore points on both, looked at all at once and bit by bit.

use super::*;
use crate::backup::testdata::{self as source, SeededClock, Source};
use crate::storage::SharedStorage;
use crate::storage::memory::MemoryStorage;
use std::sync::Arc;

struct Fixture {
    repository: Repository,
    label: Label,
}

impl Fixture {
    fn new() -> Self {
        let storage: SharedStorage = Arc::new(MemoryStorage::new());
        let clock = SeededClock::shared(1);
        crate::repository::create(&storage, clock.as_ref()).unwrap();
        let repository = Repository::open("points", storage).unwrap();
        for (file, bytes) in source::wal_files() {
            source::push(&repository, file, &bytes, &clock).unwrap();
        }
        let label = Source::new().back_up(&repository, &clock).unwrap();
        Self { repository, label }
    }

    fn inventory(&self) -> Inventory {
        Inventory::load(&self.repository, self.label.system_identifier).unwrap()
    }

    fn look(&self, points: &mut Points, segments_max: usize) {
        points.begin(segments_max);
        let (inventory, size) = (self.inventory(), self.label.segment_size);
        let labels = [self.label.clone()];
        points
            .look(&self.repository, (&inventory, size), &labels)
            .unwrap();
    }
}

fn names(points: &Points) -> Vec<(u32, String)> {
    let found = points.found.iter();
    found
        .map(|((_, timeline, _), point)| (timeline.0, point.name.clone()))
        .collect()
}

#[test]
fn bit_by_bit_is_as_all_at_once() {
    let fixture = Fixture::new();
    let mut whole = Points::default();
    fixture.look(&mut whole, usize::MAX);
    assert!(!whole.is_behind && whole.has_news);
    let found = names(&whole);
    assert!(
        found.iter().any(|(timeline, _)| *timeline == 1),
        "{found:?}"
    );
    assert!(
        found.iter().any(|(timeline, _)| *timeline == 2),
        "{found:?}"
    );
    // Where the record ends, as SQL has it.
    for ((_, _, lsn), point) in &whole.found {
        assert!(*lsn == point.end_lsn && point.lsn < *lsn);
    }

    let mut slow = Points::default();
    let mut looks = 0;
    loop {
        fixture.look(&mut slow, 1);
        looks += 1;
        if !slow.is_behind {
            break;
        }
        assert!(looks < 100);
    }
    assert!(looks > 2, "{looks}");
    assert_eq!(names(&slow), found);
    assert_eq!(slow.seen, whole.seen);

    // Nothing is read twice, and there is no news of it.
    slow.has_news = false;
    fixture.look(&mut slow, usize::MAX);
    assert!(!slow.is_behind && !slow.has_news);
}

#[test]
fn what_the_repository_has_no_more_is_forgotten() {
    let fixture = Fixture::new();
    let mut points = Points::default();
    fixture.look(&mut points, usize::MAX);
    points.has_news = false;
    let system_id = fixture.label.system_identifier;
    let old = NamedPoint {
        name: "old".to_owned(),
        lsn: Lsn(1),
        end_lsn: Lsn(2),
        timeline: TimelineId(1),
        time: None,
    };
    points
        .found
        .insert((system_id, TimelineId(1), Lsn(2)), old.clone());
    // Of a timeline that is gone as a whole; and of another cluster, which is not looked at here.
    points
        .found
        .insert((system_id, TimelineId(9), Lsn(2)), old.clone());
    points
        .found
        .insert((SystemId(1), TimelineId(1), Lsn(2)), old);
    fixture.look(&mut points, usize::MAX);
    let old = points.found.iter().filter(|(_, point)| point.name == "old");
    let old: Vec<SystemId> = old.map(|((system_id, _, _), _)| *system_id).collect();
    assert_eq!(old, [SystemId(1)]);
    assert!(points.has_news);
}
