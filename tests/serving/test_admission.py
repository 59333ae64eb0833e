"""Queues and rooms: what is let in, and what is refused with a time to wait."""

import asyncio
from pathlib import Path

import pytest

from cellray.errors import InputError
from serving.admission import Queue, Room
from serving.answers import TooMuchError
from serving.config import Limits
from serving.faults import HttpError
from serving.handover import Sample
from serving.upload import Upload, Uploads


def test_a_full_queue_refuses() -> None:
    queue = Queue("m", 10)
    with queue.enter(6), queue.enter(4):
        with pytest.raises(HttpError) as refused, queue.enter(1):
            pass
        assert (refused.value.status, refused.value.limit) == (429, ("max_queued_cells", 10))
    assert queue.cells == 0


def test_a_request_larger_than_the_queue_is_let_in_while_there_is_room() -> None:
    queue = Queue("m", 10)
    with queue.enter(9):
        with queue.enter(50):
            with pytest.raises(HttpError), queue.enter(50):
                pass
            with pytest.raises(HttpError):
                queue.check()
        with queue.enter(1):
            pass


def test_a_room_has_so_many_places() -> None:
    room = Room("bodies_at_once", 1)
    with room.take():
        with pytest.raises(HttpError) as refused:
            room.enter()
        assert refused.value.limit == ("bodies_at_once", 1)
    room.enter()


def slow(upload: Upload) -> Sample | TooMuchError:
    """Tell that it reads, in the folder that the matrix names, and wait there until it may end."""
    import time

    (Path(upload.matrix) / "begun").touch()
    while not (Path(upload.matrix) / "end").exists():
        time.sleep(0.01)
    raise InputError("the file", "a", "b", upload.matrix)


def test_a_reader_whose_asker_is_gone_keeps_its_place(tmp_path: Path) -> None:
    uploads = Uploads(Limits(uploads_at_once=1))

    async def ask() -> None:
        first = asyncio.create_task(uploads.read(b"", str(tmp_path), None, slow))
        while not (tmp_path / "begun").exists():
            await asyncio.sleep(0.01)
        first.cancel()
        await asyncio.wait([first])
        with pytest.raises(HttpError, match="uploads_at_once"):
            await uploads.read(b"", "second", None, slow)
        (tmp_path / "end").touch()
        while uploads._room.taken:
            await asyncio.sleep(0.01)
        with pytest.raises(InputError, match=tmp_path.name):
            await uploads.read(b"", str(tmp_path), None, slow)

    asyncio.run(ask())
