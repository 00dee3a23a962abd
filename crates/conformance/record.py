#!/usr/bin/env python3
"""Records what a real Spark gives for conformance cases.

    record.py --out DIR CASE.json...      records the cases into DIR
    record.py --compare CASE.json...      records them and tells where the files say something else

A case file may hold outputs or not: only what goes in is read from it. Needs PySpark (4.3.0 for the cases of this repository) and Java. Streams
are directories of JSON files, the sink is foreachBatch, one session per case; README.md says what the fields of a case mean.
"""

import argparse
import base64
import datetime
import decimal
import json
import logging
import math
import os
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path

os.environ["TZ"] = "UTC"
time.tzset()

from pyspark.sql import SparkSession  # noqa: E402
from pyspark.sql import types as T  # noqa: E402

INPUT = ["name", "category", "about", "sources", "static_tables", "conf", "sql", "output_mode", "ordered",
         "restart_before_step", "fail_sink_in_step"]
EPOCH = "1970-01-01T00:00:00Z"
WIDTH = 150


class Torn(Exception):
    """A step's input was seen by more than one batch: the case is recorded again."""


class SinkFailed(Exception):
    """What the sink throws where a case wants it to fail."""


def session():
    builder = SparkSession.builder.master("local[1]").appName("record")
    settings = {
        "spark.ui.enabled": "false",
        "spark.sql.shuffle.partitions": "2",
        "spark.sql.session.timeZone": "UTC",
        # Nothing here runs long enough to be worth compiling.
        "spark.sql.codegen.wholeStage": "false",
        "spark.sql.codegen.factoryMode": "NO_CODEGEN",
        "spark.driver.extraJavaOptions": "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC -Djdk.lang.Process.launchMechanism=VFORK",
        # Without files of checksums beside those of the checkpoint.
        "spark.hadoop.fs.AbstractFileSystem.file.impl": "org.apache.hadoop.fs.local.RawLocalFs",
        "spark.sql.streaming.stateStore.maintenanceInterval": "1h",
        "spark.sql.streaming.noDataProgressEventInterval": "100d",
        "spark.sql.streaming.numRecentProgressUpdates": "1000",
        "spark.ui.showConsoleProgress": "false",
        "spark.driver.host": "127.0.0.1",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.driver.memory": "1g",
        "spark.log.level": "OFF",
        "spark.log.structuredLogging.enabled": "false",
        "spark.sql.warehouse.dir": tempfile.mkdtemp(prefix="record-warehouse-"),
    }
    for name, value in settings.items():
        builder = builder.config(name, value)
    return builder.getOrCreate()


def plain(value, kind):
    """A value as it stands in a case."""
    if value is None:
        return None
    if isinstance(kind, (T.DoubleType, T.FloatType)):
        if math.isnan(value):
            return "NaN"
        return ("Infinity" if value > 0 else "-Infinity") if math.isinf(value) else value
    if isinstance(kind, T.DecimalType):
        return format(decimal.Decimal(value), f".{kind.scale}f")
    if isinstance(kind, T.TimestampType):
        return instant(value)
    if isinstance(kind, T.TimestampNTZType):
        return instant(value)[:-1]
    if isinstance(kind, T.DateType):
        return value.isoformat()
    if isinstance(kind, T.BinaryType):
        return base64.b64encode(bytes(value)).decode()
    if isinstance(kind, T.StructType):
        return {field.name: plain(part, field.dataType) for field, part in zip(kind.fields, value)}
    if isinstance(kind, T.ArrayType):
        return [plain(part, kind.elementType) for part in value]
    if isinstance(kind, T.MapType):
        entries = [{"key": plain(k, kind.keyType), "value": plain(v, kind.valueType)} for k, v in value.items()]
        return sorted(entries, key=lambda entry: compact(entry["key"]))
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    return value


def instant(value):
    text = value.strftime("%Y-%m-%dT%H:%M:%S")
    text = text if len(text) == 19 else text.rjust(19, "0")
    return text + (f".{value.microsecond:06d}" if value.microsecond else "") + "Z"


