"""One writer of several gives a file its name on disks without hard links: who makes the claim beside it may rename.

Knows nothing of what is written, and takes a claim that is older than any rename for that of a killed writer.
"""

import time
from pathlib import Path

_PAUSE_S = 0.05
_STALE_S = 60.0  # a claim is held for one rename


def rename_once(temporary: Path, target: Path) -> None:
    """Give a whole file its name, failing where the name is taken.

    A claim that a killed writer left is not removed by those who wait, since two might do so at once, and one of them
    remove what the other has made; its successor is claimed instead.

    Raises
    ------
    FileExistsError
        Another writer was first.
    """
    number = 0
    while not target.exists():
        claim = target.with_name(f".{target.name}.claim{number}.tmp")  # so called, `storage.sweep` clears it away
        try:
            claim.touch(exist_ok=False)
        except FileExistsError:
            number += _is_stale(claim, temporary)
            continue
        try:
            if target.exists():
                break
            temporary.replace(target)
        finally:
            for n in range(number + 1):
                target.with_name(f".{target.name}.claim{n}.tmp").unlink(missing_ok=True)
        return
    raise FileExistsError(str(target))


def _is_stale(claim: Path, temporary: Path) -> bool:
    """Wait a little for another writer; tell whether its claim is so old that it must have been killed."""
    time.sleep(_PAUSE_S)
    temporary.touch()  # the mount's own clock
    try:
        return temporary.stat().st_mtime - claim.stat().st_mtime > _STALE_S
    except FileNotFoundError:
        return False
