"""The workload: greenhouse sensors as JSON lines, the same bytes on every machine.

A thousand sensors report once a second, a millisecond apart, so 4 million records cover 67 minutes of event time. Event
times advance through the files and are up to five seconds out of order. Every record is 130 bytes long.
"""

import json
import multiprocessing
import os
import random
import shutil
import time
from pathlib import Path

VERSION = 1
SENSORS = 1000
FILES = 16
RECORD_BYTES = 130
START = 1_763_683_200  # 2025-11-21T00:00:00Z
DISORDER_MS = 5000

RECORD = (
    '{"sensor_id":"sensor-%04d", "event_time":"%s%03dZ", "temperature":%s, "ph":%s, "battery":%d, "signal":%d}\n'
)
TEMPERATURES = ["%.3f" % (10 + n / 1000) for n in range(20_000)]
PHS = ["%.2f" % (5.5 + n / 100) for n in range(200)]


def write_part(task):
    path, part, begin, end = task
    bits = random.Random(f"greenhouse {VERSION} {part}").getrandbits
    first_second = START + begin // 1000
    seconds = [
        time.strftime("%Y-%m-%dT%H:%M:%S.", time.gmtime(second))
        for second in range(first_second, START + (end + DISORDER_MS) // 1000 + 1)
    ]
    shift = (first_second - START) * 1000
    with open(path, "w", encoding="ascii", newline="\n") as file:
        for block in range(begin, end, 10_000):
            lines = []
            for n in range(block, min(block + 10_000, end)):
                r = bits(64)
                second, milli = divmod(n - shift + (r & 0xFFFF) % DISORDER_MS, 1000)
                lines.append(
                    RECORD
                    % (
                        n * 617 % SENSORS,
                        seconds[second],
                        milli,
                        TEMPERATURES[(r >> 16 & 0xFFFFF) % 20_000],
                        PHS[(r >> 36 & 0xFFF) % 200],
                        10 + (r >> 48 & 0xFF) % 90,
                        -30 - (r >> 56) % 70,
                    )
                )
            file.write("".join(lines))


def prepare(cache: Path, records: int) -> dict:
    """Makes the files, once; returns where they are and how much they hold."""
    name = "greenhouse-%gm" % (records / 1e6)
    directory = cache / name
    manifest = cache / f"{name}.json"
    wanted = {"version": VERSION, "records": records, "bytes": records * RECORD_BYTES, "files": FILES}
    if manifest.exists() and directory.exists() and json.loads(manifest.read_text()) == wanted:
        return wanted | {"input": str(directory)}

    begin = time.monotonic()
    print(f"writing the workload to {directory}", flush=True)
    shutil.rmtree(directory, ignore_errors=True)
    fresh = cache / f"{name}.new"
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    bounds = [records * part // FILES for part in range(FILES + 1)]
    parts = [(str(fresh / f"part-{part:02}.json"), part, bounds[part], bounds[part + 1]) for part in range(FILES)]
    with multiprocessing.Pool() as pool:
        for _ in pool.imap_unordered(write_part, parts):
            pass
    # Readers that take the oldest file first shall take them in order.
    now = int(time.time()) - 60
    for path, part, _, _ in parts:
        os.utime(path, (now + part, now + part))
    size = sum(os.path.getsize(path) for path, *_ in parts)
    assert size == wanted["bytes"], (size, wanted)
    fresh.rename(directory)
    manifest.write_text(json.dumps(wanted))
    print(f"wrote {records:,} records in {time.monotonic() - begin:.0f} s", flush=True)
    return wanted | {"input": str(directory)}
