"""Ctrl-C during a training: answered at once, whoever handles the signal, and not taken for a training that is done."""

import logging
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

logger = logging.getLogger(__name__)


@contextmanager
def interruptible() -> Iterator[None]:
    """Let Ctrl-C be `KeyboardInterrupt`: Ray Train stops its workers, but then ends the process as if all was done.

    A person is told at once that it was heard, since stopping takes some seconds.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)
    try:
        with _answered():
            yield
    except SystemExit:
        raise KeyboardInterrupt from None
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _answered() -> Iterator[None]:
    """Tell of an interrupt when it comes.

    Python writes a byte to the wake-up socket for every signal, whatever its handler does and however long the main
    thread waits in Ray; Ray Train puts a handler of its own in place of any of ours.
    """
    heard, wake = socket.socketpair()
    wake.setblocking(False)
    before = signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
    thread = threading.Thread(target=_tell, args=(heard,), daemon=True, name="cellray-interrupts")
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        wake.shutdown(socket.SHUT_RDWR)  # `close` alone ends nothing while a forked child holds a copy
        wake.close()
        thread.join()
        heard.close()


def _tell(heard: socket.socket) -> None:
    """Tell of the first interrupt; ends when the other end of the socket is closed."""
    told = False
    while received := heard.recv(16):
        if not told and signal.SIGINT in received:
            told = True
            logger.warning("stopping: this may take some seconds; training can go on from the newest whole checkpoint")
