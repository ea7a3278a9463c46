"""Nodes and drivers of a cluster extraction are killed, among clips that crash, stall and eat memory; what is lost?

    python tests/benchmarks/cluster_kills.py --kills 10 --clips 300

Three simulated Ray nodes, clips and features on an S3 server (moto's) of its own process. First the local engine
extracts the same clips, then the cluster does so without a kill, then with kills, a node and the driver by turns, each
at a random moment. After each finished extraction every row and every feature is compared with the local engine's, and
the next one starts from nothing. Prints one JSON object.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import numpy as np

BAD = ("crash", "stall", "large")
FRAMES, PATIENCE = 4, 15
FOLDER = "clips/data/mine/features/efficientnet_lite0"
SPELL = """
import os, sys, time
if '-c' in sys.orig_argv and 'serve' in ' '.join(sys.orig_argv):
    import vcutils.runtime.decoding as workers
    plain = workers.sample_frames
    def sample_frames(path, *args):
        with open(os.environ['DECODED'], 'a') as file:
            file.write(f'{os.getppid()} {path.stem}\\n')
        if 'crash' in path.name: os.abort()
        if 'stall' in path.name: time.sleep(600)
        if 'large' in path.name: bytearray(8 << 30)
        return plain(path, *args)
    workers.sample_frames = sample_frames
