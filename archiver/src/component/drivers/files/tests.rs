use super::*;
use crate::backup::testdata::SeededClock;
use crate::cancel::CancelToken;
use crate::clock::SharedClock;
use crate::component::backup::Options;
use crate::component::restore;
use crate::component::source::{OpenSource, open_in};
use crate::component::testdata::{NAME, noise, take};
use crate::repository::Repository;
use crate::storage::SharedStorage;
use crate::storage::memory::MemoryStorage;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use std::sync::Arc;

struct World {
    directory: tempfile::TempDir,
    clock: SharedClock,
    repository: Repository,
}

impl World {
    fn new() -> Self {
        let clock = SeededClock::shared(1);
        let storage: SharedStorage = Arc::new(MemoryStorage::new());
        crate::repository::create(&storage, clock.as_ref()).unwrap();
        Self {
            directory: tempfile::tempdir().unwrap(),
            repository: Repository::open("one", storage).unwrap(),
            clock,
        }
    }

    fn path(&self, below: &str) -> std::path::PathBuf {
        self.directory.path().canonicalize().unwrap().join(below)
    }

    fn driver(&self, more: &str) -> Files {
        let text = format!("paths = [\"{}\"]\n{more}", self.path("tree").display());
        Files::open(NAME, &text.parse().unwrap()).unwrap()
    }

    fn back_up(&self, driver: &Files) -> crate::component::backup::Outcome {
        let repositories = [self.repository.clone()];
        take(driver, &repositories, &self.clock, &Options::default()).unwrap()
    }

    fn source(&self) -> OpenSource {
        let one = std::slice::from_ref(&self.repository);
        open_in(one, None, NAME, None, &self.clock).unwrap()
    }

    fn restore(&self, driver: &Files, request: &Request) -> Result<(Vec<String>, Evidence)> {
        let (cancel, scratch) = (CancelToken::default(), tempfile::tempdir().unwrap());
        let context = Context {
            component: NAME,
            cancel: &cancel,
            scratch: scratch.path(),
        };
        let source = self.source();
        restore::check_kind(NAME, driver, &source)?;
        let notes = driver.restore(&context, &source, request)?;
        Ok((notes, driver.evidence(&context, &source, request)?))
    }
}

fn write(path: &Path, content: &[u8], mode: u32) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// False: the file system has no extended attributes.
fn mark(path: &Path, value: &[u8]) -> bool {
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(path, "user.origin", value, flags).is_ok()
}

fn to(place: &Path) -> Request {
    Request {
        to: Some(place.display().to_string()),
        ..Request::default()
    }
}

fn in_place() -> Request {
    Request {
        overwrite: true,
        ..Request::default()
    }
}

/// Everything that a tree can have.
fn grow(tree: &Path) {
    write(&tree.join("a/small"), b"small", 0o4640);
    write(&tree.join("a/large"), &noise(3 << 20, 1), 0o600);
    write(&tree.join("a-b"), b"", 0o444);
    let odd = OsStr::from_bytes(b"n\xff\xfe\nl");
    write(&tree.join(odd), b"odd", 0o600);
    write(&tree.join("x".repeat(255)), b"long", 0o600);
    fs::hard_link(tree.join("a/small"), tree.join("zz-link")).unwrap();
    symlink("/etc/passwd", tree.join("outside")).unwrap();
    symlink("nowhere", tree.join("a/dangling")).unwrap();
    let sparse = fs::File::create(tree.join("sparse")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"end", 40 << 20).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        tree.join("pipe").as_path(),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o620),
        0,
    )
    .unwrap();
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(tree.join("a/large"), Some(1234), Some(999)).unwrap();
    }
    let old =
        std::time::SystemTime::UNIX_EPOCH + std::time::Duration::new(981_173_106, 123_456_789);
    let file = fs::File::open(tree.join("a/large")).unwrap();
    file.set_modified(old).unwrap();
    fs::set_permissions(tree.join("a"), fs::Permissions::from_mode(0o751)).unwrap();
    fs::File::open(tree.join("a"))
        .unwrap()
        .set_modified(old)
        .unwrap();
}

use std::ffi::OsStr;

