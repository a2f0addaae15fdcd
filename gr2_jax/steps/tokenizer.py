"""Training of the semantic-ID tokenizer: the update, and a loop of many updates per compiled call that keeps the best codes."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, SingleDeviceSharding

from gr2_jax.semantic_ids.embed import check_vectors
from gr2_jax.semantic_ids.export import assign_codes, describe_codes
from gr2_jax.semantic_ids.rqvae import (
  Codebooks,
  Quantized,
  RqVae,
  RqVaeConfig,
  centroids,
  make_autoencoder,
  rqvae_loss,
  start_codebooks,
  update_codebooks,
)
from gr2_jax.settings import check_settings, setting
from gr2_jax.training.guard import check_finite
from gr2_jax.training.mesh import constrain, make_mesh, replicated
from gr2_jax.training.metric import Metric
from gr2_jax.training.state import TrainState, init_state

# The low collision rate right after the k-means start is an artefact of the start: these first epochs are never chosen.
IGNORED_SHARE = 0.1
_LEARNING_RATE = "tokenize.training.learning_rate"  # its key in a config


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
  """AdamW over `epochs` of the catalogue in batches of `batch_size` rows (the whole catalogue where it is smaller).

  Every `report_every` epochs one compiled call ends, collisions are counted, the best codes are kept, and progress is reported.
  Before all that, `warmup_epochs` train the autoencoder without quantisation: the latents of random networks grow quickly in the first
  updates, away from codebooks fitted to them. On Amazon Beauty a start without warm-up left 22 % of the first level in use, with it 100 %.
  """

  rqvae: RqVaeConfig = dataclasses.field(default_factory=RqVaeConfig)
  epochs: int = setting(400, "passes over the catalogue", unit="epochs", low=1)
  warmup_epochs: int = 40
  batch_size: int = setting(2048, "items of an update; the whole catalogue where it is smaller", unit="items", low=1)
  learning_rate: float = setting(1e-3, "learning rate of AdamW", above=0)
  report_every: int = setting(10, "passes between counts of items with equal codes, by which the best codes are kept", unit="epochs", low=1)

  def __post_init__(self) -> None:
    check_settings(self)
    if self.warmup_epochs < 0:
      raise ValueError(f"warmup_epochs: {self.warmup_epochs} must be at least 0")


@flax.struct.dataclass
class TokenizerState:
  """What one update maps to the next: `codebooks` follow the EMA, `params` the gradient."""

  step: jax.Array
  params: Any
  opt_state: Any
  codebooks: Codebooks


@flax.struct.dataclass
class TokenizerRun:
  """A training between two compiled calls: all that is needed to go on, and the best tokenizer so far.

  `best_collisions` float32 and `best_epoch` int32 are scalars, of NumPy or on the device.
  """

  state: TokenizerState
  best: RqVae
  best_collisions: Any
  best_epoch: Any


Batch = dict[str, jax.Array]
ProgressFn = Callable[[TokenizerRun, dict[str, float]], None]


def make_tokenizer_update(config: RqVaeConfig, width: int, optimizer: optax.GradientTransformation) -> Callable:
  """Builds `update(state, batch) -> (state, metrics)` for vectors of `width` dimensions.

  Batch: `vectors [B, D]` float32, `weights [B]` (1, or 0 for padding). Pure; `training.mesh.jit_update` donates and shards it.
  """
  model = make_autoencoder(config, width)

  def update(state: TokenizerState, batch: Batch) -> tuple[TokenizerState, dict[str, Metric]]:
    def loss_fn(params: Any) -> tuple[jax.Array, tuple[dict[str, jax.Array], Quantized]]:
      return rqvae_loss(model, params, centroids(state.codebooks), batch, config.beta)

    (loss, (terms, quantized)), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    rows = batch["weights"].sum()
    metrics = {name: Metric(total, rows) for name, total in terms.items()} | {"loss": Metric(loss * rows, rows)}
    new_state = TokenizerState(
      step=state.step + 1,
      params=optax.apply_updates(state.params, updates),
      opt_state=opt_state,
      codebooks=update_codebooks(state.codebooks, quantized, batch["weights"], config.ema_decay),
    )
    return new_state, metrics

  return update


def make_warmup_update(config: RqVaeConfig, width: int, optimizer: optax.GradientTransformation) -> Callable:
  """Builds `update(state, batch) -> (state, metrics)` of a `TrainState`: the autoencoder alone, nothing quantised."""
  model = make_autoencoder(config, width)

  def loss_fn(params: Any, batch: Batch) -> tuple[jax.Array, dict[str, Metric]]:
    errors = jnp.square(model.apply({"params": params}, batch["vectors"]) - batch["vectors"]).sum(axis=-1)
    metric = Metric.of(errors, where=batch["weights"])
    return metric.mean(), {"loss": metric}

  def update(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Metric]]:
    grads, metrics = jax.grad(loss_fn, has_aux=True)(state.params, batch)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    return TrainState(step=state.step + 1, params=optax.apply_updates(state.params, updates), opt_state=opt_state), metrics

  return update


def make_epochs(update: Callable, mesh: Mesh, rows: int) -> Callable:
  """Compiles `run(state, vectors, order) -> (state, metrics)`: many updates in one call, metrics added up, state donated.

  `vectors [M, D]`: the catalogue's `rows` and then padding; `order [steps, B]`: the rows of each batch. Batches are cut over the mesh,
  all else is replicated.
  """

  def many(state: Any, vectors: jax.Array, order: jax.Array) -> tuple[Any, dict[str, Metric]]:
    def one(state: Any, chosen: jax.Array) -> tuple[Any, dict[str, Metric]]:
      batch = {
        "vectors": constrain(vectors[chosen], "batch", None),
        "weights": constrain((chosen < rows).astype(jnp.float32), "batch"),
      }
      return update(state, batch)

    state, metrics = jax.lax.scan(one, state, order)
    return state, jax.tree.map(lambda x: x.sum(axis=0), metrics)

  whole = replicated(mesh)
  compiled = jax.jit(many, in_shardings=(whole, whole, whole), out_shardings=whole, donate_argnums=0)

  def run(state: Any, vectors: jax.Array, order: np.ndarray) -> tuple[Any, dict[str, Metric]]:
    with jax.set_mesh(mesh):
      return compiled(state, vectors, order)

  return run


def _epoch_order(first: int, last: int, rows: int, batch_rows: int, seed: int) -> np.ndarray:
  """Batches `[steps, batch_rows]` of the epochs first..last-1, each a permutation that depends on seed and epoch only."""
  epochs = [np.random.default_rng((seed, epoch)).permutation(rows) for epoch in range(first, last)]
  return np.concatenate(epochs).astype(np.int32).reshape(-1, batch_rows)


def train_tokenizer(
  vectors: np.ndarray,
  config: TokenizerConfig,
  seed: int,
  on_progress: ProgressFn | None = None,
  start: TokenizerRun | None = None,
  mesh: Mesh | None = None,
) -> TokenizerRun:
  """Trains on vectors `[N, D]` and returns the finished run; its `best` is the tokenizer to export.

  `best` has the lowest collision rate of the first L-1 codes after the first tenth of the epochs, not the lowest loss: the loss rises
  late while collisions still fall. `on_progress(run, metrics)` is called after every `report_every` epochs; a `run` it copied or
  saved (the next call donates its state) can be passed as `start`, and the training ends with the same bits.
  Without `mesh` it uses one device. Raises DataError for broken vectors, and DivergedError for a loss that is no number.
  """
  check_vectors(vectors)
  vectors = np.asarray(vectors, np.float32)
  mesh = make_mesh(1, 1, 1, jax.devices()[:1]) if mesh is None else mesh
  shards = mesh.shape["data"] * mesh.shape["fsdp"]
  batch_rows = -(-min(config.batch_size, len(vectors)) // shards) * shards
  batches = -(-len(vectors) // batch_rows)
  padded = jax.device_put(np.pad(vectors, ((0, batches * batch_rows - len(vectors)), (0, 0))), replicated(mesh))
  order = functools.partial(_epoch_order, rows=len(padded), batch_rows=batch_rows, seed=seed)
  optimizer = optax.adamw(config.learning_rate)

  if start is None:
    warm = _init_networks(config.rqvae, vectors.shape[1], optimizer, seed)
    if config.warmup_epochs:
      warm_up = make_epochs(make_warmup_update(config.rqvae, vectors.shape[1], optimizer), mesh, len(vectors))
      warm, metrics = warm_up(warm, padded, order(0, config.warmup_epochs))
      check_finite(float(metrics["loss"].mean()), "in the tokenizer's warm-up", _LEARNING_RATE)
    state = _start_quantising(warm, vectors, config, seed)
    start = TokenizerRun(state=state, best=_snapshot(state), best_collisions=np.float32(np.inf), best_epoch=np.int32(0))
  # A copy, since the state is donated and `start` stays the caller's.
  run = dataclasses.replace(start, state=jax.device_put(_copy(start.state), replicated(mesh)))

  run_epochs = make_epochs(make_tokenizer_update(config.rqvae, vectors.shape[1], optimizer), mesh, len(vectors))
  for epoch in range(int(run.state.step) // batches, config.epochs, config.report_every):
    last = min(epoch + config.report_every, config.epochs)
    state, metrics = run_epochs(run.state, padded, order(epoch, last))
    check_finite(float(metrics["loss"].mean()), f"in the tokenizer's epochs up to {last}", _LEARNING_RATE)
    run, figures = _select(dataclasses.replace(run, state=state), vectors, config, last)
    figures |= {name: float(metric.mean()) for name, metric in jax.device_get(metrics).items()}
    if on_progress is not None:
      on_progress(run, figures)
  return run


def abstract_run(config: TokenizerConfig, width: int) -> TokenizerRun:
  """Shapes and dtypes of a training on vectors of `width` dimensions, on one device: what a checkpoint is restored to."""
  rqvae = config.rqvae

  def make() -> TokenizerRun:
    warm = _init_networks(rqvae, width, optax.adamw(config.learning_rate), seed=0)
    shape = (rqvae.levels, rqvae.codebook_size)
    codebooks = Codebooks(counts=jnp.zeros(shape), sums=jnp.zeros((*shape, rqvae.latent)))
    state = TokenizerState(step=jnp.int32(0), params=warm.params, opt_state=warm.opt_state, codebooks=codebooks)
    best = RqVae(params=warm.params, codebooks=codebooks)
    return TokenizerRun(state=state, best=best, best_collisions=jnp.float32(0), best_epoch=jnp.int32(0))

  here = SingleDeviceSharding(jax.devices()[0])
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), jax.eval_shape(make))


def _init_networks(config: RqVaeConfig, width: int, optimizer: optax.GradientTransformation, seed: int) -> TrainState:
  model = make_autoencoder(config, width)
  return jax.jit(lambda key: init_state(model.init(key, jnp.zeros((1, width)))["params"], optimizer))(jax.random.key(seed))


def _start_quantising(warm: TrainState, vectors: np.ndarray, config: TokenizerConfig, seed: int) -> TokenizerState:
  """Adds codebooks, by k-means over what the warm encoder makes of vectors `[N, D]`."""
  model = make_autoencoder(config.rqvae, vectors.shape[1])
  latents = jax.jit(lambda params, x: model.apply({"params": params}, x, method="encode"))(warm.params, vectors)
  batch_rows = min(config.batch_size, len(vectors))
  codebooks = start_codebooks(jax.device_get(latents), config.rqvae, batch_rows, seed)
  return TokenizerState(step=jnp.int32(0), params=warm.params, opt_state=warm.opt_state, codebooks=codebooks)


def _copy(tree: Any) -> Any:
  return jax.tree.map(np.array, tree)


def _snapshot(state: TokenizerState) -> RqVae:
  return RqVae(params=_copy(state.params), codebooks=_copy(state.codebooks))


def _select(run: TokenizerRun, vectors: np.ndarray, config: TokenizerConfig, epoch: int) -> tuple[TokenizerRun, dict[str, float]]:
  """Keeps the state's tokenizer where its prefixes collide no more than those of the best so far; of equals the later one."""
  tokenizer = _snapshot(run.state)
  codes, r2 = assign_codes(tokenizer, vectors, config.rqvae)
  report = describe_codes(codes, config.rqvae.codebook_size)
  collisions = 1 - report["prefix_distinct_share"]
  figures = {"epoch": epoch, "epochs": config.epochs, "prefix_collisions": collisions, "r2": r2}
  figures |= {f"usage_{level}": figure["usage"] for level, figure in enumerate(report["levels"], start=1)}
  if (epoch > IGNORED_SHARE * config.epochs or epoch == config.epochs) and collisions <= run.best_collisions:
    run = dataclasses.replace(run, best=tokenizer, best_collisions=np.float32(collisions), best_epoch=np.int32(epoch))
  return run, figures
