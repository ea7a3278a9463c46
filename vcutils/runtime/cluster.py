"""Extraction on a Ray cluster: blocks of clips go to an actor per GPU, or per two cores, and become Arrow parts.

The only module that imports ray. Ray Data starts the blocks of a lost node again, and notes in a checkpoint which clips
are in a finished part, so that a killed extraction goes on. An actor decodes in child processes of its own: Ray would
try a clip that crashes its actor for ever, and pixels do not travel. Files are reached by pyarrow.fs: local disk or
NFS by path, object stores by URI (s3://…, gs://…) with the credentials and endpoint of each node's environment.
"""

import json
import logging
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from time import monotonic, time
from typing import Any

from vcutils.config import ExtractConfig
from vcutils.runtime.arrow import clip_key, clip_record, schema
from vcutils.runtime.checks import collect_clips
from vcutils.runtime.settings import UserError
from vcutils.runtime.store import Report

try:
    import pyarrow as pa
    import ray
    from pyarrow import compute, fs, parquet
    from ray.data import ActorPoolStrategy, DataContext, Datasource, ReadTask
    from ray.data.block import BlockMetadata
    from ray.data.checkpoint import CheckpointConfig, CheckpointManager
    from ray.data.datasource import BlockBasedFileDatasink
except ImportError as error:
    raise UserError(f"--engine ray needs more packages ({error}): pip install 'vcutils[scale]'") from error

CORES = 2  # per actor without a GPU: few frames at once are fastest there
AHEAD = 8  # clips that an actor copies from an object store at once, ahead of decoding
BLOCKS, SMALLEST, LARGEST = 8, 16, 512  # blocks per actor; clips of a block: what a lost node repeats, a part's size


