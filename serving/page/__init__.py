"""The web page at `/`: plain files beside this one, which ask the endpoints as any client does.

The files are public and hold no data; the page sends its user's key with what it asks. Browsers run nothing but these
files: no inline script, nothing from elsewhere (`serving.security`).
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.responses import Response

from serving.faults import HttpError

FOLDER = Path(__file__).parent
INDEX = "index.html"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
}
KEPT = {"cache-control": "no-cache"}  # asked for anew each time, and answered 304 unless a new server came


@dataclass(frozen=True)
class File:
    """A file of the page.

    Attributes
    ----------
    body, media_type
        What it holds.
    tag
        Differs when it does: HTTP's ETag.
    """

    body: bytes
    media_type: str
    tag: str


def page_files() -> Mapping[str, File]:
    """Return the files of the page by their names, as `vendor/umap-js.min.js`."""
    return {
        path.relative_to(FOLDER).as_posix(): _read(path)
        for path in sorted(FOLDER.rglob("*"))
        if path.suffix in _TYPES and path.is_file()
    }


def _read(path: Path) -> File:
    body = path.read_bytes()
    return File(body, _TYPES[path.suffix], f'"{hashlib.sha256(body).hexdigest()[:32]}"')


def add_page(app: FastAPI) -> None:
    """Add the page to an application: `/`, and its other files under `/page/`."""
    files = page_files()  # no path of a request ever meets the file system

    @app.get("/", include_in_schema=False)
    async def index(request: Request) -> Response:
        return _answer(files[INDEX], request)

    @app.get("/page/{name:path}", include_in_schema=False)
    async def file(name: str, request: Request) -> Response:
        if name not in files:
            raise HttpError(404, "not_found", "the page has no such file")
        return _answer(files[name], request)


def _answer(file: File, request: Request) -> Response:
    headers = {**KEPT, "etag": file.tag}
    if request.headers.get("if-none-match") == file.tag:
        return Response(status_code=304, headers=headers)
    return Response(file.body, media_type=file.media_type, headers=headers)
