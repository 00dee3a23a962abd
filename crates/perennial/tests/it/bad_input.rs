//! Bad input gets a clear answer and loses nothing: every test mends what was wrong, and ends with the whole result, once.

use std::process::Command;

use crate::support::{Home, Running, code, stderr, stdout};

/// Copies numbers; what fails is tried again at once.
const COPY: &str = "\
name: copy
sources:
  input:
    files: { path: in, settle: 0s, max_files_per_batch: 1 }
    format: json
    schema: id BIGINT, at TIMESTAMP
    watermark: { column: at, delay: 0s }
queries:
  q:
    sql: SELECT id FROM input
    sink: { files: { path: out, format: json } }
checkpoint: checkpoint
dead_letters: { path: dlq }
retry: { initial: 10ms, max: 20ms }
circuit_breaker: { open_for: 20ms }
http: { enabled: false }
";

#[test]
fn a_wrong_job_file_is_refused_before_it_touches_anything() {
    let home = Home::new(COPY);
    home.give(0..10);
    assert_eq!(code(&home.run()), 0);
    home.give(10..20);
    let before = (home.files_below("checkpoint"), home.files_below("out"), home.files_below("dlq"));
    for (part, replacement, said) in [
        (
            "watermark:",
            "watermrk:",
            &["unknown key `watermrk`", "job.yaml:7:5 (sources.input.watermrk)", "did you mean `watermark`?"][..],
        ),
        (
            "max_files_per_batch: 1",
            "max_files_per_batch: one",
            &[
                "expected a whole number, 0 or more, found `one`",
                "job.yaml:4:57 (sources.input.files.max_files_per_batch)",
            ],
        ),
        ("delay: 0s }", "delay: 0s", &["this is not YAML", "--> job.yaml:8:"]),
        ("id BIGINT,", "id BIGGINT,", &["this schema is not Spark DDL", "job.yaml:6:13 (sources.input.schema)"]),
        (
            "path: out",
            "path: \"${NOWHERE}\"",
            &["`NOWHERE` is not set", "job.yaml:11:", "give a default: `${NOWHERE:-…}`"],
        ),
        ("SELECT id FROM", "SELEC id FROM", &["job.yaml:10:10 (queries.q.sql)", "SELEC", "(AnalysisException)"]),
        ("SELECT id FROM", "SELECT idd FROM", &["job.yaml:10:10 (queries.q.sql)", "idd", "(AnalysisException)"]),
        ("FROM input", "FROM inputs", &["job.yaml:10:10 (queries.q.sql)", "inputs", "(AnalysisException)"]),
        (
            "SELECT id FROM",
            "SELECT nosuch(id) FROM",
            &["job.yaml:10:10 (queries.q.sql)", "nosuch", "(AnalysisException)"],
        ),
        ("SELECT id FROM", "SELECT id + at FROM", &["job.yaml:10:10 (queries.q.sql)", "(AnalysisException)"]),
        (
            "SELECT id FROM input",
            "SELECT count(*) AS id FROM input",
            &["job.yaml:10:10 (queries.q.sql)", "append", "(UnsupportedOperation)"],
        ),
    ] {
        assert!(COPY.contains(part), "{part}");
        home.write_job(&COPY.replacen(part, replacement, 1));
        let output = home.run();
        let text = stderr(&output);
        assert_eq!(code(&output), 78, "{replacement}: {text}");
        for part in said {
            assert!(text.contains(part), "{replacement}: {part} is not in:\n{text}");
        }
        assert_eq!(stdout(&output), "", "{replacement}");
        let after = (home.files_below("checkpoint"), home.files_below("out"), home.files_below("dlq"));
        assert!(before == after, "{replacement}: something was touched");
    }
    home.write_job(COPY);
    assert_eq!(code(&home.run()), 0);
    assert_eq!(home.results("id"), (0..20).collect::<Vec<_>>());
}

