"""What goes wrong, as HTTP: every error becomes a status, a code and an `ErrorBody`."""

import logging
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException

from cellray.api.schema import EmbeddingRequest, ErrorBody, ErrorDetail, Limit, PerturbationRequest, PredictionRequest
from cellray.api.wire import JSON
from cellray.data.session import own_error_within, root_cause
from cellray.errors import InputError, StorageError
from serving.access import AccessError
from serving.answers import ModelChangedError, TooMuchError
from serving.batcher import ComputeError
from serving.fields import problem_of

logger = logging.getLogger("ray.serve")

REQUEST_ID = "x-request-id"
_SHOWN = 5
_REQUESTS: tuple[type[BaseModel], ...] = (EmbeddingRequest, PredictionRequest, PerturbationRequest)
_CODES = {400: "bad_request", 404: "not_found", 405: "method_not_allowed", 406: "not_acceptable"}


class HttpError(Exception):
    """An answer that is an error.

    Parameters
    ----------
    status
        Of HTTP.
    code
        One word for machines.
    message
        For people.
    limit
        Name and value of the limit that was broken.
    retry_after_s
        When it may work.
    headers
        Further ones of the answer.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        limit: tuple[str, float] | None = None,
        retry_after_s: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, code, message, limit, retry_after_s, headers)
        self.status, self.code, self.message = status, code, message
        self.limit, self.retry_after_s, self.headers = limit, retry_after_s, dict(headers or {})


def too_large(name: str, value: float, found: str, status: int = 422) -> HttpError:
    """Return the error of a request that breaks a limit."""
    message = f"{name} is {value:,.10g}; found {found}. Send less at a time."
    return HttpError(status, "limit_exceeded", message, (name, value))


def answerable(error: BaseException) -> HttpError:
    """Return what an exception, of this process or of a deployment, is to the client."""
    error = unwrapped(error)
    if isinstance(error, HttpError):
        return error
    for kind, translate in _TRANSLATED.items():
        if isinstance(error, kind):
            return translate(error)
    own, cause = own_error_within(error), root_cause(error)
    if own is not None and own is not error:
        return answerable(own)
    if (of_ray := _of_ray(error)) is not None:
        return of_ray
    if cause is not error:
        return answerable(cause)
    logger.error("unforeseen", exc_info=error)
    return HttpError(500, "internal", f"{type(error).__name__}; the server's log says more")


def _of_ray(error: BaseException) -> HttpError | None:
    """Return what an error of Ray or Serve is, None if it is neither's: then the cluster is at fault."""
    from ray.exceptions import RayError, RayTaskError
    from ray.serve.exceptions import BackPressureError, RayServeException

    if isinstance(error, BackPressureError):
        return HttpError(429, "queue_full", "the model is asked more than it can answer", None, 2.0)
    if is_lost(error):
        return HttpError(503, "replica_lost", "the replica that computed this was lost; ask again", None, 2.0)
    if isinstance(error, RayError | RayServeException) and not isinstance(error, RayTaskError):
        logger.error("the cluster did not answer", exc_info=error)
        return HttpError(503, "unavailable", "the cluster of the server did not answer; ask again", None, 5.0)
    return None


def is_lost(error: BaseException) -> bool:
    """Tell whether an error says that a replica died or stopped, and nothing of the request."""
    from ray import exceptions as ray
    from ray.serve.exceptions import DeploymentUnavailableError, ReplicaUnavailableError

    dead = (ray.RayActorError, ray.WorkerCrashedError, ray.NodeDiedError, ray.LocalRayletDiedError)
    gone = (ray.ObjectLostError, ray.OutOfMemoryError, ray.TaskCancelledError)
    serve = (DeploymentUnavailableError, ReplicaUnavailableError)
    return isinstance(error, (*dead, *gone, *serve)) or isinstance(error.__cause__, ray.ActorDiedError)


def _invalid(error: BaseException) -> HttpError:
    assert isinstance(error, ValidationError)
    asked = next((each for each in _REQUESTS if each.__name__ == error.title), None)
    return _problems(error.errors(include_url=False, include_input=False, include_context=False), asked)


def _parameter(error: BaseException) -> HttpError:
    assert isinstance(error, RequestValidationError)
    return _problems([{**each, "loc": each["loc"][1:]} for each in error.errors()])  # without `query` or `header`


def _problems(problems: Sequence[Any], asked: type[BaseModel] | None = None) -> HttpError:
    told = [
        f"{'.'.join(map(str, each['loc'])) or 'body'}: {problem_of(asked, each)}"[:300] for each in problems[:_SHOWN]
    ]
    more = [f"and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else []
    return HttpError(422, "invalid_request", "; ".join([*told, *more]))


def _too_much(error: BaseException) -> HttpError:
    assert isinstance(error, TooMuchError)
    return HttpError(422, "limit_exceeded", str(error), (error.limit, error.value))


def _access(error: BaseException) -> HttpError:
    assert isinstance(error, AccessError)
    return HttpError(error.status, error.code, error.message, None, error.retry_after_s)


def _starlette(error: BaseException) -> HttpError:
    assert isinstance(error, HTTPException)
    return HttpError(
        error.status_code, _CODES.get(error.status_code, "error"), str(error.detail), headers=error.headers
    )


_OPTION = re.compile(r"--([a-z][a-z-]*)")
_FIELDS = {"genes": "perturb"}
"""Fields of requests that jobs have under another name."""


def _of_request(message: str) -> str:
    """Return a message that names fields of requests where the jobs' code names options."""
    return _OPTION.sub(lambda found: _FIELDS.get(found[1], found[1].replace("-", "_")), message)


def _timeout(error: BaseException) -> HttpError:
    return HttpError(504, "timeout", "the request was not answered in time", None, 5.0)


_TRANSLATED: dict[type[BaseException], Callable[[BaseException], HttpError]] = {
    ValidationError: _invalid,
    RequestValidationError: _parameter,
    TooMuchError: _too_much,
    AccessError: _access,
    HTTPException: _starlette,
    TimeoutError: _timeout,
    StorageError: lambda error: HttpError(503, "storage", "the storage of models does not answer", None, 10.0),
    InputError: lambda error: HttpError(422, "invalid_request", _of_request(str(error))),
    ModelChangedError: lambda error: HttpError(503, "model_changed", f"{error}; ask again", None, 1.0),
    ComputeError: lambda error: HttpError(500, "compute_failed", f"the model failed: {error}; its log says more"),
}


def request_id(request: Request) -> str:
    """Return the id that the log and the answer name a request by; Serve's proxy gives one."""
    return request.headers.get(REQUEST_ID, "none")[:64]


def error_answer(error: BaseException, request: Request) -> Response:
    """Return the answer of an error."""
    found = answerable(error)
    detail = ErrorDetail(
        code=found.code,
        message=found.message[:2000],
        limit=None if found.limit is None else Limit(name=found.limit[0], value=float(found.limit[1])),
        retry_after_s=found.retry_after_s,
        request_id=request_id(request),
    )
    headers = {"cache-control": "no-store", **found.headers}
    if found.retry_after_s is not None:
        headers["retry-after"] = str(max(1, math.ceil(found.retry_after_s)))
    if found.status == 401:
        headers["www-authenticate"] = "Bearer"
    body = ErrorBody(error=detail).model_dump_json()
    return Response(body, found.status, headers, media_type=JSON)


def unwrapped(error: BaseException) -> BaseException:
    """Return what a replica raised, without what Ray wraps around it on the way."""
    from ray.exceptions import RayTaskError

    while isinstance(error, RayTaskError) and isinstance(error.cause, BaseException):
        error = error.cause
    return error
