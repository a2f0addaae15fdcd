"""Questions to a chat endpoint of the OpenAI-compatible form: retried, rate-limited, and answered from disk if asked before."""

import contextlib
import dataclasses
import http.client
import json
import re
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from gr2_jax.data.disk_cache import DiskCache, content_key
from gr2_jax.errors import UserError
from gr2_jax.settings import check_settings, setting

Answer = TypeVar("Answer")
_RETRIED = (408, 409, 425, 429)  # and everything from 500 on; other refusals will not change
_LONGEST_WAIT = 120.0  # seconds
_EXCERPT = 200
_OTHER_TEMPERATURE = 0.7  # of the second attempt at an answer that could not be read, which greedily would be the same again
_REASONING = r"(?:think|thinking|thought|reasoning)"
_OPENING, _CLOSING = (re.compile(pattern, re.IGNORECASE) for pattern in (rf"<{_REASONING}>|\[THINK\]", rf"</{_REASONING}>|\[/THINK\]"))


class ChatError(UserError):
  """An endpoint that gave no usable answer; the message names it, the last reason and what to do. Answers so far are kept."""


@dataclasses.dataclass(frozen=True)
class ChatConfig:
  """Where to ask and how patiently.

  An attempt fails by a refused or broken connection, a status of 429 or from 500 on, or `timeout` seconds without an answer; it is
  repeated up to `attempts` times in all, after `backoff` seconds, doubled each time, or as long as the endpoint asks for.
  Raises ValueError for values that cannot hold.
  """

  url: str = setting("", "address of an OpenAI-compatible endpoint; it ends before /chat/completions")
  model: str = setting("", "name of the model at the endpoint")
  api_key_variable: str = setting("", "name of the environment variable that holds the key; empty: none is needed")
  max_tokens: int = setting(4096, "limit of an answer, its reasoning included", unit="tokens", low=1)
  attempts: int = setting(6, "attempts at a question, in all", low=1)
  timeout: float = setting(300.0, "time after which an attempt is given up", unit="seconds", above=0)
  backoff: float = setting(1.0, "pause after the first failed attempt, doubled after each", unit="seconds", low=0)
  requests_per_minute: float | None = setting(60.0, "questions a minute, at most; None: no limit", above=0)
  workers: int = setting(4, "questions asked at the same time", low=1)

  def __post_init__(self) -> None:
    check_settings(self)


class _Transient(Exception):
  """A failed attempt that another may mend, and for how many seconds the endpoint asks to wait (None: it does not say)."""

  def __init__(self, reason: str, wait: float | None = None) -> None:
    super().__init__(reason)
    self.wait = wait


class _Pace:
  """Lets calls of all threads begin at most so often."""

  def __init__(self, per_minute: float | None, sleep: Callable[[float], None]) -> None:
    self._gap = 0.0 if per_minute is None else 60.0 / per_minute
    self._next = 0.0
    self._lock = threading.Lock()
    self._sleep = sleep

  def wait(self) -> None:
    with self._lock:
      now = time.monotonic()
      begin = max(self._next, now)
      self._next = begin + self._gap
    if begin > now:
      self._sleep(begin - now)


