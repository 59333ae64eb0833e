"""Keys: made once, kept as hashes, found in constant time; files that make no sense are refused."""

import hashlib
import subprocess
import sys
from datetime import date
from pathlib import Path

import pytest

from cellray.errors import InputError
from serving import keys
from serving.keys import Key, append_key, digest_of, find_key, line_of, new_key, parse_keys


def test_a_key_is_256_random_bits_behind_a_prefix() -> None:
    first, second = new_key(), new_key()
    assert first != second
    assert first.startswith("cellray_")
    assert len(first) == len("cellray_") + 43


def test_lines_come_back_as_they_were() -> None:
    secret = new_key()
    key = Key(
        sha256=digest_of(secret),
        scopes=frozenset({"perturb", "embed"}),
        created=date(2026, 1, 2),
        expires=date(2027, 1, 2),
        requests_per_minute=30,
    )
    line = line_of("ana-1", key)
    assert line == (
        f'ana-1 = {{ sha256 = "{hashlib.sha256(secret.encode()).hexdigest()}", scopes = ["embed", "perturb"], '
        "created = 2026-01-02, expires = 2027-01-02, requests_per_minute = 30 }"
    )
    assert parse_keys(line, "a file") == {"ana-1": key}


def test_keys_are_found_by_their_hash_alone() -> None:
    one, two = new_key(), new_key()
    known = {
        name: Key(sha256=digest_of(key), scopes=frozenset({"embed"})) for name, key in (("one", one), ("two", two))
    }
    assert (find_key(known, one), find_key(known, two)) == ("one", "two")
    for wrong in (new_key(), "", digest_of(one), one[:-1], one + " ", "k\u00e9y"):
        assert find_key(known, wrong) is None


def test_a_key_ends_on_its_day() -> None:
    key = Key(sha256="0" * 64, scopes=frozenset({"embed"}), expires=date(2026, 6, 1))
    assert [key.is_expired(date(2026, 5, 31)), key.is_expired(date(2026, 6, 1))] == [False, True]


_HASH = "a" * 64


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("ana = {", "TOML"),
        (f'ana = {{ sha256 = "{_HASH}" }}', "ana.scopes|scopes"),
        (f'ana = {{ sha256 = "{_HASH}", scopes = [] }}', "scopes"),
        (f'ana = {{ sha256 = "{_HASH}", scopes = ["root"] }}', "'embed', 'perturb' or 'admin'"),
        (f'ana = {{ sha256 = "{_HASH[:-1]}", scopes = ["embed"] }}', "sha256"),
        (f'ana = {{ sha256 = "{_HASH}", scopes = ["embed"], key = "x" }}', "key: Extra"),
        (f'"a b" = {{ sha256 = "{_HASH}", scopes = ["embed"] }}', "letters, digits"),
        ('ana = "cellray_secret"', "a line"),
        (
            f'ana = {{ sha256 = "{_HASH}", scopes = ["embed"] }}\nbob = {{ sha256 = "{_HASH}", scopes = ["admin"] }}',
            "one key under two names",
        ),
        (
            f'ana = {{ sha256 = "{_HASH}", scopes = ["embed"] }}\nana = {{ sha256 = "{_HASH}", scopes = ["admin"] }}',
            "TOML",
        ),
    ],
)
def test_files_that_make_no_sense_are_refused(text: str, told: str) -> None:
    with pytest.raises(InputError, match=told) as caught:
        parse_keys(text, "keys.toml")
    assert str(caught.value).startswith("keys.toml: ")


def test_the_command_prints_the_key_once_and_writes_its_hash_alone(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    command = [
        sys.executable,
        "-m",
        "serving.keys",
        "new",
        "--name",
        "ana",
        "--scopes",
        "embed, perturb",
        "--file",
        path,
    ]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    secret = next(word for word in told.split() if word.startswith("cellray_"))
    assert told.count(secret) == 1
    assert secret not in path.read_text()
    found = parse_keys(path.read_text(), "keys")
    assert find_key(found, secret) == "ana"
    assert found["ana"].scopes == {"embed", "perturb"}


def test_the_command_prints_the_line_where_there_is_no_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert keys.main(["new", "--name", "bob", "--scopes", "admin", "--expires", "2031-01-01"]) == 0
    secret, line = [text.split(": ", 1)[1] for text in capsys.readouterr().out.splitlines()]
    assert find_key(parse_keys(line, "keys"), secret) == "bob"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--name", "a b", "--scopes", "embed"], "letters, digits"),
        (["--name", "ana", "--scopes", "embed,root"], "--scopes: lists some of embed, perturb, admin; found 'root'."),
        (["--name", "ana", "--scopes", "embd"], "Did you mean embed?"),
        (["--name", "ana", "--scopes", ""], "--scopes: lists some of embed, perturb, admin; found none."),
        (["--name", "ana", "--scopes", "embed", "--requests-per-minute", "0"], "--requests-per-minute: "),
    ],
)
def test_the_command_refuses(options: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert keys.main(["new", *options]) == 2
    captured = capsys.readouterr()
    assert told in captured.err
    assert captured.out == ""


def test_a_name_is_given_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "keys.toml"
    path.write_text("# our keys")  # no line end: the next line must not become part of the comment
    append_key(path, "ana", Key(sha256=_HASH, scopes=frozenset({"embed"})))
    assert keys.main(["new", "--name", "ana", "--scopes", "embed", "--file", str(path)]) == 2
    assert "a name is given once; found 'ana'" in capsys.readouterr().err
    with pytest.raises(InputError, match="'ana'"):
        append_key(path, "ana", Key(sha256="b" * 64, scopes=frozenset({"embed"})))
    assert path.read_text().splitlines() == ["# our keys", f'ana = {{ sha256 = "{_HASH}", scopes = ["embed"] }}']
