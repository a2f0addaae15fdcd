"""The chat client and the judge behind it, against a server on this machine that fails in every way an endpoint does."""

import http.server
import json
import threading
import time

import pytest

from gr2_jax.data.disk_cache import DiskCache
from gr2_jax.teachers.chat import ChatClient, ChatConfig, ChatError, after_reasoning

QUESTION = [{"role": "user", "content": "how good?"}]


class Stub(http.server.ThreadingHTTPServer):
  """Plays `script`, a list of (status, headers, body or seconds to sleep before 200), a step a request; the last one for ever after."""

  def __init__(self, script):
    super().__init__(("127.0.0.1", 0), Handler)
    self.script, self.requests, self.lock = list(script), [], threading.Lock()
    self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(http.server.BaseHTTPRequestHandler):
  def do_POST(self):
    body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
    with self.server.lock:
      self.server.requests.append((self.path, self.headers.get("Authorization"), body, time.monotonic()))
      script = self.server.script
      status, headers, content = script.pop(0) if len(script) > 1 else script[0]
    if isinstance(content, float):
      time.sleep(content)
      content = said("late")
    try:
      self.send_response(status)
      for name, value in headers.items():
        self.send_header(name, value)
      self.send_header("Content-Length", str(len(content)))
      self.end_headers()
      self.wfile.write(content)
    except OSError:
      pass  # the client did not wait

  def log_message(self, *_):
    pass


def said(text):
  return json.dumps({"choices": [{"message": {"content": text}}]}).encode()


