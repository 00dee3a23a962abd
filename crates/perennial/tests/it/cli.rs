//! Commands, their messages and their exit codes.

use tempfile::TempDir;

use crate::support::{code, perennial, stderr, stdout};

fn directory() -> TempDir {
    tempfile::tempdir().unwrap()
}

#[test]
fn help_names_every_command_and_the_exit_codes() {
    let home = directory();
    let help = perennial(home.path(), &["--help"]);
    assert_eq!(code(&help), 0);
    for word in ["run", "check", "init", "schema", "simulate", "checkpoint", "errors", "78 the job file is wrong"] {
        assert!(stdout(&help).contains(word), "{word}: {}", stdout(&help));
    }
    for command in ["run", "check", "init", "schema", "simulate", "checkpoint", "errors"] {
        let help = perennial(home.path(), &[command, "--help"]);
        assert_eq!(code(&help), 0, "{command}");
        assert!(stdout(&help).contains("Examples:"), "{command}: {}", stdout(&help));
    }
    let version = perennial(home.path(), &["--version"]);
    assert_eq!(stdout(&version), format!("perennial {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn wrong_usage_is_2() {
    let home = directory();
    for arguments in
        [&["rnu"][..], &["run"], &["run", "job.yaml", "--what"], &["run", "job.yaml", "--log-level", "a=b=c"], &[]]
    {
        let output = perennial(home.path(), arguments);
        assert_eq!(code(&output), 2, "{arguments:?}: {}", stderr(&output));
    }
    let output = perennial(home.path(), &["chekc"]);
    assert!(stderr(&output).contains("'check'"), "the nearest command: {}", stderr(&output));
}

#[test]
fn what_init_writes_passes_the_check() {
    let home = directory();
    let init = perennial(home.path(), &["init"]);
    assert_eq!(code(&init), 0, "{}", stderr(&init));
    let check = perennial(home.path(), &["check", "--offline", "job.yaml"]);
    assert_eq!(code(&check), 0, "{}{}", stdout(&check), stderr(&check));
    assert!(stdout(&check).contains("per_minute"), "{}", stdout(&check));

    let before = std::fs::read(home.path().join("job.yaml")).unwrap();
    let again = perennial(home.path(), &["init"]);
    assert_eq!(code(&again), 1);
    assert!(stderr(&again).contains("job.yaml exists already"), "{}", stderr(&again));
    assert_eq!(std::fs::read(home.path().join("job.yaml")).unwrap(), before);
}

#[test]
fn a_wrong_job_file_is_78_and_shows_where() {
    let home = directory();
    let job = "sources:\n  s:\n    simulate: {}\n    schema: id INT\n    watermrk: {}\n    password: hunter2\n\
               queries:\n  q: { sql: SELECT 1, sink: { console: { rows: \"${HYDRO_PASSWORD}\" } } }\n";
    std::fs::write(home.path().join("job.yaml"), job).unwrap();
    for command in ["run", "check"] {
        let output = perennial(home.path(), &[command, "job.yaml"]);
        assert_eq!(code(&output), 78);
        let text = stderr(&output);
        assert!(text.contains("--> job.yaml:5:5 (sources.s.watermrk)"), "{text}");
        assert!(text.contains("did you mean `watermark`?"), "{text}");
        assert!(text.contains("${HYDRO_PASSWORD}"), "{text}");
        assert!(!text.contains("hunter2"), "{text}");
        assert!(!text.contains('\x1b'), "no colours where nobody looks: {text}");
    }
    let output = perennial(home.path(), &["run", "job.yaml", "--log-format", "json"]);
    assert_eq!(code(&output), 78);
    let lines: Vec<serde_json::Value> =
        stderr(&output).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((&lines[0]["line"], &lines[0]["key"]), (&5.into(), &"sources.s.watermrk".into()), "{lines:?}");

    let missing = perennial(home.path(), &["run", "nowhere.yaml"]);
    assert_eq!(code(&missing), 78);
    assert!(stderr(&missing).contains("there is no such file\n --> nowhere.yaml"), "{}", stderr(&missing));
    let text = "sources:\n  s: { simulate: {}, schema: \"id INT\", format: \"${NOT_SET_HERE}\" }\n";
    std::fs::write(home.path().join("job.yaml"), text).unwrap();
    let unset = perennial(home.path(), &["check", "job.yaml"]);
    assert_eq!(code(&unset), 78);
    assert!(
        stderr(&unset).contains("`NOT_SET_HERE` is not set") && stderr(&unset).contains("job.yaml:2:"),
        "{}",
        stderr(&unset)
    );
}

#[test]
fn errors_are_listed_and_explained() {
    let home = directory();
    let all = perennial(home.path(), &["errors"]);
    assert_eq!(code(&all), 0);
    assert!(stdout(&all).lines().any(|line| line.starts_with("ServerSelectionTimeoutError ")), "{}", stdout(&all));
    let one = perennial(home.path(), &["errors", "timeout"]);
    for said in ["Timeout", "Retry after 60 seconds - Check API availability", "tried again"] {
        assert!(stdout(&one).contains(said), "{}", stdout(&one));
    }
    let json = perennial(home.path(), &["errors", "DiskFull", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&stdout(&json)).unwrap();
    assert_eq!(json["kind"], "transient");
    let wrong = perennial(home.path(), &["errors", "DiscFull"]);
    assert_eq!(code(&wrong), 1);
    assert!(stderr(&wrong).contains("did you mean DiskFull?"), "{}", stderr(&wrong));
}

#[test]
fn the_schema_is_json() {
    let home = directory();
    let output = perennial(home.path(), &["schema"]);
    assert_eq!(code(&output), 0);
    let schema: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(schema["title"], "Perennial job");
    assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema");
}

#[test]
fn simulated_records_are_the_same_each_time() {
    let home = directory();
    let arguments =
        ["simulate", "greenhouse", "--to", "stdout", "--records", "20", "--rate", "max", "--metrics", "off"];
    let with_start = [&arguments[..], &["--start", "2026-01-01T00:00:00Z", "--malformed", "0.2"]].concat();
    let (first, second) = (perennial(home.path(), &with_start), perennial(home.path(), &with_start));
    assert_eq!(code(&first), 0, "{}", stderr(&first));
    assert_eq!(first.stdout.iter().filter(|byte| **byte == b'\n').count(), 20);
    assert_eq!(first.stdout, second.stdout);
    let other = perennial(home.path(), &[&with_start[..], &["--seed", "1"]].concat());
    assert_ne!(first.stdout, other.stdout);

    let files = perennial(
        home.path(),
        &[
            "simulate",
            "device",
            "--to",
            "files",
            "--path",
            "in",
            "--records",
            "250",
            "--records-per-file",
            "100",
            "--rate",
            "max",
            "--metrics",
            "127.0.0.1:0",
        ],
    );
    assert_eq!(code(&files), 0, "{}", stderr(&files));
    let lines: usize = std::fs::read_dir(home.path().join("in"))
        .unwrap()
        .map(|file| std::fs::read_to_string(file.unwrap().path()).unwrap().lines().count())
        .sum();
    assert_eq!(lines, 250);

    assert_eq!(code(&perennial(home.path(), &["simulate", "greenhuose", "--to", "stdout"])), 2);
    assert_eq!(code(&perennial(home.path(), &["simulate", "greenhouse", "--to", "files"])), 2, "--path is missing");
    let logs = perennial(home.path(), &[&arguments[..], &["--log-format", "json"]].concat());
    for line in stderr(&logs).lines() {
        assert!(serde_json::from_str::<serde_json::Value>(line).is_ok(), "{line}");
    }
}
