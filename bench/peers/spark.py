"""The workload on PySpark, local mode, two cores: once from the start of the process, once more when it is warm."""

import json
import os
import time

from pyspark.sql import SparkSession
from pyspark.sql import functions as f

started = float(os.environ["BENCH_STARTED"])
output = os.environ["BENCH_OUTPUT"]

spark = (
    SparkSession.builder.master("local[2]")
    .config("spark.sql.shuffle.partitions", 2)
    .config("spark.sql.session.timeZone", "UTC")
    .config("spark.ui.enabled", False)
    .config("spark.driver.host", "127.0.0.1")
    .config("spark.driver.bindAddress", "127.0.0.1")
    .getOrCreate()
)
spark.sparkContext.setLogLevel("ERROR")


def run(rows, checkpoint):
    query = (
        spark.readStream.schema(
            "sensor_id STRING, event_time TIMESTAMP, temperature DOUBLE, ph DOUBLE, battery INT, signal INT"
        )
        .option("maxFilesPerTrigger", os.environ["BENCH_FILES_PER_BATCH"])
        .json(os.environ["BENCH_INPUT"])
        .withWatermark("event_time", "10 minutes")
        .where("battery >= 20")
        .groupBy(f.window("event_time", "1 minute"), "sensor_id")
        .agg(
            f.count("*").alias("readings"),
            f.avg("temperature").alias("temperature_avg"),
            f.min("temperature").alias("temperature_min"),
            f.max("temperature").alias("temperature_max"),
        )
        .selectExpr(
            "window.start AS minute", "sensor_id", "readings", "temperature_avg", "temperature_min", "temperature_max"
        )
        .writeStream.format("parquet")
        .outputMode("append")
        .option("checkpointLocation", checkpoint)
        .trigger(availableNow=True)
        .start(rows)
    )
    query.awaitTermination()


run(f"{output}/rows", f"{output}/checkpoint/per_minute")
result = {
    "runner": "pyspark",
    "version": spark.version,
    "records": int(os.environ["BENCH_RECORDS"]),
    "bytes": int(os.environ["BENCH_BYTES"]),
    "seconds": time.time() - started,
}
print(json.dumps(result), flush=True)
begin = time.time()
run(f"{output}/warm/rows", f"{output}/warm/checkpoint")
print(json.dumps(result | {"warm_seconds": time.time() - begin}), flush=True)
spark.stop()