@pytest.fixture
def serve():
  servers = []

  def start(*script):
    servers.append(Stub(script))
    threading.Thread(target=servers[-1].serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    return servers[-1]

  yield start
  for server in servers:
    server.shutdown()
    server.server_close()


@pytest.fixture
def make_client(tmp_path):
  waits = []

  def make(server, api_key=None, **options):
    config = ChatConfig(**{"url": server.url, "model": "m", "attempts": 3, "requests_per_minute": None, "workers": 1} | options)
    return ChatClient(config, DiskCache(tmp_path / "answers.jsonl"), api_key=api_key, sleep=waits.append)

  make.waits = waits
  return make


OK = (200, {}, said("fine"))


def test_a_question_in_the_common_form(serve, make_client):
  server = serve(OK)
  assert make_client(server, api_key="secret").ask([QUESTION], str.upper) == ["FINE"]
  path, authorization, body, _ = server.requests[0]
  assert (path, authorization) == ("/v1/chat/completions", "Bearer secret")
  assert body == {"model": "m", "messages": QUESTION, "temperature": 0, "max_tokens": 4096}


@pytest.mark.parametrize(
  ("failure", "wait"),
  [
    ((429, {"Retry-After": "7"}, b"slow down"), 7.0),
    ((429, {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, b""), 1.0),
    ((500, {}, b"oh"), 1.0),
    ((503, {"Retry-After": "9999"}, b""), 120.0),
    ((200, {}, b"<html>proxy</html>"), 1.0),
    ((200, {}, b'{"choices": []}'), 1.0),
    ((200, {}, b'{"choices": [{"message": {"content": null}}]}'), 1.0),
    ((200, {"Transfer-Encoding": "chunked"}, b"zz\r\n"), 1.0),
    ((200, {}, 0.6), 1.0),  # longer than the timeout
  ],
)
def test_what_another_attempt_may_mend_is_tried_again(serve, make_client, failure, wait):
  client = make_client(serve(failure, OK), timeout=0.3 if isinstance(failure[2], float) else 30.0)
  assert client.ask([QUESTION], str.upper) == ["FINE"]
  assert make_client.waits == [wait]


def test_attempts_end_with_the_reason_and_waits_double(serve, make_client):
  server = serve((500, {}, b"the disk is full"))
  with pytest.raises(ChatError, match=r"/v1: no usable answer in 3 attempts \(status 500: the disk is full\)"):
    make_client(server, backoff=0.5).ask([QUESTION], str)
  assert len(server.requests) == 3 and make_client.waits == [0.5, 1.0]


def test_a_refusal_is_not_tried_again(serve, make_client):
  server = serve((401, {}, b"no such key"))
  with pytest.raises(ChatError, match=r"status 401: no such key; check url, model and the key"):
    make_client(server).ask([QUESTION], str)
  assert len(server.requests) == 1


def test_an_endpoint_that_is_not_there(make_client, serve):
  server = serve(OK)
  server.shutdown()
  server.server_close()
  with pytest.raises(ChatError, match="no usable answer in 3 attempts"):
    make_client(server).ask([QUESTION], str)
  with pytest.raises(ChatError, match="give the url as http"):
    make_client(server, url="localhost").ask([QUESTION], str)


def test_an_answer_that_cannot_be_read_is_asked_for_once_more_with_a_temperature_and_never_kept(serve, make_client, tmp_path):
  server = serve((200, {}, said("no number")), (200, {}, said("7")))
  assert make_client(server).ask([QUESTION], int) == [7]
  assert [body["temperature"] > 0 for _, _, body, _ in server.requests] == [False, True]
  assert make_client(server).ask([QUESTION], int) == [7] and len(server.requests) == 2
  assert len((tmp_path / "answers.jsonl").read_text().splitlines()) == 1
  server = serve((200, {}, said("no number")))
  with pytest.raises(ChatError, match=r"'no number'.*max_tokens"):
    make_client(server, model="other", attempts=5).ask([QUESTION], int)
  assert len(server.requests) == 2


def test_a_reader_sees_what_follows_the_reasoning(serve, make_client):
  server = serve((200, {}, said("<think>1? No</think>2")), (200, {}, said("<think>1, or 2")), (200, {}, said("3")))
  assert make_client(server).ask([QUESTION], int) == [2]
  assert make_client(server, model="other").ask([QUESTION], int) == [3]  # what was cut off in its reasoning is no answer
  cut_off = json.dumps({"choices": [{"message": {"content": None, "reasoning_content": "1, or 2"}, "finish_reason": "length"}]}).encode()
  server = serve((200, {}, cut_off), (200, {}, said("4")))
  assert make_client(server, model="third").ask([QUESTION], int) == [4] and server.requests[1][2]["temperature"] > 0


@pytest.mark.parametrize(
  ("text", "answer"),
  [
    ("7", "7"),
    ("a draft</think>7", "7"),  # the template wrote the opening
    ("<think>a</think>b<think>c</think>7", "7"),
    ("<THINKING>a</THINKING> 7", " 7"),
    ("<reasoning>a</reasoning>7", "7"),
    ("[THINK]a[/THINK]7", "7"),
    ("<think>a</think>", ""),
    ("<think>a", None),
    ("a</think>b<think>c", None),
  ],
)
def test_reasoning_ends_with_its_last_closing(text, answer):
  if answer is None:
    with pytest.raises(ValueError, match="no end"):
      after_reasoning(text)
  else:
    assert after_reasoning(text) == answer


def test_what_was_answered_is_not_asked_again_after_a_failure(serve, make_client, tmp_path):
  questions = [[{"role": "user", "content": str(n)}] for n in range(5)]
  server = serve(OK, OK, (401, {}, b""), OK)
  with pytest.raises(ChatError):
    make_client(server).ask(questions, str)
  kept = len((tmp_path / "answers.jsonl").read_text().splitlines())
  before = len(server.requests)
  assert make_client(server).ask(questions, str) == ["fine"] * 5  # a new client, as in a new session
  assert 2 <= kept < 5 and len(server.requests) - before == 5 - kept
  assert make_client(server).ask(questions, str) == ["fine"] * 5
  assert len(server.requests) - before == 5 - kept


def test_requests_keep_their_distance(serve, tmp_path):
  server = serve(OK)
  config = ChatConfig(url=server.url, model="m", requests_per_minute=1200, workers=4)  # one in 50 ms
  client = ChatClient(config, DiskCache(tmp_path / "answers.jsonl"))
  began = time.monotonic()
  client.ask([[{"role": "user", "content": str(n)}] for n in range(5)], str)
  assert time.monotonic() - began >= 4 * 0.05


@pytest.mark.parametrize("options", [{"attempts": 0}, {"timeout": 0}, {"workers": 0}, {"backoff": -1}])
def test_settings_that_cannot_hold(options):
  with pytest.raises(ValueError, match=f"^{next(iter(options))}: "):
    ChatConfig(**options)


def test_an_endpoint_without_a_name(tmp_path):
  with pytest.raises(ValueError, match="url is empty"):
    ChatClient(ChatConfig(model="m"), DiskCache(tmp_path / "answers.jsonl"))
