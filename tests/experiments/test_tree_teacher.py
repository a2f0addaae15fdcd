"""The tree teaches: its reasons are those of trees that never saw the user, and SFT learns them with any targets."""

import json

import lightgbm
import numpy as np
import pytest
from small_runs import continue_from, tiny_config

from experiments.stages import sft, tokenize, traces
from gr2_jax.evidence.words import FACT_WORDS
from gr2_jax.runs.fact_tables import FactTables
from gr2_jax.runs.inputs import config_of
from gr2_jax.runs.run import Run
from gr2_jax.runs.stages import open_context
from gr2_jax.teachers.sampling import TraceRequest
from gr2_jax.training.progress import Progress

FACTS = ("popularity", "lm_score", "text_history", "upstream_rank", "price_distance")


def change(run, directory=None, **changes):
  config = run.config.copy_and_resolve_references()
  with config.unlocked():
    config.update_from_flattened_dict({key.replace("__", "."): value for key, value in changes.items()})
  return Run(directory or run.directory, config, main=False)


def test_its_quotes_are_what_added_most_in_a_tree_that_never_saw_the_user(scored_run):
  style = {"prompt__facts": FACTS, "prompt__fact_form": "sentences"}
  run = change(Run.open(scored_run), **style, traces__source="tree", traces__presentation="upstream")
  stage = open_context(run, traces.STAGE, Progress(), None)
  slates, tables = stage.slates("train"), FactTables(run)
  trees = json.loads(run.path("evidence", "trees.json").read_bytes())
  folds = np.load(run.path("evidence", "tree_folds.npy"))
  users = [{slate.user for slate, of in zip(slates, folds, strict=True) if of == fold} for fold in range(2)]
  assert len(trees) == 2 and users[0] and users[1] and users[0].isdisjoint(users[1])
  teach, spoke = traces.make_teacher(stage), 0
  requests = [TraceRequest(slate, np.arange(len(slate.candidates)), 0.0, (0, row, 0)) for row, slate in enumerate(slates)]
  for row, (slate, found) in enumerate(zip(slates, teach(requests), strict=True)):
    facts = tables.read("train")[row, : len(slate.candidates)]
    model = lightgbm.Booster(model_str=trees[folds[row]])
    added = model.predict(facts, pred_contrib=True)
    np.testing.assert_allclose(added.sum(axis=1), tables.teacher[row, : len(slate.candidates)], atol=1e-9)
    assert found.ranking == tuple(np.argsort(-tables.teacher[row, : len(slate.candidates)], kind="stable").tolist())
    shown = added[:, [tables.codes.names.index(name) for name in FACTS]]
    first, second = found.ranking[:2]
    gains = shown[first] - shown.mean(axis=0)
    names = [FACTS[place] for place in np.argsort(-gains, kind="stable")[:3] if gains[place] > 0]
    text = stage.vocabulary.decode(found.reasoning)
    assert text.startswith(f"best <{chr(65 + first)}>")
    head, _, tail = text.partition(" then ")
    values = dict(zip(tables.codes.names, facts[first].tolist(), strict=True))
    assert head.count(";") == len(names) or not tail  # the sentences hold no other
    places = [head.find(FACT_WORDS[name].say(values[name])) for name in names]
    assert -1 not in places and places == sorted(places)
    apart = shown[first] - shown[second]
    assert bool(tail) == (apart.max() > 0)
    if tail:
      worst = FACTS[int(apart.argmax())]
      told = FACT_WORDS[worst].say(float(facts[second][tables.codes.names.index(worst)]))
      assert tail.startswith(f"<{chr(65 + second)}> {told}")
      spoke += 1
  assert spoke > 20


@pytest.mark.slow
def test_a_policy_that_reasons_learns_reasonings_with_any_targets(scored_run, tmp_path, run_here):
  run = change(Run.open(scored_run), tmp_path / "run", sft__targets="mixture")
  done = ("data", "tokenize", "midtrain", "slates", "evidence", "traces")
  continue_from(scored_run, tmp_path / "run", run.config, done)
  assert run_here(run.config, tmp_path / "run", ["sft"]) == 0
  lines = [json.loads(line) for line in (tmp_path / "run" / "metrics" / "sft.jsonl").read_text().splitlines()]
  nll = [line["nll_reasoning"] for line in lines if "nll_reasoning" in line]
  assert len(nll) == 3 and nll[-1] < nll[0]
  assert sft.policies(run.config)[0].mode == "reason"


def test_the_vocabulary_depends_on_the_facts_of_prompts_alone(tmp_path):
  def read(**changes):
    return config_of(Run(tmp_path, tiny_config(**changes)), tokenize.STAGE)

  assert set(read()) == {"seed", "tokenize"} and read() == read(prompt__max_history=3, evidence__bins=4, prompt__fact_form="sentences")
  shown = {"prompt__facts": ("age", "gap")}
  assert read(**shown)["prompt"] == {"facts": ["age", "gap"], "fact_form": "words"} and read(**shown)["evidence"] == {"bins": 16}
  assert read(**shown) == read(**shown, prompt__max_history=3, evidence__max_history=3) != read(**shown, evidence__bins=4)
