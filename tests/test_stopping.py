"""Graceful shutdown: by time, by signals, and at once."""

import os
import signal

import pytest

from autobert_zero.search.stopping import Stop, Stopped


def test_time():
    assert not Stop()() and not Stop(1000)()
    stop = Stop(0)
    assert stop()
    with pytest.raises(Stopped, match="max_seconds have passed") as stopped:
        stop.check()
    assert stopped.value.code == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals(number):
    before = signal.getsignal(number)
    stop = Stop()
    with stop.listening():
        stop.check()
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), signal.SIGTERM)  # a second one changes nothing
        with pytest.raises(Stopped, match=f"received {signal.Signals(number).name}") as stopped:
            stop.check()
    assert stopped.value.code == 128 + number
    assert signal.getsignal(number) == before


def test_the_third_signal_ends_the_process_at_once():
    pid = os.fork()
    if pid == 0:
        with Stop().listening():
            for _ in range(3):
                os.kill(os.getpid(), signal.SIGINT)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 130