#[test]
fn a_checkpoint_of_another_job_or_of_a_changed_query_is_refused() {
    let count = COPY.replace(
        "SELECT id FROM input",
        "SELECT window.start AS minute, count(*) AS n FROM input GROUP BY window(at, '1 minute')",
    );
    let home = Home::new(&count);
    // A minute and a half: the second window stays open.
    home.give(0..91);
    assert_eq!(code(&home.run()), 0);
    assert_eq!(home.results("n"), [60]);
    home.give(91..181);
    for (part, replacement, said) in [
        ("name: copy", "name: other", "the checkpoint belongs to job copy, query q, not to job other, query q"),
        ("'1 minute'", "'2 minutes'", "its rows mean something else"),
        ("'1 minute')", "'1 minute'), id % 2", "its rows were kept by"),
        ("input", "source", "the checkpoint was made by a query over [input]; this one reads [source]"),
    ] {
        assert!(count.contains(part), "{part}");
        let before = home.files_below("out");
        home.write_job(&count.replace(part, replacement));
        let output = home.run();
        let text = stderr(&output);
        assert_eq!(code(&output), 1, "{replacement}: {text}");
        assert!(text.contains(said) && text.contains("CheckpointMismatch"), "{replacement}: {text}");
        assert!(text.contains("Use another checkpoint directory, or restore the query"), "{replacement}: {text}");
        assert!(before == home.files_below("out"), "{replacement}: something was written");
    }
    // With the query as it was, its state is there too: the second window is whole.
    home.write_job(&count);
    assert_eq!(code(&home.run()), 0);
    assert_eq!(home.results("n"), [60, 60, 60]);
}

/// What takes from root the right to go past permissions, so that a test shows the same as for an ordinary user.
fn without_privileges() -> &'static [&'static str] {
    let uid = Command::new("id").arg("-u").output().unwrap().stdout;
    match uid.trim_ascii() {
        b"0" => &["setpriv", "--bounding-set", "-dac_override,-dac_read_search", "--"],
        _ => &[],
    }
}

fn set_mode(path: &std::path::Path, mode: u32) {
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
}

#[test]
fn a_directory_without_rights_is_named_and_waited_for() {
    let home = Home::new(COPY);
    let command = |arguments: &[&str]| home.command_by(without_privileges(), arguments);
    let mut given = 0;
    home.give(0..10);
    assert_eq!(code(&home.run()), 0);
    for directory in ["in", "out"] {
        given += 10;
        home.give(given..given + 10);
        set_mode(&home.path(directory), 0o000);
        let check = command(&["check", "job.yaml"]).output().unwrap();
        assert_eq!(code(&check), 1, "{directory}: {}", stdout(&check));
        let path = home.path(directory);
        assert!(stdout(&check).contains(path.to_str().unwrap()), "{}", stdout(&check));
        assert!(stdout(&check).contains("StoragePermissionDenied"), "{}", stdout(&check));
        assert!(stdout(&check).contains("The job cannot run."), "{}", stdout(&check));

        let mut job = Running::start(command(&["run", "--available-now", "job.yaml"]));
        for _ in 0..2 {
            let said = job.wait_for_text("StoragePermissionDenied");
            assert!(said.contains(path.to_str().unwrap()) && said.contains("Retry the batch"), "{said}");
            assert!(said.contains("Grant the right to the job's user"), "{said}");
        }
        set_mode(&path, 0o755);
        let (code, log) = job.end();
        assert_eq!(code, 0, "{log}");
        assert_eq!(home.results("id"), (0..given + 10).collect::<Vec<_>>(), "{directory}");
    }
}

