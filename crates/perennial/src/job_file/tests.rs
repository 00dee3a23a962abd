//! Job files that are wrong, and what is said about them.

use super::*;
use crate::Job;

/// Variables and files of the tests.
struct World;

impl Lookup for World {
    fn variable(&self, name: &str) -> Option<String> {
        match name {
            "TABLE" => Some("per_minute".into()),
            "SECRET" => Some("hunter2".into()),
            "EVERY" => Some("5 minutes".into()),
            "NUMBER" => Some("3".into()),
            _ => None,
        }
    }

    fn file(&self, path: &str) -> Result<String, String> {
        if path == "/run/secrets/word" { Ok("hunter2".into()) } else { Err("no such file".into()) }
    }
}

const JOB: &str = "\
name: greenhouse
sources:
  readings:
    simulate: { profile: greenhouse }
    format: json
    schema: |
      sensor_id STRING NOT NULL, event_time TIMESTAMP NOT NULL,
      temperature DOUBLE, battery INT
    watermark: { column: event_time, delay: 10 minutes }
    expectations:
      battery_in_range: { check: \"battery BETWEEN 0 AND 100\", on_violation: dead_letter }
queries:
  per_minute:
    sql: SELECT sensor_id FROM readings
    output_mode: append
    sink:
      sqlite: { path: ./out.db, table: \"${TABLE}\" }
trigger: { every: 10 seconds }
retry: { max_attempts: 5, jitter: 0.2 }
http: { listen: \"127.0.0.1:0\" }
";

fn read(text: &str) -> Result<Job, Box<JobFileError>> {
    Job::from_text_with("job.yaml", text, &World)
}

/// Replaces a part of the job and compares what is wrong then: `line: path: message (help)`, where `…` ends what is compared.
fn check(part: &str, replacement: &str, expected: &[&str]) {
    assert!(JOB.contains(part), "the job has no {part:?}");
    let text = JOB.replacen(part, replacement, 1);
    let error = match read(&text) {
        Ok(_) => panic!("nothing is said about {replacement:?}"),
        Err(error) => error,
    };
    let found: Vec<String> = error
        .problems
        .iter()
        .map(|p| {
            let at = p.at.unwrap();
            format!("{}: {}: {} ({})", at.line, p.path, p.message, p.help.as_deref().unwrap_or_default())
        })
        .collect();
    assert_eq!(found.len(), expected.len(), "{replacement:?}: {found:#?}");
    for (found, expected) in found.iter().zip(expected) {
        match expected.strip_suffix('…') {
            Some(start) => assert!(found.starts_with(start), "{replacement:?}:\n{found}\n{expected}"),
            None => assert_eq!(found, expected, "{replacement:?}"),
        }
    }
    let shown = error.to_string();
    assert!(!shown.contains("hunter2"), "a secret shows: {shown}");
}

#[test]
fn settings_of_watermarks_and_duplicates_arrive() {
    let text = JOB
        .replace(
            "    expectations:",
            "    deduplicate: { columns: [sensor_id], within_watermark: true }\n    expectations:",
        )
        .replace(
            "output_mode: append",
            "watermark_policy: max\n    watermark_after_restart: spark\n    no_data_batches: false",
        );
    let job = read(&text).unwrap();
    let deduplicate = job.sources["readings"].deduplicate.clone().unwrap();
    assert_eq!((deduplicate.columns, deduplicate.within_watermark), (vec!["sensor_id".to_owned()], true));
    let query = &job.queries["per_minute"];
    assert_eq!(query.watermark_policy, WatermarkPolicy::Max);
    assert_eq!(query.watermark_after_restart, WatermarkAfterRestart::Spark);
    assert!(!query.no_data_batches);
    let plain = read(JOB).unwrap();
    assert_eq!(plain.queries["per_minute"].watermark_after_restart, WatermarkAfterRestart::Keep);
    assert!(plain.queries["per_minute"].no_data_batches && plain.sources["readings"].deduplicate.is_none());
}

#[test]
fn tables_arrive() {
    let tables = "tables:\n  plants:\n    files: { path: ./plants.csv }\n    format: csv\n    schema: id BIGINT, name STRING\n    \
                  refresh: 5 minutes\n  rooms:\n    sqlite: { path: ./rooms.db, table: rooms }\n    schema: id BIGINT\nqueries:";
    let job = read(&JOB.replacen("queries:", tables, 1)).unwrap();
    let (plants, rooms) = (&job.tables["plants"], &job.tables["rooms"]);
    assert_eq!((plants.connector.as_str(), rooms.connector.as_str()), ("files", "sqlite"));
    assert!(matches!(plants.format, Format::Csv(_)));
    assert_eq!(plants.refresh, Refresh::After(Duration::from_secs(300)));
    assert_eq!(rooms.refresh, Refresh::EveryBatch);
    assert_eq!(plants.schema.fields().len(), 2);
    assert!(read(JOB).unwrap().tables.is_empty());
}

#[test]
fn partitions_are_for_kafka_and_only_they_are_idle() {
    check(
        "delay: 10 minutes }",
        "delay: 10 minutes, idle_after: 1 minute }",
        &[
            "9: sources.readings.watermark.idle_after: it is partitions that become idle (add `per_partition: true`, or leave it out)",
        ],
    );
    check(
        "delay: 10 minutes }",
        "delay: 10 minutes, per_partition: true, idle_after: 1 minute }",
        &[
            "9: sources.readings.watermark.per_partition: a `simulate` source has no partitions (leave it out; it is for `kafka`)",
        ],
    );
}

#[test]
fn wrong_tables_are_told_with_line_and_key() {
    for (table, expected) in [
        ("plants: { schema: id INT }", "13: tables.plants: missing one of `files` `sqlite` `postgres` ()"),
        (
            "plants: { files: { path: p }, sqlite: { path: p, table: t }, schema: id INT }",
            "13: tables.plants: a table has one connector, and here are two: `files` and `sqlite`; make two tables of them ()",
        ),
        (
            "plants: { sqlite: { path: p, table: t }, schema: id INT, format: csv }",
            "13: tables.plants.format: a `sqlite` table has rows and no records in a format (leave it out)",
        ),
        ("plants: { files: { path: p }, schema: id INT, refresh: hourly }", "13: tables.plants.refresh: …"),
        (
            "plants: { files: { path: p }, schema: id INT, watermark: 1 }",
            "13: tables.plants.watermark: unknown key `watermark`…",
        ),
        (
            "plants: { sqlite: { path: p, tabel: t }, schema: id INT }",
            "13: tables.plants.sqlite.tabel: unknown key `tabel` (did you mean `table`?…",
        ),
        ("readings: { files: { path: p }, schema: id INT }", "13: tables.readings: `readings` is a source, too…"),
    ] {
        check("queries:", &format!("tables:\n  {table}\nqueries:"), &[expected]);
    }
}

#[test]
fn the_job_itself_is_right() {
    let job = read(JOB).unwrap();
    assert_eq!((job.name.as_str(), job.version.as_str()), ("greenhouse", "1.0"));
    assert_eq!(job.checkpoint, "./checkpoints/greenhouse");
    assert_eq!(job.trigger, Trigger::Every("10 seconds".parse().unwrap()));
    assert_eq!(job.sources["readings"].schema.fields().len(), 4);
    assert_eq!(job.sources["readings"].watermark.as_ref().unwrap().column, "event_time");
    assert_eq!(job.sources["readings"].expectations["battery_in_range"].on_violation, OnViolation::DeadLetter);
    assert!(format!("{:?}", job.queries["per_minute"].sink).contains("per_minute"));
    assert_eq!((job.retry.max_attempts, job.retry.factor), (5, 2.0));
}

#[test]
fn a_minimal_job_is_a_source_a_query_and_a_sink() {
    let text = "sources: {s: {simulate: , schema: id INT}}\nqueries: {q: {sql: SELECT * FROM s, sink: console}}\n";
    let job = Job::from_text_with("/etc/jobs/small.yaml", text, &World).unwrap();
    assert_eq!(job.name, "small", "the file names it");
    assert_eq!(job.trigger, Trigger::AsFastAsPossible);
    assert_eq!(job.http.listen, "0.0.0.0:5001");
    assert_eq!((job.dead_letters.directory(), job.time_zone.as_str()), (Some("./dlq"), "UTC"));
    assert!(job.parallelism > 0);
    assert_eq!(job.guarantee, None);
}

#[test]
fn forms_that_may_be_written_differently_mean_the_same() {
    for (part, replacement) in [
        ("format: json", "format: { json: {} }"),
        ("format: json\n", "\n"),
        ("trigger: { every: 10 seconds }", "trigger: {every: 10s}"),
        ("{ every: 10 seconds }", "{ every: 0 minutes 10 seconds }"),
        ("simulate: { profile: greenhouse }", "simulate:"),
    ] {
        let job = read(&JOB.replacen(part, replacement, 1)).unwrap();
        assert_eq!(job.trigger, Trigger::Every("10 seconds".parse().unwrap()), "{replacement}");
        assert!(matches!(job.sources["readings"].format, Format::Json(_)), "{replacement}");
    }
    for (written, expected) in [
        ("trigger: available_now", Trigger::AvailableNow),
        ("trigger: as_fast_as_possible", Trigger::AsFastAsPossible),
        ("trigger: { every: \"${EVERY}\" }", Trigger::Every("5 minutes".parse().unwrap())),
    ] {
        let job = read(&JOB.replacen("trigger: { every: 10 seconds }", written, 1)).unwrap();
        assert_eq!(job.trigger, expected);
    }
    let job = read(&JOB.replacen("max_attempts: 5", "max_attempts: \"${NUMBER}\"", 1)).unwrap();
    assert_eq!(job.retry.max_attempts, 3, "a variable stands for a number too");
}

#[test]
fn unknown_keys_name_the_nearest_known_one() {
    check(
        "watermark:",
        "watermrk:",
        &["9: sources.readings.watermrk: unknown key `watermrk` (did you mean `watermark`? known: …"],
    );
}

#[test]
fn wrong_values_are_told_with_line_key_and_what_is_expected() {
    for (part, replacement, expected) in [
        (
            "name: greenhouse",
            "nam: greenhouse",
            &["1: nam: unknown key `nam` (did you mean `name`? known: `name`, `version`, …"][..],
        ),
        (
            "simulate:",
            "simualte:",
            &["4: sources.readings.simualte: unknown key `simualte` (did you mean `simulate`? …"],
        ),
        (
            "    simulate: { profile: greenhouse }\n",
            "",
            &["3: sources.readings: missing one of `kafka` `files` `rate` `simulate` ()"],
        ),
        (
            "    format: json\n",
            "    format: json\n    files: { path: in }\n",
            &[
                "3: sources.readings: a source has one connector, and here are two: `simulate` and `files`; make two sources of them ()",
            ],
        ),
        (
            "profile: greenhouse",
            "profile: grenhouse",
            &["4: sources.readings.simulate.profile: unknown value `grenhouse` (did you mean `greenhouse`? …"],
        ),
        ("format: json", "format: jsno", &["5: sources.readings.format: unknown value `jsno` (did you mean `json`? …"]),
        (
            "format: json",
            "format: parquet",
            &[
                "5: sources.readings.format: a `simulate` source has no Parquet records (Parquet is a format of `files`)",
            ],
        ),
        (
            "    schema: |\n      sensor_id STRING NOT NULL, event_time TIMESTAMP NOT NULL,\n      temperature DOUBLE, battery INT\n",
            "",
            &["3: sources.readings: missing key `schema` ()"],
        ),
        ("temperature DOUBLE", "temperature DUBLE", &["7: sources.readings.schema: this schema is not Spark DDL: …"]),
        (
            "column: event_time",
            "column: event_tiem",
            &[
                "9: sources.readings.watermark.column: the schema has no column `event_tiem` (did you mean `event_time`? …",
            ],
        ),
        (
            "column: event_time",
            "column: battery",
            &[
                "9: sources.readings.watermark.column: the column `battery` is no TIMESTAMP, and event time is one (give…",
            ],
        ),
        ("column: event_time, ", "", &["9: sources.readings.watermark: missing key `column` ()"]),
        (
            "delay: 10 minutes",
            "delay: 10 parsecs",
            &["9: sources.readings.watermark.delay: `10 parsecs` is not a duration: the unit is unknown …"],
        ),
        (
            "delay: 10 minutes",
            "delay: 10",
            &["9: sources.readings.watermark.delay: `10` is not a duration: a unit is missing …"],
        ),
        (
            "on_violation: dead_letter",
            "on_violation: ignore",
            &[
                "11: sources.readings.expectations.battery_in_range.on_violation: unknown value `ignore` (known: `dead_letter`, `drop`, `fail`, `warn`)",
            ],
        ),
        (
            "battery_in_range:",
            "battery in range:",
            &[
                "11: sources.readings.expectations.battery in range: `battery in range` is not a name for an expectation …",
            ],
        ),
        (
            "battery BETWEEN 0 AND 100",
            " ",
            &["11: sources.readings.expectations.battery_in_range.check: the condition is empty …"],
        ),
        (
            "    expectations:",
            "    deduplicate: { columns: [sensor, event_time] }\n    expectations:",
            &[
                "10: sources.readings.deduplicate.columns: the schema has no column `sensor` (did you mean `sensor_id`? …",
            ],
        ),
        (
            "    expectations:",
            "    deduplicate: { columns: [], within_watermark: true }\n    expectations:",
            &["10: sources.readings.deduplicate.columns: there are no columns to tell duplicates by …"],
        ),
        (
            "    watermark: { column: event_time, delay: 10 minutes }",
            "    deduplicate: { columns: [sensor_id], within_watermark: true }",
            &[
                "9: sources.readings.deduplicate: without a watermark nothing is within it (give the source a `watermark`)",
            ],
        ),
        (
            "output_mode: append",
            "watermark_policy: average",
            &["15: queries.per_minute.watermark_policy: unknown value `average` (…"],
        ),
        ("  readings:", "  2 readings:", &["3: sources.2 readings: `2 readings` is not a name for a source …"]),
        ("  per_minute:", "  per/minute:", &["13: queries.per/minute: `per/minute` is not a name for a query …"]),
        ("SELECT sensor_id FROM readings", "\"\"", &["14: queries.per_minute.sql: the SQL is empty …"]),
        (
            "output_mode: append",
            "output_mode: upsert",
            &["15: queries.per_minute.output_mode: unknown value `upsert` (…"],
        ),
        ("sqlite:", "sqllite:", &["17: queries.per_minute.sink: unknown key `sqllite` (did you mean `sqlite`? …"]),
        ("path: ./out.db, ", "", &["17: queries.per_minute.sink.sqlite: missing key `path` ()"]),
        (
            "path: ./out.db",
            "path: [./out.db]",
            &["17: queries.per_minute.sink.sqlite.path: expected a text, found a list ()"],
        ),
        (
            "{ every: 10 seconds }",
            "{ availabel_now: true }",
            &["18: trigger: unknown key `availabel_now` (did you mean `available_now`? …"],
        ),
        (
            "{ every: 10 seconds }",
            "{ available_now: true }",
            &["18: trigger: `available_now` has no settings; write just `available_now` ()"],
        ),
        (
            "max_attempts: 5",
            "max_attempts: many",
            &["19: retry.max_attempts: expected a whole number, 0 or more, found `many` ()"],
        ),
        ("jitter: 0.2", "jitter: 20", &["19: retry.jitter: 20 is not a share (from 0 to 1)"]),
        (
            "jitter: 0.2",
            "factor: 0.5",
            &["19: retry.factor: the waiting time cannot grow by 0.5 (1 or more; 2 doubles it each time)"],
        ),
        ("127.0.0.1:0", "5001", &["20: http.listen: `5001` is not an address and a port (for example …"]),
        ("127.0.0.1:0", "127.0.0.1:99999", &["20: http.listen: `127.0.0.1:99999` is not an address and a port …"]),
        ("name: greenhouse", "name: green house", &["1: name: `green house` is not a name for a job …"]),
        ("name: greenhouse", "time_zone: Berlin", &["1: time_zone: there is no time zone `Berlin` …"]),
        ("name: greenhouse", "parallelism: 0", &["1: parallelism: nothing works in 0 partitions …"]),
        (
            "name: greenhouse",
            "guarantee: exactly_twice",
            &["1: guarantee: unknown value `exactly_twice` (did you mean `exactly_once`? …"],
        ),
        (
            "max_attempts: 5",
            "max_attempts: ${NUMBER}",
            &[
                "19: : this is not YAML: while parsing a flow mapping, did not find expected ',' or '}' (inside `{ … }` and `[ … ]` a variable is quoted: \"${NAME}\")",
            ],
        ),
        ("name: greenhouse", "- name", &["2: : this is not YAML: …"]),
        (
            "name: greenhouse",
            "name: greenhouse\nname: twice",
            &["2: : the key `name` is given twice; first in line 1 ()"],
        ),
        ("trigger: { every: 10 seconds }", "trigger: { every: 10 seconds", &["19: : this is not YAML: …"]),
        (
            "name: greenhouse",
            "name: ${NAME}",
            &["1: name: the environment variable `NAME` is not set (set it, or give a default: `${NAME:-…}`)"],
        ),
        (
            "./out.db",
            "\"${file:/nowhere}\"",
            &["17: queries.per_minute.sink.sqlite.path: the file `/nowhere` cannot be read: no such file ()"],
        ),
    ] {
        check(part, replacement, expected);
    }
}

#[test]
fn values_of_variables_never_show() {
    for (part, replacement, expected) in [
        ("{ every: 10 seconds }", "{ every: \"${SECRET}\" }", "18: trigger.every: `${SECRET}` is not a duration: …"),
        (
            "max_attempts: 5",
            "max_attempts: \"${SECRET}\"",
            "19: retry.max_attempts: expected a whole number, 0 or more, found `${SECRET}` (expanded) ()",
        ),
        ("{ every: 10 seconds }", "\"${SECRET}\"", "18: trigger: unknown value `${SECRET}` (…"),
        (
            "jitter: 0.2",
            "jitter: \"${file:/run/secrets/word}\"",
            "19: retry.jitter: expected a number, found `${file:/run/secrets/word}` (expanded) ()",
        ),
        (
            "{ profile: greenhouse }",
            "\"${SECRET}\"",
            "4: sources.readings.simulate: expected a mapping with the keys …",
        ),
    ] {
        check(part, replacement, &[expected]);
    }
    // Not even a name that is put together from one.
    for (part, replacement) in [
        ("127.0.0.1:0", "${SECRET}"),
        ("name: greenhouse", "name: ${SECRET} x"),
        ("name: greenhouse", "time_zone: x${SECRET}"),
    ] {
        let error = read(&JOB.replacen(part, replacement, 1)).err().unwrap();
        assert!(!error.to_string().contains("hunter2"), "{error}");
        assert!(!perennial_core::Error::from(*error.clone()).to_string().contains("hunter2"), "{error}");
    }
}

#[test]
fn everything_is_told_at_once() {
    let text = JOB
        .replace("format: json", "fromat: json")
        .replace("10 minutes", "10 parsecs")
        .replace("output_mode: append", "output_mode: upsert")
        .replace("jitter: 0.2", "jitter: 20")
        .replace("127.0.0.1:0", "5001");
    let error = read(&text).err().unwrap();
    let lines: Vec<usize> = error.problems.iter().map(|p| p.at.unwrap().line).collect();
    assert_eq!(lines, [5, 9, 15, 19, 20], "{error}");
}

#[test]
fn an_error_shows_the_line() {
    let text = JOB.replace("watermark:", "watermrk:");
    assert_eq!(
        read(&text).err().unwrap().to_string(),
        "error: unknown key `watermrk`\n --> job.yaml:9:5 (sources.readings.watermrk)\n  |\n9 |     watermrk: { column: event_time, delay: 10 \
         minutes }\n  |     ^^^^^^^^\n  = did you mean `watermark`? known: `kafka`, `files`, `rate`, `simulate`, `format`, `schema`, `watermark`, \
         `deduplicate`, `expectations`\n"
    );
}

#[test]
fn a_job_without_anything_says_what_a_job_is() {
    let error = read("name: x\n").err().unwrap();
    assert!(error.to_string().contains("missing key `sources`"), "{error}");
    let error = read("sources: {}\nqueries: {}\n").err().unwrap();
    let messages: Vec<&str> = error.problems.iter().map(|p| p.message.as_str()).collect();
    assert_eq!(messages, ["the job has no source", "the job has no query"]);
}

#[test]
fn windows_files_are_read_too() {
    let text = format!("\u{feff}{}", JOB.replace('\n', "\r\n"));
    assert_eq!(read(&text).unwrap().name, "greenhouse");
}

#[test]
fn the_example_is_right_and_says_what_its_keys_mean() {
    let text = example();
    let job = read(&text).unwrap();
    assert_eq!(job.name, "greenhouse");
    assert!(text.contains("# Where records go that cannot be processed."), "{text}");
    // Every line of comment before the defaults belongs to a key.
    let body = text.split("\n\n").nth(1).unwrap();
    assert!(body.starts_with("# Name of the job"), "{body}");
    // What is commented out is what a job has without it.
    let uncommented: String = text
        .split("# What follows has these defaults.")
        .nth(1)
        .unwrap()
        .lines()
        .filter_map(|line| line.strip_prefix("# "))
        .filter(|line| {
            line.split_once(':').is_some_and(|(key, _)| schema::json_schema()["properties"].get(key).is_some())
        })
        .map(|line| format!("{line}\n"))
        .collect();
    assert!(uncommented.contains("retry: { max_attempts: 5"), "{uncommented}");
    let full = read(&format!("{text}\n{uncommented}")).unwrap();
    assert_eq!(full.retry, job.retry);
    assert_eq!(full.dead_letters, job.dead_letters);
    assert_eq!((full.http, full.health, full.checkpoint), (job.http, job.health, job.checkpoint));
}

#[test]
fn the_reference_page_is_up_to_date() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/job-file.md");
    let page = reference_page();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(path, &page).unwrap();
    }
    let committed = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        committed == page,
        "docs/job-file.md is out of date: run `UPDATE_DOCS=1 cargo test --workspace reference_page`"
    );
}

