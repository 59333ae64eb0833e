"""The loop on one worker, without a cluster: it learns, resumes exactly, tells what went wrong."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import BertForMaskedLM

from cellray.data.corpora.corpus import Corpus
from cellray.train.objectives import MaskedGeneLoss
from cellray.train.pretrain import PretrainConfig
from tests.train.local import CPU, LocalSession, StopError, plan_of, train

pytestmark = pytest.mark.usefixtures("ray_session")  # the corpus is made on it


@pytest.fixture
def config(corpus: str, tmp_path: Path) -> PretrainConfig:
    return PretrainConfig(
        corpus=corpus,
        output=str(tmp_path / "model"),
        max_steps=24,
        batch_size=16,
        validate_every=6,
        log_every=2,
        warmup_steps=2,
        validation_fraction=0.1,
        threads=1,
        tracking_uri="none",
    )


def final_weights(config: PretrainConfig) -> dict[str, torch.Tensor]:
    with plan_of(config).store().newest() as found:
        assert found is not None
        return {name: weight.clone() for name, weight in load_file(found[0] / "model_state.safetensors").items()}


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def elsewhere(config: PretrainConfig, name: str, **changes: object) -> PretrainConfig:
    return config.model_copy(update={"output": str(Path(config.output).with_name(name)), **changes})


def test_training_reports_validates_and_learns(config: PretrainConfig) -> None:
    session = LocalSession()
    longer = config.model_copy(update={"max_steps": 120, "learning_rate": 5e-3, "validate_every": 30, "log_every": 12})
    outcome = train(longer, session)
    assert (outcome.steps, outcome.error) == (120, "")
    losses = session.history("validation_loss")
    assert list(losses) == [30, 60, 90, 120]
    assert losses[120] < losses[30] - 0.03
    assert session.history("learning_rate")[120] == 0.0
    assert list(session.history("train_loss")) == sorted({*range(12, 121, 12), 30, 60, 90, 120})
    assert all(r["tokens_per_s"] > r["cells_per_s"] > 0 < r["grad_norm"] for r in session.reports)
    notes = [n for n in (*session.notes, *outcome.notes) if n.startswith("checkpoint of step")]
    assert [n.split(":")[0] for n in notes] == [f"checkpoint of step {step}" for step in (30, 60, 90, 120)]


@pytest.mark.parametrize("stop", [6, 18])
def test_stop_and_go_is_as_going_straight(config: PretrainConfig, stop: int) -> None:
    straight = LocalSession()
    train(config, straight)
    broken = elsewhere(config, "broken")
    with pytest.raises(StopError):
        train(broken, LocalSession(stop_at=stop + 2))
    again = LocalSession()
    train(broken, again)
    assert min(again.history("train_loss")) == stop + 2
    for name in ("train_loss", "validation_loss", "learning_rate", "grad_norm"):
        assert again.history(name).items() <= straight.history(name).items(), name
    assert equal(final_weights(config), final_weights(broken))


def test_what_is_done_is_not_done_again(config: PretrainConfig) -> None:
    train(config)
    again = LocalSession()
    assert train(config, again).steps == 24
    assert again.reports == []
    assert again.notes == [
        "going on from the checkpoint of step 24 with 1 worker(s), the last one: nothing is left to train"
    ]


def test_a_machine_about_to_leave_brings_a_checkpoint(config: PretrainConfig) -> None:
    session = LocalSession(leave_at=5)  # asked at each report: 2, 4, 6, 8, 10
    outcome = train(config, session)
    assert (outcome.steps, outcome.leaving, outcome.error) == (10, True, "")
    assert plan_of(config).store().steps() == [6, 10]
    again = LocalSession()
    assert not train(config, again).leaving
    assert list(again.history("train_loss")) == [12, 14, 16, 18, 20, 22, 24]
    assert again.notes[0] == "going on from the checkpoint of step 10 with 1 worker(s)"
    assert again.earlier == session.reports  # should they not have arrived


def test_the_newest_checkpoints_and_the_best_are_kept(config: PretrainConfig) -> None:
    short = config.model_copy(update={"max_steps": 60, "learning_rate": 3e-2, "schedule": "constant_with_warmup"})
    session = LocalSession()
    outcome = train(short, session)
    losses = session.history("validation_loss")
    assert outcome.best_step == min(losses, key=losses.__getitem__)
    assert plan_of(short).store().steps() == sorted({outcome.best_step, 54, 60})


def test_gradients_of_passes_add_up_to_those_of_the_step(config: PretrainConfig) -> None:
    """One forward pass of a whole step against plain autograd, and a step in passes against the mean over its genes."""
    plan = plan_of(config.model_copy(update={"pass_tokens": 60}))
    corpus = Corpus.open(config.corpus)
    objective = plan.objective(corpus, CPU, 0)
    module = objective.module.eval()  # no dropout: passes draw it one after the other
    from cellray.train.feed import Feed
    from cellray.train.objectives import step_generator

    order, (_, held) = plan.order(corpus), plan.selections()
    passes = next(Feed(order, held, 0, 1, 0, 60).steps(0))
    assert len(passes) > 1
    generator = step_generator(plan.loop.seed, 0, 0, CPU)
    masked = [objective.prepare(batch, generator) for batch in passes]
    sums = [module(batch) for batch in masked]
    loss = sum(total for total, _ in sums) / sum(weight for _, weight in sums)
    loss.backward()
    expected = {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
    norm = torch.linalg.vector_norm(torch.stack([g.norm() for g in expected.values()]))
    module.zero_grad()

    from cellray.train.loop import Loop

    class Recorder(torch.optim.SGD):
        """Keeps the gradients it is given."""

        def step(self, closure: object = None) -> None:  # type: ignore[override]
            self.seen = {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}

    optimizer = Recorder(module.parameters(), lr=0.1)
    module.train = lambda mode=True: module  # type: ignore[method-assign, assignment, misc]
    Loop(objective, module, optimizer, plan.loop, CPU, LocalSession()).train_step(passes)
    clipped = min(1.0, plan.loop.max_grad_norm / float(norm))
    for name, gradient in expected.items():
        assert torch.allclose(optimizer.seen[name], gradient * clipped, atol=1e-6), name


def test_a_loss_that_is_not_finite_names_the_cells(config: PretrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    healthy, calls = MaskedGeneLoss.forward, []

    def poisoned(self: MaskedGeneLoss, batch: object) -> tuple[torch.Tensor, torch.Tensor]:
        calls.append(batch)
        total, weight = healthy(self, batch)  # type: ignore[arg-type]
        return (total * float("nan"), weight) if len(calls) == 3 else (total, weight)

    monkeypatch.setattr(MaskedGeneLoss, "forward", poisoned)
    outcome = train(config.model_copy(update={"pass_tokens": 10**6, "log_every": 100}))
    assert outcome.error.startswith("the loss became nan at step 2, on cells 'cell")
    assert "and 8 more" in outcome.error or "and 7 more" in outcome.error
    assert plan_of(config).store().steps() == []


def test_a_gradient_that_is_not_finite_leaves_no_checkpoint(
    config: PretrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss may be sound where its gradient is not: weights that took it are lost."""
    healthy, calls = MaskedGeneLoss.forward, []

    class Poison(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, value: torch.Tensor) -> torch.Tensor:
            return value.clone()

        @staticmethod
        def backward(ctx: object, grad: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
            return grad * float("nan")

    def poisoned(self: MaskedGeneLoss, batch: object) -> tuple[torch.Tensor, torch.Tensor]:
        calls.append(batch)
        total, weight = healthy(self, batch)  # type: ignore[arg-type]
        return (Poison.apply(total), weight) if len(calls) == 6 else (total, weight)  # type: ignore[no-untyped-call]

    monkeypatch.setattr(MaskedGeneLoss, "forward", poisoned)
    outcome = train(config.model_copy(update={"pass_tokens": 10**6, "log_every": 100}))
    assert outcome.error.startswith("the gradient became nan at step 5, on cells 'cell")
    assert plan_of(config).store().steps() == []


def test_checkpoints_between_validations_that_are_far_apart(config: PretrainConfig) -> None:
    session = LocalSession(stop_at=20)
    often = config.model_copy(update={"validate_every": 24, "log_every": 4, "checkpoint_minutes": 1e-9})
    with pytest.raises(StopError):
        train(often, session)
    assert plan_of(often).store().steps()[-1] in (16, 20)
    assert list(session.history("validation_loss")) == []
    train(often)
    quiet = elsewhere(config, "quiet", validate_every=24, log_every=4)
    train(quiet)
    assert equal(final_weights(often), final_weights(quiet))


def test_the_best_of_what_is_left_takes_the_place_of_a_lost_best(
    config: PretrainConfig, caplog: pytest.LogCaptureFixture
) -> None:
    short = config.model_copy(update={"max_steps": 60, "learning_rate": 3e-2, "schedule": "constant_with_warmup"})
    session = LocalSession()
    best = train(short, session).best_step
    store, losses = plan_of(short).store(), session.history("validation_loss")
    assert store.best("validation_loss", higher=False) == best < 54
    store._remove(best)
    left = min((54, 60), key=losses.__getitem__)
    assert store.best("validation_loss", higher=False) == left
    assert f"the best of the others, step {left}, takes its place" in caplog.text
    assert store.best("validation_loss", higher=True) == 114 - left


def test_the_count_of_steps_lies_beside_the_weights() -> None:
    """Fused AdamW on a GPU refuses one on the CPU."""
    from cellray.train.state import _like

    elsewhere = torch.empty(3, device="meta")
    assert _like(torch.tensor(5.0), elsewhere).device == elsewhere.device


def test_a_broken_checkpoint_is_passed_over(config: PretrainConfig) -> None:
    train(config)
    expected, store = final_weights(config), plan_of(config).store()
    assert store.steps() == [18, 24]
    weights = Path(store.uri) / "step-00000024" / "model_state.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    session = LocalSession()
    outcome = train(config, session)
    assert list(session.history("train_loss")) == [20, 22, 24]
    assert any("step-00000024: this checkpoint is broken (model_state" in n for n in (*session.notes, *outcome.notes))
    assert equal(final_weights(config), expected)


def test_a_checkpoint_of_another_model_is_refused(config: PretrainConfig, tmp_path: Path) -> None:
    train(config)
    folder = Path(plan_of(config).store().uri) / "step-00000024"
    state = load_file(folder / "model_state.safetensors")
    assert json.loads((folder / "checkpoint.json").read_text())["step"] == 24
    from cellray.errors import InputError
    from cellray.train.state import load_weights

    other = MaskedGeneLoss.__new__(MaskedGeneLoss)
    torch.nn.Module.__init__(other)
    other.layer = torch.nn.Linear(2, 2)
    with pytest.raises(InputError, match="a checkpoint must hold this model's weights"):
        load_weights(folder, other)
    assert len(state) > 10


def test_a_full_disk_does_not_end_training(config: PretrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    from cellray.train.state import State

    write, full = State.write, []

    def sometimes(self: State, folder: Path) -> None:
        write(self, folder)
        if not full:
            full.append(folder)
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(State, "write", sometimes)
    session = LocalSession()
    train(config, session)
    told = "a checkpoint could not be written ([Errno 28] No space left on device); the newest one is none so far"
    assert told in session.notes
    assert plan_of(config).store().steps() == [18, 24]
    assert not full[0].exists()


def test_continuing_from_a_model(config: PretrainConfig, tmp_path: Path) -> None:
    """A model directory's weights are those training starts from."""
    corpus = Corpus.open(config.corpus)
    model = plan_of(config).initial(corpus)
    with torch.no_grad():
        model.bert.embeddings.word_embeddings.weight.mul_(2)
    model.save_pretrained(tmp_path / "parent")
    begun = plan_of(config.model_copy(update={"model": str(tmp_path / "parent")})).initial(corpus)
    assert isinstance(begun, BertForMaskedLM)
    for name, weight in model.state_dict().items():
        assert torch.equal(begun.state_dict()[name], weight), name
