//! What a collector of OpenTelemetry gets from a job.

use std::collections::BTreeSet;
use std::net::TcpListener;

use serde_json::Value;

use crate::alerts::{Receiver, any_port, job};
use crate::support::{Home, Running};

/// All objects in a list below a list below a list, of every body that was posted to a path.
fn all(collector: &Receiver, path: &str, [outer, middle, inner]: [&str; 3]) -> Vec<Value> {
    let posted = collector.posted.lock().unwrap();
    let bodies =
        posted.iter().filter(|(to, _)| to == path).map(|(_, body)| serde_json::from_slice::<Value>(body).unwrap());
    let mut found = Vec::new();
    for body in bodies {
        for resource in body[outer].as_array().unwrap() {
            let name = attribute(&resource["resource"]["attributes"], "service.name");
            assert_eq!(name["stringValue"], "alerting", "{resource}");
            for scope in resource[middle].as_array().unwrap() {
                assert_eq!(scope["scope"]["name"], "perennial");
                found.extend(scope[inner].as_array().unwrap().iter().cloned());
            }
        }
    }
    found
}

fn attribute<'a>(attributes: &'a Value, key: &str) -> &'a Value {
    let found = attributes.as_array().unwrap().iter().find(|attribute| attribute["key"] == key);
    found.map_or(&Value::Null, |attribute| &attribute["value"])
}

fn number(value: &Value) -> u64 {
    value.as_str().unwrap().parse().unwrap()
}

#[test]
fn a_collector_gets_traces_and_metrics() {
    // What is not taken at first comes again.
    let collector = Receiver::start(any_port(), &[503; 5]);
    let sink = any_port().local_addr().unwrap().port();
    let telemetry = format!("telemetry: {{ otlp: {{ endpoint: '{}/', every: 50ms }} }}\n", collector.url());
    let home = Home::new(&job(sink, &telemetry));
    home.give(0..10);
    let mut running = Running::start(home.command(&["run", "job.yaml"]));
    running.wait_for_text("telemetry is not taken: the collector answered v1/");
    running.wait_for_text("the collector of telemetry takes it again");
    let _sink = Receiver::start(TcpListener::bind(("127.0.0.1", sink)).unwrap(), &[]);
    running.wait_for_text("batch committed");
    // The rest is sent at the end.
    running.signal("TERM");
    let (code, log) = running.end();
    assert_eq!(code, 0, "{log}");

    let spans = all(&collector, "/v1/traces", ["resourceSpans", "scopeSpans", "spans"]);
    let ids: BTreeSet<&str> = spans.iter().map(|span| span["spanId"].as_str().unwrap()).collect();
    assert_eq!(ids.len(), spans.len(), "each span once");
    let roots: Vec<&Value> = spans.iter().filter(|span| span["name"] == "batch").collect();
    let (failed, committed): (Vec<&Value>, Vec<&Value>) = roots.iter().partition(|span| span["status"]["code"] == 2);
    let exception = &failed[0]["events"][0];
    assert_eq!(exception["name"], "exception");
    assert_eq!(attribute(&exception["attributes"], "exception.type")["stringValue"], "ConnectionRefused");
    assert_eq!(attribute(&failed[0]["attributes"], "perennial.query")["stringValue"], "copy");
    let batch =
        committed.iter().find(|span| attribute(&span["attributes"], "perennial.records.read")["intValue"] == "10");
    let batch = batch.unwrap();
    assert_eq!(attribute(&batch["attributes"], "perennial.batch")["intValue"], "0");
    let (begin, end) = (number(&batch["startTimeUnixNano"]), number(&batch["endTimeUnixNano"]));
    assert!(end > begin && batch["traceId"].as_str().unwrap().len() == 32, "{batch}");
    let children: Vec<&Value> = spans.iter().filter(|span| span["parentSpanId"] == batch["spanId"]).collect();
    for name in ["execute", "log_offsets", "commit"] {
        let child =
            children.iter().find(|span| span["name"] == name).unwrap_or_else(|| panic!("no {name}: {children:#?}"));
        assert_eq!(child["traceId"], batch["traceId"]);
        assert!(number(&child["startTimeUnixNano"]) >= begin && number(&child["endTimeUnixNano"]) <= end, "{child}");
    }

    let metrics = all(&collector, "/v1/metrics", ["resourceMetrics", "scopeMetrics", "metrics"]);
    let last =
        |name: &str| metrics.iter().rfind(|metric| metric["name"] == name).unwrap_or_else(|| panic!("no {name}"));
    let records = &last("perennial_records_total")["sum"];
    assert_eq!((&records["aggregationTemporality"], &records["isMonotonic"]), (&2.into(), &true.into()));
    let points = records["dataPoints"].as_array().unwrap();
    let written =
        points.iter().find(|point| attribute(&point["attributes"], "outcome")["stringValue"] == "written").unwrap();
    assert_eq!(written["asDouble"], 10.0);
    assert!(number(&written["timeUnixNano"]) > number(&written["startTimeUnixNano"]), "{written}");
    let times = &last("perennial_batch_seconds")["histogram"]["dataPoints"][0];
    let buckets = times["bucketCounts"].as_array().unwrap();
    assert_eq!(buckets.len(), times["explicitBounds"].as_array().unwrap().len() + 1);
    assert_eq!(buckets.iter().map(number).sum::<u64>(), number(&times["count"]));
    assert_eq!(last("perennial_state_rows")["gauge"]["dataPoints"][0]["asDouble"], 0.0);
}
