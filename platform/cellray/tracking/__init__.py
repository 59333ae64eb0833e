"""Records runs and registers models. The only importer of MLflow.

`start_run` returns a tracker that writes to MLflow, or one that writes nothing, so callers never ask which. A tracker
is small and can be sent to another process, which then writes to the same run; but a run should have one writer.
"""

from cellray.tracking.contract import NullTracker, Tracker
from cellray.tracking.server import OFF
from cellray.tracking.start import start_run

__all__ = ["OFF", "NullTracker", "Tracker", "start_run"]
