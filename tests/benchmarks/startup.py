"""How long a user waits before anything happens."""

import statistics
import subprocess
import sys

from measure import Row, seconds


def measure() -> list[Row]:
    """Fresh processes, the median of five after one that warms the disk's cache."""
    rows = []
    for name, arguments in (("import vcutils", ["-c", "import vcutils"]), ("--help", ["-m", "vcutils", "--help"])):
        command = [sys.executable, *arguments]
        times = [seconds(lambda c=command: subprocess.run(c, check=True, capture_output=True)) for _ in range(6)]
        rows.append(Row(name, statistics.median(times[1:]), None, "s", "< 1 s"))
    return rows
