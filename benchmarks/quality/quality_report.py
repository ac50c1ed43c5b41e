"""Turns the JSON of `quality.py` into docs/quality_STUDY.md, a table and where there is one a figure.

python benchmarks/quality/quality_report.py benchmarks/results/quality-*.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def table(rows: list[dict[str, Any]]) -> list[str]:
    """A Markdown table with PSNR-Y, the loss against the float network, and mean bits on both test sets."""
    timed = any("seconds" in row for row in rows)
    head = ["network", "settings", "Set5 dB", "loss", "bits", "Set14 dB", "loss", "bits", *(["ms"] if timed else []), "calibration"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for row in rows:
        cells = [row["network"], row["label"]]
        for name in ("set5", "set14"):
            cells += [f"{row[name]['psnr']:.2f}", f"{row[name]['loss']:.2f}", f"{row[name]['bits']:.2f}"]
        cells += [f"{1000 * row['seconds']:.1f}"] if timed else []
        lines.append("| " + " | ".join([*cells, f"{row['calibration_seconds']:.0f} s"]) + " |")
    return lines


def draw_budget(rows: list[dict[str, Any]], path: Path) -> None:
    """Draws PSNR against bits, and against time, for budgets of bits and of time."""
    plt = _pyplot()
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True)
    for objective, marker in (("bits", "o"), ("latency", "s")):
        chosen = [row for row in rows if row["config"]["objective"] == objective]
        psnr = [row["set14"]["psnr"] for row in chosen]
        left.plot([row["set14"]["bits"] for row in chosen], psnr, marker=marker, label=f"budget of {objective}")
        right.plot([1000 * row["seconds"] for row in chosen], psnr, marker=marker, label=f"budget of {objective}")
    left.set(xlabel="mean bits on Set14", ylabel="Set14 PSNR-Y, dB")
    right.set(xlabel="ms for a 192x192 image")
    left.legend()
    _save(figure, path)


def draw_images(rows: list[dict[str, Any]], path: Path) -> None:
    """Draws PSNR against the number of calibration images."""
    figure, axes = _pyplot().subplots(figsize=(4.5, 3.6))
    for kind, marker in (("first", "o"), ("informative", "s")):
        chosen = [row for row in rows if row["label"].split()[0] == kind]
        axes.plot([row["images"] for row in chosen], [row["set14"]["psnr"] for row in chosen], marker=marker, label=kind)
    axes.axhline(next(row["set14"]["psnr"] for row in rows if row["label"] == "all"), color="gray", ls=":", label="all")
    axes.set(xlabel="calibration images", ylabel="Set14 PSNR-Y, dB", xscale="log")
    axes.legend()
    _save(figure, path)


def draw_steps(rows: list[dict[str, Any]], path: Path) -> None:
    """Draws the loss against the float network on both test sets, against the number of fine-tuning steps."""
    figure, axes = _pyplot().subplots(figsize=(4.5, 3.6))
    fixed = [row for row in rows if "converged" not in row["label"]]
    converged = [row for row in rows if "converged" in row["label"]]
    for name, label, marker in (("set5", "Set5", "o"), ("set14", "Set14", "s")):
        (line,) = axes.plot([row["steps"] for row in fixed], [row[name]["loss"] for row in fixed], marker=marker, label=label)
        ended = [row["steps"] for row in converged], [row[name]["loss"] for row in converged]
        axes.plot(*ended, ls="", marker="*", ms=11, color=line.get_color(), label=f"{label}, until converged")
    axes.set(xlabel="fine-tuning steps", ylabel="loss of PSNR-Y against float, dB", ylim=(0, None))
    axes.legend()
    _save(figure, path)


FIGURES = {"budget": draw_budget, "images": draw_images, "steps": draw_steps}


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _save(figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("json", type=Path, nargs="+")
    for path in parser.parse_args().json:
        run = json.loads(path.read_text())
        study, facts = run["study"], run["machine"]
        page = [f"# Quality: {study}", "", f"Measured with the integer kernels on {facts['cpu']}, {run['threads']} thread(s).", ""]
        page += table(run["rows"])
        for row in run["rows"]:
            if "machine" in row:
                place = f"{row['machine']['cpu']}, {row['threads']} thread(s), {row['date']}"
                page += ["", f"Of another run than the rest: {row['label']} ({place})."]
        if study in FIGURES:
            FIGURES[study](run["rows"], ROOT / "docs" / "images" / f"quality_{study}.png")
            page += ["", f"![{study}](images/quality_{study}.png)"]
        (ROOT / "docs" / f"quality_{study}.md").write_text("\n".join(page) + "\n")


if __name__ == "__main__":
    main()