"""


def make_clips(folder: Path, count: int, bad: int) -> None:
    """Clips of moving noise of 6 to 20 frames; `bad` of each kind are spread among them."""
    rng, folder = np.random.default_rng(0), folder / "videos"
    folder.mkdir(parents=True)
    names = [f"{kind}{n:02d}" for kind in BAD for n in range(bad)] + [f"good{n:03d}" for n in range(count - 3 * bad)]
    for number, name in enumerate(names):
        picture = cv2.resize(rng.integers(0, 255, (12, 16, 3), np.uint8), (320, 240))
        writer = cv2.VideoWriter(
            str(folder / f"{number * 7 % count:03d}-{name}.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 10, (320, 240)
        )
        for shift in range(6 + number % 15):
            writer.write(np.roll(picture, 8 * shift, axis=1))
        writer.release()
    (folder.parent / "captions.txt").write_text("".join(f"{path.stem} noise\n" for path in folder.iterdir()))


class Trial:
    """The cluster, the S3 server, and what is on it."""

    def __init__(self, home: Path) -> None:
        from pyarrow import fs
        from ray.cluster_utils import Cluster

        port = random.randint(20000, 40000)
        self.server = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-p", str(port)], stderr=subprocess.DEVNULL
        )
        os.environ |= {
            "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        }  # fmt: skip
        self.files, bucket = fs.FileSystem.from_uri("s3://clips?allow_bucket_creation=true")
        for _ in range(60):
            try:
                self.files.create_dir(bucket)
                break
            except OSError:
                time.sleep(1)
        for path in (home / "mine" / "videos").iterdir():
            with self.files.open_output_stream(f"clips/mine/videos/{path.name}") as file:
                file.write(path.read_bytes())
        self.node = {"num_cpus": 1, "object_store_memory": 100 << 20}
        self.cluster = Cluster(initialize_head=True, head_node_args=self.node)
        self.workers = [self.cluster.add_node(**self.node) for _ in range(2)]
        os.environ["RAY_ADDRESS"] = self.cluster.address
        self.log = home / "driver.log"

    def start(self) -> subprocess.Popen:
        place = ["s3://clips/mine", "--data", "s3://clips/data", "--json"]
        command = [sys.executable, "-m", "vcutils", "extract", *place, "--engine", "ray", "--num-frames", str(FRAMES)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=open(self.log, "a"), text=True)

    def finished(self) -> int:
        from pyarrow.fs import FileSelector

        found = self.files.get_file_info(FileSelector(f"{FOLDER}/checkpoint-{FRAMES}", allow_not_found=True))
        return sum("pending" not in info.path for info in found)

    def rows(self) -> list[dict]:
        import pyarrow as pa
        from pyarrow.fs import FileSelector

        paths = [i.path for i in self.files.get_file_info(FileSelector(f"{FOLDER}/parts")) if i.path.endswith(".arrow")]
        return [r for p in paths for r in pa.ipc.open_stream(self.files.open_input_stream(p)).read_all().to_pylist()]

    def kill_node(self) -> None:
        self.cluster.remove_node(self.workers.pop(random.randrange(2)), allow_graceful=False)
        self.workers.append(self.cluster.add_node(**self.node))

    def close(self) -> None:
        self.cluster.shutdown()
        self.server.kill()


def main() -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10, help="of a node, and as many of the driver")
    parser.add_argument("--clips", type=int, default=300)
    parser.add_argument("--bad", type=int, default=10, help="of each kind")
    parser.add_argument("--minutes", type=float, default=600, help="kill no more after so many")
    options = parser.parse_args()
    with TemporaryDirectory() as name:
        home = Path(name)
        (home / "spell").mkdir()
        (home / "spell" / "sitecustomize.py").write_text(SPELL)
        decoded = home / "decoded"
        os.environ |= {
            "PYTHONPATH": os.pathsep.join([str(home / "spell"), os.environ.get("PYTHONPATH", "")]),
            "DECODED": str(decoded),
            "VCUTILS_SET": f"extract.patience={PATIENCE}", "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled",
            "RAY_worker_niceness": "0", "TQDM_DISABLE": "1", "OMP_NUM_THREADS": "2",
        }  # fmt: skip
        make_clips(home / "mine", options.clips, options.bad)
        print(json.dumps(run(home, decoded, options), indent=1))


def run(home: Path, decoded: Path, options: argparse.Namespace) -> dict:
    """Local, undisturbed and disturbed extractions; what was seen."""
    begun = time.monotonic()
    local = [
        sys.executable,
        "-m",
        "vcutils",
        "extract",
        str(home / "mine"),
        "--num-frames",
        str(FRAMES),
        "--data",
        str(home),
    ]
    subprocess.run(local, stdout=subprocess.DEVNULL, check=False)
    folder = home / "mine" / "features" / "efficientnet_lite0"
    expected = {r["id"]: r for r in map(json.loads, (folder / "manifest.jsonl").read_text().splitlines())}
    trial, kinds = Trial(home), ("node", "driver")
    seen = {"clips": options.clips, "kills": Counter(), "extractions finished": 0, "lost": 0, "twice": 0, "differ": 0}
    worst, again, order = 0.0, [], [kinds[n % 2] for n in range(2 * options.kills)]
    try:
        while True:
            decoded.write_text("")
            undisturbed = not seen["extractions finished"]
            driver, kills, since, before = trial.start(), 0, None, 0
            pause = time.monotonic() + random.uniform(15, 40)
            while driver.poll() is None:
                time.sleep(0.2)
                now = trial.finished()
                if since and now > before:
                    worst, since = max(worst, time.monotonic() - since), None
                elif not undisturbed and order and not since and now and time.monotonic() > pause:
                    kind, since, before, kills = order.pop(0), time.monotonic(), now, kills + 1
                    if time.monotonic() - begun > 60 * options.minutes:
                        order.clear()
                    seen["kills"][kind] += 1
                    if kind == "node":
                        trial.kill_node()
                    else:
                        driver.send_signal(signal.SIGKILL)
                        driver.wait()
                        driver = trial.start()
                    pause = time.monotonic() + random.uniform(5, 20)
            answer = json.loads(driver.communicate()[0])
            lines = [line.split() for line in decoded.read_text().splitlines()]
            rows = trial.rows()
            counts = Counter(row["id"] for row in rows)
            seen["extractions finished"] += 1
            seen["lost"] += len(set(expected) - set(counts)) + (
                len(expected) - answer["written"] - answer["skipped, done before"] - len(answer["failed"])
            )
            seen["twice"] += sum(count - 1 for count in counts.values())
            for row in rows:
                path = folder / f"{row['id']}.npy"
                same = row["features"] == (np.load(path).tobytes() if path.is_file() else None)
                seen["differ"] += not same or ("error" in expected[row["id"]]) != ("error" in json.loads(row["row"]))
            if undisturbed:
                seen["actors without a kill"] = len({parent for parent, _ in lines})
                seen["rows of bad clips"] = Counter(kind for row in rows for kind in BAD if kind in row["id"])
            elif kills:
                again.append((len(lines) - len({clip for _, clip in lines})) / kills)
            print(f"{time.monotonic() - begun:.0f} s: {dict(seen)}, {kills} kills", file=sys.stderr, flush=True)
            if not order:
                break
            trial.files.delete_dir("clips/data")
    finally:
        trial.close()
    return {
        **seen, "slowest from a kill to the next finished block, seconds": round(worst, 1),
        "clips decoded again per kill": round(sum(again) / len(again), 1) if again else None,
        "minutes": round((time.monotonic() - begun) / 60, 1),
    }  # fmt: skip


if __name__ == "__main__":
    main()
