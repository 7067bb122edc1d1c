"""The one reader of a run file, `-c FILE`: of every pipeline and of every command.

Our options stand at its top level, under `parameters:` (ZenML's form), or under `parameters: {options: …}`, the form in
which a pipeline gets them; ZenML's own keys stand beside them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model.errors import ConfigError
from steps.settings import NotifySettings, RunOptions, TrainingSettings, load_options, load_settings, read_yaml

if TYPE_CHECKING:
    from scoring.settings import ServiceSettings, StreamSettings

PARAMETERS, OPTIONS = "parameters", "options"
#: The top-level keys that ZenML reads, beside `parameters`. Listed, so that a command needs no ZenML (a test compares).
ZENML_KEYS = frozenset((
    "build", "cache_policy", "cleanup_hook_source", "enable_artifact_metadata", "enable_artifact_visualization",
    "enable_cache", "enable_heartbeat", "enable_pipeline_logs", "enable_step_logs", "end_hook_source",
    "environment", "execution_mode", "extra", "failure_hook_source", "init_hook_kwargs", "init_hook_source",
    "model", "pause_hook_source", "resume_hook_source", "retry", "run_name", "schedule", "secrets", "settings",
    "start_hook_source", "steps", "substitutions", "success_hook_source", "tags",
))  # fmt: skip


@dataclass(frozen=True)
class RunFile:
    """options: ours, their values unchecked. zenml: its own keys."""

    options: dict[str, Any]
    zenml: dict[str, Any]


def read_run_file(path: Path, names: Collection[str]) -> RunFile:
    """
    Args:
        names: the options that may be set.

    Raises:
        ConfigError: the file is missing or no YAML mapping; or an option is unknown, or set in two places.
    """
    raw = read_yaml(path)
    options: dict[str, Any] = {}
    places: dict[str, str] = {}
    for place, mapping in _places(path, raw):
        for key, value in mapping.items():
            if key not in names:
                shown = f"{place}.{key}" if place else key
                raise ConfigError(
                    f"config {path}: {shown}: unknown key: remove it or correct its name; "
                    f"options are {', '.join(sorted(names))}"
                )
            if key in options:
                first = f"under {places[key]}" if places[key] else "at the top level"
                raise ConfigError(f"config {path}: {key} stands {first} and under {place}: keep one")
            options[key], places[key] = value, place
    return RunFile(options, {key: value for key, value in raw.items() if key in ZENML_KEYS})


def _places(path: Path, raw: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Where options may stand, with what stands there."""
    yield "", {key: value for key, value in raw.items() if key not in (*ZENML_KEYS, PARAMETERS)}
    nested = _mapping(path, PARAMETERS, raw.get(PARAMETERS))
    yield PARAMETERS, {key: value for key, value in nested.items() if key != OPTIONS}
    yield f"{PARAMETERS}.{OPTIONS}", _mapping(path, f"{PARAMETERS}.{OPTIONS}", nested.get(OPTIONS))


def _mapping(path: Path, name: str, value: Any) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ConfigError(f"config {path}: {name}: a mapping was expected, found {type(value).__name__}")
    return value


def read_options(config: Path | None) -> dict[str, Any]:
    """The options that a command takes from a run file; it may be the file of any pipeline.

    A section of another pipeline, or of one command, is checked, and left out. The other values are for
    `load_settings`.

    Raises:
        ConfigError: as `read_run_file`; or such a section breaks a rule.
    """
    options = _all_options(config)
    for section, kind in _others().items():
        if section in options:
            load_options(kind, {section: options.pop(section)}, f"config {config}")
    return options


def read_service(config: Path | None) -> ServiceSettings:
    """The section `service` of a run file; its other options are for `read_options`.

    Raises:
        ConfigError: as `read_options`.
    """
    from scoring.settings import load_service

    return load_service(_all_options(config).get("service"), f"config {config}")


def read_stream(config: Path) -> StreamSettings:
    """The section `stream` of a run file; its other options are for `read_options`.

    Raises:
        ConfigError: as `read_options`; or it names no source.
    """
    from scoring.settings import load_stream

    return load_stream(_all_options(config).get("stream") or {}, f"config {config}")


def _others() -> dict[str, type[RunOptions]]:
    from scoring.settings import ScoringRunSettings, ServiceRunSettings, StreamRunSettings
    from steps.study.settings import StudyRunSettings

    return {
        "study": StudyRunSettings,
        "scoring": ScoringRunSettings,
        "service": ServiceRunSettings,
        "stream": StreamRunSettings,
    }


def _all_options(config: Path | None) -> dict[str, Any]:
    return read_run_file(config, TrainingSettings.names() | _others().keys()).options if config is not None else {}


def load_notify(config: Path | None) -> NotifySettings:
    """The section `notify` of a run file, laid over the default.

    The rest of the file is not looked at: a run that fails because of it has to be told of, too.

    Raises:
        ConfigError: the file is no YAML mapping, or the section breaks a rule.
    """
    raw = read_yaml(config) if config else {}
    nested = raw.get(PARAMETERS)
    inner = nested.get(OPTIONS) if isinstance(nested, dict) else None
    places = [place["notify"] for place in (raw, nested, inner) if isinstance(place, dict) and "notify" in place]
    return load_settings({"notify": places[0] if places else None}, f"config {config}").notify
