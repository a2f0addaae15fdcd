"""The list of facts itself; their values are checked with the table."""

from gr2_jax.evidence.facts import BASIC_FACTS, FACTS


def test_basic_facts_lead_the_list_and_every_fact_says_what_it_is():
  assert tuple(FACTS)[: len(BASIC_FACTS)] == BASIC_FACTS and BASIC_FACTS[-1] == "upstream_score"
  assert all(fact.unit and fact.formula for fact in FACTS.values())
