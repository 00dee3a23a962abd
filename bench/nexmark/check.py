"""Compares the result of a query with DuckDB's over the same events: check.py EVENTS QUERY OUTPUT. Prints a line of JSON.

The result is `rows/` (Parquet) or `rows.sqlite` (table `result`) in OUTPUT. Its columns are brought to the types of the
expected ones, and both are compared as multisets of rows.
"""

import csv
import json
import sqlite3
import sys
from pathlib import Path

import duckdb

events, query, output = sys.argv[1], sys.argv[2], Path(sys.argv[3])
SCHEMAS = {
    "bid": "auction BIGINT, bidder BIGINT, price BIGINT, channel VARCHAR, url VARCHAR, date_time TIMESTAMP, extra VARCHAR",
    "auction": "id BIGINT, item_name VARCHAR, description VARCHAR, initial_bid BIGINT, reserve BIGINT, date_time TIMESTAMP, "
               "expires TIMESTAMP, seller BIGINT, category BIGINT, extra VARCHAR",
    "person": "id BIGINT, name VARCHAR, email_address VARCHAR, credit_card VARCHAR, city VARCHAR, state VARCHAR, "
              "date_time TIMESTAMP, extra VARCHAR",
    "side_input": "key BIGINT, value VARCHAR",
}

db = duckdb.connect()
for name, schema in SCHEMAS.items():
    columns = ", ".join(f"{column.split()[0]}: '{column.split()[1]}'" for column in schema.split(", "))
    db.execute(f"CREATE VIEW {name} AS FROM read_json('{events}/{name}/*.json', format = 'newline_delimited', columns = {{{columns}}})")
    if name != "side_input":
        db.execute(f"CREATE TABLE {name}_watermark AS SELECT max(date_time) - INTERVAL 4 SECOND AS watermark FROM {name}")
db.execute("CREATE TABLE expected AS " + Path(__file__).with_name(f"{query}.sql").read_text())

database = output / "rows.sqlite"
if database.exists():  # through CSV: DuckDB's reader of SQLite files is an extension, to be fetched
    rows = sqlite3.connect(database).execute("SELECT * FROM result")
    with open(output / "rows.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(column[0] for column in rows.description)
        writer.writerows(rows)
    db.execute(f"CREATE TABLE written AS FROM read_csv('{output}/rows.csv', header = true, all_varchar = true)")
elif any(output.glob("rows/**/*.parquet")):
    db.execute(f"CREATE TABLE written AS FROM read_parquet('{output}/rows/**/*.parquet', hive_partitioning = true, hive_types_autocast = false)")
else:
    db.execute("CREATE TABLE written AS FROM expected WHERE false")

types = {name: kind for name, kind, *_ in db.execute("DESCRIBE written").fetchall()}


def cast(name, kind):
    if types[name] == "TIMESTAMP WITH TIME ZONE":
        return f"make_timestamp(epoch_us({name})) AS {name}"
    return f"CAST({name} AS {kind}) AS {name}"


columns = ", ".join(cast(name, kind) for name, kind, *_ in db.execute("DESCRIBE expected").fetchall())
if query == "q12":  # its windows are those of the clock
    columns = "CAST(bidder AS BIGINT) AS bidder, CAST(sum(CAST(bid_count AS BIGINT)) AS BIGINT) AS bid_count"
    db.execute(f"CREATE TABLE actual AS SELECT {columns} FROM written GROUP BY ALL")
else:
    db.execute(f"CREATE TABLE actual AS SELECT {columns} FROM written")
(rows,) = db.execute("SELECT count(*) FROM expected").fetchone()
difference = None
for what, left, right in (("missing", "expected", "actual"), ("not expected", "actual", "expected")):
    found = db.execute(f"SELECT count(*) OVER (), * FROM (FROM {left} EXCEPT ALL FROM {right}) ORDER BY ALL LIMIT 1").fetchone()
    if found:
        difference = difference or f"{found[0]} rows {what}, the first {found[1:]}"
print(json.dumps({"rows": rows, "agrees": difference is None, "difference": difference}))
