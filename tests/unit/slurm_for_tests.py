"""A Slurm of one machine, for tests: jobs are process groups, their numbers those of the groups."""

from __future__ import annotations

from pathlib import Path

SBATCH = """#!/bin/bash
if [ "$1" = --test-only ]; then
  cat > "$SLURM_FAKE/tested.sh"
  if grep -q nowhere "$SLURM_FAKE/tested.sh"; then echo "sbatch: error: invalid partition: nowhere" >&2; exit 1; fi
  exit 0
fi
script=$(mktemp "$SLURM_FAKE/job-XXXX.sh")
cp "$1" "$script"
setsid bash "$script" > "$script.out" 2>&1 < /dev/null &
touch "$SLURM_FAKE/$!.job"
echo "Submitted batch job $!"
"""
SCANCEL = """#!/bin/bash
for job in "$@"; do kill -- "-$job"; done
"""
SQUEUE = """#!/bin/bash
for file in "$SLURM_FAKE"/*.job; do
  job=$(basename "$file" .job)
  if kill -0 "$job" 2> /dev/null; then echo "$job"; fi
done
"""


def install(folder: Path) -> None:
    """Put the commands of Slurm into a folder, to be found in PATH."""
    for name, text in (("sbatch", SBATCH), ("scancel", SCANCEL), ("squeue", SQUEUE)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)


def jobs(folder: Path) -> list[int]:
    """All that were ever started."""
    return [int(f.stem) for f in folder.glob("*.job")]


def alive(pid: int) -> bool:
    """Whether a process runs."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
