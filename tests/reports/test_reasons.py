"""The card says in plain words what reasonings are worth."""

from gr2_jax.reports.reasons import reasons_table, warn_of_reasons

GOOD = {
  "slates": 10,
  "matter_slates": 4,
  "no_fact": 0.0,
  "facts": 3.0,
  "true": {"share": 1.0, "ci95": [1.0, 1.0]},
  "matter": {"share": 0.75, "ci95": None},
  "named_first": {"share": 0.96, "ci95": [0.94, 0.98]},
  "by_fact": {"brand_share": {"stated": 30, "true": 1.0}},
}
NONE = {"share": None, "ci95": None}
SILENT = GOOD | {"no_fact": 1.0, "facts": 0.0, "true": NONE, "matter": NONE, "by_fact": {}}
FALSE = GOOD | {"true": {"share": 0.5, "ci95": [0.4, 0.6]}, "named_first": {"share": 0.36, "ci95": [0.3, 0.4]}}


def test_every_ranker_has_a_row():
  table = reasons_table({"reasons": {"policy": GOOD, "sft": SILENT}, "titles": {"policy": "RL policy", "sft": "SFT policy"}})
  assert "| RL policy | 0 % | 3.0 | 100.0 % [100.0, 100.0] | 75.0 % | 96.0 % [94.0, 98.0] |" in table
  assert "| SFT policy | 100 % | 0.0 | – | – | 96.0 % [94.0, 98.0] |" in table
  assert "first 4 slates" in table and "| RL policy | `brand_share` | 30 | 100 % |" in table
  assert reasons_table({}) == reasons_table({"reasons": {}}) == "No ranker of this run reasons in words that can be checked."


def test_readers_are_warned_of_what_falls_short():
  titles = {"policy": "RL policy"}
  assert warn_of_reasons({}) == warn_of_reasons({"reasons": {"policy": GOOD}}) == ""
  warning = warn_of_reasons({"reasons": {"policy": FALSE}, "titles": titles})
  assert "RL policy: 36 % name the answer's first, 50 % of the facts in them are true" in warning
  assert warn_of_reasons({"reasons": {"policy": SILENT}, "titles": titles}).endswith("RL policy: none states a fact.")
