//! Cases recorded from a real Spark, run through the planner and its operators.
//!
//! The cases are in `testdata/conformance`; another directory can be named in `CONFORMANCE_CASES`.

use std::path::{Path, PathBuf};

use arrow::array::RecordBatch;
use perennial_core::error::ErrorKind;
use perennial_core::sink::OutputMode;
use serde_json::{Value, json};

use crate::functions::window::parse_interval;
use crate::testing::batches::{Loop, Ran};
use crate::testing::values::{rows_from_json, rows_to_json, same_rows, schema, timestamp, type_name};
use crate::{Deduplicate, Planner, PlannerOptions, SourceTable, SourceWatermark, TableKind};

type Outcome = Result<(), String>;

fn cases() -> Vec<PathBuf> {
    let dir = std::env::var_os("CONFORMANCE_CASES")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/conformance"), PathBuf::from);
    let mut files: Vec<PathBuf> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "json"));
    files.sort();
    files
}

fn name(path: &Path) -> String {
    path.file_stem().unwrap().to_string_lossy().into_owned()
}

#[test]
fn the_cases_give_what_spark_gave() {
    run_all(false);
}

#[test]
fn the_cases_give_the_same_with_a_restart_before_every_step() {
    run_all(true);
}

fn run_all(restart_every_step: bool) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let files = cases();
    assert!(!files.is_empty());
    let mut failed = Vec::new();
    for path in &files {
        let case: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        if let Err(difference) = runtime.block_on(run(&case, restart_every_step)) {
            failed.push(format!("{}: {difference}", name(path)));
        }
    }
    println!("conformance: {} passed, {} failed", files.len() - failed.len(), failed.len());
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

fn sources(case: &Value) -> Result<Vec<SourceTable>, String> {
    let mut tables = Vec::new();
    if case.get("static_tables").is_some_and(|tables| tables.as_object().is_some_and(|t| !t.is_empty())) {
        return Err("static tables are not supported".into());
    }
    for (name, source) in case["sources"].as_object().unwrap() {
        let deduplicate = (!source["deduplicate"].is_null()).then(|| Deduplicate {
            columns: serde_json::from_value(source["deduplicate"]["columns"].clone()).unwrap(),
            within_watermark: source["deduplicate"]["within_watermark"] == true,
        });
        let watermark = match &source["watermark"] {
            Value::Null => None,
            watermark => Some(SourceWatermark {
                column: watermark["column"].as_str().unwrap().to_owned(),
                delay_micros: parse_interval(watermark["delay"].as_str().unwrap()).map_err(|e| e.to_string())?,
            }),
        };
        tables.push(SourceTable {
            name: name.clone(),
            schema: schema(source["schema"].as_str().unwrap()),
            watermark,
            deduplicate,
            kind: TableKind::Stream,
        });
    }
    Ok(tables)
}