def millis(text_or_ms):
    """A watermark of Spark's logs as a case has it."""
    at = datetime.datetime(1970, 1, 1) + datetime.timedelta(milliseconds=text_or_ms)
    return instant(at)


def compact(value):
    return json.dumps(value, ensure_ascii=False)


def pretty(value, indent=0, key=""):
    """JSON with one line for what fits in one."""
    line = compact(value)
    if indent and indent + len(key) + len(line) <= WIDTH or not isinstance(value, (dict, list)) or not value:
        return line
    pad = " " * (indent + 1)
    if isinstance(value, dict):
        parts = [f"{pad}{compact(k)}: {pretty(v, indent + 1, compact(k) + ': ')}" for k, v in value.items()]
        return "{\n" + ",\n".join(parts) + "\n" + " " * indent + "}"
    return "[\n" + ",\n".join(pad + pretty(part, indent + 1) for part in value) + "\n" + " " * indent + "]"


def conditions(error):
    """The conditions of an error and its causes, outermost first, and the first line of what the outermost says."""
    found, text = [], None
    # Errors of Python's side hold the original one of the JVM.
    throwable = getattr(error, "_origin", None)
    if throwable is None:
        message = str(error)
        condition = error.getCondition() if hasattr(error, "getCondition") else None
        return [condition], message.split("\n")[0], error.getSqlState() if hasattr(error, "getSqlState") else None
    state = None
    while throwable is not None:
        condition = None
        if hasattr(throwable, "getCondition"):
            try:
                condition = throwable.getCondition()
            except Exception:  # not an error with a condition
                condition = None
        if text is None:
            text = throwable.getMessage()
            try:
                state = throwable.getSqlState()
            except Exception:
                state = None
        # The catch-all conditions of errors that have no name yet say nothing.
        found.append(condition if not found or not str(condition).startswith("_LEGACY") else None)
        throwable = throwable.getCause()
    text = (text or "").split("\n")[0]
    return found, text.split(" terminated with exception: ", 1)[-1], state


