"""The deployment that speaks HTTP: holds the service and hands Serve the application once it runs in its actor."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from serving.access import make_gate
from serving.config import ServingConfig
from serving.routes import make_app
from serving.service import Service

if TYPE_CHECKING:
    from fastapi import FastAPI


class Ingress:
    """One process that speaks HTTP.

    Parameters
    ----------
    config
        Of the server.
    models
        Handles of the models' deployments, by name.
    jobs
        Handle of the deployment of jobs.
    """

    def __init__(self, config: ServingConfig, models: Mapping[str, Any], jobs: Any) -> None:  # noqa: ANN401
        self._service = Service(config, models, jobs, make_gate(config))

    def __serve_build_asgi_app__(self) -> "FastAPI":  # Serve's name
        """Return the application; Serve calls this in the replica."""
        return make_app(self._service)
