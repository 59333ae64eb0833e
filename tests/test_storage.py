"""Reading, digests and atomic publishing, on disk and on S3."""

import hashlib
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

from cellray import exclusive, storage
from cellray.errors import InputError


@pytest.fixture(params=["disk", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return a place to write to, of either kind."""
    return str(tmp_path) if request.param == "disk" else str(request.getfixturevalue("bucket"))


def test_written_bytes_come_back(root: str) -> None:
    uri = storage.join(root, "a", "b.bin")
    assert not storage.exists(uri)
    storage.write_bytes(uri, b"one")
    storage.write_bytes(uri, b"two!")
    assert storage.read_bytes(uri) == b"two!"
    assert storage.sha256_file(uri) == hashlib.sha256(b"two!").hexdigest()
    assert storage.stamp(uri).size == 4


def test_a_failed_write_leaves_nothing(root: str) -> None:
    uri = storage.join(root, "a", "b.bin")

    def fail() -> None:
        with storage.atomic_file(uri) as path:
            path.write_bytes(b"half")
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        fail()
    assert not storage.exists(uri)
    if "://" not in root:
        assert list((Path(root) / "a").iterdir()) == []


def test_only_the_first_publisher_wins(root: str) -> None:
    uri = storage.join(root, "manifest.json")
    storage.publish_once(uri, b"first")
    with pytest.raises(FileExistsError):
        storage.publish_once(uri, b"second")
    assert storage.read_bytes(uri) == b"first"


def test_a_directory_appears_as_a_whole_and_overwrites_nothing(root: str, tmp_path: Path) -> None:
    uri = storage.join(root, "model")
    local = tmp_path / "made"
    local.mkdir(mode=0o700)
    for name in ("config.json", "weights"):
        (local / name).write_text(name)
    storage.publish_directory(local, uri, last="config.json")
    with storage.local_directory(uri) as directory:
        assert {p.name: p.read_text() for p in directory.iterdir()} == {n: n for n in ("config.json", "weights")}
        assert "://" in root or directory.stat().st_mode & 0o055  # others may read it
    storage.write_bytes(storage.join(root, "mine", "thesis.txt"), b"precious")
    for target in (uri, storage.join(root, "mine")):
        with pytest.raises(InputError, match=r"must be new or empty; found '(config\.json|thesis\.txt)'"):
            storage.publish_directory(local, target, last="config.json")
    assert storage.read_bytes(storage.join(root, "mine", "thesis.txt")) == b"precious"
    storage.remove_directory(uri)
    assert not storage.exists(uri)


@pytest.fixture
def no_links(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError("no hard links here")

    monkeypatch.setattr("os.link", refuse)


@pytest.mark.usefixtures("no_links")
def test_without_hard_links_the_first_publisher_still_wins(tmp_path: Path) -> None:
    uri = str(tmp_path / "manifest.json")
    storage.publish_once(uri, b"first")
    with pytest.raises(FileExistsError):
        storage.publish_once(uri, b"second")
    assert storage.read_bytes(uri) == b"first"


@pytest.mark.usefixtures("no_links")
def test_without_hard_links_one_of_many_publishers_wins_and_nobody_sees_half_a_file(tmp_path: Path) -> None:
    target = tmp_path / "manifest.json"
    data = [bytes([65 + i]) * 100_000 for i in range(16)]

    def publish(each: bytes) -> bool:
        try:
            storage.publish_once(str(target), each)
        except FileExistsError:
            return False
        return True

    with ThreadPoolExecutor(16) as threads:
        won = list(threads.map(publish, data))
    assert sum(won) == 1
    assert target.read_bytes() == data[won.index(True)]
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]


@pytest.mark.usefixtures("no_links")
def test_a_writer_killed_at_its_claim_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for ever for the dead; a claim that is young is waited for."""
    target, claims = tmp_path / "manifest.json", [tmp_path / f".manifest.json.claim{i}.tmp" for i in range(2)]
    for claim in claims:
        claim.touch()
        os.utime(claim, (time.time() - 61, time.time() - 61))
    storage.publish_once(str(target), b"whole")
    assert target.read_bytes() == b"whole"
    assert list(tmp_path.iterdir()) == [target]
    target.unlink()
    claims[0].touch()
    waited: list[float] = []

    def sleep(seconds: float) -> None:
        waited.append(seconds)
        if len(waited) == 3:
            target.write_bytes(b"the other's")

    monkeypatch.setattr(exclusive, "time", SimpleNamespace(sleep=sleep))  # other threads sleep on
    with pytest.raises(FileExistsError):
        storage.publish_once(str(target), b"mine")
    assert target.read_bytes() == b"the other's"
    assert len(waited) == 3
    storage.sweep(str(tmp_path))
    assert list(tmp_path.iterdir()) == [target]


def test_a_new_directory_is_whole_on_disk_and_never_cleared_in_a_store(root: str) -> None:
    uri = storage.join(root, "out.dataset")

    def fail() -> None:
        with storage.new_directory(uri) as folder:
            storage.write_bytes(storage.join(folder, "mine"), b"1")
            storage.write_bytes(storage.join(root, "out.dataset", "theirs"), b"2")
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        fail()
    assert storage.read_bytes(storage.join(uri, "theirs")) == b"2"
    if "://" not in root:
        assert [path.name for path in Path(root).iterdir()] == ["out.dataset"]


def test_messages_name_the_file(root: str) -> None:
    uri = storage.join(root, "nothing.json")
    with pytest.raises(InputError, match=r"nothing\.json.*must exist"):
        storage.stamp(uri)
    with pytest.raises(InputError, match=r"nothing\.json.*must exist"):
        storage.read_json(uri)
    storage.write_bytes(uri, b"{")
    with pytest.raises(InputError, match=r"nothing\.json.*must be JSON"):
        storage.read_json(uri)


def test_an_unknown_kind_of_storage() -> None:
    with pytest.raises(InputError, match="known kind of storage"):
        storage.stamp("nowhere://x")


def test_what_killed_writers_left_is_swept(tmp_path: Path) -> None:
    for name in ("a.parquet", ".a.parquet.0a1b2c.tmp", ".b.parquet.0a1b2c.tmp", ".keep"):
        (tmp_path / name).touch()
    storage.sweep(str(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == [".b.parquet.0a1b2c.tmp", ".keep", "a.parquet"]


def test_a_writer_whose_file_another_made_first_gives_way(tmp_path: Path) -> None:
    with storage.atomic_file(str(tmp_path / "a")) as path:
        path.write_text("same")
        (tmp_path / "a").write_text("same")
        storage.sweep(str(tmp_path))
    assert (tmp_path / "a").read_text() == "same"
