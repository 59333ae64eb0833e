"""The checkpoints of one training: written aside while training goes on, whole or absent, the newest sound one found.

`URI/step-NNNNNNNN/` holds the files that `cellray.train.state` writes and `checkpoint.json`, written last, with the
digest of each. Knows nothing of Ray: the same store serves a training on a cluster, in a test and in a search.
"""

import fcntl
import json
import logging
import math
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cellray import storage
from cellray.errors import InputError
from cellray.formats import FORMAT_VERSION, require_known_version
from cellray.train.state import LOOP_STATE, State
from cellray.train.turn import Turn

logger = logging.getLogger(__name__)

RECORD = "checkpoint.json"
_PREFIX = "step-"
_VERSION = 1
"""Of a checkpoint's files; a record that tells none is of the first."""
_UPLOADS, _LOCK = "cellray-checkpoint-", "lock"


@dataclass
class Checkpoints:
    """A folder of checkpoints, written by one worker.

    Attributes
    ----------
    uri
        Local or `s3://`; need not exist.
    keep
        How many of the newest are kept; the best one is kept beside them.
    turn
        Whose turn it is to write here.
    notes
        What to tell a person, collected until somebody takes it.
    figures
        Size and time of the newest checkpoint, until somebody takes them.
    """

    uri: str
    keep: int = 2
    turn: Turn = field(default_factory=Turn)
    notes: list[str] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)
    failures: int = 0
    _writer: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1))
    _pending: "Future[None] | None" = None

    def steps(self) -> list[int]:
        """Return the steps that have a whole checkpoint, in ascending order, without looking into them."""
        storage.filesystem(self.uri)[0].invalidate_cache()
        return sorted(_step_of(path) for path in storage.glob(storage.join(self.uri, f"{_PREFIX}*", RECORD)))

    def save(self, step: int, state: State, metrics: Mapping[str, float], best_step: int | None) -> None:
        """Begin to write a checkpoint; returns as soon as the one before is written.

        A checkpoint that cannot be written is told of and does not end the training: the next one may succeed.

        Parameters
        ----------
        best_step
            The step whose checkpoint is to be kept for its quality.
        """
        self.settle()
        self._pending = self._writer.submit(self._write, step, state, dict(metrics), best_step)

    def finish(self) -> None:
        """Wait for the last checkpoint.

        Raises
        ------
        OSError, StorageError
            It could not be written.
        """
        if self._pending is not None:
            self._pending.result()
            self._pending = None

    def settle(self) -> None:
        """Wait for the checkpoint before, and tell of it if it failed."""
        try:
            self.finish()
        except Exception as error:  # full disk, no network: training goes on
            self._pending = None
            self.failures += 1
            last = max(self.steps(), default=None)
            kept = "none so far" if last is None else f"step {last:,}"
            self.notes.append(f"a checkpoint could not be written ({error}); the newest one is {kept}")

    def _write(self, step: int, state: State, metrics: dict[str, float], best_step: int | None) -> None:
        if self.turn.lost(at_once=True):  # what a job after this one writes is not to be touched
            return
        began = time.perf_counter()
        self._remove(step)  # a broken one may lie there
        with _new_folder(self._at(step)) as folder:
            state.write(folder)
            files = {path.name: _stamp(path) for path in sorted(folder.iterdir())}
            record = {FORMAT_VERSION: _VERSION, "step": step, "metrics": metrics, "files": files}
            (folder / RECORD).write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
        size = sum(stamp["size"] for stamp in files.values())
        seconds = time.perf_counter() - began
        self.notes.append(f"checkpoint of step {step:,}: {size / 2**20:,.1f} MiB in {seconds:.1f} s")
        self.figures = {"checkpoint_mb": size / 1e6, "checkpoint_s": seconds}
        kept = {*self.steps()[-self.keep :], best_step}
        for old in self.steps():
            if old not in kept:
                self._remove(old)

    @contextmanager
    def newest(self, at_most: int | None = None) -> Iterator[tuple[Path, dict[str, Any]] | None]:
        """Yield a local folder with the newest sound checkpoint and its record, or None if there is none.

        A checkpoint whose files are not those of its record is passed over, with a note.
        """
        for step in reversed(self.steps()):
            if at_most is not None and step > at_most:
                continue
            with storage.local_directory(self._at(step)) as folder:
                fault, record = _examine(folder)
                if fault is None:
                    yield folder, record
                    return
            note = f"{self._at(step)}: this checkpoint is broken ({fault}) and passed over"
            logger.warning("%s", note)
            self.notes.append(note)
        yield None

    @contextmanager
    def at(self, step: int) -> Iterator[Path]:
        """Yield a local folder with the checkpoint of a step.

        Raises
        ------
        InputError
            It is missing or broken.
        """
        with storage.local_directory(self._at(step)) as folder:
            fault, _ = _examine(folder)
            if fault is not None:
                fix = "Run again: training goes on from the newest sound one."
                raise InputError(self._at(step), "a checkpoint must hold what was written", fault, fix)
            yield folder

    def best(self, metric: str, *, higher: bool) -> int:
        """Return the step of the best checkpoint, as the newest sound one tells; its own where none was judged.

        Where the best one is lost (its disk was full), it is the best of those that are left, with a warning.

        Parameters
        ----------
        metric, higher
            What a checkpoint is judged by, and whether more is better.

        Raises
        ------
        InputError
            There is no sound checkpoint.
        """
        with self.newest() as found:
            if found is None:
                rule, fix = "a training must leave a checkpoint", "Run it again."
                raise InputError(self.uri, rule, "none that is sound", fix)
            folder, newest_record = found
            progress = json.loads((folder / LOOP_STATE).read_text())["progress"]
            newest = int(newest_record["step"])
            wanted = int(progress["best_step"] or newest)
        if wanted == newest or self._record(wanted) is not None:
            return wanted
        sound = {step: record for step in self.steps() if (record := self._record(step)) is not None}
        value = {step: float(record["metrics"].get(metric, math.nan)) for step, record in sound.items()}
        judged = [step for step in value if not math.isnan(value[step])] or [newest]
        kept = (max if higher else min)(judged, key=lambda step: value.get(step, 0.0))
        logger.warning("%s is lost; the best of the others, step %d, takes its place", self._at(wanted), kept)
        return kept

    def _record(self, step: int) -> dict[str, Any] | None:
        """Return the record of a checkpoint, None if it is missing or broken."""
        try:
            with storage.local_directory(self._at(step)) as folder:
                fault, record = _examine(folder)
        except FileNotFoundError:
            return None
        return record if fault is None else None

    def remove(self) -> None:
        """Remove all checkpoints."""
        storage.remove_directory(self.uri)

    def sweep(self) -> None:
        """Remove what killed writers left: beside the checkpoints, and on this machine's temporary disk."""
        if storage.is_local(self.uri):
            for left in Path(self.uri).glob(f".{_PREFIX}*.tmp"):
                shutil.rmtree(left, ignore_errors=True)
        for left in Path(tempfile.gettempdir()).glob(f"{_UPLOADS}*"):
            with suppress(OSError), (left / _LOCK).open() as lock:  # held as long as its writer lives
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(left, ignore_errors=True)

    def take_figures(self) -> dict[str, float]:
        """Return size and time of a checkpoint that was written since, once."""
        taken, self.figures = self.figures, {}
        return taken

    def take_notes(self) -> list[str]:
        """Return what there is to tell, once."""
        taken = list(self.notes)
        del self.notes[: len(taken)]
        return taken

    def _at(self, step: int) -> str:
        return storage.join(self.uri, f"{_PREFIX}{step:08d}")

    def _remove(self, step: int) -> None:
        """Remove a checkpoint, its record first, so that it is never taken for whole."""
        fs, path = storage.filesystem(storage.join(self._at(step), RECORD))
        if fs.exists(path):
            fs.rm_file(path)
        storage.remove_directory(self._at(step))


