"""Records what a real Spark answers to expressions: for each its name, type, values or error condition.

    spark-python expressions.py OUTPUT_DIR FILE.txt… [--time-zone ZONE] [--only GROUP…]

A file has groups of lines. `# name` begins one; `from TABLE` behind the name says what its expressions are selected from (`t` without
it), and `complete` that they aggregate. Each other line is an expression, a list of them, or a whole SELECT or WITH. Of a list in which
an expression fails, each expression is asked for by itself. A group becomes OUTPUT_DIR/name.json.
"""

import argparse
import base64
import datetime
import json
import logging
import math
import re
import sys

from pyspark.sql import SparkSession
from pyspark.sql import types as T

# By name: the schema, and the rows as JSON objects or lists of values.
TABLES = {
    "t": (
        "ti TINYINT, sm SMALLINT, i INT, i2 INT, b BIGINT, f FLOAT, d DOUBLE, dec DECIMAL(10,2), dec2 DECIMAL(6,3), str STRING, num1 STRING, bo BOOLEAN, dt DATE, ts TIMESTAMP, bin BINARY, ai ARRAY<INT>, sa ARRAY<STRING>, m MAP<STRING,INT>, st STRUCT<a:INT,b:STRING>, js STRING",
        [
            [5, 100, 1, 2, 10, 1.5, 2.5, "12.50", "1.125", "abc", " 5 ", True, "2024-02-29", "2024-02-29T10:11:12.345678Z", "YWJj", [1, 2, 3], ["x", "y"], [{"key": "a", "value": 1}, {"key": "b", "value": 2}], {"a": 1, "b": "x"}, '{"a": 1, "b": "x"}'],
            [-3, -7, -7, 3, 1709201472, -0.25, -3.5, "-7.25", "-2.500", "Hello World", "42", False, "2023-12-31", "2023-12-31T23:59:59Z", "/wA=", [3, None, 1, 1], [None, "b"], [{"key": "a", "value": None}], {"a": None, "b": None}, '{"a": "z", "b": [1, 2.50, {"c": null}]}'],
            [None] * 20,
            [7, 32, 0, 5, 3, 100.125, 0.1, "0.05", "0.001", "", "7", None, "1999-07-04", "1999-07-04T00:00:00.5Z", "", [0], ["zz"], [{"key": "a", "value": 5}], {"a": 9, "b": "yy"}, "not json"],
        ],
    ),
    # One row, for expressions of constants.
    "one": ("z INT", [[0]]),
    # Numbers at the edges.
    "edge": (
        "x DOUBLE, y DOUBLE, g FLOAT, l BIGINT, n INT, w DECIMAL(38,10), h DECIMAL(4,4)",
        [
            ["NaN", 1.0, "NaN", 9223372036854775807, 2147483647, "9999999999999999999999999999.9999999999", "0.9999"],
            ["Infinity", -0.0, "-Infinity", -9223372036854775808, -2147483648, "-9999999999999999999999999999.9999999999", "-0.9999"],
            [-0.0, 1e300, 3.4028235e38, 0, 0, "0.0000000001", "0.0000"],
            [None, None, None, None, None, None, None],
            [0.5, 4.9e-324, 1.4e-45, -1, -1, "0.5000000000", "0.5000"],
            [-1.5, 2.5, -0.0, 255, 255, "-1.5000000000", "-0.0001"],
        ],
    ),
    # Groups, for aggregates.
    "g": (
        "k STRING, x BIGINT, i INT, y DOUBLE, f FLOAT, d DECIMAL(10,2), w DECIMAL(38,4), s STRING, bo BOOLEAN, ts TIMESTAMP, dt DATE, a ARRAY<INT>, st STRUCT<p:INT,q:STRING>",
        [
            ["a", 1, 3, 1.5, 0.5, "1.00", "10.5000", "x", True, "2024-01-01T00:00:00Z", "2024-01-01", [1], {"p": 1, "q": "u"}],
            ["b", 5, -1, -2.0, 1.5, "2.50", "-0.0001", "yy", False, "2024-01-02T00:00:00Z", "2024-01-02", [2, 3], {"p": 2, "q": "v"}],
            ["a", 3, 7, 4.25, -0.5, "-7.25", "7.0000", "x", False, "2023-12-31T12:00:00Z", "2023-12-31", [], {"p": 0, "q": "w"}],
            ["a", None, None, None, None, None, None, None, None, None, None, None, None],
            [None, 2, 2, 0.5, 2.0, "0.10", "1.0000", "z", True, "2024-03-01T00:00:00Z", "2024-03-01", [4], {"p": 4, "q": None}],
            ["a", 3, 1, 2.0, 0.25, "3.33", "0.0001", "w", None, "2024-01-05T00:00:00Z", "2024-01-05", [1], {"p": 3, "q": "u"}],
            ["b", 9, 4, 8.0, 3.0, "100.00", "12345678901234567890.1234", "a", False, "2024-01-03T00:00:00Z", "2024-01-03", [0], {"p": 5, "q": "t"}],
            ["c", None, None, None, None, None, None, None, None, None, None, None, None],
            [None, -4, 8, "NaN", 1.0, "-1.00", "-5.0000", "", False, "2024-02-01T00:00:00Z", "2024-02-01", [9], {"p": 6, "q": "s"}],
        ],
    ),
}


