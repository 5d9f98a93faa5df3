"""What a result may depend on besides its settings: machine, versions, commit."""

from __future__ import annotations

import hashlib
import os
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

__all__ = ["NUMERICS", "code_checksum", "environment"]

NUMERICS = ("torch", "pyro-ppl", "torchvision", "numpy", "pandas", "scikit-learn")
"""Packages that numbers depend on."""
_PACKAGES = (*NUMERICS, "matplotlib", "seaborn", "tyro", "safetensors")


def environment(threads: int | None = None) -> dict[str, Any]:
    """Return what a result may depend on: Python, machine, ``threads``, versions, git commit, date (UTC).

    The caller adds what only it knows: device, checksums of the data, command line. ``git`` is ``None`` where the
    package does not run from a source tree; no path, host or user name is recorded.
    """
    import platform
    from importlib.metadata import PackageNotFoundError, version

    versions: dict[str, str | None] = {}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cpu_count": os.cpu_count(),
        "threads": threads,
        "packages": versions,
        "git": _git_state(Path(__file__).resolve().parents[1]),
    }


def code_checksum() -> str:
    """Return the checksum of the files of this package, so that machines can compare theirs."""
    package, digest = Path(__file__).resolve().parents[1], hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(f"{path.relative_to(package)}\n{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


def _processor() -> str | None:
    """The kind of processor, on whose vector units the rounding of sums depends."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), None)


def _git_state(package: Path) -> dict[str, Any] | None:
    """Commit of the source tree around ``package``, and whether the package differs from it."""
    variables = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}  # those of a hook

    def git(*arguments: str) -> str:
        command = ["git", "--no-optional-locks", "-C", str(package), *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=10, env=variables
        ).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != package.parent:
            return None
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "--", "."))}
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
