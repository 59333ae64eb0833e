"""Plans of screens: what makes the units of one another's."""

from pathlib import Path

import pytest

from cellray.infer.design import make_design
from cellray.infer.screen import ScreenConfig
from cellray.infer.screen_plan import make_plan
from cellray.model.checkpoint import ModelDirectory
from cellray.vocabulary import GeneVocabulary
from tests.infer.tiny import corpus_in, model_in


@pytest.mark.parametrize(
    ("changes", "same"),
    [({"gpus_per_actor": 0.5}, False), ({"threads": 3, "actors": (1, 4)}, True), ({"precision": "bf16"}, False)],
)
def test_units_of_another_kind_of_device_are_others(
    vocabulary: GeneVocabulary, tmp_path: Path, changes: dict[str, object], same: bool
) -> None:
    corpus, model = corpus_in(tmp_path, vocabulary), model_in(tmp_path, vocabulary)
    config = ScreenConfig(corpus=corpus.uri, model=model, output="o", token_budget=64)
    design = make_design(vocabulary, ("all",))
    plans = [
        make_plan(each, corpus, ModelDirectory.open(model), design)
        for each in (config, config.model_copy(update=changes))
    ]
    assert len(plans[0].units) == len(plans[1].units)
    assert ({unit.key for unit in plans[0].units} == {unit.key for unit in plans[1].units}) == same
