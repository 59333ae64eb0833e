"""Several workers as one, in plain processes: copies (DDP) and parts (FSDP2) of the weights learn what one worker does.

The objective hides every third gene and the model drops nothing out, so that no number depends on chance or rank.
"""

import pickle
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Generator, distributed, multiprocessing

from cellray.data.corpora.corpus import Corpus
from cellray.data.tokenization import TokenizeConfig, tokenize_corpus
from cellray.model.checkpoint import save_model
from cellray.model.masked_lm import new_masked_lm
from cellray.train.contracts import Batch
from cellray.train.finetune import FinetuneConfig
from cellray.train.finetune_plan import FinetunePlan
from cellray.train.masked_genes import MaskedGenes
from cellray.train.objectives import NOT_MASKED, MaskedBatch
from cellray.train.pretrain import PretrainConfig
from cellray.train.pretrain_plan import PretrainPlan
from cellray.train.worker import run_plan
from cellray.vocabulary import GeneVocabulary
from tests.ports import free_port
from tests.train.local import CPU, LocalSession, StopError, plan_of
from tests.train.test_finetune import CLASSES, plans_of

pytestmark = pytest.mark.usefixtures("ray_session")  # the corpus is made on it


class EveryThirdGene(MaskedGenes):
    """Predicts a third of the genes: which ones is decided by the cell."""

    def prepare(self, batch: Batch, generator: Generator) -> MaskedBatch:
        return self._held_out(batch)

    def _held_out(self, batch: Batch) -> MaskedBatch:
        place_nl = torch.arange(batch.input_ids_nl.shape[1]) + torch.from_numpy(batch.cells_n)[:, None]
        chosen_nl = (place_nl % 3 == 0) & (batch.input_ids_nl > 1)
        hidden_nl = torch.where(chosen_nl, 1, batch.input_ids_nl)
        return MaskedBatch(hidden_nl, torch.where(chosen_nl, batch.input_ids_nl, NOT_MASKED))


class CertainPlan(PretrainPlan):
    """Pretraining without chance."""

    def objective(self, corpus: Corpus, device: torch.device, rank: int) -> EveryThirdGene:
        model = self.initial(corpus)
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
            if hasattr(module, "dropout") and isinstance(module.dropout, float):
                module.dropout = 0.0
        model.config.attention_probs_dropout_prob = 0.0
        return EveryThirdGene(model, corpus.vocabulary, 0.3, self.loop.seed)


def certain(config: PretrainConfig) -> CertainPlan:
    plan = plan_of(config)
    return CertainPlan(**{field.name: getattr(plan, field.name) for field in fields(plan)})


Run = tuple[PretrainConfig, int | None]
"""What to train, and at which step the workers are lost."""


Make = Callable[[PretrainConfig], PretrainPlan]


def _work(rank: int, world_size: int, port: int, folder: str, runs: Sequence[Run], make: Make) -> None:
    distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=world_size)
    sessions = []
    for config, stop_at in runs:
        session = LocalSession(stop_at=stop_at, rank=rank, world_size=world_size)
        sessions.append(session)
        try:
            run_plan(make(config), session, CPU)
        except StopError:
            distributed.barrier()
    (Path(folder) / f"rank{rank}").write_bytes(pickle.dumps(sessions))
    distributed.destroy_process_group()


def train_in_group(runs: Sequence[Run], world_size: int, folder: Path, make: Make = certain) -> list[LocalSession]:
    """Train with several processes, one run after the other; return what the first process reported."""
    multiprocessing.spawn(_work, (world_size, free_port(), str(folder), runs, make), nprocs=world_size)
    told = [pickle.loads((folder / f"rank{rank}").read_bytes()) for rank in range(world_size)]
    for sessions in zip(*told, strict=True):
        assert len({str([(r["step"], r["train_loss"]) for r in s.reports]) for s in sessions}) == 1
    return list(told[0])


def finetuned(config: FinetuneConfig) -> FinetunePlan:
    return plans_of(config)[0]


