import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gr2_jax.semantic_ids.rqvae import (
  Codebooks,
  Quantized,
  RqVaeConfig,
  centroids,
  make_autoencoder,
  quantize,
  rqvae_loss,
  start_codebooks,
  straight_through,
  update_codebooks,
)


def test_quantisation_by_hand():
  # h = (5, 1): level 1 nearest of (4, 0) and (0, 4) is (4, 0), left (1, 1); level 2 nearest of (0, 0) and (1, 2) is (1, 2)
  # (distance² 1 against 2), left (0, -1).
  tables = jnp.array([[[4.0, 0], [0, 4]], [[0, 0], [1, 2]]])
  result = quantize(tables, jnp.array([[5.0, 1.0]]))
  assert result.codes.tolist() == [[0, 1]]
  assert result.latents.tolist() == [[5, 2]]
  assert result.residuals.tolist() == [[[5, 1]], [[1, 1]], [[0, -1]]]


def test_codes_and_what_is_left_over_add_up_to_the_latent():
  tables = jax.random.normal(jax.random.key(0), (4, 16, 8))
  latents = jax.random.normal(jax.random.key(1), (50, 8))
  result = quantize(tables, latents)
  chosen = sum(tables[level][result.codes[:, level]] for level in range(4))
  np.testing.assert_allclose(chosen + result.residuals[-1], latents, atol=1e-5)
  np.testing.assert_allclose(result.latents, chosen, atol=1e-5)
  for level in range(4):
    distances = np.square(np.asarray(result.residuals[level])[:, None] - np.asarray(tables[level])[None]).sum(-1)
    np.testing.assert_array_equal(result.codes[:, level], distances.argmin(1))


def test_of_equally_near_codes_the_first_is_taken():
  assert quantize(jnp.array([[[1.0], [-1.0], [1.0]]]), jnp.array([[0.0], [1.0]])).codes.tolist() == [[0], [0]]


def test_centroids_by_hand():
  # Counts 3 and 1, N = 4, ε = 1e-5: e_j = m_j / ((N_j + ε) / (4 + 2ε) * 4).
  books = Codebooks(counts=jnp.array([[3.0, 1.0]]), sums=jnp.array([[[6.0], [5.0]]]))
  e = 1e-5
  expected = [[[6 / ((3 + e) / (4 + 2 * e) * 4)], [5 / ((1 + e) / (4 + 2 * e) * 4)]]]
  np.testing.assert_allclose(centroids(books), expected, rtol=1e-6)


def test_an_unused_code_stays_finite_at_the_origin():
  books = Codebooks(counts=jnp.array([[3.0, 0.0]]), sums=jnp.array([[[6.0], [0.0]]]))
  np.testing.assert_allclose(centroids(books), [[[2.0], [0.0]]], rtol=1e-4)


def test_one_ema_step_by_hand():
  # γ = 0.9. Batch: residuals 1, 2, 4 with codes 0, 0, 1, and a padding row of code 1.
  # N: (3, 1) → 0.9(3, 1) + 0.1(2, 1) = (2.9, 1.0); m: (6, 5) → 0.9(6, 5) + 0.1(1 + 2, 4) = (5.7, 4.9).
  books = Codebooks(counts=jnp.array([[3.0, 1.0]]), sums=jnp.array([[[6.0], [5.0]]]))
  batch = Quantized(
    codes=jnp.array([[0], [0], [1], [1]]),
    latents=jnp.zeros((4, 1)),
    residuals=jnp.array([[[1.0], [2.0], [4.0], [100.0]], [[0.0]] * 4]),
  )
  after = update_codebooks(books, batch, jnp.array([1.0, 1, 1, 0]), decay=0.9)
  np.testing.assert_allclose(after.counts, [[2.9, 1.0]], rtol=1e-6)
  np.testing.assert_allclose(after.sums, [[[5.7], [4.9]]], rtol=1e-6)


