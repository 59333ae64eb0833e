"""When an artefact is there: claims an empty output for one request, publishes the manifest last and once."""

import json
import logging
from collections.abc import Iterable
from contextlib import suppress
from typing import TypeVar

from cellray import storage
from cellray.errors import InputError, listing
from cellray.schema import MANIFEST, PARTS, RECORDS, REQUEST, Manifest

logger = logging.getLogger(__name__)

ManifestT = TypeVar("ManifestT", bound=Manifest)


def finished(output: str, request: str, manifest_class: type[ManifestT]) -> ManifestT | None:
    """Return the manifest at an output if this very request was completed before; else claim the output for it.

    Raises
    ------
    InputError
        The output holds another artefact, or the result of another request.
    """
    if not storage.exists(storage.join(output, MANIFEST)):
        claim(output, request)
        return None
    fix = "Choose another --output, or delete this one."
    try:
        manifest = manifest_class.load(output)
    except InputError as error:
        raise InputError(output, "the output must be empty or hold this very result", error.found, fix) from None
    if manifest.request != request:
        raise InputError(
            output,
            "the output must be empty or hold this very result",
            f"another {manifest_class.model_fields['artefact'].default} (other input, options or vocabulary)",
            fix,
        )
    missing = [part.path for part in manifest.all_parts if not storage.exists(part.uri_in(output))]
    if missing:
        raise InputError(output, "a finished result must hold all its parts", f"{listing(missing, 3)} missing", fix)
    logger.info("%s is complete already: nothing to do", output)
    return manifest


def claim(output: str, request: str) -> None:
    """Mark an output as this request's, so that no other writes into it.

    Raises
    ------
    InputError
        The output holds something else, or the beginnings of another request.
    """
    uri = storage.join(output, REQUEST)
    if not storage.exists(uri):
        storage.require_vacant(output)
        with suppress(FileExistsError):  # another run of the same request, perhaps
            storage.publish_once(uri, json.dumps({"request": request}).encode())
    claimed = storage.read_json(uri)
    if not isinstance(claimed, dict) or claimed.get("request") != request:
        raise InputError(
            output,
            "the output must be empty or hold this very result",
            "the beginnings of another (other input, options or vocabulary)",
            "Choose another --output, or delete this one.",
        )


def publish_manifest(output: str, manifest: Manifest, below: Iterable[str] = ()) -> None:
    """Publish the manifest, once, and clear away what killed workers left, in folders `below` that hold parts, too.

    Raises
    ------
    InputError
        Another run published a different one meanwhile.
    """
    for place in (output, *(storage.join(output, folder) for folder in below)):
        for swept in (storage.join(place, PARTS), storage.join(place, RECORDS), place):
            storage.sweep(swept)
    uri = storage.join(output, MANIFEST)
    try:
        if storage.exists(uri):  # an object store takes equal bytes twice without a word
            raise FileExistsError(uri)
        storage.publish_once(uri, manifest.to_json())
    except FileExistsError:
        finished(output, manifest.request, type(manifest))
        logger.info("another run of the same request finished first; its result is this one")
