"""Turns the JSON of a benchmark run into the tables of docs/performance.md and its two figures.

pytest benchmarks --benchmark-only --benchmark-json=benchmarks/results/NAME.json
python benchmarks/report.py benchmarks/results/NAME.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "performance.md"
START, END = "<!-- measured: made by benchmarks/report.py -->", "<!-- end of measured -->"


def groups(run: dict) -> dict[str, list[dict]]:
    """The benchmarks by group, with the fastest of each group first."""
    found: dict[str, list[dict]] = {}
    for bench in run["benchmarks"]:
        found.setdefault(bench["group"] or "other", []).append(bench)
    return {name: sorted(rows, key=lambda row: row["stats"]["median"]) for name, rows in sorted(found.items())}


def short_name(bench: dict) -> str:
    return bench["name"].removeprefix("bench_")


def place(run: dict) -> str:
    facts, cpu = run["machine_info"]["adabm"], run["machine_info"].get("cpu", {})
    return (
        f"{cpu.get('brand_raw', 'CPU')}, {facts['threads']} threads, {facts['isa']}, torch {facts['torch']}, "
        f"commit {facts['commit']}, {run['datetime'][:10]}"
    )


def tables(run: dict) -> str:
    """Every group as a Markdown table: median, interquartile range, time against the group's fastest."""
    lines = [f"Measured on: {place(run)}. Medians of one run;", "the last column is the time against the fastest of the table."]
    for name, rows in groups(run).items():
        best = rows[0]["stats"]["median"]
        unit, factor = ("us", 1e6) if rows[-1]["stats"]["median"] < 1e-4 else ("ms", 1e3)
        lines += ["", f"### {name}", "", f"| | {unit} | spread (IQR) | times the fastest |", "|---|---|---|---|"]
        for row in rows:
            median, iqr = row["stats"]["median"], row["stats"]["iqr"]
            per_pixel = row["extra_info"].get("us_per_kilopixel")
            note = f" ({per_pixel:.0f} us per 1000 pixels)" if per_pixel else ""
            if "against_192" in row["extra_info"]:
                note = f"{note[:-1]}, {row['extra_info']['against_192']:.2f} of 192x192)"
            lines.append(f"| {short_name(row)}{note} | {median * factor:.2f} | {iqr * factor:.2f} | {median / best:.2f} |")
    return "\n".join(lines)


def figures(run: dict, folder: Path) -> None:
    """Draws docs/images/layer_by_bits.png and docs/images/network.png."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    layer = [b for b in run["benchmarks"] if b["name"].startswith("bench_integer_layer")]
    figure, axes = plt.subplots(figsize=(6, 3.5))
    for isa in sorted({b["extra_info"]["isa"] for b in layer}):
        points = sorted((b["extra_info"]["bits"], b["stats"]["median"] * 1e3) for b in layer if b["extra_info"]["isa"] == isa)
        axes.plot(*zip(*points, strict=True), marker="o", label=isa)
    axes.set(xlabel="bits of the activations (weights 4 bits)", ylabel="ms", ylim=(0, None), title="One 64 to 64 layer on 192x192")
    axes.invert_xaxis()
    axes.legend()
    figure.tight_layout()
    figure.savefig(folder / "layer_by_bits.png", dpi=120)

    rows = [b for b in run["benchmarks"] if b["group"] == "edsr_baseline_x4 192x192"]
    rows.sort(key=lambda b: -b["stats"]["median"])
    figure, axes = plt.subplots(figsize=(7, 3.8))
    colours = ["tab:green" if b["name"].startswith("bench_converted") else "tab:gray" for b in rows]
    names = [short_name(b).replace("[edsr_baseline_x4-", " ").removesuffix("]") for b in rows]
    axes.barh(names, [b["stats"]["median"] * 1e3 for b in rows], color=colours)
    axes.set(xlabel="ms", title="EDSR-baseline x4, one 192x192 image")
    figure.tight_layout()
    figure.savefig(folder / "network.png", dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("json", type=Path)
    run = json.loads(parser.parse_args().json.read_text())
    page = PAGE.read_text()
    before, rest = page.split(START)
    PAGE.write_text(f"{before}{START}\n{tables(run)}\n{END}{rest.split(END)[1]}")
    figures(run, ROOT / "docs" / "images")


if __name__ == "__main__":
    main()
