"""What the classes write: tables as CSV with their index, as the official ones are."""

from pathlib import Path

import pandas as pd

from cellray import storage


def output_path(directory: str | Path, prefix: str, suffix: str) -> str:
    """Return where a result goes: `DIRECTORY/PREFIX` and the suffix."""
    return storage.join(storage.absolute(str(directory)), f"{prefix}{suffix}")


def write_csv(table: pd.DataFrame, uri: str) -> None:
    """Write a table with its index, in one step, over an earlier one."""
    with storage.atomic_file(uri) as path:
        table.to_csv(path)
