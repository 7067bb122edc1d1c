"""Against a real ZenML with a database of its own."""

from __future__ import annotations

from zenml.client import Client

from steps.register.moves import RegistryState
from steps.register.mirror import mirror

NAME = "agentps-small"


def stages(client: Client) -> dict[str, str | None]:
    model = client.get_model(NAME).id
    return {version.name: version.stage for version in client.list_model_versions(model=model, size=100).items}


def test_zenmls_stages_follow_the_aliases_whatever_they_were_before(own_zenml: Client) -> None:
    def look(**aliases: str) -> dict[str, str | None]:
        mirror(RegistryState(name=NAME, aliases=aliases, entries=()))
        return stages(own_zenml)

    mirror(RegistryState(name=NAME, aliases={}, entries=()))
    assert not own_zenml.list_models(name=NAME).items, "nothing to show, nothing made"
    assert look(challenger="1") == {"mlflow-1": "staging"}
    assert look(challenger="1", champion="1") == {"mlflow-1": "production"}
    expected = {"mlflow-1": "production", "mlflow-2": "staging"}
    assert look(challenger="2", champion="1") == expected
    assert look(challenger="2", champion="1") == expected
    promoted = {"mlflow-1": "archived", "mlflow-2": "production"}
    assert look(challenger="2", champion="2", previous="1") == promoted
    # A rollback, and what a person set in ZenML by hand.
    own_zenml.get_model_version(NAME, "mlflow-2").set_stage("staging", force=True)
    assert look(challenger="2", champion="1", previous="2") == expected
    assert look(challenger="2") == {"mlflow-1": "archived", "mlflow-2": "staging"}
