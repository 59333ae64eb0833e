"""Task files of our fine-tuning, written for a classifier."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from cellray import storage
from cellray.errors import InputError, listing


def write_task(
    place: str,
    head: str,
    classes: list[str],
    genes: Mapping[str, Sequence[str]] | None,
    split: Mapping[str, Any],
    *,
    balance: bool,
) -> str:
    """Write the task file, and for genes their table, and return its place.

    Parameters
    ----------
    place
        Both begin with this.
    head, classes
        What is told, and the order of its classes.
    genes
        Class to its genes; None: `head` is the column of the cells' classes.
    split
        Options of `cellray.train.folds.SplitConfig`.
    balance
        Whether rare classes weigh more.

    Raises
    ------
    InputError
        These are not the classes of the genes.
    """
    task: dict[str, Any] = {"class_weights": "balanced" if balance else "none"}
    if genes is None:
        task |= {"task": "cell_classification", "label": head, "classes": classes}
    else:
        if set(classes) != set(genes):
            fix = "Name the file that prepare_data wrote for these classes."
            raise InputError("id_class_dict_file", f"must hold {listing(genes)}", listing(classes), fix)
        table = f"{place}.genes.json"
        storage.write_bytes(table, json.dumps({name: list(genes[name]) for name in classes}).encode())
        task |= {"task": "gene_classification", "name": head, "genes": table}
    uri = f"{place}.task.toml"
    storage.write_bytes(uri, f"{_lines(task)}\n[split]\n{_lines(split)}".encode())
    return uri


def _lines(values: Mapping[str, Any]) -> str:
    """Return values as TOML, whose text, numbers, flags and lists are written as in JSON."""
    return "".join(f"{name} = {json.dumps(value, ensure_ascii=False)}\n" for name, value in values.items())