def value(v, t):
    """A value as the recordings write it."""
    if v is None:
        return None
    if isinstance(t, (T.FloatType, T.DoubleType)):
        if math.isnan(v):
            return "NaN"
        if math.isinf(v):
            return "Infinity" if v > 0 else "-Infinity"
        return v
    if isinstance(t, T.DecimalType):
        return format(v, "f")
    if isinstance(t, (T.TimestampType, T.TimestampNTZType)):
        time = v.astimezone(datetime.timezone.utc) if isinstance(t, T.TimestampType) else v
        text = time.strftime("%Y-%m-%dT%H:%M:%S").rjust(19, "0")
        return text + ((".%06d" % time.microsecond) if time.microsecond else "") + "Z"
    if isinstance(t, T.DateType):
        return v.isoformat()
    if isinstance(t, T.BinaryType):
        return base64.b64encode(bytes(v)).decode()
    if isinstance(t, T.ArrayType):
        return [value(x, t.elementType) for x in v]
    if isinstance(t, T.MapType):
        entries = [{"key": value(k, t.keyType), "value": value(x, t.valueType)} for k, x in v.items()]
        return sorted(entries, key=json.dumps)
    if isinstance(t, T.StructType):
        return {f.name: value(x, f.dataType) for f, x in zip(t.fields, v)}
    if isinstance(t, (T.IntegerType, T.LongType, T.ShortType, T.ByteType, T.StringType, T.BooleanType)):
        return v
    return str(v)


def condition(error):
    """The condition and the first line of an error."""
    message = str(error)
    found = None
    for method in ("getCondition", "getErrorClass"):
        try:
            found = found or getattr(error, method)()
        except Exception:
            pass
    if not found:
        match = re.search(r"\[([A-Z][A-Z0-9_.]+)\]", message)
        found = match.group(1) if match else type(error).__name__
    return found, message.strip().split("\n")[0][:300]


def names(schema):
    """The names of a schema's columns."""
    plain = re.sub(r"\([^)]*\)|<[^>]*>", "", schema)
    return [column.split()[0] for column in plain.split(",")]


def rows_of(name):
    schema, rows = TABLES[name]
    return [dict(zip(names(schema), row)) for row in rows]


def create(spark, name):
    """Makes a table in one partition, so that the order of its rows is known."""

    def plain(row):
        maps = {c for c, v in row.items() if isinstance(v, list) and v and isinstance(v[0], dict) and "key" in v[0]}
        return {c: ({e["key"]: e["value"] for e in v} if c in maps else v) for c, v in row.items()}

    lines = [json.dumps(plain(row)) for row in rows_of(name)]
    reader = spark.read.option("timeZone", "UTC").schema(TABLES[name][0])
    read = reader.json(spark.sparkContext.parallelize(lines, 1))
    spark.createDataFrame(read.collect(), read.schema).coalesce(1).createOrReplaceTempView(name)


