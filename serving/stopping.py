"""The end of a server: requests in flight end first, then what was started here goes, and nothing else.

Serve's own shutdown ends its proxies at once, and with them every request. So the processes that speak HTTP are told to
refuse first, through the actor of jobs, and are waited for.
"""

import io
import sys
import threading
import time
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import TextIO

NAME = "cellray"
"""Of the application."""
_PAUSE_S = 0.2
_ANSWER_S = 5.0
_HURRIED_S = 1.0
_RETRIED = "Task ServeController."


@dataclass
class Started:
    """What was started here, and so is ended here.

    Attributes
    ----------
    ray, serve, application
        Each of them.
    """

    ray: bool = False
    serve: bool = False
    application: bool = False


def drain(seconds: float, hurry: threading.Event) -> int:
    """Let no requests in any more, and wait until those in flight are answered.

    Parameters
    ----------
    seconds
        Longest to wait.
    hurry
        Set: wait no more.

    Returns
    -------
    int
        How many were in flight when the time was up.
    """
    from ray import serve

    say("stopping: no more requests are let in")
    until, asked, told, left = time.monotonic() + seconds, False, False, 0
    jobs = serve.get_deployment_handle("jobs", NAME)
    while True:  # once also in a hurry: what is lost is told
        try:
            wait_s = _HURRIED_S if hurry.is_set() else _ANSWER_S
            left, heard, running = jobs.drain.remote().result(timeout_s=wait_s)
        except Exception as error:  # whatever happened to the actor, the server stops
            say(f"it is not known what is in flight ({type(error).__name__})")
            break
        if running and not asked:
            say("1 job is lost" if running == 1 else f"{running} jobs are lost")
        asked = True
        if heard and not told:
            told = True
            say(f"{_requests(left)} under way may end")
        if hurry.is_set() or (heard and not left) or time.monotonic() > until:
            break
        hurry.wait(_PAUSE_S)
    if left:
        say(f"{_requests(left)} cut off")
    return left


def end(started: Started, seconds: float) -> None:
    """End what was started here: the application, Serve if no other application runs on it, Ray.

    Parameters
    ----------
    seconds
        Longest that the replicas may take; 0: a Ray of our own ends without waiting for them.
    """
    import ray

    if not ray.is_initialized():
        return
    with redirect_stdout(WithoutRetries(sys.stdout)):
        try:
            if started.application and not started.ray:
                _delete(seconds or _ANSWER_S)
            if started.serve and (seconds or not started.ray):
                _end_serve(started)
        finally:
            ray.shutdown()


class WithoutRetries(io.TextIOBase):
    """Leaves out what Ray says of calls to Serve's controller, which is ended on purpose; all else goes through."""

    def __init__(self, target: TextIO) -> None:
        self._target, self._left_out = target, False

    def write(self, text: str) -> int:
        """Write a piece of a line, or a line."""
        own = _RETRIED in text or (self._left_out and text == "\n")  # `print` writes the end of a line by itself
        self._left_out = own and not text.endswith("\n")
        if not own:
            self._target.write(text)
        return len(text)

    def flush(self) -> None:
        """Let the lines out."""
        self._target.flush()


def _delete(seconds: float) -> None:
    """Delete the application from Serve, which others may use, too."""
    from ray import serve

    serve.delete(NAME, _blocking=False)
    until = time.monotonic() + seconds
    while NAME in serve.status().applications:
        if time.monotonic() > until:
            say(f"the application {NAME!r} is not gone yet; Serve goes on ending it")
            return
        time.sleep(_PAUSE_S)


def _end_serve(started: Started) -> None:
    from ray import serve

    others = [] if started.ray else [name for name in serve.status().applications if name != NAME]
    if not others:
        serve.shutdown()


def _requests(number: int) -> str:
    return f"{number} request{'' if number == 1 else 's'}"


def say(text: str) -> None:
    """Tell whoever sits in front of the server how it stops."""
    print(text, file=sys.stderr, flush=True)
