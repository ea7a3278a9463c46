"""Extraction on a cluster: two simulated nodes and an S3 server; a node dies, the driver dies, and no clip is lost.

The long series of kills is tests/benchmarks/cluster_kills.py.
"""

import ast
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest
import torch

from vcutils.cli import main
from vcutils.config import ExtractConfig
from vcutils.corpora import open_corpus
from vcutils.features import extract_corpus
from vcutils.runtime.store import FeatureStore

CLIPS, FRAMES = 80, 2
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}


def test_one_module_alone_imports_ray(repo):
    """And only when it is asked for: the others neither need the extra nor wait for it."""
    importers = set()
    for path in (repo / "vcutils").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            importers |= {path.name for name in names if name.split(".")[0] == "ray"}
    assert importers == {"cluster.py"}
    code = "import sys, vcutils.cli, vcutils.features, vcutils.corpora; print({'ray', 'pyarrow'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], cwd=repo, capture_output=True, text=True).stdout == "set()\n"


def test_without_the_extra_it_says_what_to_install(make_corpus, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "vcutils.runtime.cluster", raising=False)
    assert main(["extract", str(make_corpus()), "--engine", "ray"]) == 2
    assert "pip install 'vcutils[scale]'" in capsys.readouterr().err


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """The file system of an S3 server, and a bucket there; the environment that leads to it."""
    moto, fs = pytest.importorskip("moto.server"), pytest.importorskip("pyarrow.fs")
    server = moto.ThreadedMotoServer("127.0.0.1", port=0)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line per request
    server.start()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in CREDENTIALS.items():
            patch.setenv(name, value)
        patch.setenv("AWS_ENDPOINT_URL", "http://{}:{}".format(*server.get_host_and_port()))
        files, bucket = fs.FileSystem.from_uri("s3://clips?allow_bucket_creation=true")
        files.create_dir(bucket)
        yield files
    server.stop()


@pytest.fixture(scope="module")
def nodes(store):
    """Two nodes of one core; a function that kills the newer, and starts another."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"USAGE_STATS_ENABLED": "0", "AUTH_MODE": "disabled", "worker_niceness": "0"}.items():
            patch.setenv(f"RAY_{name}", value)
        patch.setenv("OMP_NUM_THREADS", "1")
        memory = {"num_cpus": 1, "object_store_memory": 100 << 20}
        cluster = Cluster(initialize_head=True, head_node_args={**memory, "include_dashboard": False})
        workers = [cluster.add_node(**memory)]
        patch.setenv("RAY_ADDRESS", cluster.address)

        def kill():
            cluster.remove_node(workers.pop(), allow_graceful=False)
            workers.append(cluster.add_node(**memory))

        yield kill
        cluster.shutdown()


def parts(store):
    """Rows of all parts, in the order in which they are read."""
    import pyarrow as pa
    from pyarrow.fs import FileSelector

    found = store.get_file_info(FileSelector("clips/data/mine/features/efficientnet_lite0/parts", allow_not_found=True))
    paths = sorted(info.path for info in found if info.path.endswith(".arrow"))
    return [row for path in paths for row in pa.ipc.open_stream(store.open_input_stream(path)).read_all().to_pylist()]


def finished(store):
    from pyarrow.fs import FileSelector

    folder = "clips/data/mine/features/efficientnet_lite0/checkpoint-2"
    return [i for i in store.get_file_info(FileSelector(folder, allow_not_found=True)) if "pending" not in i.path]


@pytest.mark.skipif(os.name == "nt", reason="Ray's simulated nodes need Unix")
def test_killed_node_and_killed_driver_lose_no_clip(
    make_corpus, numbered_video, store, nodes, tmp_path, capsys, repo, request
):
    from pyarrow.parquet import read_table

    root = make_corpus(ids=[f"v{n:02d}" for n in range(CLIPS)])
    for n in range(5):  # of other lengths
        numbered_video(root / "videos" / f"v{n:02d}.avi", n + 1)
    (root / "videos" / "v05.avi").write_text("no video")
    for path in (root / "videos").iterdir():
        with store.open_output_stream(f"clips/mine/videos/{path.name}") as file:
            file.write(path.read_bytes())
    command = [
        "extract",
        "s3://clips/mine",
        "--engine=ray",
        f"--num-frames={FRAMES}",
        "--data=s3://clips/data",
        "--json",
    ]

    with store.open_output_stream("clips/data/mine/exclude.txt") as file:
        file.write(f"# not to be used\nv{CLIPS - 1}\n".encode())

    def start(**environment):
        call = [sys.executable, "-m", "vcutils", *command]
        driver = subprocess.Popen(call, cwd=repo, env={**os.environ, **environment}, stdout=subprocess.PIPE, text=True)
        request.addfinalizer(driver.kill)
        return driver

    def wait_for(count):
        late = time.monotonic() + 900
        while len(finished(store)) < count:
            assert driver.poll() is None and time.monotonic() < late
            time.sleep(0.2)

    driver = start()
    wait_for(1)
    nodes()
    wait_for(2)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    paths = [info.path for info in finished(store)]
    kept = {key.rpartition("@")[0] for p in paths for key in read_table(p, filesystem=store)["key"].to_pylist()}
    assert 32 <= len(kept) < CLIPS - 1
    changed = min(i for i in kept if i > "v07")
    with store.open_output_stream(f"clips/mine/videos/{changed}.avi") as file:  # another clip by the same name
        file.write((root / "videos" / "v04.avi").read_bytes())
    assert "v05" in kept
    driver = start(VCUTILS_SET="extract.patience=200")  # more than before: what failed is tried again
    answer = json.loads(driver.communicate(timeout=900)[0])
    assert driver.returncode == 1, "one clip is no video"
    assert list(answer["failed"]) == ["v05"] and "v05.avi: " in answer["failed"]["v05"]
    assert answer["written"] + answer["skipped, done before"] == CLIPS - 2, "all but the broken and the excluded"
    assert answer["skipped, done before"] >= len(kept) - 2, "but the changed clip and the broken one"

    rows = parts(store)
    assert Counter(row["id"] for row in rows) == Counter(
        {f"v{n:02d}": 1 for n in range(CLIPS - 1)} | {changed: 2, "v05": 2}
    )
    (root / "videos" / f"{changed}.avi").write_bytes((root / "videos" / "v04.avi").read_bytes())
    threads = torch.get_num_threads()
    torch.set_num_threads(2)  # as the actors
    config = ExtractConfig(num_frames=FRAMES)
    local = extract_corpus(open_corpus(root), tmp_path / "local", config, progress=False)
    torch.set_num_threads(threads)
    features = FeatureStore(local.folder)
    assert {row["id"] for row in rows if row["features"] is None} == set(local.failed) == {"v05"}
    newest = {row["id"]: row for row in reversed(rows)}  # of two parts the newer is read first
    for row in newest.values():
        ours, theirs = features.manifest[row["id"]], json.loads(row["row"])
        assert {**ours, "mtime": 0, "error": 0, "patience": 0} == {**theirs, "mtime": 0, "error": 0, "patience": 0}
        assert row["features"] is None or row["features"] == features[row["id"]].tobytes(), row["id"]

    assert main([*command[:-3], "--num-frames=3", *command[-2:]]) == 2
    assert "another number of frames" in capsys.readouterr().err
