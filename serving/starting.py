"""The beginning of a server: what is wrong is told before anything starts, and waiting ends when it is told to.

Starts Ray and Serve where they do not run yet; what runs already is used as it is, or refused.
"""

import logging
import os
import ssl
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

from cellray.data.session import ensure_ray
from cellray.errors import InputError
from serving.app import build
from serving.config import ServingConfig
from serving.stopping import NAME, Started
from serving.tls import tls_options

_READY_S = 600.0
_PAUSE_S = 0.3
_ANY = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  # compared, not bound
"""Where a server that listens everywhere is reached from its own machine."""


class NotReadyError(RuntimeError):
    """The server did not start; the text says why."""


def check_models(config: ServingConfig) -> None:
    """Open models, vocabularies and states before anything is started: what is wrong is told in one line.

    Raises
    ------
    InputError
        One is not there, damaged, or they do not go together.
    """
    from serving.loaded import open_files

    for name, options in config.models.items():
        open_files(name, options)


def start_ray() -> Started:
    """Start Ray on this machine, or connect to the cluster of RAY_ADDRESS.

    Ray lets its workers give way to everything else, which suits batch work: a server's clients on the same machine
    would push it aside. So here they do not; the thread that computes gives way to those that speak HTTP.
    """
    os.environ.setdefault("RAY_worker_niceness", "0")
    own = _starts_ray()
    try:
        ensure_ray()
    except ConnectionError as error:
        fix = "Start the cluster, or unset RAY_ADDRESS to start Ray here."
        raise InputError("RAY_ADDRESS", "a cluster must answer there", str(error).splitlines()[0], fix) from None
    return Started(ray=own)


def check_resources(config: ServingConfig, started: Started) -> None:
    """Look whether this machine has what the replicas reserve; other nodes may join a cluster, so there it is no error.

    Raises
    ------
    InputError
        They would wait for ever.
    """
    import ray

    if not started.ray:
        return
    _compare(config, ray.cluster_resources(), ("CPU", "GPU"))


def check_cpus(config: ServingConfig) -> None:
    """Compare, before Ray starts here, the CPUs that the replicas reserve with those that Ray will find.

    Raises
    ------
    InputError
        They would wait for ever.
    """
    if _starts_ray() and not os.environ.get("RAY_OVERRIDE_RESOURCES"):
        from ray._private.utils import get_num_cpus  # what Ray itself asks, containers' limits included

        _compare(config, {"CPU": get_num_cpus()}, ("CPU",))


def _starts_ray() -> bool:
    return os.environ.get("RAY_ADDRESS", "") in ("", "local")


def _compare(config: ServingConfig, there: Mapping[str, float], kinds: Sequence[str]) -> None:
    models = config.models.values()
    wanted = {
        "CPU": sum(each.num_cpus * each.min_replicas for each in models)
        + config.ingress_cpus * config.ingress_replicas,
        "GPU": sum(each.num_gpus * each.min_replicas for each in models),
    }
    for kind in kinds:
        number = wanted[kind]
        if number > there.get(kind, 0) + 1e-6:
            rule = f"this machine must have the {kind}s that the replicas reserve, {number:g} in all"
            fix = "Reserve less (num_cpus, num_gpus, min_replicas, ingress_cpus), or use a cluster by RAY_ADDRESS."
            raise InputError(f"{kind}s", rule, f"{there.get(kind, 0):g}", fix)


