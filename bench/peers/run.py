#!/usr/bin/env python3
"""Runs the same work on Perennial, PySpark, PyFlink and a plain DataFusion query, one after the other, and compares.

    make bench                                        Perennial from files and from Kafka, and the DataFusion query
    make bench-peers                                  all of them on the files
    bench/peers/run.py --only pyspark,perennial       some of the runners
    bench/peers/run.py --prepare                      only writes the workload and prints where it is

The work: 4 million JSON records of 130 bytes in 16 files (workload.py), a filter, one-minute windows by sensor with count,
average, minimum and maximum, append mode with a ten-minute watermark, to Parquet, with checkpoints. Every result is
compared row by row with that of DuckDB (check.py). From Kafka, the same records lie in a topic of four partitions.

A runner is a program. It gets its task in the environment:

    BENCH_INPUT            the folder with the files
    BENCH_OUTPUT           an empty folder; the Parquet files go to rows/ in it, the checkpoint to checkpoint/
    BENCH_FILES_PER_BATCH  how many files make a micro-batch, where the runner has such a thing
    BENCH_RECORDS_PER_BATCH  about how many records these are
    BENCH_RECORDS, BENCH_BYTES   the size of the input
    BENCH_STARTED          when the process was started, in seconds since 1970

and its last line on standard output is its result, as JSON:

    {"runner": "pyspark", "records": 4000000, "bytes": 520000000, "seconds": 16.1, "warm_seconds": 8.2}

"seconds" count from BENCH_STARTED until the result is complete, "warm_seconds" are those of a second run in the same
process (to leave out where it makes no difference). Memory and processor time are measured from outside, over the tree of
the runner's processes, until the first such line: a runner that goes on with a warm run prints the line twice. "version"
may be given too.

Perennial's and DataFusion's programs come from these variables, or from a release build:

    PERENNIAL         the perennial binary (default: the one that cargo builds)
    DATAFUSION_BATCH  the command of the DataFusion runner (default: perennial-bench beside that binary, see bench/tools)

PERENNIAL_TEST_KAFKA is the address of the Kafka to read from, as scripts/with-services sets it.
"""

import argparse
import contextlib
import json
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

sys.dont_write_bytecode = True
import workload  # noqa: E402

PYSPARK = "4.3.0"
FLINK = "2.3.0"
HADOOP = "3.4.1"  # Flink's Parquet writer needs its classes
DUCKDB = "2.0.0"
CORES = 2

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent


class Unavailable(Exception):
    """Why a runner cannot run here."""


def cache_directory():
    base = os.environ.get("PERENNIAL_CACHE") or Path(
        os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "perennial"
    )
    return Path(base).resolve() / "bench"


def log_tail(path, lines=12):
    text = Path(path).read_text(errors="replace").replace("\r", "\n").splitlines()
    return "\n".join("    " + line for line in text[-lines:])


# --- what the runners need -------------------------------------------------------------------------------------------


def python_with(cache, package, version, pythons=None):
    """A Python that has the package, in a virtual environment of its own, made once."""
    directory = cache / f"venv-{package}-{version}"
    python = directory / "bin" / "python"
    done = directory / "complete"
    if done.exists():
        return python
    base = pythons() if pythons else sys.executable
    print(f"installing {package} {version}", flush=True)
    shutil.rmtree(directory, ignore_errors=True)
    directory.parent.mkdir(parents=True, exist_ok=True)
    log = cache / f"install-{package}.log"
    with open(log, "w") as out:
        for command in (
            [base, "-m", "venv", str(directory)],
            [str(python), "-m", "pip", "install", "--disable-pip-version-check", f"{package}=={version}"],
        ):
            if subprocess.run(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out).returncode:
                out.flush()
                raise Unavailable(f"{package} {version} cannot be installed, see {log}:\n{log_tail(log, 3)}")
    done.touch()
    return python


def flink_python():
    """Flink's package supports the Pythons from 3.9 to 3.12."""
    if (3, 9) <= sys.version_info[:2] <= (3, 12):
        return sys.executable
    for name in ("python3.12", "python3.11", "python3.10", "python3.9"):
        # A version manager's stand-in may be on the path without the version.
        if shutil.which(name) and subprocess.run([name, "-c", ""], capture_output=True).returncode == 0:
            return name
    raise Unavailable(f"PyFlink needs Python 3.9 to 3.12; this is {platform.python_version()}")