#[test]
fn a_checkpoint_without_rights_is_named_before_the_job_begins() {
    let home = Home::new(COPY);
    home.give(0..10);
    assert_eq!(code(&home.run()), 0);
    home.give(10..20);
    set_mode(&home.path("checkpoint"), 0o500);
    set_mode(&home.path("checkpoint/.lock"), 0o400);
    let output = home.command_by(without_privileges(), &["run", "--available-now", "job.yaml"]).output().unwrap();
    assert_eq!(code(&output), 1, "{}", stderr(&output));
    for part in ["checkpoint/.lock", "Grant the right to the job's user (StoragePermissionDenied)"] {
        assert!(stderr(&output).contains(part), "{part}: {}", stderr(&output));
    }
    set_mode(&home.path("checkpoint"), 0o755);
    set_mode(&home.path("checkpoint/.lock"), 0o644);
    assert_eq!(code(&home.run()), 0);
    assert_eq!(home.results("id"), (0..20).collect::<Vec<_>>());
}

/// A disk of 1 MB on which the job works, and that is full: a file system of its own in a mount namespace, where the system lets us mount;
/// else a limit on the size of the files that the job writes. How it ends is copied back.
const SMALL_DISK: &str = r#"
mkdir disk kept
mount -t tmpfs -o size=1m none disk
cd disk
ln -s ../in in
cp ../job.yaml .
cat /dev/zero 2>/dev/null | head -c 900000 >ballast
"$@" || exit
cp -r out checkpoint ../kept"#;
const SMALL_FILES: &str = r#"
mkdir -p kept
trap '' XFSZ
cd kept
ln -s ../in in
cp ../job.yaml .
exec prlimit --fsize=100000: -- "$@""#;

fn may_mount(unshare: &[&str]) -> bool {
    let trial = Command::new(unshare[0]).args(&unshare[1..]).args(["mount", "-t", "tmpfs", "none", "/mnt"]).output();
    trial.is_ok_and(|trial| trial.status.success())
}

#[test]
fn a_full_disk_is_waited_out() {
    let home = Home::new(COPY);
    // The first batch fits, the second does not.
    home.give(0..10);
    home.give(10..30_000);
    let as_root = ["unshare", "--mount", "--"];
    let as_user = ["unshare", "--user", "--map-root-user", "--mount", "--"];
    let unshare: Option<&[&str]> = [&as_root[..], &as_user].into_iter().find(|unshare| may_mount(unshare));
    let script = if unshare.is_some() { SMALL_DISK } else { SMALL_FILES };
    let by = [unshare.unwrap_or_default(), &["sh", "-c", script, "sh"]].concat();
    let mut job = Running::start(home.command_by(&by, &["run", "--available-now", "job.yaml"]));
    job.wait_for_text("batch=0");
    let class = if unshare.is_some() { "DiskFull" } else { "StorageUnavailable" };
    for _ in 0..2 {
        let said = job.wait_for_text(class);
        assert!(said.contains("out") && said.contains("batch=1"), "it says where: {said}");
        if unshare.is_some() {
            assert!(said.contains("Free some room - The query goes on by itself"), "{said}");
        }
    }
    if unshare.is_some() {
        let inside = format!("/proc/{}/root{}", job.pid(), home.path("disk/ballast").display());
        std::fs::remove_file(inside).unwrap();
    } else {
        let raised = Command::new("prlimit").args(["--pid", &job.pid().to_string(), "--fsize=unlimited:"]).status();
        assert!(raised.unwrap().success());
    }
    let (code, log) = job.end();
    assert_eq!(code, 0, "{log}");
    std::fs::rename(home.path("kept/out"), home.path("out")).unwrap();
    assert_eq!(home.results("id"), (0..30_000).collect::<Vec<_>>());
}

#[test]
fn a_port_in_use_is_named_with_its_setting() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let home = Home::new(&COPY.replace("enabled: false", &format!("listen: \"127.0.0.1:{port}\"")));
    home.give(0..10);
    let output = home.run();
    assert_eq!(code(&output), 1, "{}", stderr(&output));
    for part in [&format!("port {port} is in use"), "`http.listen` in job.yaml"] {
        assert!(stderr(&output).contains(part), "{part}: {}", stderr(&output));
    }
    assert!(!home.path("checkpoint").exists(), "the job did not begin");
    drop(taken);
    assert_eq!(code(&home.run()), 0);
    assert_eq!(home.results("id"), (0..10).collect::<Vec<_>>());
}
