//! A checkpoint in S3: the same promises as on a local disk, with real processes and a real server of the protocol.

use std::process::Command;

use crate::crashes::{JOB, home, results};
use crate::support::{Home, Running, server, stderr};

/// A bucket of the test's own.
pub fn bucket(test: &str) -> String {
    let bucket = format!("{test}-{}", std::process::id());
    let address = format!("{}/{bucket}", server("PERENNIAL_TEST_S3"));
    let made = Command::new("curl").args(["-sf", "--noproxy", "*", "-X", "PUT", &address]).status().unwrap();
    assert!(made.success());
    bucket
}

/// Tells the program of the server as AWS's own tools are told.
pub fn with_s3(command: &mut Command) {
    command
        .env("AWS_ENDPOINT_URL", server("PERENNIAL_TEST_S3"))
        .env("AWS_ALLOW_HTTP", "true")
        .env("AWS_ACCESS_KEY_ID", "test")
        .env("AWS_SECRET_ACCESS_KEY", "test");
}

fn command(home: &Home, arguments: &[&str]) -> Command {
    let mut command = home.command(arguments);
    with_s3(&mut command);
    command
}

#[test]
#[ignore = "needs S3: run make test"]
fn a_job_that_dies_goes_on_from_its_checkpoint_in_s3() {
    let calm = home(JOB);
    assert!(calm.run().status.success());
    let expected = results(&calm);
    let bucket = bucket("crashes");
    for point in ["takeover.after", "offsets.after", "sink.published", "state.after", "letters.after", "commit.after"] {
        let home = home(&JOB.replace("checkpoint: checkpoint", &format!("checkpoint: s3://{bucket}/{point}")));
        let passage = if point.starts_with("takeover") { 1 } else { 3 };
        let run = || command(&home, &["run", "job.yaml"]);
        let died = run().env("PERENNIAL_CRASH_AT", format!("{point}:{passage}")).output().unwrap();
        assert_eq!(died.status.code(), None, "{point}: {}", stderr(&died));
        let output = run().output().unwrap();
        assert!(output.status.success(), "{point}: {}", stderr(&output));
        assert_eq!(results(&home), expected, "after a death at {point}");
    }
}

/// There is no lock in S3: of two processes the later one goes on, and the other is shut out before it writes anything more.
#[test]
#[ignore = "needs S3: run make test"]
fn a_later_process_shuts_the_one_before_out() {
    let bucket = bucket("fenced");
    let job = format!(
        "\
name: fenced
sources:
  input:
    files: {{ path: in, settle: 0s, max_files_per_batch: 1 }}
    format: json
    schema: id BIGINT NOT NULL, at TIMESTAMP NOT NULL
queries:
  q: {{ sql: SELECT id FROM input, sink: {{ files: {{ path: out, format: json }} }} }}
trigger: {{ every: 50ms }}
checkpoint: s3://{bucket}/checkpoint
http: {{ enabled: false }}
"
    );
    let home = Home::new(&job);
    home.give(0..10);
    let mut before = Running::start(command(&home, &["run", "job.yaml"]));
    before.wait_for_text("batch committed");
    let mut after = Running::start(command(&home, &["run", "job.yaml"]));
    after.wait_for_text("resumes");
    home.give(10..20);
    after.wait_for_text("batch committed");
    before.wait_for_text("Fenced");
    home.give(20..30);
    after.wait_for_text("batch committed");
    let (code, log) = before.end();
    assert_eq!(code, 1, "{log}");
    after.signal("TERM");
    let (code, log) = after.end();
    assert_eq!(code, 0, "{log}");
    assert_eq!(home.results("id"), (0..30).collect::<Vec<_>>());
}
