"""The results table: several recipes, several seeds, one table with means and spreads.

    python benchmarks/portraits_table.py --out bench --seeds 0 1 2 --clips 512 --jobs 2

Trains every row and seed (a finished run is not trained again), measures all of them with the same captions, noise
seeds and number of clips, and writes `bench/table.md` (each run) and `bench/summary.md` (mean and spread of the seeds).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROWS: dict[str, list[str]] = {
    "W2SVD, alpha_weak .25": ["portraits_long"],
    "DMD2, alpha_weak 0": ["portraits_long", "--matching.alpha_weak", "0"],
    "W2SVD, as the paper draws it": ["w2svd_paper"],
}
COLUMNS = ("frechet_video", "frechet_frame", "motion", "flicker", "saturation", "sharpness", "diversity", "adherence")


def folder_of(out: Path, row: str, seed: int) -> Path:
    slug = "".join(c if c.isalnum() else "-" for c in row.lower())
    return out / f"{slug}-seed{seed}"


def train(out: Path, row: str, seed: int, extra: list[str]) -> None:
    run = folder_of(out, row, seed)
    if (run / "student").is_dir():
        return
    command = [sys.executable, "-m", "w2svd_core.train"]
    if (run / "recipe.yaml").is_file():
        command += ["--resume", str(run)]
    else:
        command += [*ROWS[row], "--seed", str(seed), "--evaluate.clips", "0", "--out", str(run), *extra]
    print("$", " ".join(command[1:]), flush=True)
    env = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    with (out / f"{run.name}.log").open("w") as log:
        subprocess.run(command, check=True, env=env, stdout=log, stderr=subprocess.STDOUT)


def summary(out: Path, seeds: list[int]) -> str:
    """Mean and, for students, half the distance from the smallest to the largest of the seeds."""
    table = json.loads((out / "table.json").read_text())
    lines = [
        f"| {table['clips']} clips in each row | " + " | ".join(COLUMNS) + " |",
        "|" + " --- |" + " ---: |" * len(COLUMNS),
    ]
    students = {folder_of(out, row, seed).name: row for row in ROWS for seed in seeds}
    groups: dict[str, list[dict]] = {}
    for row in table["rows"]:
        run = row["name"].partition(": student")[0]
        groups.setdefault(students.get(run, row["name"]), []).append(row)
    for name, values in groups.items():
        cells = []
        for column in COLUMNS:
            found = [v[column] for v in values if column in v]
            spread = f" ± {(max(found) - min(found)) / 2:.2f}" if len(found) > 1 else ""
            cells.append(f"{statistics.mean(found):.2f}{spread}" if found else "")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("bench"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--clips", type=int, default=512)
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time, a core each")
    arguments, extra = parser.parse_known_args()
    out, seeds = arguments.out, arguments.seeds
    out.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(arguments.jobs) as pool:
        list(pool.map(lambda job: train(out, *job, extra), [(row, seed) for seed in seeds for row in ROWS]))
    runs = [str(folder_of(out, row, seed)) for row in ROWS for seed in seeds]
    evaluate = [sys.executable, "-m", "w2svd_core.evaluate", *runs, "--clips", str(arguments.clips), "--euler-search"]
    subprocess.run([*evaluate, "--out", str(out / "table.md")], check=True)
    text = summary(out, seeds)
    (out / "summary.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
