"""Lets a real Spark go on from checkpoints: `spark_resume.py JOBS`, a JSON list of queries. Writes the rows of batch N to OUT/N.jsonl."""

import json
import os
import re
import sys

from pyspark.sql import SparkSession

spark = (
    SparkSession.builder.master("local[1]")
    .config("spark.ui.enabled", "false")
    .config("spark.sql.session.timeZone", "UTC")
    .config("spark.sql.shuffle.partitions", "1")
    .config("spark.sql.warehouse.dir", os.path.abspath("warehouse"))
    .getOrCreate()
)
spark.sparkContext.setLogLevel("ERROR")


def source(of):
    """A source as the job file has it: with its watermark, without its duplicates."""
    rows = spark.readStream.schema(of["schema"]).option("maxFilesPerTrigger", 1).json(of["path"])
    if watermark := re.search(r"column: (\w+), delay: ([\w ]+)", of["more"]):
        rows = rows.withWatermark(*watermark.groups())
    if duplicates := re.search(r"columns: \[(.*?)\](.*)", of["more"]):
        columns = duplicates.group(1).split(", ")
        within = "within_watermark: true" in duplicates.group(2)
        rows = rows.dropDuplicatesWithinWatermark(columns) if within else rows.dropDuplicates(columns)
    rows.createOrReplaceTempView(of["name"])


for job in json.load(open(sys.argv[1])):
    for of in job["sources"]:
        source(of)
    os.makedirs(job["out"])

    def write(rows, batch, out=job["out"]):
        with open(f"{out}/{batch}.jsonl", "w") as file:
            file.writelines(line + "\n" for line in rows.toJSON().collect())

    query = (
        spark.sql(job["sql"])
        .writeStream.outputMode(job["mode"])
        .option("checkpointLocation", job["checkpoint"])
        .foreachBatch(write)
        .start()
    )
    query.processAllAvailable()
    query.stop()
spark.stop()