def flink_jars(cache):
    """What Flink needs to write Parquet, which is not in its Python package."""
    directory = cache / f"flink-jars-{FLINK}"
    if directory.exists():
        return directory
    print("fetching Flink's Parquet format", flush=True)
    work = cache / "flink-jars.new"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    (work / "pom.xml").write_text(f"""
<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>perennial</groupId> <artifactId>bench-peers</artifactId> <version>1</version> <packaging>pom</packaging>
  <dependencies>
    <dependency>
      <groupId>org.apache.flink</groupId> <artifactId>flink-sql-parquet</artifactId> <version>{FLINK}</version>
      <exclusions> <exclusion> <groupId>*</groupId> <artifactId>*</artifactId> </exclusion> </exclusions>
    </dependency>
    <dependency>
      <groupId>org.apache.hadoop</groupId> <artifactId>hadoop-client-runtime</artifactId> <version>{HADOOP}</version>
    </dependency>
  </dependencies>
</project>
""")
    log = cache / "install-flink-jars.log"
    with open(log, "w") as out:
        try:
            failed = subprocess.run(
                ["mvn", "-B", "-q", "-f", str(work / "pom.xml"),
                 "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies",
                 "-DincludeScope=runtime", f"-DoutputDirectory={work / 'jars'}"],
                stdin=subprocess.DEVNULL, stdout=out, stderr=out,
            ).returncode
        except FileNotFoundError as error:
            raise Unavailable("Maven is missing: scripts/setup bench") from error
    if failed:
        raise Unavailable(f"Maven cannot fetch Flink's Parquet format, see {log}:\n{log_tail(log, 3)}")
    (work / "jars").rename(directory)
    shutil.rmtree(work)
    return directory


def programs():
    """The programs `perennial` and `perennial-bench`: those that PERENNIAL names and its neighbour, or of a release build."""
    if given := os.environ.get("PERENNIAL"):
        found = {"perennial": Path(given).resolve(), "perennial-bench": Path(given).resolve().with_name("perennial-bench")}
        return {name: str(path) for name, path in found.items() if path.exists()}
    print("building perennial, release profile", flush=True)
    command = ["cargo", "build", "--release", "-p", "perennial", "-p", "perennial-bench",
               "--message-format=json-render-diagnostics"]
    try:
        build = subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    except FileNotFoundError as error:
        raise Unavailable("cargo is missing") from error
    found = {
        message["target"]["name"]: message["executable"]
        for message in map(json.loads, build.stdout.splitlines())
        if message.get("executable")
    }
    if build.returncode or "perennial" not in found:
        raise Unavailable("perennial does not build")
    os.environ["PERENNIAL"] = found["perennial"]
    return found


class Perennial:
    name = "perennial"
    job = "greenhouse.yaml"

    def command(self, _):
        programs_here = programs()
        if "perennial" not in programs_here:
            raise Unavailable(f"there is no {os.environ['PERENNIAL']}")
        self.program = programs_here["perennial"]
        return [self.program, "run", str(ROOT / "bench" / self.job), "--available-now", "--log-format", "json"]

    def version(self):
        answer = subprocess.run([self.program, "--version"], capture_output=True, text=True)
        return (answer.stdout.split() or ["?"])[-1]


class PerennialFromKafka(Perennial):
    name = "perennial-kafka"
    job = "greenhouse-kafka.yaml"

    def command(self, cache):
        self.brokers = os.environ.get("PERENNIAL_TEST_KAFKA")
        if not self.brokers:
            raise Unavailable("PERENNIAL_TEST_KAFKA is not set: make bench, or scripts/with-services kafka -- bench/peers/run.py")
        if not (loader := programs().get("perennial-bench")):
            raise Unavailable(f"there is no perennial-bench beside {os.environ['PERENNIAL']}")
        self.loader = loader
        return super().command(cache)

    @contextlib.contextmanager
    def prepared(self, source):
        """A topic with the records of the files, for as long as the runs take."""
        topic = f"bench-{os.getpid()}-{time.time_ns()}"
        print("filling the topic", flush=True)
        subprocess.run([self.loader, "kafka-load", self.brokers, topic, "4", str(source)], check=True)
        os.environ |= {"BENCH_BROKERS": self.brokers, "BENCH_TOPIC": topic}
        try:
            yield
        finally:
            subprocess.run([self.loader, "kafka-delete", self.brokers, topic], check=True)


