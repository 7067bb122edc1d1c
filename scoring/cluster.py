"""The service on a Ray cluster that is started elsewhere: `import_path: scoring.cluster:app`, as in infra/k8s.

Ray is the front door there; `agentps serve` is the service on one machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from scoring.settings import load_service
from steps.paths import home


def app(args: Mapping[str, Any]) -> Any:
    """The application as Ray Serve deploys it.

    Args:
        args: `model`, the registered model's name; `service`, what differs from `configs/service.yaml`. Its `host` and
            `port` mean nothing here: `http_options` does.

    Raises:
        ConfigError: an option is unknown or breaks a rule.
    """
    import mlflow

    from scoring.serve import deployment

    settings = load_service(args.get("service"), "args of the application, service")
    folder = home()
    folder.mkdir(parents=True, exist_ok=True)
    return deployment(args["model"], settings, mlflow.get_tracking_uri(), folder)
