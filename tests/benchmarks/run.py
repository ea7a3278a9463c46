"""`make bench`: one table of ratios, each side measured in turn in this run, and results.json beside this file.

    python tests/benchmarks/run.py                      every stage
    python tests/benchmarks/run.py training decoding    some; results.json keeps the other stages' rows

Each stage is a module of this folder whose `measure()` returns its rows.
"""

import dataclasses
import importlib
import json
import os
import platform
import sys
from pathlib import Path

HERE = Path(__file__).parent
STAGES = ("startup", "extraction", "training", "learning", "decoding", "store")
RESULTS = HERE / "results.json"


def machine() -> dict:
    """What the figures depend on."""
    import torch

    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return {
        "cpu": model or platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "system": platform.system(),
    }


def table(stages: dict) -> str:
    """All rows of results.json as text."""

    def number(value: float | None) -> str:
        return "–" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"

    rows = [("", "ours", "plain", "ratio", "goal", "")]
    for stage, result in stages.items():
        for row in result["rows"]:
            ratio = "–" if row["ratio"] is None else f"{row['ratio']:.{2 if row['ratio'] < 2 else 1}f}x"
            figures = (f"{number(row['value'])} {row['unit']}", number(row["baseline"]), ratio)
            rows.append((f"{stage}: {row['name']}", *figures, row["goal"], row["note"]))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    lines = []
    for name, *figures, note in rows:
        cells = [name.ljust(widths[0]), *(f.rjust(w) for f, w in zip(figures, widths[1:], strict=True)), note]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def main(names: list[str]) -> int:
    """Measure the named stages (default: all), print the table, write results.json."""
    if unknown := set(names) - set(STAGES):
        print(f"no stage {', '.join(sorted(unknown))}; there are: {', '.join(STAGES)}", file=sys.stderr)
        return 2
    known = json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else {}
    for name in names or STAGES:
        print(f"{name} …", file=sys.stderr, flush=True)
        rows = [dataclasses.asdict(row) | {"ratio": row.ratio} for row in importlib.import_module(name).measure()]
        if rows:  # else it could not be measured here, and said why: earlier rows stay
            known[name] = {"machine": machine(), "rows": rows}
        known = {stage: known[stage] for stage in STAGES if stage in known}
        RESULTS.write_text(json.dumps(known, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(", ".join(f"{key} {value}" for key, value in machine().items()))
    print(table(known))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