class DataFusion:
    name = "datafusion-batch"

    def command(self, _):
        if command := os.environ.get("DATAFUSION_BATCH"):
            return shlex.split(command)
        if program := programs().get("perennial-bench"):
            return [program, "datafusion-batch"]
        raise Unavailable(f"there is no perennial-bench beside {os.environ['PERENNIAL']}")


class PySpark:
    name = "pyspark"

    def command(self, cache):
        return [str(python_with(cache, "pyspark", PYSPARK)), str(HERE / "spark.py")]


class PyFlink:
    name = "pyflink"

    def command(self, cache):
        os.environ["BENCH_FLINK_JARS"] = str(flink_jars(cache))
        return [str(python_with(cache, "apache-flink", FLINK, flink_python)), str(HERE / "flink.py")]


RUNNERS = [Perennial(), PerennialFromKafka(), DataFusion(), PySpark(), PyFlink()]


# --- measuring -------------------------------------------------------------------------------------------------------


class Tree(threading.Thread):
    """Watches a process and its descendants: the peak of their resident memory together, and their processor time."""

    PAGE = os.sysconf("SC_PAGE_SIZE")
    TICK = os.sysconf("SC_CLK_TCK")

    def __init__(self, pid):
        super().__init__(daemon=True)
        self.root = pid
        self.pids = {pid}
        self.peak = 0
        self.processor = {}
        self.finished = threading.Event()

    def run(self):
        looked = 0.0
        while not self.finished.is_set():
            if time.monotonic() - looked > 0.25:
                self.look_around()
                looked = time.monotonic()
            self.peak = max(self.peak, sum(map(self.resident, self.pids)), self.high_water(self.root))
            self.finished.wait(0.02)

    def look_around(self):
        children = {}
        for entry in os.scandir("/proc"):
            if entry.name.isdigit() and (fields := self.stat(entry.name)):
                pid = int(entry.name)
                children.setdefault(int(fields[1]), []).append(pid)
                if pid in self.pids:
                    self.processor[pid] = (int(fields[11]) + int(fields[12])) / self.TICK
        found, queue = set(), [self.root]
        while queue:
            pid = queue.pop()
            found.add(pid)
            queue += children.get(pid, [])
        self.pids = found

    def reading(self):
        self.look_around()
        return {"peak_rss_bytes": self.peak, "cpu_seconds": sum(list(self.processor.values()))}

    @staticmethod
    def stat(pid):
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return None

    def resident(self, pid):
        try:
            return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * self.PAGE
        except (OSError, IndexError):
            return 0

    @staticmethod
    def high_water(pid):
        """The peak of one process as the system knows it, also of what came and went between two looks."""
        try:
            status = Path(f"/proc/{pid}/status").read_text()
        except OSError:
            return 0
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024 if "VmHWM:" in status else 0


def first_commit(output, started):
    """How long after the start the first batch was committed, for those who keep a commit log as Spark does."""
    times = [
        file.stat().st_mtime
        for file in Path(output, "checkpoint").glob("**/commits/*")
        if file.is_file() and file.name.isdigit()
    ]
    return min(times) - started if times else None


def batches(log):
    """How long the batches took, in milliseconds, sorted, and which share of that the checkpoint took, for those who log as Perennial does."""
    lines = Path(log).read_text(errors="replace").splitlines()
    found = [json.loads(line) for line in lines if '"batch committed"' in line and line.startswith("{")]
    times = sorted(batch["millis"] for batch in found)
    return times, sum(batch["checkpoint_millis"] for batch in found) / sum(times) if times else None


def percentile(values, share):
    return values[min(len(values) - 1, int(len(values) * share))]