def test_straight_through_has_the_quantised_value_and_the_gradient_of_the_latent():
  latents = jnp.array([[0.4, -1.2]])
  books = jnp.array([[[1.0, -1.0]]])

  def f(h):
    return (straight_through(h, quantize(books, h).latents) * jnp.array([2.0, 3.0])).sum()

  value, grads = jax.value_and_grad(f)(latents)
  np.testing.assert_allclose(value, 2 * 1 + 3 * -1, rtol=1e-6)
  np.testing.assert_allclose(grads, [[2.0, 3.0]])


def test_the_loss_by_hand_and_without_padding_rows():
  # One linear layer each way, identity weights: h = x. Tables at 1 and, below it, 0.5: x = 2 leaves 1, then 0.5.
  # x̂ = 1.5: reconstruction (2 - 1.5)² = 0.25; commitment 1² + 0.5² = 1.25; β = 0.25: 0.25 + 0.3125 = 0.5625.
  model = make_autoencoder(RqVaeConfig(hidden=(), latent=1), width=1)
  params = model.init(jax.random.key(0), jnp.zeros((1, 1)))["params"]
  params = jax.tree.map(lambda x: jnp.ones_like(x) if x.ndim == 2 else jnp.zeros_like(x), params)
  tables = jnp.array([[[1.0]], [[0.5]]])
  batch = {"vectors": jnp.array([[2.0], [77.0]]), "weights": jnp.array([1.0, 0.0])}
  loss, (terms, _) = rqvae_loss(model, params, tables, batch, beta=0.25)
  np.testing.assert_allclose([loss, terms["reconstruction"], terms["commitment"]], [0.5625, 0.25, 1.25], rtol=1e-6)


def test_no_gradient_reaches_the_tables_and_some_reaches_every_parameter():
  config = RqVaeConfig(levels=2, codebook_size=4, latent=3, hidden=(8,))
  model = make_autoencoder(config, width=5)
  batch = {"vectors": jax.random.normal(jax.random.key(0), (20, 5)), "weights": jnp.ones(20)}
  params = model.init(jax.random.key(1), batch["vectors"])["params"]
  tables = jax.random.normal(jax.random.key(2), (2, 4, 3))
  grads, table_grads = jax.jit(jax.grad(lambda p, t: rqvae_loss(model, p, t, batch, 0.25)[0], argnums=(0, 1)))(params, tables)
  assert not np.asarray(table_grads).any()
  assert all(np.asarray(grad).any() for grad in jax.tree.leaves(grads))


def test_start_finds_two_levels_of_clusters_and_scales_counts_to_the_batch():
  # Four coarse corners, each with two points at ±0.1 along one axis: level 1 = corners, level 2 = the two offsets.
  corners = np.array([[10, 0], [-10, 0], [0, 10], [0, -10]], np.float32)
  latents = np.concatenate([corners + [0.1, 0.1], corners - [0.1, 0.1]]).repeat(5, axis=0).astype(np.float32)
  books = start_codebooks(latents, RqVaeConfig(levels=2, codebook_size=4, latent=2), batch_rows=20, seed=0)
  tables = centroids(books)
  np.testing.assert_allclose(sorted(np.asarray(tables[0]).tolist()), sorted(corners.tolist()), atol=1e-3)
  np.testing.assert_allclose(books.counts.sum(axis=1), [20, 20])  # 40 rows, counted as one batch of 20
  assert float(jnp.abs(quantize(tables, jnp.asarray(latents)).residuals[-1]).max()) < 1e-3


def test_start_with_fewer_rows_than_codes_and_with_one_row():
  for rows in (1, 3):
    latents = np.random.default_rng(0).normal(size=(rows, 2)).astype(np.float32)
    tables = centroids(start_codebooks(latents, RqVaeConfig(levels=3, codebook_size=8, latent=2), rows, seed=0))
    assert np.isfinite(tables).all()
    np.testing.assert_allclose(quantize(tables, jnp.asarray(latents)).latents, latents, atol=1e-3)


@pytest.mark.parametrize(
  "change", [{"levels": 0}, {"codebook_size": 1}, {"ema_decay": 1.0}, {"latent": 0}, {"beta": -1.0}, {"hidden": (0,)}]
)
def test_impossible_settings_are_refused(change):
  with pytest.raises(ValueError, match=next(iter(change))):
    RqVaeConfig(**change)
