import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gr2_jax.data.schema import DataError
from gr2_jax.semantic_ids.export import assign_codes, export_table, prefix_purity
from gr2_jax.semantic_ids.rqvae import RqVaeConfig, make_autoencoder, start_codebooks
from gr2_jax.steps.tokenizer import TokenizerConfig, TokenizerState, make_tokenizer_update, train_tokenizer
from gr2_jax.training.guard import DivergedError
from gr2_jax.training.mesh import jit_update, make_mesh, replicated

RQVAE = RqVaeConfig(levels=3, codebook_size=8, latent=4, hidden=(16,))
CONFIG = TokenizerConfig(rqvae=RQVAE, epochs=20, warmup_epochs=10, batch_size=64, learning_rate=3e-3, report_every=5)


def clustered(rows=200, clusters=8, width=12):
  """Unit vectors around `clusters` directions, and each row's direction."""
  rng = np.random.default_rng(0)
  labels = rng.integers(clusters, size=rows)
  vectors = rng.normal(size=(clusters, width))[labels] + 0.2 * rng.normal(size=(rows, width))
  return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32), labels


@pytest.fixture(scope="module")
def trained():
  """A training on `clustered()`: the run, the figures of every report and copies of the runs on the way."""
  vectors, _ = clustered()
  figures, runs = [], []

  def keep(run, metrics):
    figures.append(metrics)
    runs.append(jax.tree.map(np.array, run))

  return train_tokenizer(vectors, CONFIG, seed=1, on_progress=keep), figures, runs


def assert_same_bits(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    np.testing.assert_array_equal(x, y)


def test_loss_falls_and_all_codes_come_into_use(trained):
  _, figures, _ = trained
  assert [f["epoch"] for f in figures] == [5, 10, 15, 20]
  assert figures[-1]["loss"] < 0.8 * figures[0]["loss"]
  assert figures[-1]["r2"] > 0.7
  assert min(figures[-1][f"usage_{level}"] for level in (1, 2, 3)) >= 7 / 8


def test_items_that_share_a_prefix_are_alike(trained):
  vectors, labels = clustered()
  codes, _ = assign_codes(trained[0].best, vectors, RQVAE)
  purity = prefix_purity(codes, labels)
  assert purity[1] > 0.9  # the commonest of 8 labels alone would give about 0.16
  assert purity == sorted(purity)


def test_the_best_has_the_fewest_prefix_collisions_after_the_first_tenth(trained):
  run, figures, _ = trained
  # A tenth of 20 epochs is 2: every report counts; of equals the later one is kept.
  lowest = min(f["prefix_collisions"] for f in figures)
  chosen = [f["epoch"] for f in figures if f["prefix_collisions"] == lowest][-1]
  assert int(run.best_epoch) == chosen
  np.testing.assert_allclose(run.best_collisions, lowest, rtol=1e-6)
  vectors, _ = clustered()
  codes, _ = assign_codes(run.best, vectors, RQVAE)
  np.testing.assert_allclose(1 - len(np.unique(codes[:, :-1], axis=0)) / len(codes), lowest, rtol=1e-6)


def test_the_first_tenth_is_never_chosen():
  vectors, _ = clustered(rows=60)
  early = []
  config = dataclasses.replace(CONFIG, warmup_epochs=0, report_every=1)
  train_tokenizer(vectors, config, seed=1, on_progress=lambda run, f: early.append((f["epoch"], int(run.best_epoch))))
  assert early[0] == (1, 0) and early[1] == (2, 0) and early[2] == (3, 3)


def test_the_same_seed_gives_the_same_bits(trained):
  assert_same_bits(train_tokenizer(clustered()[0], CONFIG, seed=1), trained[0])


def test_a_resumed_training_ends_with_the_bits_of_an_uninterrupted_one(trained):
  run, _, runs = trained
  assert_same_bits(train_tokenizer(clustered()[0], CONFIG, seed=1, start=runs[1]), run)
  # The start is the caller's: not donated, not changed.
  assert int(runs[1].state.step) == 10 * 4


def test_a_finished_training_is_not_continued(trained):
  calls = []
  again = train_tokenizer(clustered()[0], CONFIG, seed=1, start=trained[2][-1], on_progress=lambda *a: calls.append(a))
  assert_same_bits(again, trained[0])
  assert not calls


def test_exported_ids_are_unique(trained):
  table, report = export_table(trained[0].best, clustered()[0], RQVAE, seed=0, allow_collisions=True)
  largest = max(int(size) for size in report["before"]["prefix_buckets"])
  assert (report["after"]["own_share"] == 1.0) == (largest <= RQVAE.codebook_size)
  assert len(table) == 200


def init_state(optimizer, vectors):
  model = make_autoencoder(RQVAE, vectors.shape[1])
  params = model.init(jax.random.key(0), vectors)["params"]
  latents = np.asarray(model.apply({"params": params}, vectors, method="encode"))
  codebooks = start_codebooks(latents, RQVAE, len(vectors), seed=0)
  return TokenizerState(step=jnp.int32(0), params=params, opt_state=optimizer.init(params), codebooks=codebooks)


def test_a_sharded_update_equals_the_update_of_one_device():
  vectors, _ = clustered(rows=64)
  optimizer = optax.sgd(0.1)
  update = make_tokenizer_update(RQVAE, vectors.shape[1], optimizer)
  batch = {"vectors": vectors, "weights": np.ones(64, np.float32)}
  expected, metrics = jax.jit(update)(init_state(optimizer, vectors), batch)
  for sizes in ((8, 1, 1), (2, 2, 2)):
    mesh = make_mesh(*sizes)
    state = jax.device_put(init_state(optimizer, vectors), replicated(mesh))
    sharded, sharded_metrics = jit_update(update, mesh, replicated(mesh))(state, batch)
    for x, y in zip(jax.tree.leaves((expected, metrics)), jax.tree.leaves((sharded, sharded_metrics)), strict=True):
      np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)


