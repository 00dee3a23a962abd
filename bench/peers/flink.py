"""The workload on PyFlink, local mode, two cores: once from the start of the process, once more when it is warm.

Flink's file source hands out the files of a directory in random order. With a delay of ten minutes it would drop half of
the rows as late, so it gets a delay that covers all of the input. That is no more work, and the results are the same.
"""

import json
import os
import time
from importlib.metadata import version
from pathlib import Path

from pyflink.common import Configuration
from pyflink.table import EnvironmentSettings, TableEnvironment

started = float(os.environ["BENCH_STARTED"])
output = os.environ["BENCH_OUTPUT"]
jars = ";".join(jar.as_uri() for jar in sorted(Path(os.environ["BENCH_FLINK_JARS"]).glob("*.jar")))

configuration = Configuration()
for key, value in {
    "parallelism.default": "2",
    "taskmanager.numberOfTaskSlots": "2",
    "pipeline.jars": jars,
    "table.local-time-zone": "UTC",
    "execution.checkpointing.interval": "1 s",
    "execution.checkpointing.dir": Path(output, "checkpoint").as_uri(),
    "rest.bind-port": "0",
}.items():
    configuration.set_string(key, value)


def run(rows):
    tables = TableEnvironment.create(
        EnvironmentSettings.new_instance().in_streaming_mode().with_configuration(configuration).build()
    )
    tables.execute_sql(f"""
        CREATE TABLE readings (
            sensor_id STRING, event_time TIMESTAMP_LTZ(3), temperature DOUBLE, ph DOUBLE, battery INT, signal INT,
            WATERMARK FOR event_time AS event_time - INTERVAL '2' HOURS
        ) WITH (
            'connector' = 'filesystem', 'path' = '{Path(os.environ["BENCH_INPUT"]).as_uri()}',
            'format' = 'json', 'json.timestamp-format.standard' = 'ISO-8601'
        )""")
    tables.execute_sql(f"""
        CREATE TABLE per_minute (
            `minute` TIMESTAMP(3), sensor_id STRING, readings BIGINT,
            temperature_avg DOUBLE, temperature_min DOUBLE, temperature_max DOUBLE
        ) WITH (
            'connector' = 'filesystem', 'path' = '{Path(rows).as_uri()}',
            'format' = 'parquet', 'parquet.utc-timezone' = 'true'
        )""")
    tables.execute_sql("""
        INSERT INTO per_minute
        SELECT window_start, sensor_id, count(*), avg(temperature), min(temperature), max(temperature)
        FROM TABLE(TUMBLE(TABLE readings, DESCRIPTOR(event_time), INTERVAL '1' MINUTE))
        WHERE battery >= 20
        GROUP BY window_start, window_end, sensor_id""").wait()


run(f"{output}/rows")
result = {
    "runner": "pyflink",
    "version": version("apache-flink"),
    "records": int(os.environ["BENCH_RECORDS"]),
    "bytes": int(os.environ["BENCH_BYTES"]),
    "seconds": time.time() - started,
}
print(json.dumps(result), flush=True)
begin = time.time()
run(f"{output}/warm/rows")
print(json.dumps(result | {"warm_seconds": time.time() - begin}), flush=True)
