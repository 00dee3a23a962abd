"""Compares what a runner has written, row by row, with a plain computation by DuckDB over the same files.

    check.py INPUT EXPECTED NAME=DIRECTORY...

Expected are the windows that the watermark has closed at the end of the input: ten minutes before the newest event time
among the rows that pass the filter. A runner that also closes the others when its input ends, as Flink does, is compared
without those. Prints one JSON line for each runner.
"""

import json
import sys
from pathlib import Path

import duckdb

source, expected = sys.argv[1:3]
db = duckdb.connect()
COLUMNS = "minute, sensor_id, readings, temperature_avg, temperature_min, temperature_max"

if not Path(expected).exists():
    db.execute(f"""
        COPY (
            WITH passed AS (
                SELECT date_trunc('minute', event_time) AS minute, *
                FROM read_json('{source}/*.json', format = 'newline_delimited', columns = {{
                    sensor_id: 'VARCHAR', event_time: 'TIMESTAMP', temperature: 'DOUBLE', battery: 'INTEGER'}})
                WHERE battery >= 20
            )
            SELECT minute, sensor_id, count(*) AS readings,
                avg(temperature) AS temperature_avg, min(temperature) AS temperature_min, max(temperature) AS temperature_max
            FROM passed
            WHERE minute + INTERVAL 1 MINUTE <= (SELECT max(event_time) FROM passed) - INTERVAL 10 MINUTE
            GROUP BY minute, sensor_id
        ) TO '{expected}.new' (FORMAT parquet)""")
    Path(f"{expected}.new").rename(expected)

db.execute(f"CREATE VIEW expected AS SELECT {COLUMNS} FROM '{expected}'")
(rows,) = db.execute("SELECT count(*) FROM expected").fetchone()
assert rows > 0, "no window is closed at the end of the workload"


def data_files(directory):
    """All files but those that a runner keeps for itself: their names, or their folders', begin with a dot or a line."""
    for file in sorted(Path(directory).rglob("*")):
        hidden = any(part[0] in "._" for part in file.relative_to(directory).parts)
        if file.is_file() and not hidden and file.suffix != ".crc":
            yield str(file)


for argument in sys.argv[3:]:
    name, directory = argument.split("=", 1)
    files = list(data_files(directory))
    result = {"runner": name, "files": len(files), "rows": 0, "open_windows": 0, "agrees": False}
    if files:
        db.execute("CREATE OR REPLACE TEMP TABLE everything AS SELECT make_timestamp(epoch_us(minute)) AS minute, * EXCLUDE minute "
                   "FROM read_parquet($1)", [files])
        db.execute(f"CREATE OR REPLACE TEMP VIEW actual AS SELECT {COLUMNS} FROM everything "
                   "WHERE minute <= (SELECT max(minute) FROM expected)")
        (everything,) = db.execute("SELECT count(*) FROM everything").fetchone()
        (result["rows"],) = db.execute("SELECT count(*) FROM actual").fetchone()
        result["open_windows"] = everything - result["rows"]
        # Averages may differ in the last digits: they depend on the order in which the rows were added up.
        (different,) = db.execute("""
            SELECT count(*) FROM expected e FULL JOIN actual a USING (minute, sensor_id)
            WHERE e.readings IS DISTINCT FROM a.readings
                OR e.temperature_min IS DISTINCT FROM a.temperature_min
                OR e.temperature_max IS DISTINCT FROM a.temperature_max
                OR abs(e.temperature_avg - a.temperature_avg) > 1e-9""").fetchone()
        result["readings"], result["average"] = db.execute(
            "SELECT CAST(sum(readings) AS BIGINT), avg(temperature_avg) FROM actual").fetchone()
        result["different"] = different
        result["agrees"] = different == 0 and result["rows"] == rows
    print(json.dumps(result), flush=True)
