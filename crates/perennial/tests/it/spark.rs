//! `checkpoint import` and `export` on the command line. What comes out of the queries is proved by the tests of `conformance`.

use std::path::Path;

use crate::support::{Home, code, stderr, stdout};

/// What Spark leaves when it has read one file.
fn spark(home: &Home, file: &Path) {
    for (name, content) in [
        ("metadata", r#"{"id":"5b5a1d3c-0000-4000-8000-000000000000"}"#.to_owned()),
        ("offsets/0", "v1\n{\"batchWatermarkMs\":0,\"batchTimestampMs\":9,\"conf\":{}}\n{\"logOffset\":0}".to_owned()),
        ("commits/0", "v1\n{\"nextBatchWatermarkMs\":0}".to_owned()),
        ("sources/0/0", format!("v1\n{{\"path\":\"file:///gone/{}\",\"timestamp\":1,\"batchId\":0}}", file.display())),
    ] {
        let path = home.path("spark").join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }
}

#[test]
fn a_query_moves_from_spark_and_back() {
    let home = Home::new(
        "name: moved\nsources: { numbers: { files: { path: ./in, settle: 0s }, format: json, schema: id BIGINT } }\n\
         queries: { q: { sql: SELECT id FROM numbers, sink: { files: { path: ./out, format: json } } } }\n\
         trigger: available_now\ncheckpoint: ./checkpoints\nhttp: { enabled: false }\n",
    );
    home.give(0..3);
    spark(&home, Path::new("000000.json"));
    home.give(3..5);
    let run = |arguments: &[&str]| home.command(arguments).output().unwrap();
    let import = ["checkpoint", "import", "--from-spark", "spark", "job.yaml"];

    let lost = run(&import);
    assert!(code(&lost) != 0 && stderr(&lost).contains("--map-path FROM=TO"), "{}", stderr(&lost));
    let mapped: Vec<&str> = import.into_iter().chain(["--map-path", "/gone=in"]).collect();
    let looked = run(&mapped.iter().copied().chain(["--dry-run"]).collect::<Vec<_>>());
    assert!(stdout(&looked).contains("q can be taken over from Spark, whose last batch was 0"), "{}", stderr(&looked));
    assert_eq!(code(&run(&mapped)), 0);
    let again = run(&mapped);
    assert!(code(&again) != 0 && stderr(&again).contains("there is a checkpoint of q already"), "{}", stderr(&again));

    assert_eq!(code(&home.run()), 0);
    assert_eq!(home.results("id"), [3, 4], "what Spark has read is not read again");
    let exported = run(&["checkpoint", "export", "--to-spark", "back", "job.yaml"]);
    assert!(stdout(&exported).contains("it goes on with batch 2"), "{}", stderr(&exported));
    let offsets = std::fs::read_to_string(home.path("back/offsets/1")).unwrap();
    assert!(offsets.ends_with("\n{\"logOffset\":1}") && !offsets.contains("perennial"), "{offsets}");
}
