"""Numbers of classes: written as JSON, read from JSON or from an official pickle."""

import json
from pathlib import Path

from cellray import storage
from cellray.errors import InputError
from cellray.safe_pickle import load_nested_dict


def write_class_ids(classes: list[str], uri: str) -> None:
    """Write number to class."""
    storage.write_bytes(uri, (json.dumps(dict(enumerate(classes)), indent=1) + "\n").encode())


def read_class_ids(given: str | Path) -> list[str]:
    """Return the classes in the order of their numbers.

    A path that ends in `.pkl` and is not there means the JSON beside it: notebooks name the official file.

    Raises
    ------
    InputError
        There is no such file, or its numbers are not 0, 1, 2, ...
    """
    uri = storage.absolute(str(given))
    pickled = uri.endswith(".pkl") and storage.exists(uri)
    if pickled:
        found = load_nested_dict(Path(uri))
    else:
        uri = uri.removesuffix(".pkl").removesuffix(".json") + ".json"
        found = storage.read_json(uri) if storage.exists(uri) else {}
    numbers = {int(number): str(name) for number, name in found.items() if str(number).isdigit()}
    if not numbers or sorted(numbers) != list(range(len(found))):
        rule, fix = "id_class_dict_file maps 0, 1, 2, ... to classes", "Run prepare_data, which writes it."
        raise InputError(uri, rule, f"{list(found)[:5]}" if found else "no such file", fix)
    return [numbers[number] for number in range(len(numbers))]
