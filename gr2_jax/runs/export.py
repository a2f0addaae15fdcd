"""A run's policy as a folder that `transformers` and vLLM load: weights, tokenizer, chat template, and a card that says how to ask it."""

import json
import os
import pathlib

import jax

from gr2_jax.language.prompts import direct_opening, present, render_prompt
from gr2_jax.language.tokenizer_files import chat_messages, tokenizer_files
from gr2_jax.language.vocabulary import Vocabulary
from gr2_jax.models.conversion import check_free, write_model
from gr2_jax.models.families import family_of
from gr2_jax.models.hf_folders import as_published
from gr2_jax.models.published import config_json
from gr2_jax.runs.artifacts import check_intact
from gr2_jax.runs.load import load_policy, load_slates, open_context, prompt_style, style_of_mode
from gr2_jax.runs.policies import PolicyRecord, find_policy, read_policies
from gr2_jax.runs.run import Run, RunError
from gr2_jax.runs.versions import version_of
from gr2_jax.training.interrupts import StopSignal
from gr2_jax.training.mesh import make_mesh
from gr2_jax.training.progress import Progress

_FINAL = "rl"  # the stage that a run stands for, where it has it


def find_exported(path: str | os.PathLike[str]) -> tuple[Run, PolicyRecord]:
  """The run and policy of RUN, its final one, or of RUN/STAGE; raises RunError where that is none, or no language model."""
  path = pathlib.Path(path)
  inner = not (path / "config.json").exists() and (path.parent / "config.json").exists()
  run = Run.open(path.parent if inner else path)
  if inner:
    record = find_policy(run, path.name)
  else:
    found = read_policies(run)
    if not found:
      raise RunError(f"{run.directory} has no finished policy; run its stages first")
    record = next((policy for policy in found if policy.stage == _FINAL), found[-1])
  if record.form == "scored":
    written = [policy.stage for policy in read_policies(run) if policy.form == "written"]
    other = f"name {run.directory}/{written[-1]}" if written else "give a run of the written form, such as one of configs/written.py"
    raise RunError(f"{run.directory}/{record.stage}: its policy scores candidates in one pass and is no language model; {other}")
  return run, record


def export_policy(
  run: Run, record: PolicyRecord, to: str | os.PathLike[str], dtype: str | None, progress: Progress, stop: StopSignal
) -> None:
  """Writes the policy as a folder; raises RunError for a damaged checkpoint, and what `write_model` raises."""
  to = pathlib.Path(to)
  check_free(to)
  check_intact(run, record.stage)
  context = open_context(run)
  policy = load_policy(run, record, context, make_mesh(1, 1, 1, devices=jax.local_devices()[:1]))
  style, config, vocabulary = style_of_mode(prompt_style(run), record.mode), policy.decoder.config, context.vocabulary
  family, opening = family_of(config), direct_opening(vocabulary, style) if style.direct else []
  length = style.max_prompt_tokens + len(opening) + run.config.decoding.max_new_tokens
  ids = {"eos_token_id": vocabulary.eos_id, "pad_token_id": vocabulary.pad_id}
  if bos := vocabulary.frame("bos"):
    ids["bos_token_id"] = bos[0]
  raw = config_json(family, config) | ids | {"max_position_embeddings": length, "torch_dtype": dtype or config.param_dtype}
  generation = ids | {"do_sample": False, "max_new_tokens": run.config.decoding.max_new_tokens}
  slate = load_slates(run, context.catalogue, "test")[0]
  prompt = render_prompt(slate, present(len(slate.candidates), "upstream", (0, 0, 0)), context, style)
  number = sum(leaf.size for leaf in jax.tree.leaves(policy.params))
  texts = tokenizer_files(vocabulary, opening, length) | {
    "generation_config.json": json.dumps(generation, indent=2) + "\n",
    "README.md": _write_card(run, record, vocabulary, family.architecture, number, chat_messages(vocabulary, prompt.tokens)),
  }
  tensors = as_published(family, config, policy.params)
  with write_model(to, run.path(record.stage), tensors, dtype, raw, texts, progress, stop):
    pass


_NAMES = {"slot": "the candidates' names, `<A>`, `<B>` and so on", "sid": "the candidates' semantic IDs, such as `<s_a_3> <s_b_7> <s_c_1>`"}


def _write_card(
  run: Run, record: PolicyRecord, vocabulary: Vocabulary, architecture: str, parameters: int, messages: list[dict[str, str]]
) -> str:
  return _CARD.format(
    title=record.rankers[0].title,
    name=run.config.name,
    stage=record.stage,
    version=version_of("gr2_jax"),
    architecture=architecture,
    parameters=f"{parameters:,}",
    names=_NAMES[run.config.prompt.reference],
    messages=json.dumps(messages, indent=2, ensure_ascii=False),
    answer=vocabulary.special("answer"),
    end=vocabulary.special("/answer"),
    first=vocabulary.candidate_start,
    second=vocabulary.candidate_start + 1,
  )


_CARD = '''\
# {title} of {name}

A re-ranker of short slates, written by `python -m experiments.convert --export` of gr2_jax {version} from the stage `{stage}` of a run.
Architecture {architecture}, {parameters} parameters. It reads a user's history and the candidates in their incoming order, and writes all
candidates, best first.

## Ask it

The chat template makes the prompt that the policy was trained on from these two messages; this is the first test slate of the run:

```json
{messages}
```

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(FOLDER)
model = AutoModelForCausalLM.from_pretrained(FOLDER, dtype="float32")
inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
answer = model.generate(**inputs, do_sample=False)[0, inputs["input_ids"].shape[1] :]
print(tokenizer.decode(answer, skip_special_tokens=False))
```

The answer stands between `<answer>` and `</answer>`, each candidate once: {names}.

Frames, names and semantic IDs are special tokens. Text that users write, such as titles, may spell one of them: encode it alone with
`split_special_tokens=True`, which reads it as text, and join the ids.

## vLLM

Not run here. `vllm serve FOLDER` serves the folder with its chat template; ask with `"skip_special_tokens": false`. Grammars match text and
leave special tokens out, so what keeps an answer to the candidates, each once, is a logits processor (`--logits-processors module:Slate`).
A request names its candidates as lists of token ids, `"vllm_xargs": {{"slate": "[[{first}], [{second}]]"}}`:

```python
import json

from vllm.v1.sample.logits_processor import AdapterLogitsProcessor


class Slate(AdapterLogitsProcessor):
  def is_argmax_invariant(self):
    return False

  def new_req_logits_processor(self, params):
    slate = (params.extra_args or {{}}).get("slate")
    return slate and Once([tuple(name) for name in json.loads(slate)], answer={answer}, end={end})


class Once:
  """After <answer> only names of the slate, each once, then </answer>."""

  def __init__(self, names, answer, end):
    self.names, self.answer, self.end = names, answer, end

  def __call__(self, output_ids, logits):
    written = list(output_ids)
    if self.answer not in written or self.end in written:
      return logits
    written, left = written[written.index(self.answer) + 1 :], list(self.names)
    while whole := next((name for name in left if tuple(written[: len(name)]) == name), None):
      left.remove(whole)
      written = written[len(whole) :]
    allowed = {{name[len(written)] for name in left if name[: len(written)] == tuple(written)}} or {{self.end}}
    masked = logits.new_full(logits.shape, float("-inf"))
    masked[list(allowed)] = logits[list(allowed)]
    return masked
```
'''
