"""What every job's script shares: options, logging, and one line on standard error when something is wrong."""

import logging
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import TypeVar

from cellray.config import TRACEBACK, JobConfig, parse_config
from cellray.data.session import root_cause
from cellray.errors import InputError, StorageError, TrainingError

ConfigT = TypeVar("ConfigT", bound=JobConfig)


def run_job(
    name: str, config_class: type[ConfigT], job: Callable[[ConfigT], str], argv: Sequence[str] | None = None
) -> None:
    """Run a job and end the process: status 0 after printing what was made, 2 for bad input, 1 for anything else."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
    logging.getLogger("cellray").setLevel(logging.INFO)
    try:
        config = parse_config(config_class, sys.argv[1:] if argv is None else argv, f"python -m jobs.{name}")
        print(job(config))
    except InputError as error:
        _fail(f"{error}", 2)
    except (StorageError, TrainingError) as error:
        _fail(f"{error}", 1)
    except KeyboardInterrupt:
        _fail("interrupted; run the same command again to go on", 130)
    except Exception as error:  # the last line of defence of a process
        if os.environ.get(TRACEBACK):
            traceback.print_exc()
        cause = root_cause(error)
        first = str(cause).strip().split("\n", 1)[0]
        _fail(f"{type(cause).__name__}: {first} (set {TRACEBACK}=1 for the traceback)", 1)


def _fail(message: str, status: int) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(status)
