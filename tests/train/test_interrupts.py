"""Ctrl-C: heard at once, though another handler has taken the signal, and never taken for a training that is done."""

import logging
import signal
import sys
import threading
import time

import pytest

from cellray.train.interrupts import interruptible


def test_an_interrupt_is_told_while_others_still_handle_it(caplog: pytest.LogCaptureFixture) -> None:
    before, wake = signal.getsignal(signal.SIGINT), signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(wake)
    seen: list[bool] = []

    def handler(*_: object) -> None:  # as Ray Train's: takes its time, then ends the process as if all was done
        for _ in range(6000):
            if "stopping" in caplog.text:
                break
            time.sleep(0.01)
        seen.append("stopping" in caplog.text)
        sys.exit(0)

    @interruptible()
    def train() -> None:
        signal.signal(signal.SIGINT, handler)
        signal.raise_signal(signal.SIGINT)

    with caplog.at_level(logging.WARNING), pytest.raises(KeyboardInterrupt):
        train()
    assert seen == [True]
    assert caplog.text.count("stopping: ") == 1
    assert signal.getsignal(signal.SIGINT) is before
    assert signal.set_wakeup_fd(wake) == wake


def test_nothing_is_told_without_one(caplog: pytest.LogCaptureFixture) -> None:
    with interruptible():
        pass
    assert not [record for record in caplog.records if record.name == "cellray.train.interrupts"]
    assert not any(thread.name == "cellray-interrupts" for thread in threading.enumerate())