def start(config: ServingConfig, started: Started) -> None:
    """Start Serve with the address of a configuration, and begin to deploy the models.

    Raises
    ------
    InputError
        Serve runs already with another address or certificate, or serves something there.
    """
    from ray import serve
    from ray.serve.config import HTTPOptions, ProxyLocation
    from ray.serve.context import _get_global_client  # there is no public way to Serve's options
    from ray.serve.exceptions import RayServeException

    logging.getLogger("ray.serve").setLevel(logging.WARNING)  # in this process: how it starts is ours to tell
    options = {"host": config.host, "port": config.port, **tls_options(config.tls_certificate, config.tls_key)}
    running = _get_global_client(raise_if_no_controller_running=False)
    if running is not None:
        check_running(options, vars(running.http_config), list(serve.status().applications))
    else:
        started.serve = True
        serve.start(proxy_location=ProxyLocation.HeadOnly, http_options=HTTPOptions(**options))
    try:
        serve.run_many(
            [serve.RunTarget(build(config), name=NAME, route_prefix="/")], wait_for_applications_running=False
        )
    except RayServeException as error:
        fix = "Delete the other application, or use another cluster."
        raise InputError("Serve", "the address must be free for this server", str(error), fix) from None
    started.application = True


def check_running(wanted: dict[str, Any], running: dict[str, Any], applications: list[str]) -> None:
    """Compare the HTTP options that a server needs with those that Serve runs with: Serve ignores new ones.

    Raises
    ------
    InputError
        They differ, or there is an application of our name.
    """
    different = {
        name: running.get(name)
        for name in ("host", "port", "ssl_certfile", "ssl_keyfile")
        if running.get(name) != wanted.get(name)
    }
    if different:
        found = ", ".join(f"{name} {value}" for name, value in different.items())
        fix = "Configure these, use another cluster, or end what runs on Serve there (`serve shutdown`)."
        raise InputError("the cluster's Serve", "it must run with the configured address and TLS", found, fix)
    if NAME in applications:
        fix = "Update it with `serve deploy`, or delete it first (`ray.serve.delete`)."
        raise InputError("the cluster's Serve", "it must not serve cellray yet", f"an application {NAME!r}", fix)


def address(config: ServingConfig) -> str:
    """Return where a server is reached from its own machine."""
    host = _ANY.get(config.host, config.host)
    scheme = "http" if config.tls_certificate is None else "https"
    return f"{scheme}://[{host}]:{config.port}" if ":" in host else f"{scheme}://{host}:{config.port}"


def await_ready(config: ServingConfig, url: str, stop: threading.Event, seconds: float = _READY_S) -> bool:
    """Wait until all models answer; False if told to stop before.

    Raises
    ------
    NotReadyError
        A replica cannot start, or it takes too long.
    """
    context = None
    if config.tls_certificate is not None:
        context = ssl.create_default_context()
        context.check_hostname = False  # the certificate is of another name than this machine has for itself;
        context.verify_mode = ssl.CERT_NONE  # all that is asked is whether something answers
    until = time.monotonic() + seconds
    while not stop.is_set():
        if told := failed():
            raise NotReadyError(told)
        try:
            with urlopen(f"{url}/readyz", timeout=10, context=context) as answer:  # noqa: S310  # our own
                if answer.status == 200:
                    return True
        except (URLError, OSError):
            pass
        if time.monotonic() > until:
            raise NotReadyError(f"not ready after {seconds:g} s: {_pending() or 'the models do not answer'}")
        stop.wait(_PAUSE_S)
    return False


def failed() -> str:
    """Return why Serve gave up starting the application, if it did."""
    from ray import serve

    application = serve.status().applications.get(NAME)
    if application is None or application.status != "DEPLOY_FAILED":
        return ""
    told = [each.message for each in application.deployments.values() if each.status == "DEPLOY_FAILED"]
    return f"the server cannot start: {reason(told or [application.message])}; Serve's logs say more"


def reason(messages: list[str]) -> str:
    """Return the error at the end of a message with a traceback, in one line."""
    lines = [line.strip() for line in "\n".join(messages).splitlines() if line.strip()]
    errors = [line for line in lines if line.partition(":")[0].endswith("Error")]
    return (errors or lines or ["no reason was given"])[-1][:500]


def _pending() -> str:
    from ray import serve

    application = serve.status().applications.get(NAME)
    deployments = {} if application is None else application.deployments
    told = [f"{name}: {each.message.splitlines()[0]}" for name, each in deployments.items() if each.message]
    return "; ".join(told)[:1000]