#[test]
fn a_tree_comes_back_with_all_it_had() {
    let world = World::new();
    let (tree, driver) = (world.path("tree"), world.driver(""));
    grow(&tree);
    let supports_xattrs = rustix::fs::setxattr(
        tree.join("a/small").as_path(),
        "user.origin",
        b"\x00here",
        rustix::fs::XattrFlags::empty(),
    )
    .is_ok();
    world.back_up(&driver);
    let target = world.path("restored");
    let (notes, evidence) = world.restore(&driver, &to(&target)).unwrap();
    assert!(evidence.ok, "{evidence:#?}\n{notes:?}");
    let at = |name: &str| target.join(tree.strip_prefix("/").unwrap()).join(name);
    let small = fs::metadata(at("a/small")).unwrap();
    assert_eq!(small.ino(), fs::metadata(at("zz-link")).unwrap().ino());
    assert_eq!(small.mode() & 0o7777, 0o4640);
    assert_eq!(
        fs::read_link(at("outside")).unwrap(),
        Path::new("/etc/passwd")
    );
    let sparse = fs::metadata(at("sparse")).unwrap();
    assert_eq!(sparse.len(), (40 << 20) + 3);
    assert!(
        sparse.blocks() * 512 < 1 << 20,
        "{} blocks",
        sparse.blocks()
    );
    let large = fs::metadata(at("a/large")).unwrap();
    assert_eq!(
        (large.mtime(), large.mtime_nsec()),
        (981_173_106, 123_456_789)
    );
    let directory = fs::metadata(at("a")).unwrap();
    assert_eq!(
        (directory.mtime(), directory.mode() & 0o777),
        (981_173_106, 0o751)
    );
    if rustix::process::geteuid().is_root() {
        assert_eq!((large.uid(), large.gid()), (1234, 999));
    }
    if supports_xattrs {
        let mut value = vec![0; 64];
        let len =
            rustix::fs::getxattr(at("a/small").as_path(), "user.origin", &mut *value).unwrap();
        assert_eq!(&value[..len], b"\x00here");
    }
    // A difference is seen, whatever it is.
    fs::write(at("a/small"), b"smalL").unwrap();
    let evidence = {
        let (cancel, scratch) = (CancelToken::default(), tempfile::tempdir().unwrap());
        let context = Context {
            component: NAME,
            cancel: &cancel,
            scratch: scratch.path(),
        };
        driver
            .evidence(&context, &world.source(), &to(&target))
            .unwrap()
    };
    assert!(!evidence.ok);
    // Nothing is replaced that nobody said may be.
    let error = world.restore(&driver, &to(&target)).unwrap_err();
    assert_eq!(error.code(), "would_overwrite");
    let place = target.display().to_string();
    assert!(error.to_string().contains(&place), "{error}");
    assert!(error.hint().unwrap().contains("--yes --no-safety-backup"));
}

#[test]
fn unchanged_files_are_not_read_again() {
    let world = World::new();
    let (tree, driver) = (world.path("tree"), world.driver(""));
    grow(&tree);
    let supports_xattrs = mark(&tree.join("a-b"), b"first");
    // Files that changed a moment ago are not told from files that change just now.
    std::thread::sleep(std::time::Duration::from_millis(3200));
    world.back_up(&driver);
    let second = world.back_up(&driver);
    // At the most a table in which another name of the same file comes first.
    assert!(
        second.label.bytes_stored < 4000,
        "{}",
        second.label.bytes_stored
    );
    assert_eq!(second.point.position["files_read"], 0);
    // Of those that have several names attributes are read again.
    let (unchanged, kept) = ("files_unchanged", "attributes_kept");
    let count = |name: &str| second.point.position[name].as_u64().unwrap();
    assert_eq!((count(unchanged), count(kept)), (6, 5));
    let restored = |to_place: &str| {
        let target = world.path(to_place);
        assert!(world.restore(&driver, &to(&target)).unwrap().1.ok);
        let path = target.join(tree.strip_prefix("/").unwrap()).join("a-b");
        let mut value = vec![0; 64];
        let len = rustix::fs::getxattr(path.as_path(), "user.origin", &mut *value).unwrap_or(0);
        value.truncate(len);
        value
    };
    let first = restored("second");
    assert!(!supports_xattrs || first == b"first", "{first:?}");
    write(&tree.join("a/small"), b"SMALL", 0o640);
    mark(&tree.join("a-b"), b"other");
    let third = world.back_up(&driver);
    assert_eq!(
        third.point.position["files_read"],
        if supports_xattrs { 2 } else { 1 },
        "its two names are one"
    );
    let other = restored("third");
    assert!(!supports_xattrs || other == b"other", "{other:?}");
}

