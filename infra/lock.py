"""Write the lock files from the newest versions that `pyproject.toml` allows: `python -m infra.lock UV` (`make lock`).

`UV` is the path of the resolver uv. `requirements.lock` is for every Linux and macOS and every Python that we support.
`requirements-cuda.lock` has what torch needs besides, where its build is the one with CUDA: on Linux, PyPI's.
"""

from __future__ import annotations

import re
import subprocess
import sys

from model.files import write_whole
from steps.paths import REPOSITORY

LOCK, CUDA_LOCK = REPOSITORY / "requirements.lock", REPOSITORY / "requirements-cuda.lock"
_CUDA = re.compile(r"(cuda|nvidia|triton)\b")
#: sha256 of torch's builds for the CPU only, which PyPI does not have: Linux on x86-64 and on ARM, Python 3.11 to 3.13.
TORCH_CPU = {
    "2.13.0": (
        "6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b",
        "4ca4a9394b0c771238a4f73590fdbbc4debad85ed0fa63d026ae1b085da7d6e2",
        "3fbf9c9d1f3c10c2d59d04aca426dee9ccc6ceb32d255c61e93acc3b4f75fae6",
        "84453b69508ec79902f899c5ed9495acb9e2bbe9fda5f1d5d6f19e3c3842e1a7",
        "6f307c2c32d764ffc6ff6893b801fad6d4752f3e67966cb8abf1843427c02604",
        "0b8f7d0423027ae8b90c7977c627f3379f325363a08224dffad9b4b2d684a83d",
    )
}
_HEADER = """\
# Exact versions and hashes of all that `make` installs: the dependencies of pyproject.toml, its extra `dev`, and
# theirs. Written by `make lock`. torch has the hashes of PyPI's builds and of those for the CPU only: which one is
# taken is pip's own configuration.
"""
_CUDA_HEADER = """\
# What torch's build with CUDA needs besides requirements.lock; `make` installs it where that build is. Written by `make
# lock`.
"""


def split(resolved: str) -> tuple[str, str]:
    """What uv resolved, as the two files: without its markers, and with the hashes that PyPI lacks.

    Raises:
        ValueError: a package without a hash or with two versions, or a version of torch whose other hashes are unknown.
    """
    files: tuple[list[str], list[str]] = ([], [])
    versions: dict[str, str] = {}
    for entry in re.split(r"\n(?=\S)", resolved.strip()):
        head, *hashes = [line.rstrip("\\").strip() for line in entry.splitlines()]
        name, _, version = head.partition(";")[0].strip().partition("==")
        if name in versions:
            raise ValueError(f"{name}: one version for all was expected, found {versions[name]} and {version}")
        versions[name] = version
        if not version or not all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", line) for line in hashes) or not hashes:
            raise ValueError(f"{head}: a version and its hashes were expected")
        if name == "torch":
            if version not in TORCH_CPU:
                raise ValueError(f"torch {version}: add the hashes of its builds for the CPU to infra/lock.py")
            hashes += [f"--hash=sha256:{value}" for value in TORCH_CPU[version]]
        lines = [f"{name}=={version}", *(f"    {line}" for line in hashes)]
        files[_CUDA.match(name) is not None].append(" \\\n".join(lines) + "\n")
    return "".join(files[0]), "".join(files[1])


def resolve(uv: str) -> str:
    # from wheels only: what is built here would run code of the package, with tools that have no hash
    command = [uv, "pip", "compile", "--universal", "--python-version", "3.11", "--fork-strategy", "fewest"]
    command += [
        "--only-binary",
        ":all:",
        "--generate-hashes",
        "--no-annotate",
        "--no-header",
        "--quiet",
        "--extra",
        "dev",
        "pyproject.toml",
    ]
    return subprocess.run(command, cwd=REPOSITORY, check=True, stdout=subprocess.PIPE, text=True).stdout


if __name__ == "__main__":
    common, cuda = split(resolve(sys.argv[1]))
    write_whole(LOCK, _HEADER + common)
    write_whole(CUDA_LOCK, _CUDA_HEADER + cuda)
