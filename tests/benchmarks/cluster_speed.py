"""How fast is extraction by Ray beside the local engine, on one machine, and how long does it take to start?

    python tests/benchmarks/cluster_speed.py CORPUS [--clips 500] [--repeats 3]

CORPUS has videos/. Each engine extracts few clips and then many, into an empty folder, with a Ray of its own started
for each run. What many take longer than few is clips' time alone, without start-up; start-up is what is left of the
few's time. By turns, medians.
"""

import argparse
import os
import statistics
import subprocess
import sys
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from measure import seconds

FEW = 40
ENGINES = ("local", "ray")


def extract(corpus: Path, engine: str) -> None:
    """One extraction of a corpus, from nothing."""
    with TemporaryDirectory() as data:
        command = [sys.executable, "-m", "vcutils", "extract", str(corpus), "--data", data, "--engine", engine]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def main() -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--clips", type=int, default=500, help="more than the few")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled", "TQDM_DISABLE": "1"}
    videos = sorted((options.corpus / "videos").iterdir())[: FEW + options.clips]
    with TemporaryDirectory() as name:
        for size, chosen in (("few", videos[:FEW]), ("many", videos)):
            (folder := Path(name) / size / "videos").mkdir(parents=True)
            for path in chosen:
                (folder / path.name).symlink_to(path.resolve())
            (folder.parent / "captions.txt").write_text("".join(f"{path.stem} a clip\n" for path in chosen))
        times: dict[tuple[str, str], list[float]] = {}
        for _ in range(options.repeats):
            for size in ("few", "many"):
                for engine in ENGINES:
                    taken = seconds(partial(extract, Path(name) / size, engine))
                    times.setdefault((engine, size), []).append(taken)
    rates, count = {}, len(videos) - FEW
    for engine in ENGINES:
        few, many = (statistics.median(times[engine, size]) for size in ("few", "many"))
        rates[engine] = count / (many - few)
        start = few - FEW / rates[engine]
        print(
            f"{engine:<6} {rates[engine]:.2f} clips/s over {count} clips, start-up {start:.1f} s", times[engine, "many"]
        )
    print(f"ray / local: {rates['ray'] / rates['local']:.2f}")


if __name__ == "__main__":
    main()
