"""The plan of a fine-tuning: which model learns which part of a fold, and what it answers in the test part."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import median
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import nn

from cellray import storage
from cellray.config import JobConfig
from cellray.data.corpora.corpus import Corpus
from cellray.model.annotator import AnnotatedEncoder
from cellray.model.annotator_directory import start_annotator
from cellray.model.attention import use_attention
from cellray.models import ModelReference
from cellray.train.annotation import Annotation
from cellray.train.contracts import Objective, Session
from cellray.train.feed import Feed
from cellray.train.folds import TEST, TRAIN, VALIDATION
from cellray.train.kept import kept_line
from cellray.train.loop import Progress
from cellray.train.order import Selection
from cellray.train.parallel import agree
from cellray.train.parameters import LORA_TARGETS, add_lora, freeze_layers, parameter_groups
from cellray.train.precision import Autocast
from cellray.train.state import load_weights
from cellray.train.tasks.contract import ALL, Arrays, Task
from cellray.train.tasks.table import TaskConfig
from cellray.train.worker import Outcome, TrainPlan


class ModelOptions(JobConfig):
    """What is made of the model that fine-tuning starts from, and which of its weights are trained."""

    pooling: Literal["cell", "cls", "attention"] = Field(
        "cell", description="vector of a cell: cell (mean of its genes), cls, or attention (a learned mean)"
    )
    layer: int = Field(0, le=0, description="hidden state the heads see: 0 is the last one, -1 the one before")
    dropout: float = Field(0.1, ge=0, lt=1, description="before the heads; the encoder's own is the model's")
    freeze_layers: int = Field(0, ge=0, description="first layers, and the embeddings, that are kept as they are")
    lora_rank: int = Field(0, ge=0, description="train additions of this rank in place of the encoder; 0: no LoRA")
    lora_alpha: float | None = Field(None, gt=0, description="LoRA's scale, default: twice the rank")
    lora_dropout: float = Field(0.0, ge=0, lt=1, description="LoRA's dropout")
    lora_targets: tuple[str, ...] = Field(("query", "value"), description=f"some of {', '.join(LORA_TARGETS)}")
    layer_decay: float = Field(1.0, gt=0, le=1, description="learning rate of a layer over that of the layer above")


@dataclass(frozen=True, kw_only=True)
class FinetunePlan(TrainPlan):
    """What the workers of a fine-tuning are told, beside what all are told.

    Attributes
    ----------
    model
        The model to start from.
    task
        What is learnt.
    fold, part
        On which part of which fold: the training part, or all of them together.
    options
        What is made of the model.
    learning_rate, weight_decay
        AdamW's.
    """

    model: ModelReference
    task: TaskConfig
    fold: int
    part: int
    options: ModelOptions
    learning_rate: float
    weight_decay: float

    @property
    def watched(self) -> tuple[str, ...]:
        """Figures that every validation must have; others that take long are left for the test."""
        return (self.loop.monitor,)

    @cached_property
    def opened(self) -> Task:
        """The task with its labels."""
        task: Task = self.task.open(Corpus.open(self.corpus), self.watched)
        return task

    def __getstate__(self) -> dict[str, Any]:
        """Travel without the labels, which each worker reads."""
        return {name: value for name, value in self.__dict__.items() if name != "opened"}

    @property
    def title(self) -> str:
        """What to call this training."""
        return f"all {self.task.unit}" if self.part == ALL else f"fold {self.fold}"

    @property
    def answers_uri(self) -> str:
        """Where the answers in the test part lie once the training is over."""
        return f"{self.checkpoints}.npz"

    def initial(self, corpus: Corpus) -> AnnotatedEncoder:
        """Return the model that training starts from, on the CPU."""
        options, seed = self.options, self.loop.seed
        model = start_annotator(
            self.model.open(),
            self.opened.specs(self.fold, self.part),
            options.pooling,
            seed=seed,
            dropout=options.dropout,
            emb_layer=options.layer,
            vocabulary=corpus.vocabulary,
        )
        freeze_layers(model, options.freeze_layers)
        if options.lora_rank:
            alpha = options.lora_alpha or 2.0 * options.lora_rank
            add_lora(model, options.lora_rank, alpha, options.lora_dropout, options.lora_targets, seed)
        return model

    def objective(self, corpus: Corpus, device: torch.device, rank: int) -> Annotation:
        """Return the task's objective."""
        model = self.initial(corpus).to(device)
        use_attention(model.bert)
        self.prepared(model.bert)
        return Annotation(model, self.opened, self.fold, self.part)

    def parameter_groups(self, module: nn.Module) -> list[dict[str, Any]]:
        """Return the weights that are not frozen, slower from layer to layer if so asked."""
        model = module.model
        assert isinstance(model, nn.Module)
        return parameter_groups(model, self.learning_rate, self.weight_decay, self.options.layer_decay)

    def selections(self) -> tuple[Selection, Selection]:
        """Return the cells of the part and those of the validation part; with all cells trained on, none validate."""
        task = self.opened
        judged = self.part == TRAIN and len(task.folds.rows(self.fold, VALIDATION)) > 0
        validation = task.selection(self.fold, VALIDATION) if judged else _nothing
        return task.selection(self.fold, self.part), validation

    def following(self, before: Sequence[Outcome]) -> "FinetunePlan":
        """Train on all cells for as many steps as were best in the folds."""
        if self.part == TRAIN:
            return self
        best = [outcome.best_step or outcome.steps for outcome in before]
        return replace(self, loop=replace(self.loop, steps=max(1, round(median(best)))))

    def remarks(self, progress: Progress, reports: Sequence[Mapping[str, float]]) -> list[str]:
        """Tell which step is kept."""
        return [kept_line(progress, reports, self.loop)]

    def conclude(self, corpus: Corpus, objective: Objective, feed: Feed, session: Session, autocast: Autocast) -> None:
        """Let the best model of a fold answer in the test part."""
        if self.part != TRAIN or agree(int(storage.exists(self.answers_uri)), session.world_size):
            return
        assert isinstance(objective, Annotation)
        load_best(self, objective.module, session.rank, session.world_size)
        tested = replace(feed, held=self.opened.selection(self.fold, TEST))
        objective.module.eval()
        with torch.no_grad(), autocast():
            arrays, _ = objective.score(tested.held_out_stream(), TEST, session.world_size)
        if session.rank == 0:
            content, named = io.BytesIO(), dict[str, Any](arrays)
            np.savez(content, **named)
            storage.write_bytes(self.answers_uri, content.getvalue())

    def answers(self) -> Arrays:
        """Return the answers in the test part."""
        with np.load(io.BytesIO(storage.read_bytes(self.answers_uri)), allow_pickle=False) as file:
            return dict(file)


def load_best(plan: FinetunePlan, module: nn.Module, rank: int = 0, world_size: int = 1) -> int:
    """Load the weights of the best checkpoint, or of the newest where none was judged; returns its step."""
    store, loop = plan.store(), plan.loop
    step = agree(store.best(loop.monitor, higher=loop.higher_is_better) if rank == 0 else 0, world_size)
    with store.at(step) as folder:
        load_weights(folder, module)
    return step


def _nothing(span: Any) -> np.ndarray[Any, np.dtype[np.bool_]]:  # noqa: ANN401  # a Span
    return np.zeros(len(span), np.bool_)
