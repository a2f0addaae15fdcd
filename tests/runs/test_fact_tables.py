"""What a run keeps of its slates' facts comes back by name, in the order in which it is asked for."""

import pathlib

import numpy as np
import pytest
from ml_collections import ConfigDict

from gr2_jax.evidence.codes import FactCodes
from gr2_jax.runs.fact_tables import FactTables, write_fact_tables
from gr2_jax.runs.run import Run

NAMES = ("popularity", "age", "gap", "upstream_rank")
RANDOM = np.random.default_rng(0)
TABLES = {split: RANDOM.normal(size=(n, 3, 4)).astype(np.float32) for split, n in (("train", 5), ("test", 2))}
CODES = FactCodes(("gap", "popularity"), np.float32([[0, 1, 2], [3, 4, 5]]))


@pytest.fixture
def run(tmp_path):
  return Run(pathlib.Path(tmp_path), ConfigDict())


def test_all_facts_and_their_codes_come_back(run):
  write_fact_tables(run, NAMES, TABLES, CODES)
  tables = FactTables(run)
  assert tables.names == NAMES and tables.codes.names == CODES.names
  np.testing.assert_array_equal(tables.codes.edges, CODES.edges)
  for split, table in TABLES.items():
    np.testing.assert_array_equal(tables.read(split, NAMES), table)


def test_chosen_facts_stand_in_the_order_asked_for(run):
  write_fact_tables(run, NAMES, TABLES, CODES)
  tables = FactTables(run)
  np.testing.assert_array_equal(tables.read("test", ("upstream_rank", "age")), TABLES["test"][..., [3, 1]])
  np.testing.assert_array_equal(tables.read("train"), TABLES["train"][..., [2, 0]])  # those that policies read, in their order
  with pytest.raises(ValueError, match="tuple"):
    tables.read("test", ("gap", "brand"))


def test_the_teacher_is_there_where_it_was_asked(run):
  write_fact_tables(run, NAMES, TABLES, CODES)
  with pytest.raises(FileNotFoundError):
    _ = FactTables(run).teacher
  teacher = RANDOM.normal(size=(5, 3))
  write_fact_tables(run, NAMES, TABLES, CODES, teacher)
  np.testing.assert_array_equal(FactTables(run).teacher, teacher)
