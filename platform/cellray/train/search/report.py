"""The report of a search: a table of the trials, pictures, the best options as a file, how the best model tested."""

import json
import logging
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from cellray import plots, storage
from cellray.data.corpora.corpus import Corpus
from cellray.tracking import Tracker
from cellray.train.evaluation import HeadResult, flat_metrics, write_report
from cellray.train.finetune import METRICS, TEST_FIGURES, FinetuneConfig, title_of
from cellray.train.search.options import SearchConfig, lower_is_better, plain
from cellray.train.search.space import Space, with_values
from cellray.train.search.study import (
    COMPLETE,
    FEWEST,
    STOPPED,
    best_trials,
    importances,
    spread_of,
    trial_table,
)
from cellray.train.search.task_fields import with_task_fields, without_task_fields
from cellray.train.tasks.contract import Arrays, Task
from cellray.train.tasks.table import read_task
from cellray.train.tested_rows import TEST_PREDICTIONS, write_test_predictions

if TYPE_CHECKING:
    from optuna import Study

logger = logging.getLogger(__name__)

TRIALS, BEST, BEST_TASK = "trials.csv", "best.toml", "best_task.toml"
_UNNAMED = {"corpus", "model", "task", "output", "tracking_uri", "register_as"}


@dataclass(frozen=True)
class Winner:
    """The trial whose model is published.

    Attributes
    ----------
    number
        In the study.
    values
        Its options.
    reached, spread
        The objectives; over several inner folds their means and standard deviations.
    front
        Numbers of all trials that none beats in every objective, this one first.
    rule
        Why it was chosen.
    """

    number: int
    values: dict[str, Any]
    reached: dict[str, float]
    front: tuple[int, ...]
    rule: str
    spread: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "trial": self.number,
            "parameters": self.values,
            "objectives": self.reached,
            "spread": self.spread,
            "front": list(self.front),
            "rule": self.rule,
        }


def winner_of(study: "Study", space: Space, objectives: Sequence[str]) -> Winner:
    """Return the trial to publish; there must be one."""
    best = best_trials(study)
    first = best[0]
    rule = "best value" if len(objectives) == 1 else "of the Pareto front, smallest sum of ranks in the objectives"
    if first.state.name == "PRUNED":
        rule += "; every trial was stopped early"
    reached = dict(zip(objectives, first.values, strict=True))
    front, spread = tuple(trial.number for trial in best), spread_of(first, objectives)
    return Winner(first.number, space.decode(first.params), reached, front, rule, spread)


def write_search_report(
    uri: str,
    config: SearchConfig,
    corpus: Corpus,
    space: Space,
    study: "Study",
    winner: Winner,
    task: Task,
    tested: Arrays,
    facts: Mapping[str, Any],
    tracker: Tracker,
) -> list[HeadResult]:
    """Write the report, hand it to the tracker, and return the figures of the test part."""
    results, title = task.results([tested]), title_of(config.output)
    searched = {"search": {**winner.to_json(), **facts}}
    with tempfile.TemporaryDirectory(prefix="cellray-report-") as name:
        folder = Path(name)
        made = write_search_files(folder, config, space, study, winner, title)
        made += write_report(folder, results, task.folds, title, task.details([tested]) | searched)
        answers = write_test_predictions(folder / TEST_PREDICTIONS, task.test_rows(corpus, [tested]))
        for path in filter(None, [*made, answers]):
            tracker.log_file(path)
        if storage.exists(uri):  # of a search that was broken off before its model was published
            storage.remove_directory(uri)
        storage.publish_directory(folder, uri, last=METRICS)
    tested_on = {f"{TEST_FIGURES}{name}": value for name, value in flat_metrics(results).items()}
    tracker.log_metrics(tested_on | {f"best/{name}": v for name, v in winner.reached.items()}, 0)
    return results


