//! Recovery from wherever the repository is.
//!
//! What: the scenes of `t100` to `t105` as they are (every recovery target, the ends of the window with
//! an agent at work, timelines, in place and delta restores, what a cluster may hold, configuration
//! outside), with the repository in a bucket of moto, in one of radosgw, in a directory of sshd; encrypted
//! and not; on 15 and 17. All of it in the full tier; otherwise one scene or two each.
//! Trap: what assumes a file system (names, order, a rename, a length that is known, one key for all
//! processes) passes with a directory and nowhere else; one scene on one storage finds it by luck.
//! Expectation: as with a directory, to the byte; nothing is written where the directory would have been.

use crate::{
    t100_targets, t101_window, t102_timelines, t103_in_place, t104_contents, t105_layouts,
};
use pgark_regress::place::Place;
use pgark_regress::{Major, TestDirectory, tier};

type Scene = (&'static str, fn(&TestDirectory, Major));

const SCENES: [Scene; 10] = [
    ("targets", t100_targets::targets),
    ("window", t101_window::window),
    ("timelines", t102_timelines::timelines),
    ("in_place", t103_in_place::in_place),
    ("delta", t103_in_place::delta_writes_little),
    ("contents", t104_contents::contents),
    ("again", t105_layouts::restored_and_backed_up_again),
    ("outside", t105_layouts::outside_configuration),
    ("renamed", t105_layouts::another_name_of_the_data_directory),
    ("linked", t105_layouts::linked_configuration),
];

/// What of a place is run: `quick` are the scenes outside the full tier.
struct Cell {
    name: &'static str,
    start: fn(&TestDirectory) -> Place,
    is_encrypted: bool,
    major: Major,
    quick: &'static [&'static str],
}

impl Cell {
    fn run(&self) {
        if self.quick.is_empty() && !tier::needs_full() {
            return;
        }
        let wanted = |name: &str| tier::is_full() || self.quick.contains(&name);
        let beside = TestDirectory::new(&format!("t460_{}_{}", self.name, self.major));
        let place = (self.start)(&beside);
        let mut count = 0;
        for (name, scene) in SCENES.into_iter().filter(|(name, _)| wanted(name)) {
            println!("{name} on {} {}", self.name, self.major);
            let test = format!("t460_{}_{}_{name}", self.name, self.major);
            let directory = TestDirectory::new(&test);
            place.keep(&directory, name);
            if self.is_encrypted {
                directory.set_encrypted();
            }
            scene(&directory, self.major);
            assert!(!directory.join("repository").exists(), "{name}");
            place.assert_left();
            count += 1;
        }
        println!("cases: scenes of recovery on {} {count}", self.name);
    }
}

fn moto(major: Major, quick: &'static [&'static str]) -> Cell {
    Cell {
        name: "moto",
        start: Place::moto,
        is_encrypted: false,
        major,
        quick,
    }
}

fn radosgw(major: Major) -> Cell {
    Cell {
        name: "radosgw",
        start: Place::radosgw,
        is_encrypted: false,
        major,
        quick: &[],
    }
}

fn sftp(major: Major, quick: &'static [&'static str]) -> Cell {
    Cell {
        name: "sftp",
        start: Place::sftp,
        is_encrypted: false,
        major,
        quick,
    }
}

fn encrypted(name: &'static str, cell: Cell) -> Cell {
    Cell {
        name,
        is_encrypted: true,
        ..cell
    }
}

#[test]
fn moto_15() {
    moto(Major::Pg15, &["targets", "timelines"]).run();
}

#[test]
fn moto_17() {
    moto(Major::Pg17, &[]).run();
}

#[test]
fn moto_encrypted_15() {
    encrypted("moto-encrypted", moto(Major::Pg15, &["linked"])).run();
}

#[test]
fn moto_encrypted_17() {
    encrypted("moto-encrypted", moto(Major::Pg17, &[])).run();
}

#[test]
fn radosgw_15() {
    radosgw(Major::Pg15).run();
}

#[test]
fn radosgw_17() {
    radosgw(Major::Pg17).run();
}

#[test]
fn radosgw_encrypted_15() {
    encrypted("radosgw-encrypted", radosgw(Major::Pg15)).run();
}

#[test]
fn radosgw_encrypted_17() {
    encrypted("radosgw-encrypted", radosgw(Major::Pg17)).run();
}

#[test]
fn sftp_15() {
    sftp(Major::Pg15, &["targets", "again"]).run();
}

#[test]
fn sftp_17() {
    sftp(Major::Pg17, &[]).run();
}

#[test]
fn sftp_encrypted_15() {
    encrypted("sftp-encrypted", sftp(Major::Pg15, &["timelines"])).run();
}

#[test]
fn sftp_encrypted_17() {
    encrypted("sftp-encrypted", sftp(Major::Pg17, &[])).run();
}
