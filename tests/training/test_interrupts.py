"""Signals become requests; the second Ctrl-C kills."""

import os
import signal
import subprocess
import sys

import pytest

from gr2_jax.training.interrupts import Interrupted, StopSignal


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_only_sets_the_request(number, code):
  before = signal.getsignal(number)
  with StopSignal() as stop:
    stop.check()
    assert not stop.requested
    os.kill(os.getpid(), number)
    assert stop.requested
    with pytest.raises(Interrupted, match=signal.Signals(number).name) as caught:
      stop.check()
  assert caught.value.exit_code == code
  assert signal.getsignal(number) is before


def test_a_second_interrupt_kills_at_once():
  program = (
    "import os, signal\n"
    "from gr2_jax.training.interrupts import StopSignal\n"
    "with StopSignal():\n"
    "  os.kill(os.getpid(), signal.SIGINT)\n"
    "  print('still here', flush=True)\n"
    "  os.kill(os.getpid(), signal.SIGINT)\n"
    "  print('not killed')\n"
  )
  result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
  assert result.returncode == -signal.SIGINT
  assert result.stdout == "still here\n"