class Recording:
    def __init__(self, spark, case):
        self.case = case
        self.spark = spark.newSession()
        self.dir = Path(tempfile.mkdtemp(prefix="record-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
        self.received, self.error, self.fail_next, self.query = [], None, False, None
        # Sources are looked at one after the other. The rarer that is, the rarer is input seen of only one of them.
        self.spark.conf.set("spark.sql.streaming.pollingDelay", "50ms" if len(case["sources"]) == 1 else "1500ms")
        for name, value in case.get("conf", {}).items():
            self.spark.conf.set(name, value)

    def close(self):
        if self.query is not None:
            try:
                self.query.stop()
            except Exception:
                pass
        for name in [*self.case["sources"], *self.case.get("static_tables", {})]:
            self.spark.catalog.dropTempView(name)
        shutil.rmtree(self.dir, ignore_errors=True)

    def frame(self):
        for name, table in self.case.get("static_tables", {}).items():
            path = self.dir / f"{name}.json"
            path.write_text("".join(compact(row) + "\n" for row in table["rows"]))
            self.spark.read.schema(table["schema"]).json(str(path)).createOrReplaceTempView(name)
        for name, source in self.case["sources"].items():
            (self.dir / name).mkdir(exist_ok=True)
            reader = self.spark.readStream.schema(source["schema"]).options(**source.get("reader_options", {}))
            frame = reader.json(str(self.dir / name))
            if source.get("watermark"):
                frame = frame.withWatermark(source["watermark"]["column"], source["watermark"]["delay"])
            if source.get("deduplicate"):
                columns = source["deduplicate"]["columns"]
                within = source["deduplicate"].get("within_watermark")
                frame = frame.dropDuplicatesWithinWatermark(columns) if within else frame.dropDuplicates(columns)
            frame.createOrReplaceTempView(name)
        return self.spark.sql(self.case["sql"])

    def start(self):
        frame = self.frame()
        self.types = frame.schema

        def sink(batch, number):
            try:
                # A struct's fields can share a name: by position.
                rows = [tuple(row) for row in batch.collect()]
            except Exception as error:
                self.error = error
                raise
            if self.fail_next:
                self.fail_next = False
                raise SinkFailed()
            rows = [{f.name: plain(v, f.dataType) for f, v in zip(self.types.fields, row)} for row in rows]
            self.received.append((number, rows if self.case.get("ordered") else sorted(rows, key=compact)))

        writer = frame.writeStream.outputMode(self.case["output_mode"]).foreachBatch(sink)
        self.query = writer.option("checkpointLocation", str(self.dir / "checkpoint")).start()

    def give(self, number, step):
        units = []
        for name, rows in step.get("input", {}).items():
            units.append((name, "".join(compact(row) + "\n" for row in rows)))
        for name, lines in step.get("raw_input", {}).items():
            units.append((name, "".join(line + "\n" for line in lines)))
        for name, text in units:
            (self.dir / f"{name}.new").write_text(text)
        for name, _ in units:
            os.rename(self.dir / f"{name}.new", self.dir / name / f"s{number:03d}.json")

    def progress(self):
        return {p["batchId"]: p for p in (json.loads(p.json) for p in self.query.recentProgress)}

    def batch(self, number, progress):
        sources = {}
        for source in progress["sources"]:
            name = re.search(r"/([^/\]]+)\]$", source["description"]).group(1)
            sources[name] = sources.get(name, 0) + (source["numInputRows"] or 0)
        watermark = progress.get("eventTime", {}).get("watermark")
        watermark = watermark and self.exact(watermark)
        batch = {"batch_id": number, "input_rows": dict(sorted(sources.items())), "watermark": watermark}
        if not self.case.get("ordered"):
            batch["operators"] = [self.operator(operator) for operator in progress["stateOperators"]]
        commit = json.loads((self.dir / "checkpoint" / "commits" / str(number)).read_text().split("\n")[1])
        batch["next_watermark"] = watermark and millis(commit["nextBatchWatermarkMs"])
        return batch

    @staticmethod
    def exact(text):
        return instant(datetime.datetime.fromisoformat(text.replace("Z", "")))

    @staticmethod
    def operator(operator):
        told = {
            "name": operator["operatorName"],
            "rows_total": operator["numRowsTotal"],
            "rows_updated": operator["numRowsUpdated"],
            "rows_removed": operator["numRowsRemoved"],
            "rows_dropped_by_watermark": operator["numRowsDroppedByWatermark"],
        }
        if "numDroppedDuplicateRows" in operator["customMetrics"]:
            told["rows_dropped_as_duplicates"] = operator["customMetrics"]["numDroppedDuplicateRows"]
        return told

    def step(self, number, step):
        told = {key: step[key] for key in ("input", "raw_input") if key in step}
        self.received, before = [], None
        if number in self.case.get("restart_before_step", []):
            self.query.stop()
            self.start()
            self.query.processAllAvailable()
            before = len(self.received)
        self.fail_next = number in self.case.get("fail_sink_in_step", [])
        failing = self.fail_next
        self.give(number, step)
        try:
            try:
                self.query.processAllAvailable()
            except Exception:
                if not failing or self.fail_next or self.error is not None:
                    raise
                self.start()
                self.query.processAllAvailable()
        except Exception as error:
            causes, text, _ = conditions(self.error or error)
            told["output"] = [row for _, rows in self.received for row in rows]
            told["output_batches"] = [rows for _, rows in self.received]
            text = text.replace(str(self.dir), "<dir>").replace("//<dir>", "<dir>")
            told["error_class"], told["error_message_first_line"] = causes[0], text
            if any(causes[1:]):
                told["error_causes"] = [cause for cause in causes[1:] if cause]
            return told, True
        progress = self.progress()
        batches = [self.batch(number, progress[number]) for number, _ in self.received]
        with_input = [batch for batch in batches if any(batch["input_rows"].values())]
        if len(with_input) > 1 and not failing:
            raise Torn(f"step {number}")
        outputs = [rows for _, rows in self.received]
        if self.case["output_mode"] == "complete":
            told["output"] = next((rows for rows in reversed(outputs) if rows), [])
        else:
            told["output"] = [row for rows in outputs for row in rows]
        told["output_batches"] = outputs
        operators = [operator for batch in batches for operator in batch.get("operators", [])]
        told["watermark"] = batches[-1]["watermark"] if batches else None
        told["next_watermark"] = batches[-1]["next_watermark"] if batches else None
        told["state_rows"] = sum(o["rows_total"] for o in batches[-1]["operators"]) if operators else None
        told["dropped_by_watermark"] = sum(o["rows_dropped_by_watermark"] for o in operators) if operators else None
        told["batches"] = batches
        if before is not None:
            told["batches_before_input"] = before
        return told, False

    def record(self):
        told = {key: self.case[key] for key in INPUT if key in self.case and key not in ("restart_before_step", "fail_sink_in_step")}
        try:
            self.start()
        except Exception as error:
            causes, text, state = conditions(error)
            told["error_class"], told["error_message_first_line"] = causes[0], text
            if state:
                told["sql_state"] = state
            return told
        told.pop("ordered", None)
        told["output_schema"] = [{"name": f.name, "type": f.dataType.simpleString()} for f in self.types.fields]
        for key in ("ordered", "restart_before_step", "fail_sink_in_step"):
            if self.case.get(key):
                told[key] = self.case[key]
        told["steps"] = []
        for number, step in enumerate(self.case["steps"]):
            step, failed = self.step(number, step)
            if failed and number == 0 and not step["output_batches"] and self.error is None:
                return self.refused_at_first_batch(told, step)
            told["steps"].append(step)
            if failed:
                break
        return told

    def refused_at_first_batch(self, told, step):
        """The query never got to run: it is refused when its first batch is planned."""
        del told["output_schema"], told["steps"]
        told["error_class"] = step["error_class"]
        told["error_message_first_line"] = step["error_message_first_line"]
        told["error_causes"] = step.get("error_causes", [])
        told["refused_when"] = "first_batch"
        told["steps"] = [{key: step[key] for key in ("input", "raw_input") if key in step}]
        return told


def record(spark, case):
    for _ in range(8):
        recording = Recording(spark, case)
        try:
            told = recording.record()
            told["spark_version"] = spark.version
            return told
        except Torn as torn:
            print(f"{case['name']}: {torn} again", file=sys.stderr, flush=True)
            continue
        finally:
            recording.close()
    raise Torn(case["name"])


def differences(old, new, path=""):
    if type(old) is not type(new) or not isinstance(old, (dict, list)):
        return [] if old == new else [f"{path}: {compact(old)} in the file, {compact(new)} recorded"]
    if isinstance(old, list):
        if len(old) != len(new):
            return [f"{path}: {compact(old)} in the file, {compact(new)} recorded"]
        return [d for i, (a, b) in enumerate(zip(old, new)) for d in differences(a, b, f"{path}[{i}]")]
    return [d for k in {**old, **new} for d in differences(old.get(k, "absent"), new.get(k, "absent"), f"{path}.{k}")]


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--out", type=Path, help="where the recorded cases go")
    arguments.add_argument("--compare", action="store_true", help="tell differences to the files instead")
    arguments.add_argument("cases", nargs="+", type=Path)
    arguments = arguments.parse_args()
    logging.disable()
    spark, failed = session(), 0
    try:
        for path in arguments.cases:
            case = json.loads(path.read_text())
            case.setdefault("steps", [])
            began = time.monotonic()
            try:
                told = record(spark, case)
            except Exception as error:
                failed += 1
                print(f"{path.name}: not recorded: {error!r}", flush=True)
                continue
            if arguments.compare:
                found = differences(case, told)
                failed += bool(found)
                print(f"{path.name}: " + ("the same" if not found else "\n  ".join(["differs", *found])), flush=True)
            else:
                out = arguments.out / f"{case['category']}__{case['name']}.json"
                out.write_text(pretty(told) + "\n")
                print(f"{out.name}: {told.get('error_class', 'recorded')} ({time.monotonic() - began:.1f} s)", flush=True)
    finally:
        spark.stop()
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