def test_padding_rows_change_nothing():
  vectors, _ = clustered(rows=40)
  optimizer = optax.sgd(0.1)
  update = jax.jit(make_tokenizer_update(RQVAE, vectors.shape[1], optimizer))
  plain = update(init_state(optimizer, vectors), {"vectors": vectors, "weights": np.ones(40, np.float32)})
  padded = np.concatenate([vectors, np.full((24, 12), 3, np.float32)])
  other = update(init_state(optimizer, vectors), {"vectors": padded, "weights": (np.arange(64) < 40).astype(np.float32)})
  for x, y in zip(jax.tree.leaves(plain), jax.tree.leaves(other), strict=True):
    np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)


def test_training_on_a_mesh_equals_training_on_one_device():
  # 61 rows in batches of 32, cut over 8 devices; one epoch, since later ones amplify rounding across code borders.
  vectors, _ = clustered(rows=61)
  config = dataclasses.replace(CONFIG, epochs=1, warmup_epochs=0, batch_size=32)
  one = train_tokenizer(vectors, config, seed=0)
  many = train_tokenizer(vectors, config, seed=0, mesh=make_mesh(8, 1, 1))
  for x, y in zip(jax.tree.leaves(one.state), jax.tree.leaves(many.state), strict=True):
    np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)


def test_a_catalogue_of_one_item_trains():
  vectors = np.eye(4, dtype=np.float32)[:1]
  run = train_tokenizer(vectors, dataclasses.replace(CONFIG, epochs=1, warmup_epochs=0), seed=0)
  table, _ = export_table(run.best, vectors, RQVAE, seed=0)
  assert len(table) == 1


def test_broken_vectors_are_refused_before_training():
  with pytest.raises(DataError, match="row 3"):
    train_tokenizer(np.where(np.arange(5)[:, None] == 3, np.nan, 1.0) * np.ones((5, 4)), CONFIG, seed=0)


@pytest.mark.parametrize(("warmup_epochs", "where"), [(2, "warm-up"), (0, "epochs up to")])
def test_a_loss_that_is_no_number_names_the_learning_rate(warmup_epochs, where):
  config = dataclasses.replace(CONFIG, epochs=4, report_every=4, warmup_epochs=warmup_epochs, learning_rate=1e30)
  with pytest.raises(DivergedError, match=rf"{where}.*--config\.tokenize\.training\.learning_rate"):
    train_tokenizer(clustered()[0], config, seed=1)


def test_impossible_settings_are_refused():
  with pytest.raises(ValueError, match=r"^epochs: "):
    TokenizerConfig(epochs=0)
