"""Features in Arrow files: one schema for all that write them, for corpora of 100,000 clips to many millions.

A folder `parts/` of `*.arrow` files (Arrow IPC streams, which Hugging Face `datasets` maps into memory) is the dataset:
no step merges them. Needs `pip install vcutils[scale]`; nothing here is imported where there are no parts.
"""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np


def schema() -> Any:
    """The columns of a part, a `pyarrow.Schema`; a row per clip, failed ones too. Raises ImportError without pyarrow.

    `features` holds (T, D) numbers in C order and little-endian, of type `dtype` (f2 or f4); null for a failed clip.
    `row` is the clip's row of a manifest as JSON; `key`, id@bytes-mtime of the clip's file, changes with the file.
    """
    import pyarrow as pa

    text, size = pa.string(), pa.int32()
    columns = {"id": text, "key": text, "features": pa.large_binary(), "dtype": text, "T": size, "D": size, "row": text}
    return pa.schema(list(columns.items()))


def clip_record(row: Mapping[str, Any], features: np.ndarray | None) -> dict[str, Any]:
    """One row of a part, from a clip's manifest row and its features (T, D); None for a clip that failed."""
    stamp = f"{row['bytes']}-{row['mtime']}" if "bytes" in row else ""
    record = {"id": row["id"], "key": f"{row['id']}@{stamp}", "row": json.dumps(row, ensure_ascii=False)}
    if features is None:
        return record | {"features": None, "dtype": "f2", "T": 0, "D": 0}
    dtype = "f2" if features.dtype == np.float16 else "f4"
    frames, size = features.shape
    return record | {"features": features.astype(f"<{dtype}").tobytes(), "dtype": dtype, "T": frames, "D": size}