#[test]
fn in_place_everything_is_as_it_was_and_what_is_excluded_stays() {
    let world = World::new();
    let (tree, driver) = (
        world.path("tree"),
        world.driver("exclude = [\"*.tmp\", \"cache/**\"]"),
    );
    write(&tree.join("keep/a"), b"a", 0o600);
    write(&tree.join("gone/b"), b"b", 0o600);
    write(&tree.join("wrecked"), b"good", 0o600);
    write(&tree.join("note.tmp"), b"never saved", 0o600);
    let outcome = world.back_up(&driver);
    assert_eq!(outcome.label.file_count, 3);
    fs::remove_dir_all(tree.join("gone")).unwrap();
    fs::remove_file(tree.join("wrecked")).unwrap();
    // A directory where a file was, and a file and a tree that are new.
    write(&tree.join("wrecked/inner"), b"bad", 0o600);
    write(&tree.join("new/deep/c"), b"c", 0o600);
    write(&tree.join("other/d.tmp"), b"excluded", 0o600);
    let refused = world.restore(&driver, &Request::default()).unwrap_err();
    assert_eq!(refused.code(), "would_overwrite");
    assert!(tree.join("new/deep/c").exists(), "nothing was changed");
    let (notes, evidence) = world.restore(&driver, &in_place()).unwrap();
    assert!(evidence.ok, "{evidence:#?}");
    assert_eq!(fs::read(tree.join("wrecked")).unwrap(), b"good");
    assert!(!tree.join("new").exists());
    assert!(tree.join("note.tmp").exists() && tree.join("other/d.tmp").exists());
    assert!(
        notes.iter().any(|note| note.contains("removed")),
        "{notes:?}"
    );
}

#[test]
fn one_path_comes_alone() {
    let world = World::new();
    let (tree, driver) = (world.path("tree"), world.driver(""));
    write(&tree.join("docs/a.txt"), b"a", 0o600);
    write(&tree.join("docs/b.pdf"), b"b", 0o600);
    fs::hard_link(tree.join("docs/a.txt"), tree.join("zlink")).unwrap();
    world.back_up(&driver);
    fs::write(tree.join("docs/a.txt"), b"changed").unwrap();
    fs::write(tree.join("docs/b.pdf"), b"changed").unwrap();
    let select = |pattern: String| Request {
        select: vec![pattern],
        ..in_place()
    };
    let path = tree.join("docs/a.txt").display().to_string();
    assert!(world.restore(&driver, &select(path)).unwrap().1.ok);
    assert_eq!(fs::read(tree.join("docs/a.txt")).unwrap(), b"a");
    assert_eq!(fs::read(tree.join("docs/b.pdf")).unwrap(), b"changed");
    let pattern = format!("{}/**/*.pdf", tree.display());
    assert!(world.restore(&driver, &select(pattern)).unwrap().1.ok);
    assert_eq!(fs::read(tree.join("docs/b.pdf")).unwrap(), b"b");
    // A second name whose first is not selected has the content all the same.
    fs::remove_file(tree.join("zlink")).unwrap();
    let link = tree.join("zlink").display().to_string();
    world.restore(&driver, &select(link)).unwrap();
    assert_eq!(fs::read(tree.join("zlink")).unwrap(), b"a");
    fs::write(tree.join("docs/b.pdf"), b"changed").unwrap();
    assert!(
        world
            .restore(&driver, &select("/".to_owned()))
            .unwrap()
            .1
            .ok
    );
    assert_eq!(fs::read(tree.join("docs/b.pdf")).unwrap(), b"b");
    let error = world
        .restore(&driver, &select("/nowhere".to_owned()))
        .unwrap_err();
    assert_eq!(error.code(), "nothing_selected");
    let error = world.restore(&driver, &select(String::new())).unwrap_err();
    assert_eq!(error.code(), "nothing_selected");
}

