"""The import directions of docs/architecture.md: `pipelines -> steps/*/step.py -> steps/*/... -> model`."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGES = ("cli", "model", "scoring", "steps", "pipelines", "materializers", "infra")
#: The only files that talk to MLflow's model registry.
REGISTRY = tuple(Path(f"steps/register/{name}.py") for name in ("registry", "history", "moves"))
#: ZenML's side of the registry: it lives beside MLflow's, and is a step of nothing.
MIRROR = Path("steps/register/mirror.py")


def python_files(*packages: str) -> list[Path]:
    found = {name: list((REPOSITORY / name).rglob("*.py")) for name in packages}
    assert all(found.values()), f"no Python in {[name for name, files in found.items() if not files]}: was it renamed?"
    return sorted(path.relative_to(REPOSITORY) for files in found.values() for path in files)


def parse(path: Path) -> ast.Module:
    return ast.parse((REPOSITORY / path).read_text(encoding="utf-8"), filename=str(path))


def imported(path: Path) -> Iterator[str]:
    """Every module that `path` imports, at any depth of nesting; `from a import b` counts as `a.b`, too."""
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = path.parent.parts[: len(path.parent.parts) - node.level + 1]
                base = ".".join((*package, base)).rstrip(".")
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def is_under(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def offenders(files: list[Path], forbidden: tuple[str, ...]) -> list[str]:
    return [
        f"{path} imports {module}"
        for path in files
        for module in imported(path)
        if any(is_under(module, name) for name in forbidden)
    ]


def test_a_run_whose_steps_are_cached_imports_no_library_of_theirs() -> None:
    """Each step imports its libraries when it runs; the study's, whose cells are its own cache, always does."""
    steps = ["steps." + path.parent.name + ".step" for path in (REPOSITORY / "steps").glob("*/step.py")]
    steps.remove("steps.study.step")
    code = (
        "import sys, importlib\n"
        "from zenml.integrations.mlflow.experiment_trackers import MLFlowExperimentTracker\n"  # of the stack
        f"[importlib.import_module(name) for name in {['pipelines.entry', *steps]}]\n"
        "from zenml.integrations.registry import integration_registry\n"
        "integration_registry.activate_integrations()\n"  # as ZenML does when it compiles a pipeline
        "MLFlowExperimentTracker.disable_autologging(None)\n"  # as ZenML does after each step
        "print(*sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True, capture_output=True, text=True)
    heavy = {"torch", "transformers", "peft", "openai", "great_expectations", "matplotlib", "scipy.stats", "sklearn"}
    assert len(steps) == 9
    assert heavy & set(found.stdout.split()) == set()


def test_a_step_that_returns_a_module_has_zenml_s_materializer_for_it() -> None:
    code = (
        "import pipelines.entry, torch\n"
        "from zenml.integrations.registry import integration_registry\n"
        "from zenml.materializers.materializer_registry import materializer_registry\n"
        "integration_registry.activate_integrations()\n"
        "print(materializer_registry[torch.nn.Linear].__name__)"
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True, capture_output=True, text=True)
    assert found.stdout.split()[-1] == "PyTorchModuleMaterializer"


def test_every_package_of_the_project_is_looked_at() -> None:
    """Those that are installed are those that are listed here, and each has code."""
    built = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    assert {name.rstrip("*") for name in built["packages"]["find"]["include"]} == set(PACKAGES)
    assert python_files(*PACKAGES)
    with pytest.raises(AssertionError, match="was it renamed"):
        python_files("steps", "nowhere")


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        ("model", ("zenml", "mlflow", "openai", "cli", "steps", "pipelines", "materializers", "scoring", "infra")),
        ("steps", ("cli", "pipelines", "scoring", "infra")),
        ("pipelines", ("cli",)),
        ("materializers", ("cli", "pipelines", "scoring", "infra")),
        ("infra", ("cli", "materializers", "scoring")),
        ("scoring", ("zenml", "cli", "pipelines", "materializers", "infra")),
    ],
)
def test_no_package_imports_one_above_it(package: str, forbidden: tuple[str, ...]) -> None:
    assert offenders(python_files(package), forbidden) == []


def test_a_command_imports_its_libraries_when_it_is_called() -> None:
    """At its top a module of cli/ imports what `--help` needs: the standard library, click and our errors."""
    found = []
    for path in python_files("cli"):
        body = parse(path).body
        for node in body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
                allowed = sys.stdlib_module_names | {"click"}
                bad = [n for n in names if n.partition(".")[0] not in allowed and n != "model.errors"]
                found += [f"{path} imports {name}" for name in bad if not name.startswith("cli")]
    assert found == []


def test_in_a_stage_only_step_py_imports_zenml() -> None:
    """Neither itself nor through a module that the stages share."""
    shared = [path for path in python_files("steps") if len(path.parts) == 2]
    on_zenml = [".".join(path.with_suffix("").parts) for path in shared if offenders([path], ("zenml",))]
    assert on_zenml == ["steps.publish"]
    plain = [path for path in python_files("steps") if path not in (*shared, MIRROR) and path.name != "step.py"]
    assert offenders(plain, ("zenml", *on_zenml)) == []


def test_no_step_imports_another_stages_step() -> None:
    steps = tuple(".".join(path.with_suffix("").parts) for path in python_files("steps") if path.name == "step.py")
    assert offenders(python_files("steps"), steps) == []


def test_only_the_registry_s_own_files_talk_to_the_model_registry() -> None:
    found = []
    for path in python_files(*PACKAGES):
        if path in REGISTRY:
            continue
        for node in ast.walk(parse(path)):
            name = {
                ast.Name: lambda n: n.id,
                ast.Attribute: lambda n: n.attr,
                ast.alias: lambda n: n.name.rpartition(".")[2],
                ast.keyword: lambda n: n.arg,
            }.get(type(node), lambda n: None)(node)
            if name in ("MlflowClient", "register_model", "registered_model_name"):
                found.append(f"{path}:{node.lineno} {name}")
    assert found == []


def test_agentps_training_holds_no_logic() -> None:
    body = parse(Path("agentps_training.py")).body
    statements = body[1:] if ast.get_docstring(ast.Module(body=body, type_ignores=[])) else body
    assert len(statements) <= 5
    assert {type(s) for s in statements} <= {ast.Import, ast.ImportFrom, ast.Assign, ast.Expr}


def test_the_contracts_import_without_torch() -> None:
    """Reading a manifest, a task or an image must not cost torch's seconds and memory."""
    modules = ["errors", "schema", "columns", "task", "settings", "images", "post", "metrics", "bootstrap"]
    code = (
        "import importlib, sys\n"
        f"for name in {modules}:\n"
        "    importlib.import_module(f'model.{name}')\n"
        "    if 'torch' in sys.modules:\n"
        "        sys.exit(f'model.{name} imports torch')\n"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
