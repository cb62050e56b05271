"""Signals that end a training: what is saved, when, and what a second one does."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from clit_basicsr.base import stopping as base
from clit_basicsr.base.errors import Terminated
from clit_basicsr.base.stopping import OrderlyStop
from clit_basicsr.hosts.basicsr import stopping

BOTH = pytest.mark.parametrize(
    ('number', 'error'), [(signal.SIGTERM, Terminated), (signal.SIGINT, KeyboardInterrupt)], ids=['SIGTERM', 'Ctrl-C']
)


class Stop(OrderlyStop):
    saved = 0

    def save(self):
        self.saved = self.iteration
        return f'saved {self.iteration}'

    def last_saved(self):
        return f'the last one is {self.saved}'


@pytest.fixture(autouse=True)
def handlers():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
    yield
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) is before[1]
    signal.signal(signal.SIGINT, before[0])


@BOTH
def test_the_first_signal_saves_after_the_iteration(number, error):
    with Stop() as stop:
        stop.after_iteration(1)
        signal.raise_signal(number)  # in iteration 2
        assert stop.saved == 0
        with pytest.raises(error, match=r'after iteration 2; saved 2$'):
            stop.after_iteration(2)


@BOTH
def test_a_second_signal_of_the_kind_ends_without_saving(number, error, monkeypatch):
    monkeypatch.setattr(base, 'ECHO', 0)
    with Stop() as stop:
        stop.after_iteration(1)
        signal.raise_signal(number)
        with pytest.raises(error, match=r'the last one is 0$'):
            signal.raise_signal(number)


@BOTH
def test_signals_that_come_together_count_as_one(number, error):
    with Stop() as stop:
        stop.after_iteration(1)
        for _ in range(3):
            signal.raise_signal(number)
        with pytest.raises(error, match=r'saved 2$'):
            stop.after_iteration(2)


def test_a_signal_at_another_process_ends_all(monkeypatch):
    with Stop() as stop:
        monkeypatch.setattr(stop, 'agree', lambda requested: True)
        with pytest.raises(Terminated, match=r'terminated after iteration 1; saved 1$'):
            stop.after_iteration(1)


@BOTH
def test_while_workers_start_a_signal_waits(number, error):
    with Stop() as stop:
        with pytest.raises(error, match=r'the last one is 0$'), base.starting_workers():
            signal.raise_signal(number)  # blocked
            os.kill(os.getpid(), number)
            reached = True
        assert reached and not stop.starting
        assert not signal.pthread_sigmask(signal.SIG_BLOCK, ()) & set(base.SIGNALS)


@BOTH
def test_later_workers_start_without_a_signal_being_lost(number, error):
    with Stop() as stop:
        stop.after_iteration(1)
        with base.starting_workers():
            signal.raise_signal(number)
        with pytest.raises(error, match=r'saved 2$'):
            stop.after_iteration(2)


def test_the_sigterm_of_torchrun_after_ctrl_c_changes_nothing():
    with Stop() as stop:
        stop.after_iteration(1)
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt, match=r'stopped after iteration 2; saved 2$'):
            stop.after_iteration(2)


@BOTH
def test_a_validation_is_left_immediately(number, error):
    with Stop() as stop:
        stop.after_iteration(3)
        with pytest.raises(error, match=r'saved 3$'), stop.validation():
            signal.raise_signal(number)
            pytest.fail('the validation went on')


@BOTH
def test_a_signal_between_iteration_and_validation(number, error):
    with Stop() as stop:
        stop.after_iteration(3)
        signal.raise_signal(number)
        with pytest.raises(error, match=r'saved 3$'), stop.validation():
            pytest.fail('the validation began')


@BOTH
def test_before_the_first_iteration_there_is_nothing_to_save(number, error):
    with Stop(), pytest.raises(error, match=r'the last one is 0$'):
        signal.raise_signal(number)


def test_ctrl_c_that_python_drops_is_raised_after_the_iteration():
    class Model:
        opt = {'iters_per_epoch': 1, 'path': {}}
        saved = ()

        def optimize_parameters(self, current_iter):
            with contextlib.suppress(KeyboardInterrupt):  # as an ignored exception in a hook after a fork
                signal.raise_signal(signal.SIGINT)

        def validation(self):
            pass

        def save(self, epoch, current_iter):
            self.saved = epoch, current_iter

    model = Model()
    with stopping.OrderlyStop() as stop:
        stop.watch(model)
        with pytest.raises(KeyboardInterrupt):
            model.optimize_parameters(1)
    assert model.saved == (0, 1)


def test_outside_the_main_thread_no_handler_is_set():
    seen = []

    def work():
        with Stop() as stop:
            seen.append((signal.getsignal(signal.SIGTERM), stop.before))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(before, {})]


def test_a_signal_that_is_ignored_stays_so():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with Stop() as stop:
        signal.raise_signal(signal.SIGINT)
        stop.after_iteration(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_what_is_ignored_stays_ignored_in_a_worker():
    command = [sys.executable, '-c', WORKER]
    ignoring = {'preexec_fn': lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, **ignoring) as worker:
        assert worker.stdout.readline() == b'ready\n'
        for _ in range(3):
            os.kill(worker.pid, signal.SIGINT)
            time.sleep(0.15)
        assert worker.poll() is None
        worker.kill()


WORKER = """
import signal, sys, time
from clit_basicsr.base import stopping
stopping.ECHO = 0.1
stopping.outlive_signals()
print('ready', flush=True)
while True:
    time.sleep(0.01)
"""


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_worker_outlives_the_first_signals(number):
    command = [sys.executable, '-c', WORKER]
    interruptible = {'preexec_fn': lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, **interruptible) as worker:
        assert worker.stdout.readline() == b'ready\n'
        for _ in range(3):
            os.kill(worker.pid, number)
        time.sleep(0.3)
        assert worker.poll() is None
        os.kill(worker.pid, number)
        assert worker.wait(10) == 128 + number