def measure(runner, command, task, output, log):
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    started = time.time()
    environment = os.environ | task | {"BENCH_OUTPUT": str(output), "BENCH_STARTED": repr(started)}
    result = {}
    with open(log, "w") as out:
        process = subprocess.Popen(
            command, cwd=output, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=out,
            text=True, errors="replace", start_new_session=True,
        )
        tree = Tree(process.pid)
        tree.start()
        try:
            for line in process.stdout:
                out.write(line)
                if line.startswith("{") and '"runner"' in line:
                    measured = result or tree.reading()
                    result = json.loads(line) | {key: measured[key] for key in ("peak_rss_bytes", "cpu_seconds")}
            _, status, usage = os.wait4(process.pid, 0)
            wall = time.time() - started
            process.returncode = os.waitstatus_to_exitcode(status)
        finally:
            tree.finished.set()
            tree.join()
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
    if process.returncode:
        raise Unavailable(f"it failed with {process.returncode}, see {log}:\n{log_tail(log)}")
    if not result:  # a program that knows nothing of benchmarks: the whole process counts
        result = {"records": int(task["BENCH_RECORDS"]), "bytes": int(task["BENCH_BYTES"]), "seconds": wall}
        result |= tree.reading()
    if len(tree.processor) <= 1 and not result.get("warm_seconds"):  # for a single process, the account has no gaps
        result["cpu_seconds"] = usage.ru_utime + usage.ru_stime
    result["runner"] = runner.name
    result["first_commit_seconds"] = first_commit(output, started)
    result["batch_millis"], result["checkpoint_share"] = batches(log)
    return result


def check(cache, source, outputs):
    python = python_with(cache, "duckdb", DUCKDB)
    expected = source.with_name(source.name + ".expected.parquet")
    command = [str(python), str(HERE / "check.py"), str(source), str(expected)]
    answer = subprocess.run(
        command + [f"{name}={output / 'rows'}" for name, output in outputs.items()], capture_output=True, text=True
    )
    if answer.returncode:
        sys.exit(f"the check failed:\n{answer.stderr}")
    return {line["runner"]: line for line in map(json.loads, answer.stdout.splitlines())}


# --- the report ------------------------------------------------------------------------------------------------------


def table(results):
    def rate(result, key="seconds"):
        return f"{result['records'] / result[key]:,.0f}" if result.get(key) else "-"

    def row(result):
        commit, batches, share = (result[name] for name in ("first_commit_seconds", "batch_millis", "checkpoint_share"))
        return [
            f"{result['runner']} {result.get('version', '')}".strip(),
            rate(result),
            rate(result, "warm_seconds"),
            f"{result['bytes'] / result['seconds'] / 1e6:.1f}",
            f"{result['seconds']:.2f}",
            f"{result['cpu_seconds']:.1f}",
            f"{result['peak_rss_bytes'] / 1e6:.0f}",
            f"{commit * 1000:.0f} ms" if commit is not None else "-",
            "/".join(str(percentile(batches, of)) for of in (0.5, 0.9, 1)) + " ms" if batches else "-",
            f"{share:.0%}" if share is not None else "-",
            f"{result['check']['rows']:,}" + ("" if result["check"]["agrees"] else " WRONG"),
        ]

    rows = [["runner", "records/s", "warm", "MB/s", "seconds", "CPU s", "peak MB", "1st commit", "batch 50/90/100%", "checkpoint", "rows"]]
    rows += [row(result) for result in results]
    widths = [max(map(len, column)) for column in zip(*rows)]
    for cells in rows:
        print("  ".join(c.ljust(w) if n == 0 else c.rjust(w) for n, (c, w) in enumerate(zip(cells, widths))))


def ratios(results):
    by_name = {result["runner"]: result for result in results}
    if not (ours := by_name.get("perennial")):
        return
    for name, theirs in by_name.items():
        if name == "perennial":
            continue
        text = f"perennial / {name}: {theirs['seconds'] / ours['seconds']:.2f} x the speed"
        if theirs.get("warm_seconds"):
            text += f" ({theirs['warm_seconds'] / ours['seconds']:.2f} x when it is warm)"
        text += f", {ours['peak_rss_bytes'] / theirs['peak_rss_bytes']:.2f} x the memory"
        text += f", {ours['cpu_seconds'] / max(theirs['cpu_seconds'], 0.01):.2f} x the processor time"
        print(text)