@pytest.mark.chaos
@pytest.mark.parametrize("pooling", ["cell", "cls"])
def test_workers_that_share_weights_finetune_as_one(
    make_h5ad: Callable[..., Path], vocabulary_v2: GeneVocabulary, tmp_path: Path, pooling: str
) -> None:
    """Each with the whole model, and with its weights cut among them; the `<cls>` shortcut knows no cut weights."""
    vocabulary_file, corpus = str(tmp_path / "vocabulary.json"), str(tmp_path / "corpus")
    vocabulary_v2.save(vocabulary_file)
    source = (str(make_h5ad(cells=60)),)
    tokenize_corpus(TokenizeConfig(source=source, vocabulary=vocabulary_file, output=corpus, obs_columns=("kind",)))
    parent = new_masked_lm("tiny", vocabulary_v2, 16, 1)
    parent.config.hidden_dropout_prob = parent.config.attention_probs_dropout_prob = 0.0
    save_model(parent, vocabulary_v2, {"objective": "masked genes"}, str(tmp_path / "parent"))
    (tmp_path / "task.toml").write_text(CLASSES)
    alone = FinetuneConfig(
        corpus=corpus,
        model=str(tmp_path / "parent"),
        task=str(tmp_path / "task.toml"),
        output=str(tmp_path / "alone"),
        max_steps=4,
        batch_size=8,
        log_every=1,
        dropout=0.0,
        pooling=pooling,  # type: ignore[arg-type]
        threads=1,
        tracking_uri="none",
    )

    def other(sharding: str) -> FinetuneConfig:
        changes = {"output": str(tmp_path / sharding), "num_workers": (2, 2), "sharding": sharding}
        return alone.model_copy(update=changes)

    told = train_in_group([(other("none"), None), (other("full"), None)], 2, tmp_path, finetuned)  # type: ignore[arg-type, list-item]
    expected = LocalSession()
    run_plan(finetuned(alone), expected, CPU)
    for session in told:
        for name in ("train_loss", "validation_loss"):
            assert session.history(name) == pytest.approx(expected.history(name), rel=1e-4), name


def weights(config: PretrainConfig) -> dict[str, torch.Tensor]:
    with plan_of(config).store().newest() as found:
        assert found is not None
        return {name: weight.clone() for name, weight in load_file(found[0] / "model_state.safetensors").items()}


def test_workers_learn_what_one_learns_and_go_on_in_other_numbers(corpus: str, tmp_path: Path) -> None:
    alone = PretrainConfig(
        corpus=corpus,
        output=str(tmp_path / "alone"),
        max_steps=6,
        batch_size=17,  # workers get unequal shares
        pass_tokens=64,
        validate_every=3,
        log_every=1,
        warmup_steps=1,
        validation_fraction=0.1,
        threads=1,
        tracking_uri="none",
    )

    def other(name: str, **changes: object) -> PretrainConfig:
        return alone.model_copy(update={"output": str(tmp_path / name), "num_workers": (2, 2), **changes})

    copied, cut = other("copied"), other("cut", sharding="full")
    runs: list[Run] = [(copied, None), (cut, 4), (cut, None)]
    copied_told, _, cut_told = train_in_group(runs, 2, tmp_path)
    told = LocalSession()
    run_plan(certain(alone), told, CPU)
    assert list(cut_told.history("train_loss")) == [4, 5, 6]  # from the checkpoint of step 3 on
    for name in ("train_loss", "validation_loss", "learning_rate", "grad_norm"):
        for group in (copied_told, cut_told):
            for step, value in group.history(name).items():
                assert value == pytest.approx(told.history(name)[step], rel=1e-4), (name, step)
    expected = weights(alone)
    for config in (copied, cut):
        assert all(torch.allclose(weight, expected[name], atol=1e-4) for name, weight in weights(config).items())
    for config in (alone, cut):  # a checkpoint of parts is one of the whole: one worker goes on from either
        further, name = LocalSession(), Path(config.output).name
        run_plan(certain(alone.model_copy(update={"output": config.output, "max_steps": 9})), further, CPU)
        assert list(further.history("train_loss")) == [7, 8, 9], name
        told.reports += [] if config is cut else further.reports
    assert further.history("train_loss")[9] == pytest.approx(told.history("train_loss")[9], rel=1e-3)
    assert np.isfinite(list(told.history("train_loss").values())).all()