#[test]
fn nobody_leads_a_restore_out_of_its_target() {
    let world = World::new();
    let (tree, driver) = (world.path("tree"), world.driver(""));
    write(&tree.join("sub/file"), b"mine", 0o600);
    world.back_up(&driver);
    let outside = world.path("outside");
    write(&outside.join("file"), b"not yours", 0o600);
    fs::remove_dir_all(tree.join("sub")).unwrap();
    symlink(&outside, tree.join("sub")).unwrap();
    // In place the link itself is replaced by the directory.
    let (_, evidence) = world.restore(&driver, &in_place()).unwrap();
    assert!(evidence.ok);
    assert_eq!(fs::read(outside.join("file")).unwrap(), b"not yours");
    assert!(fs::symlink_metadata(tree.join("sub")).unwrap().is_dir());
    // One path alone does not go over it.
    fs::remove_dir_all(tree.join("sub")).unwrap();
    symlink(&outside, tree.join("sub")).unwrap();
    let request = Request {
        select: vec![tree.join("sub/file").display().to_string()],
        ..in_place()
    };
    let error = world.restore(&driver, &request).unwrap_err();
    assert_eq!(error.code(), "symlink_in_target");
    assert_eq!(fs::read(outside.join("file")).unwrap(), b"not yours");
}

#[test]
fn secrets_are_masked_and_never_put_over_real_ones() {
    let world = World::new();
    let (tree, driver) = (world.path("tree"), world.driver("redact = [\"*.env\"]"));
    write(&tree.join("app.env"), b"PASSWORD=hunter2\n", 0o600);
    write(&tree.join("plain"), b"x", 0o600);
    let outcome = world.back_up(&driver);
    let notes = outcome.point.notes.join("\n");
    assert!(
        notes.contains("masked") && notes.contains("app.env"),
        "{notes}"
    );
    for object in world.repository.storage().list("").unwrap() {
        let bytes = world
            .repository
            .storage()
            .get(&object.key, u64::MAX)
            .unwrap();
        assert!(!bytes.windows(7).any(|w| w == b"hunter2"), "{}", object.key);
    }
    let (notes, evidence) = world.restore(&driver, &in_place()).unwrap();
    assert!(evidence.ok);
    assert_eq!(
        fs::read(tree.join("app.env")).unwrap(),
        b"PASSWORD=hunter2\n"
    );
    assert!(
        notes.iter().any(|note| note.contains("app.env")),
        "{notes:?}"
    );
    // Elsewhere, and where it is missing, the keys tell what has to be set.
    fs::remove_file(tree.join("app.env")).unwrap();
    world.restore(&driver, &in_place()).unwrap();
    assert_eq!(
        fs::read(tree.join("app.env")).unwrap(),
        b"PASSWORD=********\n"
    );
}

#[test]
fn what_changes_or_goes_meanwhile_is_noted() {
    let world = World::new();
    let (tree, driver) = (world.path("tree"), world.driver(""));
    let path = tree.join("growing");
    write(&path, &noise(1 << 20, 1), 0o600);
    let stop = CancelToken::default();
    let noted = std::thread::scope(|scope| {
        scope.spawn(|| {
            use std::io::Write as _;
            let mut file = fs::File::options().append(true).open(&path).unwrap();
            while !stop.is_cancelled() {
                file.write_all(b"more").unwrap();
                std::thread::sleep(std::time::Duration::from_micros(50));
                if file.metadata().unwrap().len() > 64 << 20 {
                    file.set_len(1 << 20).unwrap();
                }
            }
        });
        for n in 0..200 {
            write(&tree.join(format!("f{n}")), &noise(100_000, n), 0o600);
        }
        // On a busy machine the writer may sleep through a whole backup.
        let mut outcomes = (0..50).map(|_| world.back_up(&driver).point.notes.join("\n"));
        let noted = outcomes.find(|notes| notes.contains("changed while they were read"));
        stop.cancel();
        noted
    });
    assert!(noted.is_some());
    // It is there all the same, as it was at some instants.
    let place = world.path("restored");
    world.restore(&driver, &to(&place)).unwrap();
}

