"""Splits a corpus into several, or takes some cells of each class: the options, and which rule they ask for."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import Field, model_validator

from cellray import schema, storage
from cellray.config import JobConfig
from cellray.data.corpora.corpus import Corpus
from cellray.data.corpora.ranks import class_counts
from cellray.data.corpora.rules import ByShare, ByValue, grouped, so_many_of_each, stratified
from cellray.data.corpora.select_cells import Rule, Target, write_selections
from cellray.errors import InputError, listing
from cellray.schema import CorpusManifest

SELECTED = "selected"
_MOST_VALUES = 1000
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
NOT_HERE = "not in this split"
NOT_DRAWN = "not drawn"


class SplitConfig(JobConfig):
    """Split a token corpus into new ones below OUTPUT: at random, by an obs column's values, or take some values."""

    corpus: str = Field(description="token corpus")
    output: str = Field(description="directory or s3:// URI; each new corpus goes to OUTPUT/NAME")
    shares: tuple[str, ...] = Field(
        (), description="random split: names and shares of the new corpora, as train=0.8,valid=0.1,test=0.1"
    )
    group_by: str | None = Field(
        None,
        description="obs column whose groups stay together, as donor; the shares of cells come as near as they let",
    )
    stratify: str | None = Field(None, description="obs column of whose every class each new corpus gets its share")
    by: str | None = Field(None, description="obs column: a new corpus for each of its values")
    where: str | None = Field(
        None, description=f"take cells of some values, as celltype=a,b; they go to OUTPUT/{SELECTED}"
    )
    seed: int = Field(0, ge=0, description="of the random split")
    cells_per_shard: int = Field(8192, ge=1, description="cells of a shard, about [cells]")
    workers: int | None = Field(None, ge=1, description="most tasks at the same time, default: what the cluster has")

    @model_validator(mode="after")
    def _one_way(self) -> "SplitConfig":
        if sum(map(bool, (self.shares, self.by, self.where))) != 1:
            raise ValueError("give one of --shares, --by and --where")
        if (self.group_by or self.stratify) and not self.shares:
            raise ValueError("--group-by and --stratify go with --shares")
        if self.group_by and self.stratify:
            raise ValueError("give --group-by or --stratify, not both: groups that stay together cannot be cut to size")
        if self.where and not (self.where.partition("=")[0].strip() and self.where.partition("=")[2]):
            raise ValueError(f"--where {self.where}: must be COLUMN=VALUE,VALUE")
        parse_shares(self.shares)
        return self


class SubsampleConfig(JobConfig):
    """Take at most so many cells of each class of a token corpus, drawn at random."""

    corpus: str = Field(description="token corpus")
    output: str = Field(description="directory or s3:// URI of the new corpus")
    class_column: str = Field(description="obs column with the class; cells without a value are left out")
    per_class: int = Field(ge=1, description="cells of each class; all of a class that has fewer [cells]")
    seed: int = Field(0, ge=0, description="of the draw")
    cells_per_shard: int = Field(8192, ge=1, description="cells of a shard, about [cells]")
    workers: int | None = Field(None, ge=1, description="most tasks at the same time, default: what the cluster has")


@dataclass(frozen=True)
class Made:
    """One new corpus: where it is and what is in it."""

    uri: str
    title: str
    manifest: CorpusManifest


def parse_shares(shares: Sequence[str]) -> dict[str, float]:
    """Return name and share of each new corpus.

    Raises
    ------
    ValueError
        One is not NAME=SHARE, a name comes twice or is no plain name, or the shares exceed 1.
    """
    found: dict[str, float] = {}
    for item in shares:
        name, _, number = (text.strip() for text in item.partition("="))
        try:
            share = float(number)
        except ValueError:
            share = -1.0
        if not _NAME.fullmatch(name) or not 0 < share <= 1 or name in found:
            raise ValueError(f"--shares {item}: must be NAME=SHARE, each name once, each share above 0 and at most 1")
        found[name] = share
    if sum(found.values()) > 1 + 1e-9:
        raise ValueError(f"--shares: they add up to {sum(found.values()):g}, more than 1")
    return found