def main():
    names = [runner.name for runner in RUNNERS]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--only", help=f"some of {','.join(names)}")
    parser.add_argument("--records", type=int, default=4_000_000)
    parser.add_argument("--rounds", type=int, default=3, help="runs of each; the fastest counts (default: 3)")
    parser.add_argument("--files-per-batch", type=int, default=1)
    parser.add_argument("--prepare", action="store_true", help="only write the workload, and print its folder")
    options = parser.parse_args()
    if options.records < 700_000:
        parser.error("with less than 700,000 records no window closes, and there is no result to compare")
    wanted = options.only.split(",") if options.only else names
    if unknown := set(wanted) - set(names):
        parser.error(f"unknown runner {', '.join(unknown)}; there are {', '.join(names)}")

    cache = cache_directory()
    if options.prepare:
        stdout, sys.stdout = sys.stdout, sys.stderr
        print(workload.prepare(cache, options.records)["input"], file=stdout)
        return
    data = workload.prepare(cache, options.records)
    source = Path(data["input"])
    task = {
        "BENCH_INPUT": str(source),
        "BENCH_RECORDS": str(data["records"]),
        "BENCH_BYTES": str(data["bytes"]),
        "BENCH_FILES_PER_BATCH": str(options.files_per_batch),
        "BENCH_RECORDS_PER_BATCH": str(options.files_per_batch * data["records"] // data["files"]),
    }
    logs = cache / "logs"
    logs.mkdir(exist_ok=True)

    notes, commands = [], []
    for runner in RUNNERS:
        if runner.name in wanted:
            try:
                commands.append((runner, runner.command(cache)))
            except Unavailable as why:
                notes.append(f"{runner.name} was left out: {why}")
    check(cache, source, {})

    if os.cpu_count() > CORES:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    for file in sorted(source.iterdir()):  # all find the input in the page cache
        file.read_bytes()

    with contextlib.ExitStack() as prepared:
        for runner, _ in commands:
            if hasattr(runner, "prepared"):
                prepared.enter_context(runner.prepared(source))
        runs, more_notes = run_rounds(cache, options.rounds, commands, task, logs)
    report(cache, options, data, runs, notes + more_notes)


def run_rounds(cache, rounds, commands, task, logs):
    """The results of each runner by its name. Round by round, so that a disturbance does not hit all runs of one."""
    source, notes = Path(task["BENCH_INPUT"]), []
    runs = {runner.name: [] for runner, _ in commands}
    for number in range(rounds):
        for runner, command in commands:
            if runner.name not in runs:
                continue
            print(f"running {runner.name}, round {number + 1} of {rounds}", end="", flush=True)
            output = cache / "work" / runner.name
            try:
                result = measure(runner, command, task, output, logs / f"{runner.name}.log")
            except Unavailable as why:
                print(": failed", flush=True)
                notes.append(f"{runner.name}: {why}")
                del runs[runner.name]
                continue
            result["check"] = check(cache, source, {runner.name: output})[runner.name]
            if hasattr(runner, "version"):
                result["version"] = runner.version()
            print(f": {result['seconds']:.2f} s", flush=True)
            runs[runner.name].append(result)
            if result["check"]["agrees"]:
                shutil.rmtree(output)
    return runs, notes


def report(cache, options, data, runs, notes):
    results = []
    for rounds in runs.values():
        best = min(rounds, key=lambda result: result["seconds"])
        warm = [result["warm_seconds"] for result in rounds if result.get("warm_seconds")]
        wrong = [result["check"] for result in rounds if not result["check"]["agrees"]]
        results.append(
            best
            | {"rounds": [result["seconds"] for result in rounds]}
            | ({"warm_seconds": min(warm)} if warm else {})
            | ({"check": wrong[0]} if wrong else {})
        )
    print(
        f"\n{data['records']:,} records, {data['bytes'] / 1e6:.0f} MB, {data['files']} files, "
        f"{options.files_per_batch} for each batch, {min(CORES, os.cpu_count())} cores, the fastest of {options.rounds}; "
        f"load {os.getloadavg()[1]:.1f}\n"
    )
    table(results)
    print()
    ratios(results)
    for note in notes:
        print(f"note: {note}")
    file = cache / "results" / time.strftime("%Y%m%d-%H%M%S.json")
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps({"workload": data, "results": results, "notes": notes}, indent=1) + "\n")
    print(f"all numbers are in {file}")
    if notes and any(": it failed" in note for note in notes) or not all(r["check"]["agrees"] for r in results):
        sys.exit(1)


if __name__ == "__main__":
    main()