def groups_of(paths):
    """The groups of the files: name, mode, and SQL texts."""
    groups = []
    for path in paths:
        for line in open(path, encoding="utf-8"):
            line = line.rstrip("\n")
            if line.startswith("# "):
                words = line[2:].split()
                table = words[words.index("from") + 1] if "from" in words else "t"
                groups.append((words[0], "complete" if "complete" in words else "append", table, []))
            elif line.strip():
                groups[-1][3].append(line)
    return groups


def split(line):
    """The expressions of a list."""
    parts, depth, quote, start = [], 0, None, 0
    for at, c in enumerate(line):
        if quote:
            quote = None if c == quote and line[at - 1] != "\\" else quote
        elif c in "'\"`":
            quote = c
        elif c in "([":
            depth += 1
        elif c in ")]":
            depth -= 1
        elif c == "," and depth == 0:
            parts.append(line[start:at].strip())
            start = at + 1
    return parts + [line[start:].strip()]


def cases_of(spark, line, table):
    """What Spark answers to a line."""
    if line.startswith(("SELECT ", "WITH ")):
        return [ask(spark, line)]
    parts = split(line)
    if len(parts) > 1:
        named = ", ".join(f"{part} AS c{at}" for at, part in enumerate(parts))
        case = ask(spark, f"SELECT {named} FROM {table}")
        if "error" not in case:
            return [case]
    return [ask(spark, f"SELECT {part} FROM {table}") for part in parts]


def ask(spark, sql):
    case = {"sql": sql}
    try:
        answer = spark.sql(sql)
        fields = answer.schema.fields
        case["columns"] = [{"name": f.name, "type": f.dataType.simpleString()} for f in fields]
        case["rows"] = [[value(x, f.dataType) for x, f in zip(row, fields)] for row in answer.collect()]
    except Exception as error:
        case.pop("rows", None)
        case["error"], case["message"] = condition(error)
    return case


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output_dir")
    parser.add_argument("files", nargs="+")
    parser.add_argument("--time-zone", default="UTC")
    parser.add_argument("--only", nargs="*")
    arguments = parser.parse_args()
    # Errors are answers, too.
    logging.getLogger("SQLQueryContextLogger").disabled = True
    builder = SparkSession.builder.master("local[1]").config("spark.ui.enabled", "false")
    builder = builder.config("spark.ui.showConsoleProgress", "false")
    builder = builder.config("spark.driver.memory", "1g").config("spark.sql.shuffle.partitions", "1")
    spark = builder.config("spark.sql.session.timeZone", arguments.time_zone).getOrCreate()
    spark.sparkContext.setLogLevel("OFF")
    for name in TABLES:
        create(spark, name)
    for name, mode, table, lines in groups_of(arguments.files):
        if arguments.only and name not in arguments.only:
            continue
        cases = [case for line in lines for case in cases_of(spark, line, table)]
        used = [table for table in TABLES if any(re.search(rf"\bFROM {table}\b", case["sql"]) for case in cases)]
        tables = {table: {"schema": TABLES[table][0], "rows": rows_of(table)} for table in used}
        with open(f"{arguments.output_dir}/{name}.json", "w", encoding="utf-8") as out:
            out.write('{\n"time_zone": ' + json.dumps(arguments.time_zone) + ',\n"mode": ' + json.dumps(mode))
            out.write(',\n"tables": ' + json.dumps(tables, ensure_ascii=False) + ',\n"cases": [\n')
            out.write(",\n".join(json.dumps(case, ensure_ascii=False) for case in cases))
            out.write("\n]}\n")
        errors = sum("error" in case for case in cases)
        print(f"{name}: {len(cases)} cases, {errors} of them errors", file=sys.stderr)
    spark.stop()


if __name__ == "__main__":
    main()
