"""Write the lock files from the newest versions that `pyproject.toml` allows: `python -m infra.lock UV` (`make lock`).

`UV` is the path of the resolver uv. They hold for every Linux and macOS and every Python that we support. torch has
files of its own, because it comes in two builds: PyPI's, which on Linux is the one with CUDA and brings its libraries,
and the one for the CPU only, which other indexes have. `infra/install.sh` takes the second where pip finds it.
"""

from __future__ import annotations

import re
import subprocess
import sys

from model.files import write_whole
from steps.paths import REPOSITORY

_CUDA = re.compile(r"(cuda|nvidia|triton)\b")
#: sha256 of torch's builds for the CPU only: Linux on x86-64 and on ARM, Python 3.11 to 3.13.
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
COMMON, SCORING, TEAM = "requirements.lock", "requirements-scoring.lock", "requirements-team.lock"
#: Lock -> the extra that it adds, and what that is for. Each lacks what those before it have.
_MORE = {
    SCORING: ("test-scoring", "the service, the stream, PostgreSQL"),
    TEAM: ("team", "the team's stack: MLflow's login, the object store"),
}
_HEADERS = {
    COMMON: "the dependencies of pyproject.toml, its extra `dev`, and theirs, but torch",
    "requirements-torch.lock": "torch as PyPI has it, and the CUDA libraries that it needs on Linux",
    "requirements-torch-cpu.lock": "torch for the CPU only, taken instead where pip finds it",
}


def split(resolved: str) -> dict[str, str]:
    """What uv resolved, as the content of each file: without uv's markers, and with the hashes that PyPI lacks.

    Raises:
        ValueError: a package without a hash or with two versions, or a version of torch whose other hashes are unknown.
    """
    files: tuple[list[str], list[str], list[str]] = ([], [], [])
    common, torch, cpu = files
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
            cpu.append(_entry(f"torch=={version}+cpu", [f"--hash=sha256:{value}" for value in TORCH_CPU[version]]))
            torch.append(_entry(f"torch=={version}", hashes))
        elif _CUDA.match(name):
            torch.append(_entry(f"{name}=={version} ; sys_platform == 'linux'", hashes))
        else:
            common.append(_entry(f"{name}=={version}", hashes))
    return {name: _file(header, entries) for (name, header), entries in zip(_HEADERS.items(), files, strict=True)}


def beyond(common: str, resolved: str, name: str = SCORING) -> str:
    """The content of the lock `name`: of what uv `resolved` together with it, what the `common` locks lack.

    Raises:
        ValueError: as `split`; or a package has another version than in the common lock.
    """
    entries = re.findall(r"^\S+==.*(?:\n    .*)*\n", split(resolved)[COMMON], re.MULTILINE)
    known = dict(re.findall(r"^([\w.-]+)==(\S+)", common, re.MULTILINE))
    found = {entry: re.match(r"([\w.-]+)==(\S+)", entry) for entry in entries}
    for match in found.values():
        if match and known.get(match[1], match[2]) != match[2]:
            raise ValueError(f"{match[0]}: {COMMON} has {known[match[1]]}")
    extra, what = _MORE[name]
    known_locks = " and ".join([COMMON, *list(_MORE)[: list(_MORE).index(name)]])
    return _file(
        f"the extra `{extra}` ({what}) beyond {known_locks}",
        [entry for entry, match in found.items() if match and match[1] not in known],
    )


def _file(header: str, entries: list[str]) -> str:
    return f"# Versions and hashes of what `make` installs: {header}.\n# Written by `make lock`.\n" + "".join(entries)


def _entry(head: str, hashes: list[str]) -> str:
    return " \\\n".join([head, *(f"    {line}" for line in hashes)]) + "\n"


def resolve(uv: str, *options: str) -> str:
    # from wheels only: what is built here would run code of the package, with tools that have no hash
    command = [uv, "pip", "compile", "--universal", "--python-version", "3.11", "--fork-strategy", "fewest"]
    command += ["--only-binary", ":all:", "--generate-hashes", "--no-annotate", "--no-header", "--quiet"]
    command += ["--extra", "dev", *options, "pyproject.toml"]
    return subprocess.run(command, cwd=REPOSITORY, check=True, stdout=subprocess.PIPE, text=True).stdout


if __name__ == "__main__":
    for name, text in split(resolve(sys.argv[1])).items():
        write_whole(REPOSITORY / name, text)
    before = [COMMON]
    for name, (extra, _) in _MORE.items():
        more = resolve(sys.argv[1], "--extra", extra, *(word for lock in before for word in ("--constraint", lock)))
        write_whole(REPOSITORY / name, beyond("".join((REPOSITORY / lock).read_text() for lock in before), more, name))
        before.append(name)