#[test]
fn every_key_is_described() {
    fn walk(value: &serde_json::Value, path: &str, missing: &mut Vec<String>) {
        match value {
            serde_json::Value::Object(map) => {
                for (key, child) in map {
                    // Below `properties` the keys are the users', and one of them may itself be called `properties`.
                    let is_key = path.ends_with("/properties") && !path.ends_with("/properties/properties");
                    if is_key && child.get("description").is_none() && child.get("$ref").is_none() {
                        missing.push(format!("{path}/{key}"));
                    }
                    walk(child, &format!("{path}/{key}"), missing);
                }
            }
            serde_json::Value::Array(items) => items.iter().for_each(|v| walk(v, path, missing)),
            _ => {}
        }
    }
    let mut missing = Vec::new();
    walk(&json_schema(), "", &mut missing);
    assert_eq!(missing, Vec::<String>::new());
}

#[test]
fn the_schema_allows_what_the_parser_allows() {
    let schema = json_schema();
    let text = schema.to_string();
    assert_eq!(schema["additionalProperties"], false, "unknown keys are refused by editors, too");
    assert_eq!(schema["required"], serde_json::json!(["sources", "queries"]));
    for (name, keys, connectors) in
        [("SourceSettings", SOURCE_KEYS, SourceConfig::NAMES), ("TableSettings", TABLE_KEYS, TableConfig::NAMES)]
    {
        let settings = &schema["$defs"][name];
        for key in keys {
            assert!(settings["properties"].get(*key).is_some(), "{key}: {settings}");
        }
        assert_eq!(settings["oneOf"].as_array().unwrap().len(), connectors.len());
    }
    assert!(text.contains(r#"{"const":"console""#), "a sink whose settings all have defaults is just its name");
    assert!(!text.contains("hunter2"));
    let attempts = &schema["$defs"]["RetryPolicy"]["properties"]["max_attempts"];
    assert_eq!(attempts["type"], serde_json::json!(["integer", "string"]), "a variable may stand for a number");
}

#[test]
fn a_job_that_is_built_obeys_the_same_rules() {
    let error = Job::builder("two words").build().unwrap_err();
    let paths: Vec<&str> = error.problems.iter().map(|p| p.path.as_str()).collect();
    assert_eq!(paths, ["name", "sources", "queries"]);
    assert!(error.to_string().starts_with("error: name: `two words` is not a name for a job\n"), "{error}");

    let job = read(JOB).unwrap();
    let (source, query) = (job.sources["readings"].clone(), job.queries["per_minute"].clone());
    let twice = Job::builder("x")
        .source("readings", source.clone())
        .source("readings", source.clone().watermark("nowhere", Duration::ZERO))
        .query("q", query.clone())
        .build()
        .unwrap_err();
    let messages: Vec<&str> = twice.problems.iter().map(|p| p.message.as_str()).collect();
    assert_eq!(messages, ["this name is given twice", "the schema has no column `nowhere`"]);
    assert!(Job::builder("x").source("readings", source).query("q", query).build().is_ok());
}
