"""The application for Ray Serve: one deployment a model, one for jobs, one that speaks HTTP. No work at import."""

from typing import TYPE_CHECKING, Any

from serving.config import ModelOptions, ServingConfig

if TYPE_CHECKING:
    from ray.serve import Application

_ONGOING = 1024
"""Requests that a process may hold: more than the queues let in, so that the refusals are ours."""
_HEALTH_S = 2.0


def build(args: ServingConfig) -> "Application":
    """Return the application of a server; `serve deploy` calls this with the `args` of its YAML."""
    from ray import serve

    from serving.background import Jobs
    from serving.ingress import Ingress
    from serving.replica import ModelReplica

    models = {
        name: serve.deployment(**_replicas(options), **_common(args))(ModelReplica)
        .options(name=f"model-{name}")
        .bind(name, options, args.limits.request_timeout_s)
        for name, options in args.models.items()
    }
    light = {"ray_actor_options": {"num_cpus": 0}}
    jobs = serve.deployment(name="jobs", num_replicas=1, **light, **_common(args))(Jobs)
    ingress = serve.deployment(
        name="ingress",
        num_replicas=args.ingress_replicas,
        ray_actor_options={"num_cpus": args.ingress_cpus},
        max_surge_percent=100,
        max_queued_requests=_ONGOING,
        backpressure_config={"status_code": 429, "retry_after_s": 2},
        **_common(args),
    )(serve.ingress()(Ingress))
    return ingress.bind(args, models, jobs.bind(models, dict(args.models), args.limits))


def _common(args: ServingConfig) -> dict[str, Any]:
    return {
        "max_ongoing_requests": _ONGOING,
        "graceful_shutdown_timeout_s": args.drain,
        "graceful_shutdown_wait_loop_s": 0.5,
        "health_check_period_s": _HEALTH_S,
        "logging_config": {"enable_access_log": False},
    }


def _replicas(options: ModelOptions) -> dict[str, Any]:
    """Return how many replicas there are, and what each of them takes."""
    actor = {"num_cpus": options.num_cpus, "num_gpus": options.num_gpus}
    shared = {"ray_actor_options": actor, "max_surge_percent": options.surge_percent}
    if options.min_replicas == options.max_replicas:
        return {"num_replicas": options.min_replicas, **shared}
    scaling = {
        "min_replicas": options.min_replicas,
        "max_replicas": options.max_replicas,
        "target_ongoing_requests": options.target_ongoing_requests,
    }
    return {"autoscaling_config": scaling, **shared}
