//! What Spark answers to single expressions and queries, recorded by `crates/conformance/expressions.py`.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, SchemaRef};
use base64::Engine;
use futures::FutureExt;
use serde_json::{Value, json};

use crate::testing::batches::Loop;
use crate::testing::values::{rows_from_json, rows_to_json, same_rows, schema, type_name};
use crate::{Planner, PlannerOptions, SourceTable, TableKind};
use perennial_core::sink::OutputMode;

/// A file of recorded answers.
struct Recording {
    name: String,
    planner: Planner,
    sources: Vec<SourceTable>,
    tables: Vec<(String, RecordBatch)>,
    mode: OutputMode,
    /// Whether errors must be Spark's: of the older recordings only that there is one counts.
    conditions: bool,
    cases: Vec<Value>,
}

impl Recording {
    fn read(path: &Path) -> Self {
        let file: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        let time_zone = file["time_zone"].as_str().unwrap().to_owned();
        let planner = Planner::new(PlannerOptions { parallelism: 1, time_zone, ..PlannerOptions::default() });
        let mut sources = Vec::new();
        let mut tables = Vec::new();
        for (name, table) in file["tables"].as_object().unwrap() {
            let columns: SchemaRef = schema(table["schema"].as_str().unwrap());
            let rows: Vec<Value> =
                table["rows"].as_array().unwrap().iter().map(|row| for_the_reader(row, &columns)).collect();
            tables.push((name.clone(), rows_from_json(&rows, &columns)));
            sources.push(SourceTable {
                name: name.clone(),
                schema: columns,
                watermark: None,
                deduplicate: None,
                kind: TableKind::Stream,
            });
        }
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        let complete = file["mode"] == "complete";
        let mode = if complete { OutputMode::Complete } else { OutputMode::Append };
        let conditions = file.get("mode").is_some();
        Self { name, planner, sources, tables, mode, conditions, cases: file["cases"].as_array().unwrap().clone() }
    }

    /// What a query gives: its columns and rows. Rows that are aggregated come one per batch, with a restart after half of them.
    async fn answer(&self, sql: &str) -> Result<(Vec<Value>, Vec<Vec<Value>>), String> {
        let fails = |error: perennial_core::error::Error| error.to_string();
        let plan = self.planner.plan(sql, &self.sources, self.mode).await.map_err(fails)?;
        let columns = plan
            .schema()
            .fields()
            .iter()
            .map(|field| json!({"name": field.name(), "type": type_name(field.data_type())}))
            .collect();
        let inputs: Vec<RecordBatch> = plan
            .inputs()
            .iter()
            .map(|input| {
                let (_, rows) = self.tables.iter().find(|(name, _)| *name == input.source).unwrap();
                rows.project(&input.columns).unwrap()
            })
            .collect();
        let mut running = Loop::new(Arc::clone(&plan));
        let mut ran = None;
        if self.mode == OutputMode::Append {
            let all = inputs.iter().map(|rows| vec![vec![rows.clone()]]).collect();
            ran = Some(running.batch(all).await.map_err(fails)?);
        } else {
            let count = inputs.iter().map(RecordBatch::num_rows).max().unwrap_or(0);
            for row in 0..count {
                if row == count / 2 {
                    running.restart();
                }
                let next = |rows: &RecordBatch| (row < rows.num_rows()).then(|| rows.slice(row, 1));
                let one = inputs.iter().map(|rows| vec![next(rows).into_iter().collect()]).collect();
                ran = Some(running.batch(one).await.map_err(fails)?);
            }
        }
        let rows = ran
            .iter()
            .flat_map(|ran| &ran.rows)
            .flat_map(rows_to_json)
            .map(|row| row.as_object().unwrap().values().cloned().collect())
            .collect();
        Ok((columns, rows))
    }

    async fn check(&self, case: &Value) -> Result<(), String> {
        let answer = self.answer(case["sql"].as_str().unwrap()).await;
        if let Some(error) = case["error"].as_str() {
            return match answer {
                Ok((columns, rows)) => Err(format!("{columns:?} {rows:?}, Spark fails with {error}")),
                Err(ours) if self.conditions && !ours.contains(error) => Err(format!("{ours}, Spark {error}")),
                Err(_) => Ok(()),
            };
        }
        let (columns, rows) = answer?;
        if Value::Array(columns.clone()) != case["columns"] {
            return Err(format!("columns {}, Spark {}", Value::Array(columns), case["columns"]));
        }
        let expected = case["rows"].as_array().unwrap();
        let rows: Vec<Value> = rows.into_iter().map(Value::Array).collect();
        if !same_rows(&rows, expected, self.mode == OutputMode::Append) {
            return Err(format!("rows {}, Spark {}", Value::Array(rows), case["rows"]));
        }
        Ok(())
    }
}

/// Recordings have maps as lists of entries and BINARY in base64; the reader wants objects and hexadecimal digits.
fn for_the_reader(row: &Value, columns: &SchemaRef) -> Value {
    let Value::Object(fields) = row else { return row.clone() };
    let plain = fields.iter().map(|(name, value)| {
        let value = match (columns.field_with_name(name).unwrap().data_type(), value) {
            (DataType::Map(..), Value::Array(entries)) => {
                entries.iter().map(|e| (e["key"].as_str().unwrap().to_owned(), e["value"].clone())).collect()
            }
            (DataType::Binary, Value::String(text)) => {
                let bytes = base64::engine::general_purpose::STANDARD.decode(text).unwrap();
                json!(bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
            }
            _ => value.clone(),
        };
        (name.clone(), value)
    });
    Value::Object(plain.collect())
}

fn files() -> Vec<PathBuf> {
    let dir = std::env::var_os("LANGUAGE_CASES")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/language"), PathBuf::from);
    let mut files: Vec<PathBuf> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "json"));
    files.sort();
    files
}

/// The cases that do not give what Spark gave, and must be removed from here when they do: `file: SQL` per line.
fn known_differences() -> BTreeSet<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/language/differences.txt");
    std::fs::read_to_string(path).unwrap().lines().map(str::to_owned).collect()
}

#[tokio::test]
async fn expressions_give_what_spark_gave() {
    let (mut count, mut failed) = (0, BTreeMap::new());
    for path in files() {
        let recording = Recording::read(&path);
        for case in &recording.cases {
            count += 1;
            let checked = AssertUnwindSafe(recording.check(case)).catch_unwind().await;
            if let Err(difference) = checked.unwrap_or_else(|_| Err("a panic".to_owned())) {
                failed.insert(format!("{}: {}", recording.name, case["sql"].as_str().unwrap()), difference);
            }
        }
    }
    println!("language: {} passed, {} failed", count - failed.len(), failed.len());
    if let Some(path) = std::env::var_os("LANGUAGE_DIFFERENCES") {
        let lines: Vec<String> =
            failed.iter().map(|(case, difference)| format!("{case}\t{}", difference.replace('\n', " "))).collect();
        std::fs::write(path, lines.join("\n")).unwrap();
    }
    let known = known_differences();
    let new: Vec<String> =
        failed.iter().filter(|(case, _)| !known.contains(*case)).map(|(case, how)| format!("{case}: {how}")).collect();
    let gone: Vec<&String> = known.iter().filter(|case| !failed.contains_key(*case)).collect();
    assert!(count > 0 && new.is_empty(), "{}", new.join("\n"));
    assert!(gone.is_empty(), "these work now, remove them from differences.txt: {gone:#?}");
}
