"""The results table: several recipes, several seeds, one table with means and spreads.

    python benchmarks/portraits_table.py --out bench --seeds 0 1 2 --clips 512 --jobs 2
    python benchmarks/portraits_table.py --out bench_image --image          portraits from their first frame

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
IMAGE_TEACHER = "portraits_image_teacher"
COLUMNS = (
    *("frechet_video", "frechet_frame", "motion", "flicker", "saturation", "sharpness", "diversity", "adherence"),
    "identity",
)


def folder_of(out: Path, row: str, seed: int) -> Path:
    slug = "".join(c if c.isalnum() else "-" for c in row.lower())
    return out / f"{slug}-seed{seed}"


def train(run: Path, arguments: list[str]) -> None:
    """A run of its own process; a finished one is not trained again, a stopped one goes on."""
    if (run / "student").is_dir():
        return
    command = [sys.executable, "-m", "w2svd_core.train"]
    if (run / "recipe.yaml").is_file():
        command += ["--resume", str(run)]
    else:
        command += [*arguments, "--evaluate.clips", "0", "--out", str(run)]
    print("$", " ".join(command[1:]), flush=True)
    env = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    with run.with_name(f"{run.name}.log").open("w") as log:
        subprocess.run(command, check=True, env=env, stdout=log, stderr=subprocess.STDOUT)


def summary(out: Path, seeds: list[int]) -> str:
    """Mean and, for students, half the distance from the smallest to the largest of the seeds."""
    table = json.loads((out / "table.json").read_text())
    columns = [column for column in COLUMNS if any(column in row for row in table["rows"])]
    lines = [
        f"| {table['clips']} clips in each row | " + " | ".join(columns) + " |",
        "|" + " --- |" + " ---: |" * len(columns),
    ]
    students = {folder_of(out, row, seed).name: row for row in ROWS for seed in seeds}
    groups: dict[str, list[dict]] = {}
    for row in table["rows"]:
        run = row["name"].partition(": student")[0]
        groups.setdefault(students.get(run, row["name"]), []).append(row)
    for name, values in groups.items():
        cells = []
        for column in columns:
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
    parser.add_argument("--image", action="store_true", help="first train a teacher that starts from a first frame")
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time, a core each")
    arguments, extra = parser.parse_known_args()
    out, seeds = arguments.out, arguments.seeds
    out.mkdir(parents=True, exist_ok=True)
    rows = dict(ROWS)
    if arguments.image:
        train(out / "teacher", [IMAGE_TEACHER, *extra])
        extra += ["--model.path", str(out / "teacher" / "student" / "student_model_comfyui.safetensors")]
        rows = {row: recipe for row, recipe in rows.items() if recipe[0] == "portraits_long"}
    jobs = [(folder_of(out, row, seed), [*rows[row], "--seed", str(seed), *extra]) for seed in seeds for row in rows]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        list(pool.map(lambda job: train(*job), jobs))
    runs = [str(folder_of(out, row, seed)) for row in rows for seed in seeds]
    evaluate = [sys.executable, "-m", "w2svd_core.evaluate", *runs, "--clips", str(arguments.clips), "--euler-search"]
    subprocess.run([*evaluate, "--out", str(out / "table.md")], check=True)
    text = summary(out, seeds)
    (out / "summary.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
