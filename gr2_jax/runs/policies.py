"""The manifest of a run's policies: what each is called, how it answers, where its parameters lie. Serving and evaluation read it."""

import dataclasses
import json
import pathlib
from collections.abc import Sequence

from gr2_jax.files import write_json
from gr2_jax.runs.run import Run, RunError

_FILE = "policies.json"
LAYERS_FILE = "layers.json"  # of a stage that cuts: which layers it has `kept`


@dataclasses.dataclass(frozen=True)
class RankerRecord:
  """A policy asked in one mode: `reason` (a reasoning, then the ranking), `direct` (the ranking at once), `score` (one pass, no decoding).

  `name`: in results.json; `title`: in tables; `against`: rankers that it is compared with in pairs, besides the upstream order.
  `trained`: whether it was trained to answer in this mode, and not only can be asked in it.
  """

  name: str
  title: str
  mode: str
  against: tuple[str, ...] = ()
  trained: bool = True


@dataclasses.dataclass(frozen=True)
class PolicyRecord:
  """A policy that a `stage` leaves in its folder `checkpoints`. The first of its `rankers` is how it was trained to answer.

  `layers`: how many it has, where it was cut (None: those of the run's model); `kept`: which, in a record that was read. `prior`: whether
  RL may have started from it. `form`: of its answers, see `config.answer`.
  """

  stage: str
  rankers: tuple[RankerRecord, ...]
  checkpoints: str = "checkpoints"
  layers: int | None = None
  kept: tuple[int, ...] | None = None
  prior: bool = False
  form: str = "written"

  @property
  def mode(self) -> str:
    """How the policy was trained to answer."""
    return self.rankers[0].mode

  @property
  def trained(self) -> tuple[str, ...]:
    """The modes that it was trained to answer in; orders that it gives in others mean nothing."""
    return tuple(ranker.mode for ranker in self.rankers if ranker.trained)


def write_policies(run: Run, stage: str, policies: Sequence[PolicyRecord]) -> None:
  """Writes a stage's part of the manifest, `RUN/STAGE/policies.json`."""
  write_json(run.path(stage, _FILE), [dataclasses.asdict(policy) for policy in policies])


def read_policies(run: Run) -> list[PolicyRecord]:
  """The policies of all finished stages, in the order in which the stages come."""
  found = [path for path in run.directory.glob(f"*/{_FILE}") if run.is_done(path.parent.name)]
  places = {path: ((run.done(path.parent.name) or {})["place"], path.parent.name) for path in found}
  return [policy for path in sorted(found, key=places.__getitem__) for policy in _read_records(path)]


def find_policy(run: Run, stage: str) -> PolicyRecord:
  """The first policy of a finished stage; raises RunError, naming those that there are, where the stage leaves none or is not finished."""
  policies = read_policies(run)
  found = next((policy for policy in policies if policy.stage == stage), None)
  if found is None:
    trained = ", ".join(dict.fromkeys(policy.stage for policy in policies))
    other = f"name a stage that has one: {trained}" if trained else "name another run"
    raise RunError(f"stage: {run.directory} has no finished policy of {stage!r}; run the stage first, or {other}")
  return found


def _read_records(path: pathlib.Path) -> list[PolicyRecord]:
  try:
    records = [_to_policy(record) for record in json.loads(path.read_bytes())]
  except (ValueError, KeyError, TypeError) as error:
    folder = path.parent
    raise RunError(f"{path} is damaged ({error}); restore it, or remove {folder} and run the stage {folder.name!r} again") from None
  return [record if record.layers is None else dataclasses.replace(record, kept=read_kept_layers(path.parent)) for record in records]


def read_kept_layers(folder: pathlib.Path) -> tuple[int, ...]:
  """The layers that a stage has left, by its folder; raises RunError where that is not written."""
  path = folder / LAYERS_FILE
  try:
    return tuple(json.loads(path.read_bytes())["kept"])
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise RunError(f"{path} is missing or damaged ({error}); restore it, or remove {folder} and run {folder.name!r} again") from None


def _to_policy(record: dict) -> PolicyRecord:
  # Manifests of versions that did not say what was trained: the first mode was, and one pass wherever it is listed.
  rankers = tuple(
    RankerRecord(**{"trained": place == 0 or ranker["mode"] == "score", **ranker, "against": tuple(ranker["against"])})
    for place, ranker in enumerate(record["rankers"])
  )
  return PolicyRecord(**{**record, "rankers": rankers})
