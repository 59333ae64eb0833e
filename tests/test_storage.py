"""Reading, digests and atomic publishing, on disk and on S3."""

import hashlib
from pathlib import Path

import pytest

from cellray import storage
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


def test_without_hard_links_the_first_publisher_still_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError("no hard links here")

    monkeypatch.setattr("os.link", refuse)
    uri = str(tmp_path / "manifest.json")
    storage.publish_once(uri, b"first")
    with pytest.raises(FileExistsError):
        storage.publish_once(uri, b"second")
    assert storage.read_bytes(uri) == b"first"


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
