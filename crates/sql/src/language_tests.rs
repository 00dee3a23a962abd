//! What Spark answers to single expressions and queries, recorded by `testdata/language/record.py`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use serde_json::{Value, json};

use crate::testing::batches::Loop;
use crate::testing::values::{rows_from_json, rows_to_json, same, schema, type_name};
use crate::{Planner, PlannerOptions, SourceTable, TableKind};
use perennial_core::sink::OutputMode;

/// A file of recorded answers.
struct Recording {
    name: String,
    planner: Planner,
    sources: Vec<SourceTable>,
    tables: Vec<(String, RecordBatch)>,
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
            let rows: Vec<Value> = table["rows"].as_array().unwrap().iter().map(plain_maps).collect();
            tables.push((name.clone(), rows_from_json(&rows, &columns)));
            sources.push(SourceTable { name: name.clone(), schema: columns, watermark: None, deduplicate: None, kind: TableKind::Stream });
        }
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        Self { name, planner, sources, tables, cases: file["cases"].as_array().unwrap().clone() }
    }

    /// What a query gives: its columns and rows.
    async fn answer(&self, sql: &str) -> Result<(Vec<Value>, Vec<Vec<Value>>), String> {
        let mode = OutputMode::Append;
        let plan = self.planner.plan(sql, &self.sources, mode).await.map_err(|error| format!("{error:?}"))?;
        let columns = plan
            .schema()
            .fields()
            .iter()
            .map(|field| json!({"name": field.name(), "type": type_name(field.data_type())}))
            .collect();
        let inputs = plan
            .inputs()
            .iter()
            .map(|input| {
                let (_, rows) = self.tables.iter().find(|(name, _)| *name == input.source).unwrap();
                vec![vec![rows.project(&input.columns).unwrap()]]
            })
            .collect();
        let ran = Loop::new(Arc::clone(&plan)).batch(inputs).await.map_err(|error| format!("{error:?}"))?;
        let rows = ran
            .rows
            .iter()
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
                Err(_) => Ok(()),
            };
        }
        let (columns, rows) = answer?;
        if Value::Array(columns.clone()) != case["columns"] {
            return Err(format!("columns {}, Spark {}", Value::Array(columns), case["columns"]));
        }
        let expected = case["rows"].as_array().unwrap();
        let rows: Vec<Value> = rows.into_iter().map(Value::Array).collect();
        if rows.len() != expected.len() || !rows.iter().zip(expected).all(|(ours, sparks)| same(ours, sparks)) {
            return Err(format!("rows {}, Spark {}", Value::Array(rows), case["rows"]));
        }
        Ok(())
    }
}

/// Maps are lists of entries in the recordings, and objects for the reader.
fn plain_maps(row: &Value) -> Value {
    let Value::Object(fields) = row else { return row.clone() };
    let plain = fields.iter().map(|(name, value)| {
        let entries =
            value.as_array().filter(|items| !items.is_empty() && items.iter().all(|e| e.get("key").is_some()));
        let value = match entries {
            Some(entries) => {
                entries.iter().map(|e| (e["key"].as_str().unwrap().to_owned(), e["value"].clone())).collect()
            }
            None => value.clone(),
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

#[tokio::test]
async fn expressions_give_what_spark_gave() {
    let (mut count, mut failed) = (0, Vec::new());
    for path in files() {
        let recording = Recording::read(&path);
        for case in &recording.cases {
            count += 1;
            if let Err(difference) = recording.check(case).await {
                failed.push(format!("{}: {}: {difference}", recording.name, case["sql"].as_str().unwrap()));
            }
        }
    }
    println!("language: {} passed, {} failed", count - failed.len(), failed.len());
    assert!(count > 0 && failed.is_empty(), "{}", failed.join("\n"));
}