def listed(
    corpus: str, folders: Sequence[str], suffixes: Collection[str], problems: list[str], left_out: Collection[str] = ()
) -> list[dict[str, Any]]:
    """A row per clip of the first of a corpus' `folders` that has any: id, path, source, bytes, mtime, key.

    Ids that are `left_out` have none. The key, which the checkpoint remembers, changes with the file. Raises UserError
    where there are no clips.
    """
    files, root = _opened(corpus)
    for folder in folders:
        found = _files(files, f"{root}/{folder}")
        about = {info.path: info for info in found if PurePosixPath(info.path).suffix.lower() in suffixes}
        rows: list[dict[str, Any]] = []
        for i, path in collect_clips(map(Path, about), Path(root), problems).items():
            if i in left_out:
                continue
            info = about[path.as_posix()]
            row = {"id": i, "path": info.path, "source": f"{folder}/{info.base_name}"}
            row |= {"bytes": info.size, "mtime": int(info.mtime_ns // 10**9)}
            rows.append(row | {"key": clip_key(row)})
        if rows:
            return rows
    places = " or ".join(f"{folder}/" for folder in folders)
    raise UserError(f"{corpus}: no clips in {places}; a clip is a file that ends in {', '.join(suffixes)}")


def extract(
    corpus: str, clips: list[dict[str, Any]], folder: str, config: ExtractConfig, progress: bool = True
) -> Report:
    """Features of `listed` clips as `folder`/parts/*.arrow; a Report. Goes on where an earlier extraction stopped.

    Both are absolute paths or URIs that all nodes reach. It joins the cluster that runs here or that RAY_ADDRESS names,
    or makes one of this machine. Raises UserError for what stops all of it; a clip that fails is a row.
    """
    begun, (source, _), (target, root) = monotonic(), _opened(corpus), _opened(folder)
    checkpoint, others = f"{root}/checkpoint-{config.num_frames}", {info.base_name for info in _files(target, root)}
    if others := {name for name in others if name.startswith("checkpoint-")} - {PurePosixPath(checkpoint).name}:
        raise UserError(f"{folder}: has features of another number of frames ({others}); move it away, or name another")
    finished = [f.path for f in _files(target, checkpoint) if ".pending" not in f.base_name]
    keys = pa.table({"key": pa.array([], pa.string())})
    keys = pa.concat_tables([keys, *(parquet.read_table(path, filesystem=target) for path in finished)])["key"]
    index = pa.Table.from_pylist(clips)
    again = [key for key, row in _failures(target, root).items() if row["patience"] < config.patience]
    is_again = compute.is_in(index["key"], pa.array(again, pa.string()))
    is_done = compute.and_not(compute.is_in(index["key"], keys), is_again)
    todo, parts = index.filter(compute.invert(is_done)), _Parts(f"{root}/parts", target)
    if len(todo):
        ray.init(ignore_reinit_error=True, logging_level=logging.WARNING, log_to_driver=False)
        context = DataContext.get_current()
        context.enable_progress_bars = progress
        context.checkpoint_config = CheckpointConfig(
            "key",
            checkpoint,
            override_filesystem=target,
            checkpoint_manager_cls=_Cleaner,
            delete_checkpoint_on_success=False,
        )
        actors, nodes, needs = _share()
        size = min(LARGEST, max(SMALLEST, len(todo) // (BLOCKS * actors)))
        blocks = ray.data.read_datasource(
            _Index(todo, size), num_cpus=0, concurrency=1, override_num_blocks=-(-len(todo) // size)
        )
        try:
            blocks.map_batches(
                _Extractor, batch_size=None, batch_format="pyarrow", compute=ActorPoolStrategy(size=actors),
                fn_constructor_args=(source, replace(config, workers=needs["num_cpus"])), **needs,
            ).write_datasink(parts, ray_remote_args={"num_cpus": 0}, concurrency=nodes)  # fmt: skip
        except (ray.exceptions.RayError, OSError) as error:
            reason = str(error).strip().splitlines()[-1]
            raise UserError(f"{folder}: stopped ({reason}); what is done is kept, start it again") from error
    report, current = Report(Path(folder), frames=sum(parts.frames)), set(index["key"].to_pylist())
    for key, row in _failures(target, root).items():
        if key in current and row["patience"] >= config.patience:  # the others were tried again
            report.failed[row["id"]] = row["error"]
    report.written, report.skipped = (
        [i for i in index.filter(mask)["id"].to_pylist() if i not in report.failed]
        for mask in (compute.invert(is_done), is_done)
    )
    report.seconds = monotonic() - begun
    return report


def _opened(place: str) -> tuple[fs.FileSystem, str]:
    try:
        return fs.FileSystem.from_uri(place)
    except (OSError, ValueError) as error:
        raise UserError(f"{place}: cannot be reached ({error}); write an absolute path, s3://… or gs://…") from error


def _files(files: fs.FileSystem, folder: str) -> list[fs.FileInfo]:
    return sorted(files.get_file_info(fs.FileSelector(folder, allow_not_found=True)), key=lambda info: info.path)


def _failures(files: fs.FileSystem, folder: str) -> dict[str, dict[str, Any]]:
    """Rows of the clips that failed, by key: of several the newest, whose part comes first."""
    rows: dict[str, dict[str, Any]] = {}
    for info in _files(files, f"{folder}/parts"):
        if info.path.endswith(".failed"):
            for row in map(json.loads, files.open_input_stream(info.path).read().splitlines()):
                rows.setdefault(clip_key(row), row)
    return rows


def text_of(place: str) -> str:
    """The text of a file at a path or URI; empty where there is none."""
    files, path = _opened(place)
    return files.open_input_stream(path).read().decode("utf-8-sig") if files.get_file_info(path).is_file else ""


def _share() -> tuple[int, int, dict[str, int]]:
    """(actors, nodes, what an actor asks for) that fill the cluster; reading and writing ask for nothing."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    if with_gpu := [node for node in nodes if node.get("GPU")]:
        cores = max(1, min(int(node["CPU"] // node["GPU"]) for node in with_gpu))
        return sum(int(node["GPU"]) for node in with_gpu), len(nodes), {"num_gpus": 1, "num_cpus": cores}
    cores = int(min(CORES, *(node["CPU"] for node in nodes)))
    return sum(int(node["CPU"] // cores) for node in nodes), len(nodes), {"num_cpus": cores}


class _Cleaner(CheckpointManager):
    """Removes the parts of writers that died. The clips of whole ones are not in the index."""

    def load_checkpoint(self, data_file_dir: Any = None, data_file_filesystem: Any = None) -> tuple[None, int]:
        self._clean_pending_checkpoints(data_file_dir, data_file_filesystem)
        return None, 0  # Ray's own filter would wait for a core of a cluster that is full of actors


class _Index(Datasource):
    """The rows of an index in blocks."""

    def __init__(self, index: pa.Table, size: int) -> None:
        super().__init__()
        self.blocks = [index.take(list(range(i, min(i + size, len(index))))) for i in range(0, len(index), size)]

    def estimate_inmemory_data_size(self) -> int:
        return sum(block.nbytes for block in self.blocks)

    def get_read_tasks(self, *_: Any, **__: Any) -> list[ReadTask]:
        about = partial(BlockMetadata, exec_stats=None, task_exec_stats=None)
        return [
            ReadTask(partial(list, [block]), about(num_rows=len(block), size_bytes=block.nbytes), block.schema)
            for block in self.blocks
        ]


class _Extractor:
    """An actor: the network, loaded once; child processes decode for it."""

    def __init__(self, source: fs.FileSystem, config: ExtractConfig) -> None:
        import torch

        from vcutils.runtime.backbones import load_backbone
        from vcutils.runtime.decoding import Worker

        # With one thread the last bits of features are others than with several, and than on other machines.
        torch.set_num_threads(max(2, config.workers or 1))
        self.source, self.config, self.backbone = source, config, load_backbone(config.backbone)
        settings = config.num_frames, self.backbone.resize, config.patience
        self.decoders = [Worker(*settings) for _ in range(config.workers or 1)]

    def __call__(self, block: pa.Table) -> pa.Table:
        from vcutils.runtime.extraction import clip_rows

        records = []
        with TemporaryDirectory() as folder:
            clips = self._at_hand(block.to_pylist(), folder)
            for row, features in clip_rows(clips, self.config, self.backbone, self.decoders):
                if "error" in row:
                    row["error"] = row["error"].replace(f"{folder}/", "")
                records.append(clip_record(row, features))
                Path(folder, row["source"]).unlink(missing_ok=True)
        return pa.Table.from_pylist(records, schema())

    def _at_hand(self, rows: Sequence[Mapping[str, Any]], folder: str) -> Iterator[Any]:
        """Clips where OpenCV can read them: those of an object store are copied into a folder, some ahead."""
        from vcutils.runtime.extraction import Clip

        clips = [Clip(row["id"], Path(row["path"]), row["source"], row["bytes"], row["mtime"]) for row in rows]
        if isinstance(self.source, fs.LocalFileSystem):
            yield from clips
            return
        with ThreadPoolExecutor(AHEAD) as pool:
            for start in range(0, len(clips), AHEAD):  # while those before are decoded
                yield from pool.map(partial(self._copy, folder), clips[start : start + AHEAD])

    def _copy(self, folder: str, clip: Any) -> Any:
        local = Path(folder, clip.source)
        local.parent.mkdir(exist_ok=True)
        with suppress(FileNotFoundError):  # it has just gone: decoding will say so
            with self.source.open_input_stream(clip.path.as_posix()) as stream, open(local, "wb") as file:
                shutil.copyfileobj(stream, file, 1 << 20)
        return replace(clip, path=local)


class _Parts(BlockBasedFileDatasink):
    """Writes a block as an Arrow stream, and beside it the rows of clips that failed. The newest run's come first."""

    frames: Sequence[int] = ()

    def __init__(self, folder: str, target: fs.FileSystem) -> None:
        name = f"part-{10**10 - int(time()):010}"  # of two rows of one clip, the first is read
        super().__init__(folder, filesystem=target, dataset_uuid=name, file_format="arrow")

    def write(self, blocks: Any, ctx: Any) -> Any:
        table = pa.concat_tables(blocks)
        failed = [row for row, count in zip(table["row"].to_pylist(), table["T"].to_pylist(), strict=True) if not count]
        if failed:
            name = self.filename_provider.get_filename_for_task(ctx.kwargs["write_uuid"], ctx.task_idx)
            with self.open_output_stream(f"{self.path}/{name.removesuffix('arrow')}failed") as file:
                file.write("".join(f"{row}\n" for row in failed).encode())
        super().write([table], ctx)
        return compute.sum(table["T"]).as_py()

    def write_block_to_file(self, block: Any, file: Any) -> None:
        with pa.ipc.new_stream(file, schema()) as stream:
            stream.write_table(block.to_arrow().cast(schema()))

    def on_write_complete(self, write_result: Any) -> None:
        super().on_write_complete(write_result)
        self.frames = write_result.write_returns