def newest_steps(folder: str) -> dict[str, int]:
    """Return the newest step of each training that has a checkpoint below a folder, by the name of its own folder."""
    storage.filesystem(folder)[0].invalidate_cache()
    found: dict[str, int] = {}
    for path in storage.glob(storage.join(folder, "*", f"{_PREFIX}*", RECORD)):
        name = path.rstrip("/").split("/")[-3]
        found[name] = max(found.get(name, 0), _step_of(path))
    return found


@contextmanager
def _new_folder(uri: str) -> Iterator[Path]:
    """Yield a local folder; what was written into it then lies at a URI, the record last."""
    if storage.is_local(uri):  # written where it is to lie: a large state is not copied
        with storage.new_directory(uri) as staged:
            yield Path(staged)
        return
    with tempfile.TemporaryDirectory(prefix=_UPLOADS) as name, (Path(name) / _LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        folder = Path(name) / "state"
        folder.mkdir()
        yield folder
        storage.publish_directory(folder, uri, last=RECORD)


def _stamp(path: Path) -> dict[str, Any]:
    return {"size": path.stat().st_size, "sha256": storage.sha256_file(str(path))}


def _examine(folder: Path) -> tuple[str | None, dict[str, Any]]:
    """Return what is wrong with a checkpoint, or None, and its record; one of a newer version is not passed over."""
    try:
        record = json.loads((folder / RECORD).read_text())
        for name, stamp in record["files"].items():
            if (folder / name).stat().st_size != stamp["size"]:
                return f"{name} was cut or grew", record
            if storage.sha256_file(str(folder / name)) != stamp["sha256"]:
                return f"{name} has other content", record
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return " ".join(str(error).split())[:200], {}
    require_known_version(str(folder / RECORD), "checkpoint", record.get(FORMAT_VERSION), _VERSION)
    return None, record


def _step_of(path: str) -> int:
    return int(path.rstrip("/").split("/")[-2].removeprefix(_PREFIX))