def split_corpus(config: SplitConfig) -> list[Made]:
    """Split a corpus; finished new corpora are kept as they are.

    Raises
    ------
    InputError
        The corpus is unfinished or lacks the column, a new corpus would be empty, or an output holds something else.
    """
    corpus = Corpus.open(config.corpus)
    rule, names = _rule(config, corpus)
    how = config.model_dump(include={"shares", "group_by", "stratify", "by", "where", "seed"}, exclude_none=True)
    targets = [
        Target(storage.join(config.output, name), title, f"split {title!r} of {how}", NOT_HERE)
        for name, title in names.items()
    ]
    manifests = write_selections(corpus, rule, targets, config.cells_per_shard, config.workers)
    return [Made(target.output, target.title, manifest) for target, manifest in zip(targets, manifests, strict=True)]


def subsample_corpus(config: SubsampleConfig) -> Made:
    """Take at most `per_class` cells of each class; a finished result is returned as it is.

    Raises
    ------
    InputError
        The corpus is unfinished or lacks the column, no cell has a class, or the output holds something else.
    """
    corpus = Corpus.open(config.corpus)
    corpus.require_column(config.class_column, "--class-column")
    rule = so_many_of_each(corpus, config.class_column, config.per_class, config.seed)
    how = f"{config.per_class} cells of each {config.class_column!r}, seed {config.seed}"
    target = Target(config.output, config.output, how, NOT_DRAWN)
    (manifest,) = write_selections(corpus, rule, [target], config.cells_per_shard, config.workers)
    return Made(config.output, how, manifest)


def _rule(config: SplitConfig, corpus: Corpus) -> tuple[Rule, dict[str, str]]:
    """Return the rule that the options ask for, and folder and title of each new corpus."""
    for column, option in ((config.group_by, "--group-by"), (config.stratify, "--stratify"), (config.by, "--by")):
        if column is not None:
            corpus.require_column(column, option)
    if config.by is not None:
        return _each_value(corpus, config.by)
    if config.where is not None:
        return _some_values(corpus, config.where)
    shares = parse_shares(config.shares)
    numbers, names = tuple(shares.values()), {name: name for name in shares}
    if config.group_by is not None:
        return grouped(corpus, config.group_by, numbers, config.seed), names
    if config.stratify is not None:
        return stratified(corpus, config.stratify, numbers, config.seed), names
    return ByShare(numbers, config.seed), names


def _each_value(corpus: Corpus, column: str) -> tuple[Rule, dict[str, str]]:
    """Return the rule that sends each value's cells to a corpus of its own; cells without a value go nowhere."""
    values = [value for value in class_counts(corpus, column) if value is not None]
    if not 0 < len(values) <= _MOST_VALUES:
        fix = "Choose a column of labels."
        raise InputError("--by", f"names an obs column of 1 to {_MOST_VALUES:,} values", f"{len(values):,}", fix)
    rule = ByValue(column, {value: i for i, value in enumerate(values)})
    return rule, dict(zip(folder_names(values), values, strict=True))


def _some_values(corpus: Corpus, where: str) -> tuple[Rule, dict[str, str]]:
    """Return the rule that takes the cells of some values.

    Raises
    ------
    InputError
        No cell has one of them.
    """
    column, _, listed = where.partition("=")
    corpus.require_column(column.strip(), "--where")
    wanted = [value.strip() for value in listed.split(",")]
    there = [value for value in class_counts(corpus, column.strip()) if value is not None]
    if missing := [value for value in wanted if value not in there]:
        found = f"no cell with {listing(missing)}; there are {listing(there, 30)}"
        raise InputError("--where", f"must name values of obs column {column.strip()!r}", found, "Correct the values.")
    return ByValue(column.strip(), dict.fromkeys(wanted, 0)), {SELECTED: SELECTED}


def folder_names(values: Sequence[str]) -> list[str]:
    """Return a plain folder name for each value; those that would be alike, in any case of letters, get a digest."""
    plain = [re.sub(r"[^\w.+-]+", "_", value).lstrip(".") or "empty" for value in values]
    folded = [name.casefold() for name in plain]
    return [
        f"{name}-{schema.request_digest(value=value)[:8]}" if folded.count(fold) > 1 else name
        for name, fold, value in zip(plain, folded, values, strict=True)
    ]
