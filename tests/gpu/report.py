"""The figures of a card as JSON beside this file, and as a table in docs/performance.md.

python tests/gpu/report.py        writes the table anew from results.json
"""

import json
import platform
from pathlib import Path

RESULTS = Path(__file__).parent / "results.json"
BEGIN, END = "<!-- gpu table: written by make gpu -->", "<!-- end of gpu table -->"
NOT_MEASURED = (
    "**Not measured**: no GPU could be had for this work, so `make gpu` itself never ran on one. What a GPU is\n"
    "said to do elsewhere in this project is an estimate."
)


def machine() -> dict:
    """What the figures depend on."""
    import torch

    from vcutils.runtime.machine import describe

    about = {**describe(), "cuda": str(torch.version.cuda), "cuDNN": str(torch.backends.cudnn.version())}
    return about | {"system": platform.system()}


def number(value: float | None) -> str:
    """Three digits at least."""
    return "–" if value is None else f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def table(results: dict | None) -> str:
    """What stands between the marks: a table, or that nothing was measured."""
    if not results:
        return NOT_MEASURED
    lines = [", ".join(f"{key} {value}" for key, value in results["machine"].items()) + ".", ""]
    lines += ["| what | figure | peak GiB | note |", "|---|---|---|---|"]
    for row in results["rows"]:
        figure = f"{number(row['value'])} {row['unit']}" if row["value"] is not None else "–"
        memory = row.get("peak GiB")
        lines.append(f"| {row['what']} | {figure} | {'' if memory is None else memory} | {row.get('note', '')} |")
    return "\n".join(lines)


def publish(rows: list[dict], page: Path, results: Path = RESULTS) -> None:
    """Write both."""
    measured = {"machine": machine(), "rows": rows}
    results.write_text(json.dumps(measured, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    write(page, measured)


def write(page: Path, measured: dict | None) -> None:
    """Put the table between the page's marks."""
    before, _, rest = page.read_text("utf-8").partition(BEGIN)
    assert END in rest, f"{page}: no {BEGIN} … {END}"
    text = f"{before}{BEGIN}\n\n{table(measured)}\n\n{END}{rest.partition(END)[2]}"
    page.write_text(text, encoding="utf-8")
    print(table(measured))


if __name__ == "__main__":
    known = json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else None
    write(Path(__file__).parent.parent.parent / "docs" / "performance.md", known)