async fn run(case: &Value, restart_every_step: bool) -> Outcome {
    let sources = sources(case)?;
    let refused = case.get("error_class").is_some();
    let mode = match case["output_mode"].as_str().unwrap() {
        "append" => OutputMode::Append,
        "update" => OutputMode::Update,
        "complete" => OutputMode::Complete,
        // The job file refuses a mode that does not exist.
        _ if refused => return Ok(()),
        other => return Err(format!("unknown output mode {other}")),
    };
    let planner = Planner::new(PlannerOptions { parallelism: 2, ..PlannerOptions::default() });
    let plan = match planner.plan(case["sql"].as_str().unwrap(), &sources, mode).await {
        Ok(_) if refused => return Err(format!("not refused; Spark: {}", case["error_message_first_line"])),
        Ok(plan) => plan,
        Err(error) if refused && error.kind() != ErrorKind::Bug => return Ok(()),
        Err(error) => return Err(format!("{error:?}")),
    };
    let columns: Vec<Value> = plan
        .schema()
        .fields()
        .iter()
        .map(|field| json!({"name": field.name(), "type": type_name(field.data_type())}))
        .collect();
    if Value::Array(columns.clone()) != case["output_schema"] {
        return Err(format!("schema {}, Spark {}", Value::Array(columns), case["output_schema"]));
    }

    let conf = |key: &str| case["conf"][key].as_str().unwrap_or_default();
    let no_data_batches = conf("spark.sql.streaming.noDataMicroBatches.enabled") != "false";
    let mut running = Loop::new(plan);
    running.max_policy = conf("spark.sql.streaming.multipleWatermarkPolicy") == "max";
    for (number, step) in case["steps"].as_array().unwrap().iter().enumerate() {
        let at = |difference: String| format!("step {number}: {difference}");
        let restarts = case["restart_before_step"].as_array().is_some_and(|steps| steps.contains(&json!(number)));
        if restarts || restart_every_step {
            running.restart();
        }
        if !step["raw_input"].is_null() {
            return Err(at("raw input is for the decoder".into()));
        }
        let inputs = running
            .plan
            .inputs()
            .iter()
            .map(|input| {
                let source = sources.iter().find(|source| source.name == input.source).unwrap();
                let schema = source.schema.project(&input.columns).unwrap().into();
                let rows = step["input"][&input.source].as_array();
                rows.map(|rows| vec![vec![rows_from_json(rows, &schema)]]).unwrap_or_default()
            })
            .collect();
        let fails = step.get("error_class").is_some();
        let mut ran = match running.batch(inputs).await {
            Ok(_) if fails => return Err(at(format!("Spark stops with {}", step["error_class"]))),
            Ok(ran) => vec![ran],
            Err(error) if fails && error.kind() == ErrorKind::Data => return Ok(()),
            Err(error) => return Err(at(format!("{error:?}"))),
        };
        while no_data_batches && running.wants_empty_batch(&ran[ran.len() - 1]) {
            ran.push(running.empty_batch().await.map_err(|error| at(format!("{error:?}")))?);
        }
        compare(case, step, &running, &ran).map_err(at)?;
    }
    Ok(())
}

fn compare(case: &Value, step: &Value, running: &Loop, ran: &[Ran]) -> Outcome {
    let expected = step["output_batches"].as_array().unwrap();
    if expected.len() != ran.len() {
        return Err(format!("{} batches, Spark {}", ran.len(), expected.len()));
    }
    for (batch, (ran, expected)) in ran.iter().zip(expected).enumerate() {
        let rows: Vec<Value> = ran.rows.iter().flat_map(|rows: &RecordBatch| rows_to_json(rows)).collect();
        if !same_rows(&rows, expected.as_array().unwrap(), case["ordered"] == true) {
            return Err(format!("batch {batch}: rows {}, Spark {expected}", Value::Array(rows)));
        }
    }
    let last = &ran[ran.len() - 1];
    let watermark = |millis: i64| if running.has_watermark() { json!(timestamp(millis * 1_000)) } else { Value::Null };
    let check = |what: &str, ours: Value| {
        if ours == step[what] { Ok(()) } else { Err(format!("{what} {ours}, Spark {}", step[what])) }
    };
    check("watermark", watermark(last.watermark_ms))?;
    check("next_watermark", watermark(last.next_watermark_ms))?;
    if !step["state_rows"].is_null() {
        check("state_rows", json!(last.outcome.operators.iter().map(|operator| operator.rows_total).sum::<u64>()))?;
        let dropped =
            ran.iter().flat_map(|ran| &ran.outcome.operators).map(|o| o.rows_dropped_by_watermark).sum::<u64>();
        check("dropped_by_watermark", json!(dropped))?;
        for (ran, batch) in ran.iter().zip(step["batches"].as_array().unwrap()) {
            let ours: Vec<Value> = ran
                .outcome
                .operators
                .iter()
                .map(|operator| {
                    let mut shown = json!({
                        "name": operator.name, "rows_total": operator.rows_total, "rows_updated": operator.rows_updated,
                        "rows_removed": operator.rows_removed,
                        "rows_dropped_by_watermark": operator.rows_dropped_by_watermark,
                    });
                    if operator.name.starts_with("dedupe") {
                        shown["rows_dropped_as_duplicates"] = json!(operator.rows_dropped_duplicate);
                    }
                    shown
                })
                .collect();
            if Value::Array(ours.clone()) != batch["operators"] {
                return Err(format!("operators {}, Spark {}", Value::Array(ours), batch["operators"]));
            }
        }
    }
    Ok(())
}
