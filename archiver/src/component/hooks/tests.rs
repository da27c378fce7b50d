use super::*;

fn hook<'a>(argv: &'a [String], seconds: u64) -> Hook<'a> {
    Hook {
        what: "before_backup",
        component: Some("cache"),
        argv,
        timeout: Duration::from_secs(seconds),
        environment: vec![("PGARK_SET", "a $(touch x) b".to_owned())],
    }
}

fn shell(script: &str) -> Vec<String> {
    ["/bin/sh", "-c", script].map(str::to_owned).to_vec()
}

#[test]
fn data_comes_by_environment_and_is_not_interpreted() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("seen");
    let script = format!(
        "printf '%s|%s|%s' \"$PGARK_HOOK\" \"$PGARK_COMPONENT\" \"$PGARK_SET\" > {}",
        path.display()
    );
    hook(&shell(&script), 30).run(None).unwrap();
    let seen = std::fs::read_to_string(path).unwrap();
    assert_eq!(seen, "before_backup|cache|a $(touch x) b");
    hook(&[], 30).run(None).unwrap();
}

#[test]
fn a_failure_says_what_the_command_said() {
    let error = hook(&shell("echo no such unit >&2; exit 3"), 30)
        .run(None)
        .unwrap_err();
    assert_eq!(error.code(), "hook_failed");
    assert!(error.detail().unwrap().contains("no such unit"));
    let missing = vec!["/nonexistent/program".to_owned()];
    assert_eq!(
        hook(&missing, 30).run(None).unwrap_err().code(),
        "hook_not_started"
    );
}

/// The child of a shell that ignores SIGTERM: the whole group has to go.
#[test]
fn one_that_hangs_is_killed_with_its_children() {
    let directory = tempfile::tempdir().unwrap();
    let pid = directory.path().join("pid");
    let script = format!(
        "trap '' TERM; sleep 600 & echo $! > {}; wait; sleep 600",
        pid.display()
    );
    let began = Instant::now();
    let error = hook(&shell(&script), 1).run(None).unwrap_err();
    assert_eq!(error.code(), "hook_timeout");
    assert!(began.elapsed() < Duration::from_secs(60));
    let child: i32 = std::fs::read_to_string(pid)
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    let end = deadline(Duration::from_secs(30));
    let gone = || {
        // Nobody may have reaped it yet: a zombie runs no more.
        let stat = std::fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
        stat.is_empty() || stat.contains(") Z ")
    };
    while !gone() {
        assert!(Instant::now() < end, "the child still runs");
        std::thread::sleep(POLL);
    }
}

#[test]
fn the_user_can_cancel_one() {
    let cancel = CancelToken::default();
    cancel.cancel();
    let error = hook(&shell("sleep 600"), 600)
        .run(Some(&cancel))
        .unwrap_err();
    assert_eq!(error.code(), "cancelled");
}

/// What a hook leaves running in the background goes on.
#[test]
fn a_service_that_it_started_lives_on() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("alive");
    let script = format!(
        "(sleep 0.3; echo line; echo line; touch {}) & exit 0",
        path.display()
    );
    hook(&shell(&script), 30).run(None).unwrap();
    let end = deadline(Duration::from_secs(30));
    while !path.exists() {
        assert!(Instant::now() < end, "it was killed");
        std::thread::sleep(POLL);
    }
}

#[test]
fn a_process_is_told_from_the_next_one_of_its_number() {
    let mut child = Command::new("/bin/sh")
        .args(["-c", "sleep 600; true"])
        .process_group(0)
        .spawn()
        .unwrap();
    let process = Process::of(child.id()).unwrap();
    assert!(process.is_alive());
    let text = serde_json::to_string(&process).unwrap();
    let started = serde_json::to_value(&process).unwrap()["started"]
        .as_u64()
        .unwrap();
    let earlier = text.replace(
        &format!("\"started\":{started}"),
        &format!("\"started\":{}", started - 1),
    );
    let earlier: Process = serde_json::from_str(&earlier).unwrap();
    assert_ne!(earlier, process);
    assert!(!earlier.is_alive() && earlier.end());
    assert!(process.is_alive(), "another one of its number was ended");
    assert!(process.end());
    assert!(!child.wait().unwrap().success());
    assert!(!process.is_alive());
}

#[test]
fn one_that_cannot_be_noted_is_ended() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ran");
    let script = format!("sleep 1; touch {}", path.display());
    let full = |_| Err(Error::unavailable("full", "no space"));
    let error = hook(&shell(&script), 30).run_noted(None, &full);
    assert_eq!(error.unwrap_err().code(), "full");
    assert!(!path.exists());
    let pid = std::sync::Mutex::new(None);
    let noted = |process| {
        *pid.lock().unwrap() = Some(process);
        Ok(())
    };
    hook(&shell("exit 0"), 30).run_noted(None, &noted).unwrap();
    let process = pid.lock().unwrap().take().unwrap();
    assert!(!process.is_alive());
}