#[test]
fn sections_are_strict_and_paths_are_checked() {
    let open = |text: &str| Files::open(NAME, &text.parse().unwrap());
    for (text, word) in [
        ("paths = []", "empty"),
        ("paths = [\"relative\"]", "absolute"),
        ("paths = [\"/a/../b\"]", "absolute"),
        ("paths = [\"/\"]", "absolute"),
        ("paths = [\"/a\", \"/a/b\"]", "within"),
        ("paths = [\"/a\"]\nredakt = []", "redakt"),
        ("paths = [\"/a\"]\nexclude = [\"[\"]", "pattern"),
        ("paths = [\"/a\"]\nexclude = [\"a/\"]", "matches nothing"),
        ("paths = [\"/a\"]\nredact = [\"\"]", "matches nothing"),
    ] {
        let error = open(text).unwrap_err();
        assert_eq!(error.code(), "config_invalid");
        assert!(error.to_string().contains(word), "{text}: {error}");
    }
    let world = World::new();
    let driver = world.driver("");
    let (cancel, scratch) = (CancelToken::default(), tempfile::tempdir().unwrap());
    let context = Context {
        component: NAME,
        cancel: &cancel,
        scratch: scratch.path(),
    };
    let lines = driver.check(&context).unwrap();
    assert!(!lines[0].ok && !lines[0].hint.is_empty(), "{lines:?}");
    let repositories = [world.repository.clone()];
    let take = || take(&driver, &repositories, &world.clock, &Options::default());
    assert_eq!(take().unwrap_err().code(), "all_paths_missing");
    symlink("/etc", world.path("tree")).unwrap();
    assert_eq!(take().unwrap_err().code(), "path_is_symlink");
}

fn the_note<'n>(notes: &'n [String], what: &str) -> &'n str {
    let note = notes.iter().find(|note| note.starts_with(what));
    note.unwrap_or_else(|| panic!("no \"{what}\" in {notes:?}"))
}

/// What was moved aside of `name`.
fn aside_of(directory: &Path, name: &str) -> std::path::PathBuf {
    let names = fs::read_dir(directory).unwrap().map(|one| one.unwrap());
    let start = format!("{name}.before-");
    let mut found = names.filter(|one| one.file_name().to_string_lossy().starts_with(&start));
    let only = found.next().expect("nothing was moved aside").path();
    assert!(found.next().is_none());
    only
}

#[test]
fn values_that_no_backup_has_are_not_lost() {
    let world = World::new();
    let (tree, driver) = (world.path("tree"), world.driver("redact = [\"*.env\"]"));
    write(&tree.join("docs/app.env"), b"PASSWORD=hunter2\n", 0o640);
    world.back_up(&driver);
    // What is newer than the backup goes, and what would be gone for good stays.
    write(&tree.join("docs/fresh.env"), b"TOKEN=fresh\n", 0o600);
    write(&tree.join("docs/new"), b"new", 0o600);
    let (notes, evidence) = world.restore(&driver, &in_place()).unwrap();
    assert!(evidence.ok, "{evidence:#?}");
    let fresh = fs::read(tree.join("docs/fresh.env")).unwrap();
    assert_eq!(fresh, b"TOKEN=fresh\n");
    assert!(!tree.join("docs/new").exists());
    assert!(the_note(&notes, "left, though").contains("docs/fresh.env"));
    assert!(!the_note(&notes, "removed").contains("fresh.env"));
    // Who names the masked file gets it, and the real one stays beside it.
    let request = Request {
        select: vec![tree.join("docs/app.env").display().to_string()],
        ..in_place()
    };
    let (notes, _) = world.restore(&driver, &request).unwrap();
    let masked = fs::read(tree.join("docs/app.env")).unwrap();
    assert_eq!(masked, b"PASSWORD=********\n");
    let aside = aside_of(&tree.join("docs"), "app.env");
    let name = aside.file_name().unwrap().to_str().unwrap().to_owned();
    assert!(the_note(&notes, "moved aside").contains(&name), "{notes:?}");
    assert_eq!(fs::read(&aside).unwrap(), b"PASSWORD=hunter2\n");
    assert_eq!(fs::metadata(&aside).unwrap().mode() & 0o777, 0o640);
    // It is masked under that name, too, and no restore removes it.
    let outcome = world.back_up(&driver);
    assert!(the_note(&outcome.point.notes, "values were masked").contains(&name));
    let target = world.path("restored");
    world.restore(&driver, &to(&target)).unwrap();
    let there = target.join(aside.strip_prefix("/").unwrap());
    assert_eq!(fs::read(there).unwrap(), b"PASSWORD=********\n");
    assert!(world.restore(&driver, &in_place()).unwrap().1.ok);
    assert_eq!(fs::read(&aside).unwrap(), b"PASSWORD=hunter2\n");
}

