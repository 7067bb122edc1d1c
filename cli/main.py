"""The group of all commands: each is imported when it is called, so that none pays for another's libraries."""

from __future__ import annotations

import importlib
from typing import Any

import click

#: Command -> where it is defined. Its module imports at its top what `--help` needs, and no more.
COMMANDS: dict[str, str] = {
    "agreement": "cli.annotation:agreement_",
    "annotate": "cli.annotation:annotate",
    "compare": "cli.registry:compare",
    "dead-letters": "cli.scoring:dead_letters",
    "desk": "cli.desk:desk",
    "draft": "cli.draft:draft",
    "fetch": "cli.registry:fetch",
    "gold": "cli.annotation:gold",
    "history": "cli.registry:history",
    "live": "cli.registry:live",
    "plan": "cli.annotation:plan",
    "promote": "cli.registry:promote",
    "queue": "cli.queue:queue",
    "recalibrate": "cli.registry:recalibrate",
    "rollback": "cli.registry:rollback",
    "run-scheduled": "cli.schedule:run_scheduled",
    "schedule": "cli.schedule:schedule",
    "score": "cli.registry:score",
    "serve": "cli.scoring:serve",
    "stream": "cli.scoring:stream",
    "key": "cli.scoring:key",
    "size": "cli.size:size",
    "trial": "cli.annotation:trial",
}


class LazyGroup(click.Group):
    """A group whose commands are looked up in `COMMANDS`; the edge where errors become a message and an exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        from steps.lifetime import ends_by_signal

        try:
            with ends_by_signal():
                return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit):  # click's own: --help ends so
            raise
        except Exception as error:
            from steps.edge import told

            if (line := told(error)) is None:
                raise
            raise click.ClickException(line) from error


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """AgentPS: what is done outside of a pipeline's run."""
