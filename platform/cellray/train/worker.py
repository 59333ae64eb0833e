"""What one worker of a training group does: builds the model, takes up a checkpoint, runs the loop, reports."""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import BertForMaskedLM

from cellray.data.corpora.corpus import Corpus
from cellray.model.presets import bert_config
from cellray.train.feed import Feed, spans
from cellray.train.loop import Loop, LoopConfig
from cellray.train.objectives import GeneMasker, MaskedGeneLoss
from cellray.train.order import TrainingOrder
from cellray.vocabulary import PAD, GeneVocabulary


@dataclass(frozen=True)
class TrainPlan:
    """What every worker is told.

    Attributes
    ----------
    vocabulary, preset, input_size
        Decide the model.
    loop
        Numbers of the loop; each worker sets its own rank.
    corpus
        Where the cells are.
    batch_size
        Cells of a step over all workers.
    held_fraction
        Share of the cells held out.
    mask_probability
        Share of the genes that are predicted.
    threads
        Torch threads on CPU.
    """

    vocabulary: GeneVocabulary
    preset: str
    input_size: int
    loop: LoopConfig
    corpus: str
    batch_size: int
    held_fraction: float
    mask_probability: float
    threads: int

    def order(self) -> TrainingOrder:
        """Return which cells come in which step."""
        return TrainingOrder(spans(Corpus.open(self.corpus)), self.batch_size, self.held_fraction, self.loop.seed)


def new_model(plan: TrainPlan) -> BertForMaskedLM:
    """Return the untrained model that the plan's seed gives."""
    config = bert_config(plan.preset, plan.vocabulary, plan.input_size)
    with torch.random.fork_rng():
        torch.manual_seed(plan.loop.seed)
        return BertForMaskedLM(config)


def train_worker(settings: dict[str, Any]) -> None:
    """Train on one worker of the group; Ray Train calls it with the plan."""
    from ray import train
    from ray.train import torch as ray_torch

    plan: TrainPlan = settings["plan"]
    context, device = train.get_context(), ray_torch.get_device()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    torch.set_num_threads(plan.threads)
    model = new_model(plan).to(device)
    loss = ray_torch.prepare_model(MaskedGeneLoss(model, plan.vocabulary))
    masker = GeneMasker(plan.vocabulary, plan.mask_probability, device)
    loop = Loop(loss, masker, plan.loop.of_rank(rank, world_size), device)
    if (checkpoint := train.get_checkpoint()) is not None:
        with checkpoint.as_directory() as directory:
            loop.load(Path(directory), model)

    def report(metrics: dict[str, float], due: bool) -> None:
        with tempfile.TemporaryDirectory() as folder:
            if due and rank == 0:
                loop.save(Path(folder), model)
            made = train.Checkpoint.from_directory(folder) if due and rank == 0 else None
            train.report(metrics, checkpoint=made)

    feed = Feed(plan.order(), rank, world_size, plan.vocabulary.special_tokens[PAD])
    loop.run(feed.batches(loop.step), feed.held_out(max(1, plan.batch_size // world_size)), report)
