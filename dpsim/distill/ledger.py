"""The ledger of a distillation: one line of JSON for every piece of work that is finished, in the order it finished.

A line says which piece, the SHA-256 of the file that it left as its result, and the wall time since the line before, or
since the run went on. Lines are only ever appended, and on the disk before anything builds on them. A kill can leave a
torn line at the end, which is cut off. A result that changed after its line was written is refused.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

from dpsim.errors import DataError


class Ledger:
    """The finished pieces of work of the run in `folder`, kept in `folder`/ledger.jsonl."""

    def __init__(self, folder: Path):
        self.folder, self.path = folder, folder / "ledger.jsonl"
        content = self.path.read_bytes() if self.path.exists() else b""
        whole = content[: content.rfind(b"\n") + 1]
        self._entries: dict[str, dict[str, Any]] = {}
        self._last = time.monotonic()
        for k, line in enumerate(whole.splitlines()):
            try:
                entry = json.loads(line)
                self._entries[entry["unit"]] = entry
            except (ValueError, KeyError, TypeError):
                raise DataError(
                    f"`{self.path}` line {k + 1} is {line[:60]!r}; expected a line that dpsim wrote. Put the file "
                    "back as it was, or remove that line: the work it stands for is then looked for, or done again."
                ) from None
        if len(whole) < len(content):
            os.truncate(self.path, len(whole))

    def __contains__(self, unit: str) -> bool:
        return unit in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def seconds(self) -> float:
        """The wall time of all runs together, up to the present."""
        return sum(entry["seconds"] for entry in self._entries.values()) + time.monotonic() - self._last

    def add(self, unit: str, result: Path) -> None:
        """A piece of work is finished, its result on the disk: append the line and wait until it is there as well."""
        now = time.monotonic()
        entry = {
            "unit": unit,
            "result": os.path.relpath(result, self.folder),
            "sha256": _sha256(result),
            "seconds": round(now - self._last, 3),
        }
        self._last = now
        new = not self.path.exists()
        file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            data = (json.dumps(entry) + "\n").encode()
            while data:
                data = data[os.write(file, data) :]
            os.fsync(file)
        finally:
            os.close(file)
        if new:
            _sync_folder(self.folder)
        self._entries[unit] = entry

    def entry(self, unit: str) -> dict[str, Any] | None:
        """The line of a finished piece, its result checked; None if it is not finished.

        Raises: DataError for a result that is missing or is not what it was.
        """
        entry = self._entries.get(unit)
        if entry is None:
            return None
        result = self.folder / entry["result"]
        now = _sha256(result) if result.is_file() else "missing"
        if now != entry["sha256"]:
            raise DataError(
                f"`{result}` is {now[:12]}; expected {entry['sha256'][:12]}, as it was when {unit} finished. Put the "
                f"file back, or start in a new folder."
            )
        return entry


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
