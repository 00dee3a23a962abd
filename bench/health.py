#!/usr/bin/env python3
"""What a load on /health costs a job: works a backlog off again and again, in silence and while it is asked 1,000 times a second.

    bench/health.py [--records 12000000] [--rate 1000] [--rounds 3]

PERENNIAL is the perennial binary (default: the one that cargo builds for release). Prints for each run the seconds from start to end, the
processor seconds of the job, the median and the longest time of a batch, and how fast the answers were; then the ratios of the best runs.
The asking takes its share of the machine, too: it is printed, so that it is not taken for the job's.
"""

import argparse
import json
import os
import pathlib
import resource
import socket
import subprocess
import tempfile
import threading
import time

JOB = """
name: health
sources:
  rows:
    files: {{ path: {home}/in, settle: 0s, max_files_per_batch: 1 }}
    format: json
    schema: id BIGINT, value DOUBLE
queries:
  sums:
    sql: SELECT id % 100 AS bucket, count(*) AS n, sum(value) AS total FROM rows GROUP BY id % 100
    output_mode: update
    sink: {{ sqlite: {{ path: "{home}/{name}.db", table: sums, key: [bucket] }} }}
checkpoint: {home}/checkpoint-{name}
dead_letters: {{ path: "{home}/dlq" }}
trigger: available_now
http: {{ listen: "127.0.0.1:0" }}
"""
FILES = 30
CONNECTIONS = 4
REQUEST = b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


def program():
    """The binary that PERENNIAL names, or one of a release build."""
    if named := os.environ.get("PERENNIAL"):
        return named
    # With the benchmarks' programs, so that all of them share a build.
    command = ["cargo", "build", "--release", "-p", "perennial", "-p", "perennial-bench", "--message-format=json-render-diagnostics"]
    root = pathlib.Path(__file__).resolve().parent.parent
    built = subprocess.run(command, cwd=root, check=True, stdout=subprocess.PIPE, text=True)
    messages = (json.loads(line) for line in built.stdout.splitlines())
    return next(m["executable"] for m in messages if m.get("executable") and m["target"]["name"] == "perennial")


def ask(port, rate, stop, times, cpu):
    """Asks over one connection at a steady rate; where the answers are slower than that, without a pause."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            due = time.monotonic()
            while not stop.is_set():
                begin = time.monotonic()
                connection.sendall(REQUEST)
                answer = connection.recv(65536)
                if not answer:
                    break
                while not whole(answer):
                    answer += connection.recv(65536)
                times.append(time.monotonic() - begin)
                # A second of delay may be made up for, no more.
                due = max(due + 1 / rate, begin - 1)
                time.sleep(max(0, due - time.monotonic()))
    except OSError:
        # The job has ended.
        pass
    cpu.append(time.thread_time())


def whole(answer):
    head, end, body = answer.partition(b"\r\n\r\n")
    if not end:
        return False
    assert head.startswith(b"HTTP/1.1 200 "), head
    length = head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0]
    return len(body) >= int(length)


def run(perennial, home, name, rate):
    job = home / f"{name}.yaml"
    job.write_text(JOB.format(home=home, name=name))
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    begin = time.monotonic()
    process = subprocess.Popen(
        [perennial, "run", "--log-format", "json", job], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    stop, times, cpu, threads, batches = threading.Event(), [], [], [], []
    for line in process.stderr:
        event = json.loads(line)
        if "health" in event and rate:
            port = int(event["health"].split(":")[2].split("/")[0])
            arguments = (port, rate / CONNECTIONS, stop, times, cpu)
            threads = [threading.Thread(target=ask, args=arguments) for _ in range(CONNECTIONS)]
            for thread in threads:
                thread.start()
        if event.get("message") == "batch committed":
            batches.append(event["millis"])
    if process.wait() != 0:
        raise SystemExit(f"the job {job} failed")
    seconds = time.monotonic() - begin
    stop.set()
    for thread in threads:
        thread.join()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    batches.sort()
    assert len(batches) == FILES, batches
    figures = {
        "seconds": round(seconds, 2),
        "processor_seconds": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 2),
        "batch_ms_median": batches[len(batches) // 2],
        "batch_ms_longest": batches[-1],
    }
    if times:
        times.sort()
        figures |= {
            "requests_per_second": round(len(times) / seconds),
            "answer_ms_median": round(times[len(times) // 2] * 1000, 2),
            "answer_ms_p99": round(times[len(times) * 99 // 100] * 1000, 2),
            "processor_seconds_of_asking": round(sum(cpu), 2),
        }
    print(f"{name:10}", json.dumps(figures), flush=True)
    return figures


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=12_000_000)
    parser.add_argument("--rate", type=int, default=1000, help="requests per second")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    perennial = program()
    with tempfile.TemporaryDirectory() as directory:
        home = pathlib.Path(directory)
        (home / "in").mkdir()
        share = arguments.records // FILES
        for number in range(FILES):
            ids = range(number * share, (number + 1) * share)
            lines = (f'{{"id": {i}, "value": {i / 7:.3f}}}\n' for i in ids)
            (home / "in" / f"{number:03}.json").write_text("".join(lines))
        silent, asked = [], []
        run(perennial, home, "warm-up", 0)
        for number in range(1, arguments.rounds + 1):
            silent.append(run(perennial, home, f"silent-{number}", 0))
            asked.append(run(perennial, home, f"asked-{number}", arguments.rate))
        for figure in ["seconds", "processor_seconds", "batch_ms_median"]:
            least = [min(figures[figure] for figures in runs) for runs in (asked, silent)]
            print(f"{figure}: asked {least[0]}, silent {least[1]}, ratio {least[0] / least[1]:.3f}")


main()
