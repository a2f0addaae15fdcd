"""The server keeps what its schema says, whatever it is sent: schemathesis against a server on the loopback."""

import importlib.util
import socket
import subprocess
import sys
import threading
import time

import pytest
import uvicorn

from gr2_jax.serving.server import ServerOptions, make_app


@pytest.fixture
def address(make_reranker):
  with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    port = probe.getsockname()[1]
  reranker = make_reranker(modes=("score",), mode="score", batch_size=1)
  reranker.warm_up()
  app = make_app(reranker, ServerOptions(max_body=2**24))  # so that lists beyond the schema's limit get 422, as schemathesis asks for
  server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="warning"))
  thread = threading.Thread(target=server.run)
  thread.start()
  while not server.started:
    time.sleep(0.05)
  yield f"http://127.0.0.1:{port}"
  server.should_exit = True
  thread.join(30)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("schemathesis") is None, reason="schemathesis is not installed; pip install schemathesis")
def test_the_schema_is_kept(address, tmp_path):
  # What the schema allows may still be refused: it cannot say which items the catalogue has.
  checks = ["--checks=all", "--exclude-checks=positive_data_acceptance"]
  program = "from schemathesis.cli import schemathesis; schemathesis()"
  command = [sys.executable, "-c", program, "run", f"{address}/openapi.json", *checks, "--max-examples=100", "--seed=0"]
  done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=1800)
  assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
