"""The server's program: its port is taken before any work, and what fails beside the server stops it."""

import socket
import threading
import time

import pytest

from experiments.listening import listen, run_beside
from gr2_jax.errors import UserError


def test_a_port_that_is_taken_is_told_at_once():
  with listen("127.0.0.1", 0) as taken:
    port = taken.getsockname()[1]
    with socket.create_connection(("127.0.0.1", port), timeout=5), pytest.raises(UserError, match=f"--port: .*:{port} .*another"):
      listen("127.0.0.1", port)
  listen("127.0.0.1", port).close()


class Server:
  """Runs until it should exit."""

  should_exit = False

  def run(self, sockets):
    self.sockets = sockets
    while not self.should_exit:
      time.sleep(0.01)


def test_what_fails_beside_the_server_stops_it():
  def fail():
    raise RuntimeError("no memory")

  with listen("127.0.0.1", 0) as listening, pytest.raises(RuntimeError, match="no memory"):
    run_beside(server := Server(), listening, fail)
  assert server.sockets == [listening]


def test_a_server_that_stops_leaves_the_rest_unfinished():
  server = Server()
  threading.Timer(0.05, lambda: setattr(server, "should_exit", True)).start()

  def warm_up():
    while not server.should_exit:
      time.sleep(0.01)
    raise InterruptedError

  with listen("127.0.0.1", 0) as listening:
    run_beside(server, listening, warm_up)