class ChatClient:
  """Asks an endpoint; `sleep` is what waits, so that tests need not."""

  def __init__(
    self, config: ChatConfig, cache: DiskCache, *, api_key: str | None = None, sleep: Callable[[float], None] = time.sleep
  ) -> None:
    for name in ("url", "model"):
      if not getattr(config, name):
        raise ValueError(f"{name} is empty; give the endpoint's, for example url=http://localhost:8000/v1")
    self._config, self._cache, self._api_key, self._sleep = config, cache, api_key, sleep
    self._pace = _Pace(config.requests_per_minute, sleep)

  def ask(self, questions: Sequence[Sequence[dict[str, str]]], read: Callable[[str], Answer]) -> list[Answer]:
    """The answer to each question (chat messages), read by `read`, which raises ValueError for a text that is none.

    `read` sees what follows the model's reasoning (`after_reasoning`). A text that cannot be read is asked for once more, at a temperature
    above 0. What was answered before, in this run or an earlier one, is not asked again: the key is the content of model and messages.
    Raises ChatError when an answer cannot be had; those that came meanwhile are kept.
    """
    with ThreadPoolExecutor(self._config.workers) as pool:
      futures = [pool.submit(self._answer, question, read) for question in questions]
      try:
        return [future.result() for future in futures]
      except BaseException:
        pool.shutdown(cancel_futures=True)
        raise

  def _answer(self, question: Sequence[dict[str, str]], read: Callable[[str], Answer]) -> Answer:
    body = {"model": self._config.model, "messages": list(question), "temperature": 0, "max_tokens": self._config.max_tokens}
    key = content_key(body)
    if key in self._cache:
      with contextlib.suppress(ValueError):  # kept by a version that read it
        return read(after_reasoning(self._cache[key]))
    try:
      text, answer = self._attempt(body, read)
    except ValueError:
      try:
        text, answer = self._attempt(body | {"temperature": _OTHER_TEMPERATURE}, read)
      except ValueError as error:
        raise ChatError(
          f"{self._config.url}: no readable answer, also not at temperature {_OTHER_TEMPERATURE} ({error}); ask another model, or raise "
          f"max_tokens, {self._config.max_tokens}, if it was cut off"
        ) from None
    self._cache.put(key, text)
    return answer

  def _attempt(self, body: dict[str, Any], read: Callable[[str], Answer]) -> tuple[str, Answer]:
    """A text and what `read` makes of it; raises ValueError, with the end of the text, where that is nothing."""
    text = self._post_patiently(body)
    try:
      return text, read(after_reasoning(text))
    except ValueError as error:
      raise ValueError(f"{error}: {text[-_EXCERPT:]!r}") from None

  def _post_patiently(self, body: dict[str, Any]) -> str:
    """The text of `_post`, as often as it takes; raises ChatError after the last attempt."""
    for attempt in range(self._config.attempts):
      self._pace.wait()
      try:
        return self._post(body)
      except _Transient as error:
        if attempt + 1 == self._config.attempts:
          raise ChatError(
            f"{self._config.url}: no usable answer in {attempt + 1} attempts ({error}); see that the endpoint is up and give the same "
            "command again: what it answered is kept"
          ) from None
        wait = self._config.backoff * 2**attempt if error.wait is None else error.wait
        self._sleep(min(wait, _LONGEST_WAIT))
    raise AssertionError("attempts is at least 1")

  def _post(self, body: dict[str, Any]) -> str:
    """The text of the first choice; raises _Transient for what another attempt may mend, ChatError for what it won't, and ValueError for
    a completion without any.
    """
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self._api_key}"} if self._api_key else {})
    url = self._config.url.rstrip("/") + "/chat/completions"
    try:
      request = urllib.request.Request(url, json.dumps(body).encode(), headers, method="POST")
      with urllib.request.urlopen(request, timeout=self._config.timeout) as response:
        content = response.read()
    except urllib.error.HTTPError as error:
      with error:
        reason = f"status {error.code}: {error.read(_EXCERPT).decode('utf-8', 'replace')}"
      if error.code in _RETRIED or error.code >= 500:
        raise _Transient(reason, _retry_after(error.headers.get("Retry-After"))) from None
      raise ChatError(f"{url}: {reason}; check url, model and the key") from None
    except (OSError, http.client.HTTPException) as error:  # refused, broken off, too late
      raise _Transient(f"{type(error).__name__}: {error}") from None
    except ValueError as error:
      raise ChatError(f"{url}: {error}; give the url as http://HOST:PORT/v1") from None
    try:
      choice = json.loads(content)["choices"][0]
      text, end = choice["message"]["content"], choice.get("finish_reason")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
      raise _Transient(f"not a chat completion: {content[:_EXCERPT].decode('utf-8', 'replace')!r}") from None
    if text is None and end == "length":
      raise ValueError("cut off in its reasoning")  # which the endpoint keeps apart
    if not isinstance(text, str):
      raise _Transient(f"no text in the answer: {text!r}")
    return text


def after_reasoning(text: str) -> str:
  """What a model says after the last end of its reasoning, `</think>` or the like; all of it where there is none.

  Raises ValueError where a reasoning is opened and not closed: what it holds are drafts.
  """
  rest = _CLOSING.split(text)[-1]
  if _OPENING.search(rest):
    raise ValueError("the reasoning has no end")
  return rest


def _retry_after(value: str | None) -> float | None:
  """Seconds that the endpoint asks to wait; None where it gives a date or nothing."""
  try:
    return max(float(value), 0.0) if value is not None else None
  except ValueError:
    return None
