"""Whose turn it is to write a training's output: that of the job that began last; the ones before are told to stop.

A job that was killed cannot give anything back, so nothing is locked and nobody waits: who comes later takes over, and
who came earlier finds out at its next report. Knows nothing of what is written.
"""

import json
import secrets
import time
from dataclasses import dataclass, field

from cellray import storage

_FILE = "turn.json"
_LOOK_S = 2.0  # an object store is not asked at every step


@dataclass
class Turn:
    """One job's turn at a folder.

    Attributes
    ----------
    uri
        The file that names the job whose turn it is; empty: the folder is nobody else's.
    token
        Names this job.
    """

    uri: str = ""
    token: str = ""
    _looked: float = field(default=0.0, compare=False)

    @property
    def folder(self) -> str:
        """The folder it is about."""
        return self.uri.removesuffix(f"/{_FILE}")

    @classmethod
    def take(cls, folder: str) -> "Turn":
        """Take over a folder, which need not exist, from whoever has it."""
        turn = cls(storage.join(folder, _FILE), secrets.token_hex(8))
        storage.write_bytes(turn.uri, json.dumps({"token": turn.token}).encode())
        return turn

    def lost(self, *, at_once: bool = False) -> bool:
        """Tell whether another job took over, or finished and cleared away; looks now and then, or at once.

        A file that cannot be read for another reason than that it is gone says nothing.
        """
        now = time.monotonic()
        if not self.uri or (now - self._looked < _LOOK_S and not at_once):
            return False
        self._looked = now
        try:
            return bool(json.loads(storage.read_bytes(self.uri)).get("token") != self.token)
        except FileNotFoundError:
            return True
        except Exception:  # a store that is away for a moment, or a disk that is full
            return False
