"""What can go wrong between a client and a server, as exceptions that survive pickling."""

from cellray.api.schema import JobStatus, Limit
from cellray.errors import InputError


class RefusedError(InputError):
    """The server refused a request, for a reason that asking again does not mend.

    Parameters
    ----------
    url
        That was asked.
    status
        Of HTTP.
    code
        One word to branch on.
    message
        The server's, for people.
    limit
        The limit that was broken, if it was one.
    request_id
        By which the server's log names the request.
    """

    def __init__(
        self, url: str, status: int, code: str, message: str, limit: Limit | None = None, request_id: str | None = None
    ) -> None:
        super().__init__(url, code, f"status {status}", message)
        self.args = (url, status, code, message, limit, request_id)
        self.url, self.status, self.code, self.message = url, status, code, message
        self.limit, self.request_id = limit, request_id

    def __str__(self) -> str:
        named = f", request {self.request_id}" if self.request_id else ""
        return f"{self.url}: {self.message} ({self.code}, status {self.status}{named})"


class UnavailableError(ConnectionError):
    """The server could not be reached, or had no time for a request, again and again.

    Parameters
    ----------
    url
        That was asked.
    attempts
        How often.
    last
        What happened the last time.
    """

    def __init__(self, url: str, attempts: int, last: str) -> None:
        super().__init__(url, attempts, last)
        self.url, self.attempts, self.last = url, attempts, last

    def __str__(self) -> str:
        return f"{self.url}: no answer in {self.attempts} attempts; the last: {self.last}"


class JobError(RuntimeError):
    """A long request did not come to its end.

    Parameters
    ----------
    status
        What the server said last.
    """

    def __init__(self, status: JobStatus) -> None:
        super().__init__(status)
        self.status = status

    def __str__(self) -> str:
        return f"job {self.status.id} {self.status.state}: {self.status.error or 'no reason was given'}"


class ModelChangedError(RuntimeError):
    """The server's model was replaced again and again while cells were sent; the message names its versions."""