#[test]
fn what_takes_the_place_of_masked_or_excluded_files_moves_them_aside() {
    let world = World::new();
    let tree = world.path("tree");
    write(&tree.join("app.env"), b"PASSWORD=old\n", 0o600);
    write(&tree.join("w"), b"a file", 0o600);
    write(&tree.join("d/x"), b"in a directory", 0o600);
    write(&tree.join("note.tmp"), b"old", 0o600);
    world.back_up(&world.driver(""));
    // Since then the section masks and excludes.
    let driver = world.driver("redact = [\"*.env\", \"d\"]\nexclude = [\"*.tmp\"]");
    fs::write(tree.join("app.env"), b"PASSWORD=new\n").unwrap();
    fs::write(tree.join("note.tmp"), b"new").unwrap();
    fs::remove_file(tree.join("w")).unwrap();
    write(&tree.join("w/deep/inner.env"), b"TOKEN=s\n", 0o600);
    fs::remove_dir_all(tree.join("d")).unwrap();
    write(&tree.join("d"), b"KEY=s\n", 0o600);
    let (_, evidence) = world.restore(&driver, &in_place()).unwrap();
    assert!(evidence.ok, "{evidence:#?}");
    let now = |name: &str| fs::read(tree.join(name)).unwrap();
    assert_eq!(now("app.env"), b"PASSWORD=old\n");
    assert_eq!(now("w"), b"a file");
    assert_eq!(now("d/x"), b"in a directory");
    assert_eq!(now("note.tmp"), b"old");
    let before = |name: &str| aside_of(&tree, name);
    assert_eq!(fs::read(before("app.env")).unwrap(), b"PASSWORD=new\n");
    assert_eq!(fs::read(before("d")).unwrap(), b"KEY=s\n");
    assert_eq!(fs::read(before("note.tmp")).unwrap(), b"new");
    let inner = before("w").join("deep/inner.env");
    assert_eq!(fs::read(inner).unwrap(), b"TOKEN=s\n");
}

#[test]
fn another_name_does_not_unmask_nor_is_masked() {
    let world = World::new();
    let tree = world.path("tree");
    let driver = world.driver("redact = [\"*.key\"]");
    const PLAIN: &[u8] = b"SECRET=hunter2\n";
    const MASKED: &[u8] = b"SECRET=********\n";
    // Whichever comes first.
    write(&tree.join("sec/a-plain"), PLAIN, 0o600);
    write(&tree.join("two/a.key"), PLAIN, 0o600);
    for (from, to) in [
        ("sec/a-plain", "sec/y.key"),
        ("two/a.key", "two/b.key"),
        ("two/a.key", "two/z-plain"),
        ("two/a.key", "two/zz-plain"),
    ] {
        fs::hard_link(tree.join(from), tree.join(to)).unwrap();
    }
    let outcome = world.back_up(&driver);
    let masked = the_note(&outcome.point.notes, "values were masked");
    let in_clear = the_note(&outcome.point.notes, "stored with their values");
    for name in ["sec/y.key", "two/a.key", "two/b.key"] {
        assert!(masked.contains(name), "{masked}");
    }
    for name in ["sec/a-plain", "two/z-plain"] {
        assert!(in_clear.contains(name), "{in_clear}");
        assert!(!masked.contains(name), "{masked}");
    }
    let target = world.path("restored");
    let (_, evidence) = world.restore(&driver, &to(&target)).unwrap();
    assert!(evidence.ok, "{evidence:#?}");
    let at = |name: &str| target.join(tree.strip_prefix("/").unwrap()).join(name);
    for name in ["sec/y.key", "two/a.key", "two/b.key"] {
        assert_eq!(fs::read(at(name)).unwrap(), MASKED, "{name}");
    }
    for name in ["sec/a-plain", "two/z-plain", "two/zz-plain"] {
        assert_eq!(fs::read(at(name)).unwrap(), PLAIN, "{name}");
    }
    let inode = |name: &str| fs::metadata(at(name)).unwrap().ino();
    assert_eq!(inode("two/z-plain"), inode("two/zz-plain"));
    assert_ne!(inode("two/z-plain"), inode("two/a.key"));
}