def write_search_files(
    folder: Path, config: SearchConfig, space: Space, study: "Study", winner: Winner, title: str
) -> list[Path]:
    """Write the table of trials, the best options and the pictures; returns the files."""
    table = trial_table(study, config.objectives, space.decode)
    table.to_csv(folder / TRIALS, index=False)
    made = [folder / TRIALS, folder / BEST]
    own = best_task(config, winner)
    (folder / BEST).write_text(best_toml(config, winner, task_of(config) if own else None))
    if own:
        made.append(folder / BEST_TASK)
        made[-1].write_text(own)
    return [*made, *_draw(folder, config, study, table, winner, title)]


def task_of(config: SearchConfig) -> str:
    """Return where the best task lies once the report is published."""
    return storage.join(f"{storage.absolute(config.output)}.report", BEST_TASK)


def best_task(config: SearchConfig, winner: Winner) -> str:
    """Return the task file with the winner's values, empty where none of its fields was searched."""
    if winner.values.keys() == without_task_fields(winner.values).keys():
        return ""
    content = with_task_fields(read_task(config.task), winner.values).model_dump(mode="json", exclude_none=True)
    return "".join(f"{name} = {_toml(value)}\n" for name, value in content.items())


def best_toml(config: SearchConfig, winner: Winner, task: str | None = None) -> str:
    """Return the winner's options as a file for `jobs.finetune --config`: those that were searched or are not default.

    Where runs are recorded is left out, since that may hold a password.
    """
    best = with_values(config.base(), winner.values)
    told: dict[str, Any] = {
        "corpus": storage.absolute(config.corpus),
        "model": config.model if config.model.startswith("models:") else storage.absolute(config.model),
        "task": task or storage.absolute(config.task),
        "output": f"{storage.absolute(config.output)}.best",
    }
    for name, value in best.model_dump(mode="json").items():
        default = FinetuneConfig.model_fields[name].default
        changed = value != (list(default) if isinstance(default, tuple) else default)
        if name not in _UNNAMED and (name in winner.values or (changed and value is not None)):
            told[name] = value
    where = "the mean over the inner folds" if winner.spread else "the validation part"
    lines = [
        f"# Trial {winner.number}: {plain(winner.reached)}, {where}.",
        "# python -m jobs.finetune --config best.toml trains with these options; the command line outweighs them.",
    ]
    return "\n".join([*lines, *(f"{name} = {_toml(value)}" for name, value in told.items())]) + "\n"


def _toml(value: Any) -> str:  # noqa: ANN401
    """Return a value in TOML; JSON's text and numbers are TOML's too."""
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{json.dumps(key)} = {_toml(each)}' for key, each in value.items())}}}"
    return json.dumps(value, allow_nan=False)


def _draw(
    folder: Path, config: SearchConfig, study: "Study", table: pd.DataFrame, winner: Winner, title: str
) -> list[Path]:
    """Draw history and importances of each objective, and the Pareto front of every two."""
    made, names = [], config.objectives
    complete = int((table["state"] == COMPLETE).sum())
    for i, name in enumerate(names):
        file_name = name.replace("/", "_")
        history = folder / f"history_{file_name}.png"
        plots.history_png(table, name, history, title, lower_is_better=lower_is_better(name))
        made.append(history)
        if shares := importances(study, i):
            path = folder / f"importance_{file_name}.png"
            plots.importance_png(shares, path, title, name, trials=complete)
            made.append(path)
        else:
            why = f"{complete:,} trials came to their end, at least {FEWEST} are needed"
            why = "the trials that came to their end are alike" if complete >= FEWEST else why
            logger.info("no picture of how important options are for %s: %s", name, why)
    usable = table[table["state"].isin([COMPLETE, STOPPED])]
    for i, x in enumerate(names):
        for y in names[i + 1 :]:
            path = folder / f"pareto_{x}_{y}.png".replace("/", "_")
            directions = (lower_is_better(x), lower_is_better(y))
            plots.pareto_png(usable, (x, y), winner.front, path, title, lower_is_better=directions)
            made.append(path)
    return made
