"""Runs the job files of this folder in PySpark, to see which of the queries Spark takes: spark.py EVENTS OUTPUT [q0 q1 ...]

One line per query: what Spark says, and where it takes it, how many rows came out. The job files all have one layout; their SQL,
schemas and output modes are read out of them as text.
"""

import re
import sys
import textwrap
import time
from pathlib import Path

from pyspark.sql import SparkSession

events, output, *names = sys.argv[1:]
spark = (
    SparkSession.builder.master("local[2]")
    .config("spark.ui.showConsoleProgress", False)
    .config("spark.sql.shuffle.partitions", 2)
    .config("spark.sql.session.timeZone", "UTC")
    .config("spark.driver.memory", "1g")
    .config("spark.ui.enabled", False)
    .config("spark.driver.host", "127.0.0.1")
    .config("spark.driver.bindAddress", "127.0.0.1")
    .getOrCreate()
)
spark.sparkContext.setLogLevel("OFF")

for file in sorted(Path(__file__).parent.glob("q*.yaml"), key=lambda file: int(file.stem[1:])):
    if names and file.stem not in names:
        continue
    job = file.read_text()
    sources, queries = job.split("\nqueries:\n")
    for name, schema in re.findall(r"  (bid|auction|person):\n.*?schema: \|\n(.*?)(?=\n    watermark|\n  \w|\ntables|$)", sources, re.S):
        rows = spark.readStream.schema(" ".join(schema.split())).option("maxFilesPerTrigger", 1).json(f"{events}/{name}")
        if f"  {name}:" in sources and "watermark:" in sources:
            rows = rows.withWatermark("date_time", "4 seconds")
        rows.createOrReplaceTempView(name)
    if "side_input" in sources:
        spark.read.schema("key BIGINT, value STRING").json(f"{events}/side_input").createOrReplaceTempView("side_input")
    sql = textwrap.dedent(re.search(r"    sql: \|\n(.*?)\n    output_mode", queries, re.S)[1])
    mode = re.search(r"output_mode: (\w+)", queries)[1]
    counted = []
    started = time.time()
    try:
        query = (
            spark.sql(sql).writeStream.outputMode(mode).trigger(availableNow=True)
            .option("checkpointLocation", f"{output}/{file.stem}-{started}")
            .foreachBatch(lambda rows, number: counted.append(rows.count())).start()
        )
        query.awaitTermination()
        print(f"{file.stem}: {sum(counted)} rows in {len(counted)} batches, {time.time() - started:.1f} s", flush=True)
    except Exception as error:  # noqa: BLE001: what Spark says is the result
        print(f"{file.stem}: refused: {str(error).splitlines()[0][:300]}", flush=True)
