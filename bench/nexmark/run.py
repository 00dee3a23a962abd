#!/usr/bin/env python3
"""Runs the queries of the Nexmark benchmark as jobs of Perennial and compares each result with DuckDB's.

    make bench-nexmark                                 all queries over 2 million events
    bench/nexmark/run.py --events 20000 --only q5,q7   some of them over fewer events

A query is a job file, qN.yaml, and the same question to the whole of the events as a batch query in DuckDB's SQL, qN.sql. Queries
without the latter are those that Spark refuses: `perennial check` has to refuse them, too. Windows that the watermark has not
closed at the end are in neither result. The events come from `nexmark-events` (generator/), a millisecond of event time each.

PERENNIAL is the perennial binary (default: the one that cargo builds for release).
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.dont_write_bytecode = True
sys.path.insert(0, str(HERE.parent / "peers"))
import run as peers  # noqa: E402

SIDE_INPUT = 10_000
# Why Spark refuses a query, and where another form of the query had to be found.
REFUSED = {
    "q4": "an average over groups that never close",
    "q6": "a window over rows",
    "q9": "a window over rows",
}
REWRITTEN = {
    "q15": "sets for count(DISTINCT)",
    "q16": "sets for count(DISTINCT)",
    "q18": "max(struct) for row_number()",
    "q19": "a sorted list for row_number()",
}


def prepare(cache, events, files):
    """Makes the events, once; returns their folder."""
    directory = cache / f"nexmark-{events}-{files}"
    if directory.exists():
        return directory
    print(f"making {events:,} events", flush=True)
    target = cache / "nexmark-target"
    subprocess.run(["cargo", "build", "--quiet", "--release", "--locked", "--manifest-path",
                    str(HERE / "generator" / "Cargo.toml"), "--target-dir", str(target)], check=True)
    new = directory.with_name(directory.name + ".new")
    shutil.rmtree(new, ignore_errors=True)
    subprocess.run([str(target / "release" / "nexmark-events"), str(events), str(files), str(new)], check=True)
    (new / "side_input").mkdir()
    with open(new / "side_input" / "side_input.json", "w") as file:
        for key in range(SIDE_INPUT):
            file.write(json.dumps({"key": key, "value": f"value-{key}"}) + "\n")
    new.rename(directory)
    return directory


def run(query, program, events, cache):
    """The row of the table for one query, and whether all is well with it."""
    name, job = query.stem, str(query)
    output, log = cache / "work" / f"nexmark-{name}", cache / "logs" / f"nexmark-{name}.log"
    sources = [kind for kind in ("bid", "auction", "person") if f"\n  {kind}:\n" in query.read_text()]
    files = [file for kind in sources for file in sorted((events / kind).iterdir())]
    data = b"".join(file.read_bytes() for file in files)
    records, size = data.count(b"\n"), len(data)
    task = {"BENCH_INPUT": str(events), "BENCH_RECORDS": str(records), "BENCH_BYTES": str(size)}
    if name in REFUSED:
        checked = subprocess.run([program, "check", job], env=os.environ | task | {"BENCH_OUTPUT": str(output)},
                                 capture_output=True, text=True)
        log.write_text(checked.stdout + checked.stderr)
        return [name, f"no: {REFUSED[name]}", "refused" if checked.returncode else "TAKEN", "-", "-"], bool(checked.returncode)
    verdict = f"as {REWRITTEN[name]}" if name in REWRITTEN else "yes"
    runner = type("Runner", (), {"name": name})
    try:
        result = peers.measure(runner, [program, "run", job, "--available-now"], task, output, log)
    except peers.Unavailable as why:
        print(f"{name}: {why}", flush=True)
        return [name, verdict, "FAILED", "-", f"{records:,}"], False
    check = subprocess.run(
        [str(peers.python_with(cache, "duckdb", peers.DUCKDB)), str(HERE / "check.py"), str(events), name, str(output)],
        capture_output=True, text=True)
    answer = json.loads(check.stdout) if check.returncode == 0 else {"agrees": False, "difference": check.stderr[-500:], "rows": 0}
    if not answer["agrees"]:
        print(f"{name}: {answer['difference']}", flush=True)
    said = f"{answer['rows']:,} rows agree" if answer["agrees"] else "DIFFERS"
    return [name, verdict, said, f"{records / result['seconds']:,.0f}", f"{records:,}"], answer["agrees"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=2_000_000)
    parser.add_argument("--files", type=int, default=8, help="files of each stream: as many batches (default: 8)")
    parser.add_argument("--only", help="some of the queries: q0,q5")
    options = parser.parse_args()
    queries = sorted(HERE.glob("q*.yaml"), key=lambda file: int(file.stem[1:]))
    if options.only:
        queries = [query for query in queries if query.stem in options.only.split(",")]
    cache = peers.cache_directory()
    (cache / "logs").mkdir(parents=True, exist_ok=True)
    program = peers.programs()["perennial"]
    events = prepare(cache, options.events, options.files)
    rows, good = [["query", "in Spark's streaming SQL", "result", "records/s", "records"]], True
    for query in queries:
        row, agrees = run(query, program, events, cache)
        rows.append(row)
        good = good and agrees
        print("  ".join(row), flush=True)
    print()
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        print("  ".join(cell.ljust(width) if n < 3 else cell.rjust(width) for n, (cell, width) in enumerate(zip(row, widths))))
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
