"""The server keeps what its schema says, whatever it is sent: schemathesis against a server on the loopback."""

import socket
import threading
import time

import pytest
import uvicorn
from hypothesis import HealthCheck, settings

from gr2_jax.serving.server import make_app

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed; pip install schemathesis")
checks = pytest.importorskip("schemathesis.specs.openapi.checks")


@pytest.fixture(scope="module")
def api(make_reranker):
  with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    port = probe.getsockname()[1]
  reranker = make_reranker(modes=("score",), mode="score", batch_size=1)
  server = uvicorn.Server(uvicorn.Config(make_app(reranker), port=port, log_level="warning"))
  thread = threading.Thread(target=server.run)
  thread.start()
  while not server.started:
    time.sleep(0.05)
  yield schemathesis.openapi.from_url(f"http://127.0.0.1:{port}/openapi.json")
  server.should_exit = True
  thread.join(30)


schema = schemathesis.pytest.from_fixture("api")


@pytest.mark.slow
@schema.parametrize()
@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
def test_the_schema_is_kept(case):
  # What the schema allows may still be refused: it cannot say which items the catalogue has.
  case.call_and_validate(excluded_checks=[checks.positive_data_acceptance])
