"""Gene effects of a screen: made again where they are not whole, never left out, in row groups worth reading."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from cellray import storage
from cellray.data.parts import Unit
from cellray.errors import InputError
from cellray.infer.effect_parts import effect_part
from cellray.infer.screen import ScreenConfig, screen
from cellray.vocabulary import GeneVocabulary
from tests.conftest import GENES
from tests.infer.tiny import corpus_in, model_in

OPTIONS = {"genes": GENES[:4], "effects": True, "threads": 1, "cells_per_part": 1}


def content(folder: Path) -> dict[str, str]:
    """Return path and digest of every file."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): storage.sha256_file(str(path)) for path in files}


@pytest.fixture
def config(vocabulary: GeneVocabulary, tmp_path: Path) -> ScreenConfig:
    """Return a screen of several units that was finished."""
    corpus, model = corpus_in(tmp_path, vocabulary), model_in(tmp_path, vocabulary)
    made = ScreenConfig(corpus=corpus.uri, model=model, output=str(tmp_path / "shifts"), actors=0, **OPTIONS)  # type: ignore[arg-type]
    assert len(screen(made).effect_parts) > 2  # type: ignore[union-attr]
    return made


@pytest.mark.parametrize("damage", ["record cut short", "no record", "no part", "no shifts"])
def test_lost_effects_are_made_again(config: ScreenConfig, damage: str) -> None:
    output = Path(config.output)
    whole = content(output)
    (output / "manifest.json").unlink()
    record, part = (sorted((output / "effects" / name).iterdir())[1] for name in ("records", "shards"))
    {
        "record cut short": lambda: record.write_bytes(record.read_bytes()[:30]),
        "no record": record.unlink,
        "no part": part.unlink,
        "no shifts": sorted((output / "shards").iterdir())[1].unlink,
    }[damage]()
    (part.parent / f".{part.name}.7.tmp").write_bytes(b"of a killed worker")
    screen(config)
    assert content(output) == whole


def test_a_finished_screen_must_hold_its_effects(config: ScreenConfig) -> None:
    next((Path(config.output) / "effects" / "shards").iterdir()).unlink()
    with pytest.raises(InputError, match=r"must hold all its parts; found 'effects/shards/\w+\.parquet' missing"):
        screen(config)


def test_effects_that_vanish_meanwhile_are_told(config: ScreenConfig) -> None:
    unit = Unit("k" * 64, "u", "v", 0, 0, 1)
    with pytest.raises(InputError, match="must have its gene effects; found none, or no whole record of them"):
        effect_part(unit, config.output)


def test_effects_of_many_copies_share_a_row_group(config: ScreenConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(output: str) -> list[pq.ParquetFile]:
        return [pq.ParquetFile(path) for path in sorted((Path(output) / "effects" / "shards").iterdir())]

    monkeypatch.setattr("cellray.infer.screen_worker._EFFECTS_AT_ONCE", 1)
    apart = config.model_copy(update={"output": config.output + "-apart"})
    screen(apart)
    together, single = read(config.output), read(apart.output)
    assert {file.num_row_groups for file in together} == {1}
    assert max(file.num_row_groups for file in single) > 1
    assert [file.read() for file in together] == [file.read() for file in single]
