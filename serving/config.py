"""What a server is told: which models, how much they may be asked, who may ask. One YAML file a deployment."""

import ipaddress
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from cellray.errors import InputError
from serving.fields import problem_of

_DRAIN_MORE_S = 10.0


class Options(BaseModel):
    """Base of all options: frozen, nothing unknown."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), validate_default=True)


class ModelOptions(Options):
    """A model and its replicas."""

    uri: str = Field(description="model directory, or models:/NAME@ALIAS, which is followed")
    tracking_uri: str | None = Field(None, description="MLflow that knows models:/ names")
    vocabulary: str | None = Field(None, description="vocabulary file of an official directory, which holds none")
    states: str | None = Field(None, description="parquet with the columns state and embedding: what shifts go towards")
    states_layer: int = Field(-1, description="hidden state that the states' embeddings are of")
    states_pooling: Literal["cell", "cls"] = Field("cell", description="pooling that they are of")
    min_replicas: int = Field(1, ge=1)
    max_replicas: int = Field(1, ge=1, description="more than min_replicas: as many as the load needs")
    target_ongoing_requests: float = Field(4, gt=0, description="requests a replica, when their number is to be chosen")
    num_cpus: float = Field(1, gt=0, description="CPUs a replica reserves [CPUs]")
    num_gpus: float = Field(0, ge=0, description="GPUs, or a fraction of one; above 0 the model runs on it [GPUs]")
    threads: int | None = Field(None, ge=1, description="torch threads of a replica; default: all cores for one alone")
    token_budget: int | None = Field(None, ge=1, description="tokens computed at once, padding included [tokens]")
    max_wait_ms: float = Field(5, ge=0, description="longest that cells wait for others to be computed with [ms]")
    max_queued_cells: int = Field(256, ge=1, description="cells that wait or are computed; more are refused [cells]")
    surge_percent: int = Field(
        100, ge=0, le=100, description="replicas started beside the old ones in an update; 0 where there is no room [%]"
    )
    reload_s: float = Field(30, gt=0, description="how often an alias is looked up [s]")

    @model_validator(mode="after")
    def _bounds(self) -> "ModelOptions":
        if self.max_replicas < self.min_replicas:
            raise ValueError("max_replicas must not be below min_replicas")
        return self


class Limits(Options):
    """What a request may hold, and how long it may take."""

    body_mb: float = Field(64, gt=0, description="of a body, decompressed [MB]")
    json_mb: float = Field(16, gt=0, description="of a JSON body, which takes up to 30 times that in memory [MB]")
    body_s: float = Field(60, gt=0, description="longest that a body may take to arrive [s]")
    response_mb: float = Field(256, gt=0, description="of the numbers of an answer [MB]")
    cells_per_request: int = Field(1024, ge=1)
    genes_per_cell: int = Field(65_536, ge=1, description="counts of a cell")
    genes_per_request: int = Field(200_000, ge=1, description="names of genes of a request, or columns of an .h5ad")
    counts_per_request: int = Field(8_000_000, ge=1, description="counts of all cells of a request")
    perturbation_tokens: int = Field(200_000, ge=1, description="tokens of copies to wait for; more become a job")
    job_tokens: int = Field(2_000_000_000, ge=1, description="most tokens of a job")
    request_timeout_s: float = Field(120, gt=0)
    bodies_at_once: int = Field(64, ge=1, description="requests whose body is in memory")
    uploads_at_once: int = Field(2, ge=1, description=".h5ad files that are read at a time, in processes of their own")
    upload_s: float = Field(60, gt=0, description="longest that reading an .h5ad may take [s]")
    upload_memory_mb: float = Field(4096, gt=0, description="most memory that reading one may take [MB]")
    jobs_waiting: int = Field(32, ge=1, description="jobs that wait or run")
    jobs_per_key: int = Field(16, ge=1, description="of these, jobs of one key")
    job_step_s: float = Field(
        600,
        gt=0,
        description="longest that a part of a job may take, which is a few seconds' work [s]",
    )
    jobs_kept: int = Field(256, ge=1, description="jobs that are remembered")
    jobs_mb: float = Field(
        1024,
        gt=0,
        description="what jobs that wait or run may hold, more are refused; and as much of results, of which the "
        "oldest are dropped but never the latest [MB]",
    )
    job_ttl_s: float = Field(3600, gt=0, description="how long results are kept [s]")


class AccessOptions(Options):
    """Who may ask."""

    auth: Literal["keys", "none"] = Field("keys", description="none: anybody on this machine, nobody from elsewhere")
    keys_file: str | None = Field(
        None, description="hashed keys with their scopes; default: the environment variable CELLRAY_API_KEYS"
    )
    requests_per_minute: int = Field(600, ge=1, description="of a key that names no number of its own")


class ServingConfig(Options):
    """A server."""

    models: dict[str, ModelOptions] = Field(min_length=1, description="by the names that requests use")
    limits: Limits = Limits()
    access: AccessOptions = AccessOptions()
    audit_file: str | None = Field(None, description="log of who asked what, without counts")
    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535)
    tls_certificate: str | None = None
    tls_key: str | None = None
    ingress_replicas: int = Field(1, ge=1, description="processes that speak HTTP; limits hold for each")
    ingress_cpus: float = Field(0.5, ge=0, description="CPUs each of them reserves [CPUs]")
    drain_s: float | None = Field(
        None,
        gt=0,
        description="how long requests may take to end when a server or a replica stops; "
        "default: request_timeout_s and 10 s [s]",
    )

    @model_validator(mode="after")
    def _sensible(self) -> "ServingConfig":
        if self.access.auth == "none" and not is_loopback(self.host):
            raise ValueError(f"without keys (auth: none) the server listens on loopback only, not on {self.host}")
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key go together")
        if self.drain_s is not None and self.drain_s < self.limits.request_timeout_s:
            timeout = self.limits.request_timeout_s
            raise ValueError(
                f"drain_s ({self.drain_s:g}) must not be below limits.request_timeout_s ({timeout:g}): an update of "
                "the deployment would cut requests off that may go on"
            )
        for name in self.models:
            if not name.replace("-", "").replace("_", "").replace(".", "").isalnum() or not name.isascii():
                raise ValueError(f"model {name!r}: a name has letters, digits, - _ and .")
        return self

    @property
    def drain(self) -> float:
        """How long requests may take to end when a server or a replica stops [s]."""
        return self.drain_s if self.drain_s is not None else self.limits.request_timeout_s + _DRAIN_MORE_S


def is_loopback(host: str) -> bool:
    """Tell whether an address is reached from this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def read_config(path: Path) -> ServingConfig:
    """Read a deployment file: the one that `serve deploy` takes, or the options alone.

    Raises
    ------
    InputError
        There is no such file, or an option is unknown, missing or wrong.
    """
    fix = "See docs/serving.md."
    try:
        value = yaml.safe_load(path.read_text())
        return ServingConfig.model_validate(_arguments(value))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(str(path), "--config names a YAML file", str(error), fix) from None
    except ValidationError as error:
        found = "; ".join(
            f"{'.'.join(map(str, each['loc'])) or 'options'}: {problem_of(ServingConfig, each)}"
            for each in error.errors()
        )
        raise InputError(str(path), "every option must be known and valid", found, fix) from None


def _arguments(value: Any) -> Any:  # noqa: ANN401  # YAML
    """Return the builder's arguments of a file for `serve deploy`, with the address of its `http_options`."""
    if not isinstance(value, dict) or "applications" not in value:
        return value
    applications, http = value["applications"], value.get("http_options") or {}
    one = isinstance(applications, list) and len(applications) == 1 and isinstance(applications[0], dict)
    if not one or not isinstance(applications[0].get("args"), dict) or not isinstance(http, dict):
        found = f"{len(applications)} of them" if isinstance(applications, list) else type(applications).__name__
        rule = "lists one application, whose `args` are the options; `http_options` names host and port"
        raise InputError("applications", rule, "one without `args`" if one else found, "See serving/serve.yaml.")
    return {name: found for name, found in http.items() if name in ("host", "port")} | applications[0]["args"]
