"""A synthetic market with a known truth: items, users who buy in sequences, an imperfect upstream ranker, and the oracle's utilities.

Every purchase is one draw of a multinomial logit model (Train, Discrete Choice Methods with Simulation, ch. 3). A user values an item by

    utility = complement  the leaf category follows, along a chain (shampoo -> conditioner -> styling gel), on the last purchases
            + brand       the user is loyal to a few brands, which the history shows
            + follow      every item has a few items that are often bought right after it, which the log shows as directed transitions
            + taste       latent liking of leaf categories, of which the history shows a little
            + scent       latent liking of scents (a word of the title), of which it shows less
            + price       distance of the log price from what the user tends to pay, small
            + quality     a constant of the item, which makes some items popular

The upstream ranker knows quality and taste, sees little of the complement, brand and follow parts and no scents, is noisy, and is
position-biased: it was fitted on clicks without correcting for examination, so items that an older popularity order showed high look
better than they are.

What is fitted on what: `histories` hold everything before each user's request, never the request itself, so no slate's choice is in the
log. Each user makes one request; train, validation and test users are disjoint; validation requests come later than all train requests, and
test requests later than those. Graded training labels are clicks under position bias, with the propensities beside them;
validation and test clicks come from users who examined every candidate (propensity 1), so that the oracle is the best order there. For a
given request the log also holds later events of other users: past-only features go by `Slate.timestamp`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Literal

import numpy as np

from gr2_jax.data.schema import SPLITS, Catalogue, History, Item, Slate
from gr2_jax.settings import check_settings, setting

DAY = 86_400
START = 1_640_995_200  # 2022-01-01, Unix seconds
REQUEST_DAYS = {"train": (150, 560), "validation": (560, 630), "test": (630, 730)}

# Broad category -> leaf categories; a leaf's complement is the next one in its row, the last leads back to the first.
SHELVES = {
  "Hair Care": ("Shampoo", "Conditioner", "Styling Gel", "Hair Oil"),
  "Skin Care": ("Cleanser", "Toner", "Moisturizer", "Sunscreen"),
  "Makeup": ("Primer", "Foundation", "Mascara", "Lipstick"),
  "Nails": ("Base Coat", "Nail Polish", "Top Coat", "Polish Remover"),
  "Bath": ("Body Wash", "Body Scrub", "Body Lotion", "Hand Cream"),
  "Shaving": ("Shaving Foam", "Razor", "After Shave", "Beard Balm"),
}
BRANDS = (
  *("Velora", "Aquine", "Brightleaf", "Calmora", "Dewpoint", "Elmwood", "Fernley", "Glowhaus", "Harlow", "Isolde", "Junova", "Kindred"),
  *("Lumira", "Maplebay", "Nordane", "Opaline", "Petalia", "Quillon", "Rosemere", "Silkara", "Tidewell", "Umbria", "Verdane", "Willowby"),
  *("Alcove", "Bellamy", "Corvana", "Driftly", "Everlin", "Foxglove", "Gilded", "Hollis", "Ivoria", "Juniper", "Lakeside", "Meridian"),
)
TRAITS = ("Gentle", "Intense", "Daily", "Organic", "Repair", "Fresh", "Rich", "Light", "Pure", "Soothing")
SCENTS = ("Rose", "Mint", "Coconut", "Lavender", "Citrus", "Almond", "Honey", "Vanilla", "Aloe", "Jasmine")
PACKS = ("Mini", "Classic", "Family Size")

PAYS = (2.3, 0.5)  # mean and standard deviation over users of the log price that they tend to pay

Shelf = Mapping[str, np.ndarray]  # what is true of items, see `_draw_shelf`


@dataclasses.dataclass(frozen=True)
class MarketConfig:
  """Sizes, the weights of the utility's parts, and what the upstream ranker sees; the defaults are calibrated by the tests.

  Raises ValueError for sizes that cannot be filled.
  """

  num_items: int = setting(600, "items of the catalogue", unit="items", low=1)
  broad_categories: int = setting(4, "broad categories of the catalogue", low=1, high=len(SHELVES))
  leaves_per_broad: int = setting(3, "leaf categories of each broad one", low=2, high=len(next(iter(SHELVES.values()))))
  num_brands: int = setting(24, "brands of the catalogue", low=2, high=len(BRANDS))
  follows_per_item: int = setting(3, "items that are often bought right after an item", unit="items", low=1)
  train_slates: int = setting(4000, "training slates, each of a user of its own", unit="slates", low=1)
  validation_slates: int = setting(500, "validation slates, each of a user of its own", unit="slates", low=1)
  test_slates: int = setting(1000, "test slates, each of a user of its own", unit="slates", low=1)
  min_history: int = setting(5, "items of the shortest history", unit="items", low=1)
  max_history: int = setting(12, "items of the longest history", unit="items", low=1)
  slate_size: int = setting(10, "candidates of a slate", unit="items", low=2)
  labels: Literal["single", "graded"] = setting(
    "single", "what users do: one purchase a slate, or clicks and purchases under position bias"
  )
  complement_weight: float = setting(3.4, "how much a user likes what completes the last items by the chain of categories", unit="logits")
  brand_weight: float = setting(3.6, "how much a user likes the favourite brands", unit="logits")
  follow_weight: float = setting(3.0, "how much a user likes the items that follow the last one", unit="logits")
  taste_weight: float = setting(0.8, "how much a user's taste in categories counts", unit="logits")
  scent_weight: float = setting(1.0, "how much a user's taste in scents counts", unit="logits")
  price_weight: float = setting(0.6, "how much a price counts against an item that is far from what the user tends to pay", unit="logits")
  quality_weight: float = setting(0.8, "how much the item's quality counts", unit="logits")
  favourite_brands: int = setting(2, "favourite brands of a user", low=1)
  upstream_sight: float = setting(0.25, "share of complement_weight, brand_weight and follow_weight that the upstream ranker sees", low=0)
  upstream_noise: float = setting(1.0, "standard deviation of the upstream ranker's noise", unit="logits", low=0)
  upstream_exposure: float = setting(0.5, "weight that past exposure has in the upstream ranker's scores", unit="logits")
  examination_decay: float = setting(0.5, "a user looks at place s of a slate, from 0 on, with probability `(s + 1) ** -decay`", low=0)

  def __post_init__(self) -> None:
    check_settings(self)
    limits = (
      ("min_history", 1, self.max_history),
      ("slate_size", 2, self.num_items - self.max_history),
      ("favourite_brands", 1, self.num_brands),
      ("follows_per_item", 1, self.num_items - 1),
      ("num_items", self.broad_categories * self.leaves_per_broad, len(BRANDS) * len(TRAITS) * len(SCENTS) * len(PACKS)),
    )
    for name, low, high in limits:
      if not low <= getattr(self, name) <= high:
        raise ValueError(f"{name}: {getattr(self, name)} is outside {low}..{high}, which the other sizes leave; choose a value inside")


@dataclasses.dataclass(frozen=True)
class Market:
  """The log before the requests, and per split the slates and their true utilities, float32 `[n, K]` in the order of `Slate.candidates`.

  `shelf`: what is true of items, arrays by name, among them the `exposure [N]` that the upstream ranker takes for merit.
  """

  catalogue: Catalogue
  histories: tuple[History, ...]
  slates: Mapping[str, tuple[Slate, ...]]
  utilities: Mapping[str, np.ndarray]
  shelf: Shelf


def make_market(config: MarketConfig, seed: int) -> Market:
  """Draws a market; a function of (config, seed) alone."""
  # One stream for each part: changing the labels or the upstream ranker leaves items, users and their purchases as they are.
  shelf_rng, user_rng, choice_rng, clock_rng, slate_rng, upstream_rng, label_rng = (
    np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(7)
  )
  shelf = _draw_shelf(config, shelf_rng)
  users = value_items(config, shelf, draw_tastes(config, shelf, sum(_split_sizes(config).values()), user_rng))
  bought, lengths = _simulate_purchases(config, shelf, users, choice_rng)
  times = _draw_times(config, lengths, clock_rng)

  parts = _utility_parts(config, shelf, users, bought, lengths)
  candidates = _draw_candidates(config, shelf, parts, bought, lengths, slate_rng)
  shelf = {**shelf, "exposure": _exposure(config, shelf, candidates, upstream_rng)}
  taken = {name: np.take_along_axis(parts[name], candidates, axis=1) for name in ("taste", "hidden")}
  upstream = upstream_means(config, shelf, candidates, **taken) + upstream_rng.normal(0, config.upstream_noise, candidates.shape)
  order = np.argsort(-upstream, axis=1, kind="stable")
  candidates, upstream = (np.take_along_axis(x, order, axis=1) for x in (candidates, upstream))
  utilities = np.take_along_axis(parts["utility"], candidates, axis=1)
  examined = np.ones(candidates.shape)
  examined[: config.train_slates] = examination(config.slate_size, config.examination_decay)
  labels = _draw_labels(config, utilities, shelf["log_price"][candidates], examined, label_rng)

  catalogue = _catalogue(shelf)
  ids = [item.id for item in catalogue.items]
  histories, slates = [], []
  for u, length in enumerate(lengths):
    user = f"user{u:05d}"
    items = tuple(ids[row] for row in bought[u, :length])
    stamps = times[u, : length + 1].tolist()
    histories.append(History(user, items, tuple(stamps[:-1])))
    slates.append(
      Slate(
        user=user,
        history=items,
        candidates=tuple(ids[row] for row in candidates[u]),
        labels=tuple(labels[u].tolist()),
        upstream_scores=tuple(upstream[u].tolist()),
        propensities=tuple(examined[u].tolist()) if config.labels == "graded" else None,
        timestamp=stamps[-1],
        last_time=stamps[-2],
        segment="same_day" if stamps[-1] // DAY == stamps[-2] // DAY else "different_day",
      )
    )
  ends = np.cumsum([_split_sizes(config)[split] for split in SPLITS])
  spans = {split: slice(end - _split_sizes(config)[split], end) for split, end in zip(SPLITS, ends, strict=True)}
  return Market(
    catalogue=catalogue,
    histories=tuple(histories),
    slates={split: tuple(slates[span]) for split, span in spans.items()},
    utilities={split: utilities[span] for split, span in spans.items()},
    shelf=shelf,
  )


def examination(size: int, decay: float) -> np.ndarray:
  """P(examined) of positions 0..size-1, float64 `[K]`: the position-based model with a power law (Joachims et al. 2017)."""
  return np.arange(1, size + 1) ** -decay


def _gumbel(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
  """Standard Gumbel noise, float32: the argmax of utility + noise is a draw from the softmax of the utilities."""
  draws = rng.standard_exponential(shape, dtype=np.float32) + np.float32(1e-30)  # float32 draws can be exactly 0
  return np.asarray(-np.log(draws))


def _split_sizes(config: MarketConfig) -> dict[str, int]:
  return {"train": config.train_slates, "validation": config.validation_slates, "test": config.test_slates}


def _draw_shelf(config: MarketConfig, rng: np.random.Generator) -> Shelf:
  """Item attributes, each `[N]`, the complement of each leaf `[C]`, and the items that tend to follow an item `[N, F]`."""
  per_broad, num_leaves = config.leaves_per_broad, config.broad_categories * config.leaves_per_broad
  leaf = np.arange(config.num_items) % num_leaves
  brand = rng.permutation(config.num_items) % config.num_brands
  # Distinct (trait, scent, pack) within a leaf, so that no two items of a leaf share all words.
  variants = np.zeros(config.num_items, np.int64)
  for c in range(num_leaves):
    members = np.flatnonzero(leaf == c)
    cycle = rng.permutation(len(TRAITS) * len(SCENTS) * len(PACKS))
    variants[members] = np.resize(cycle, len(members))
  pack = variants % len(PACKS)
  log_price = rng.normal(2.3, 0.25, num_leaves)[leaf] + rng.normal(0, 0.35, config.num_brands)[brand] + 0.3 * (pack - 1)
  leaves = np.arange(num_leaves)
  complement = leaves // per_broad * per_broad + (leaves + 1) % per_broad
  # Half of an item's followers lie in the complement category, half anywhere: a link says something that the category does not.
  same_chain = leaf[None, :] == complement[leaf][:, None]
  keys = rng.random((config.num_items, config.num_items)) + np.where(same_chain & (rng.random((config.num_items, 1)) < 0.5), 1.0, 0.0)
  np.fill_diagonal(keys, -1.0)
  return {
    "leaf": leaf,
    "broad": leaf // per_broad,
    "brand": brand,
    "variant": variants,
    "scent": variants // len(PACKS) % len(SCENTS),
    "log_price": log_price + rng.normal(0, 0.15, config.num_items),
    "quality": rng.normal(0, 1, config.num_items),
    "complement": complement,
    "follows": np.argsort(-keys, axis=1)[:, : config.follows_per_item],
  }


def draw_tastes(config: MarketConfig, shelf: Shelf, users: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
  """What users hide: liking of leaf categories `leaf [U, C]` and of scents `scent [U, S]`, what they tend to pay (log) `pays [U, 1]`, and
  their `favourites [U, F]` among the brands."""
  return {
    "leaf": rng.normal(0, 1, (users, len(shelf["complement"]))).astype(np.float32),
    "scent": rng.normal(0, 1, (users, len(SCENTS))).astype(np.float32),
    "pays": rng.normal(*PAYS, (users, 1)).astype(np.float32),
    "favourites": np.argsort(rng.random((users, config.num_brands)), axis=1)[:, : config.favourite_brands],
  }


def value_items(config: MarketConfig, shelf: Shelf, tastes: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """What no purchase changes of users' utilities, `[U, N]`: `base` (taste, scent, price, quality), its `taste` part, and `brand`."""
  loyal = np.zeros((len(tastes["pays"]), config.num_brands), np.float32)
  np.put_along_axis(loyal, tastes["favourites"], 1.0, axis=1)
  quality = config.quality_weight * shelf["quality"].astype(np.float32)
  taste_part = config.taste_weight * tastes["leaf"][:, shelf["leaf"]]
  price_part = -config.price_weight * np.abs(shelf["log_price"].astype(np.float32) - tastes["pays"])
  scent_part = config.scent_weight * tastes["scent"][:, shelf["scent"]]
  return {
    "taste": taste_part,
    "base": taste_part + scent_part + price_part + quality,
    "brand": config.brand_weight * loyal[:, shelf["brand"]],
  }


def sequence_part(config: MarketConfig, shelf: Shelf, last: np.ndarray, second: np.ndarray) -> dict[str, np.ndarray]:
  """The parts that depend on what was bought last, `[U, N]`; `last` and `second` are rows `[U]`, -1 for none."""
  weight = config.complement_weight
  leaf, complement = shelf["leaf"], shelf["complement"]
  part = weight * (leaf == complement[leaf[last]][:, None]).astype(np.float32)
  # The purchase before the last still asks for its complement, at under half the strength, unless the last one was just that.
  earlier = np.where(leaf[last] == complement[leaf[second]], -1, complement[leaf[second]])
  part += 0.4 * weight * ((leaf == earlier[:, None]) & (second >= 0)[:, None])
  follow = np.zeros_like(part)
  np.put_along_axis(follow, shelf["follows"][last], config.follow_weight, axis=1)
  none = (last < 0)[:, None]
  return {"complement": np.where(none, 0, part), "follow": np.where(none, 0, follow)}


def _simulate_purchases(
  config: MarketConfig, shelf: Shelf, users: Mapping[str, np.ndarray], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
  """Item rows in time order `[U, max_history]`, -1 after the end, and lengths `[U]`; nobody buys an item twice."""
  num_users, num_items = users["base"].shape
  lengths = np.asarray(rng.integers(config.min_history, config.max_history + 1, num_users))
  bought = np.full((num_users, config.max_history), -1)
  utility = users["base"] + users["brand"]
  everyone = np.arange(num_users)
  none = np.full(num_users, -1)
  for t in range(config.max_history):
    state = sequence_part(config, shelf, bought[:, t - 1] if t else none, bought[:, t - 2] if t > 1 else none)
    gumbel = _gumbel(rng, (num_users, num_items))
    choice = np.argmax(utility + state["complement"] + state["follow"] + gumbel, axis=1)
    bought[:, t] = choice
    utility[everyone, choice] = -np.inf
  bought[np.arange(config.max_history) >= lengths[:, None]] = -1
  return bought, lengths


def _draw_times(config: MarketConfig, lengths: np.ndarray, rng: np.random.Generator) -> np.ndarray:
  """Unix seconds `[U, max_history + 1]`: the purchases and, right after the last one, the request; 0 beyond."""
  sizes = _split_sizes(config)
  request = np.concatenate([rng.uniform(*REQUEST_DAYS[split], sizes[split]) for split in SPLITS])
  gaps = 0.002 + rng.exponential(6.0, (len(lengths), config.max_history))
  gaps[rng.random(gaps.shape) < 0.1] = 0.01  # the same basket, a quarter of an hour apart
  steps = np.where(np.arange(config.max_history) < lengths[:, None], gaps, 0.0)
  before = np.cumsum(steps[:, ::-1], axis=1)[:, ::-1]  # days from purchase t to the request
  days = np.concatenate([request[:, None] - before, np.zeros((len(lengths), 1))], axis=1)
  np.put_along_axis(days, lengths[:, None], request[:, None], axis=1)
  return START + (days * DAY).astype(np.int64)


def _utility_parts(
  config: MarketConfig, shelf: Shelf, users: Mapping[str, np.ndarray], bought: np.ndarray, lengths: np.ndarray
) -> dict[str, np.ndarray]:
  """The utility at the request and the parts that the upstream ranker sees to different degrees, `[U, N]` each."""
  everyone = np.arange(len(lengths))
  second = np.where(lengths > 1, bought[everyone, lengths - 2], -1)
  state = sequence_part(config, shelf, bought[everyone, lengths - 1], second)
  hidden = state["complement"] + state["follow"] + users["brand"]
  return {**state, "taste": users["taste"], "brand": users["brand"], "hidden": hidden, "utility": users["base"] + hidden}


def candidate_logits(shelf: Shelf, last: np.ndarray, complement: np.ndarray, brand: np.ndarray, follow: np.ndarray) -> np.ndarray:
  """Log-weights `[U, N]` by which candidates are drawn without replacement, after the rows `last [U]` were bought, from parts `[U, N]`."""
  logits = 0.7 * shelf["quality"].astype(np.float32)[None, :] + np.float32(1.2) * (shelf["leaf"] == shelf["leaf"][last][:, None])
  logits = logits + np.float32(0.8) * (shelf["broad"] == shelf["broad"][last][:, None])
  logits += 1.4 * np.minimum(complement, 1) + 1.6 * np.minimum(brand, 1) + 1.5 * np.minimum(follow, 1)
  return logits


def _draw_candidates(
  config: MarketConfig,
  shelf: Shelf,
  parts: Mapping[str, np.ndarray],
  bought: np.ndarray,
  lengths: np.ndarray,
  rng: np.random.Generator,
) -> np.ndarray:
  """Rows `[U, K]` of a plausible slate: complements, favourite brands, followers, the last category, popular items; nothing bought."""
  last = bought[np.arange(len(lengths)), lengths - 1]
  logits = candidate_logits(shelf, last, **{name: parts[name] for name in ("complement", "brand", "follow")})
  logits += _gumbel(rng, logits.shape)
  rows, steps = np.nonzero(bought >= 0)
  logits[rows, bought[rows, steps]] = -np.inf
  return np.argpartition(-logits, config.slate_size, axis=1)[:, : config.slate_size]


def _exposure(config: MarketConfig, shelf: Shelf, candidates: np.ndarray, rng: np.random.Generator) -> np.ndarray:
  """How much more an item was examined than others, standardised, `[N]`."""
  quality = config.quality_weight * shelf["quality"]
  # An older order by popularity decided what was examined; a click model that ignores this credits the item with its position.
  older = np.argsort(np.argsort(-(quality[candidates] + rng.normal(0, 1, candidates.shape)), axis=1), axis=1)
  seen = np.bincount(candidates.ravel(), minlength=len(quality))
  examined = np.bincount(
    candidates.ravel(), examination(config.slate_size, config.examination_decay)[older].ravel(), minlength=len(quality)
  )
  exposure = np.log((examined + 1) / (seen + 1))
  return np.asarray((exposure - exposure.mean()) / (exposure.std() + 1e-9))


def upstream_means(config: MarketConfig, shelf: Shelf, candidates: np.ndarray, taste: np.ndarray, hidden: np.ndarray) -> np.ndarray:
  """The upstream scores of candidate rows `[..., K]` without their noise, float64 like `[..., K]` of the parts: quality and taste, a small
  share of what the ranker hardly sees, and exposure bias."""
  seen = config.upstream_sight * hidden.astype(np.float64)
  quality = config.quality_weight * shelf["quality"][candidates]
  return np.asarray(quality + taste.astype(np.float64) + seen + config.upstream_exposure * shelf["exposure"][candidates])


def _draw_labels(
  config: MarketConfig, utilities: np.ndarray, log_price: np.ndarray, examined: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
  """Labels `[U, K]`: one choice by the logit model, or clicks (attractive and examined, at least one) and conversions among them."""
  if config.labels == "single":
    choice = np.argmax(utilities + _gumbel(rng, utilities.shape), axis=1)
    return np.asarray(np.arange(config.slate_size) == choice[:, None], np.int64)
  relative = utilities - utilities.mean(axis=1, keepdims=True)
  clicks = _clicks_given_any(attraction(relative) * examined, rng)
  buys = rng.random(clicks.shape) < 1 / (1 + np.exp(1.0 - 0.5 * relative + 0.5 * (log_price - 2.3)))
  return np.asarray(clicks * (1 + buys))


def attraction(relative: np.ndarray) -> np.ndarray:
  """P(click) of a candidate that is examined, from its utility over its slate's mean; whatever else is clicked."""
  return np.asarray(1 / (1 + np.exp(2.5 - relative)))


def choice_probabilities(utilities: np.ndarray) -> np.ndarray:
  """P(choice) of candidates with utilities `[..., K]`, of which one is taken: the logit model."""
  shares = np.exp(utilities - utilities.max(axis=-1, keepdims=True))
  return np.asarray(shares / shares.sum(axis=-1, keepdims=True))


def label_probabilities(config: MarketConfig, utilities: np.ndarray) -> np.ndarray:
  """P(label above 0) of candidates with utilities `[..., K]`, all of them examined."""
  if config.labels == "single":
    return choice_probabilities(utilities)
  clicked = attraction(utilities - utilities.mean(axis=-1, keepdims=True))
  return np.asarray(clicked / (1 - np.prod(1 - clicked, axis=-1, keepdims=True)))


def _clicks_given_any(probability: np.ndarray, rng: np.random.Generator) -> np.ndarray:
  """Independent clicks `[U, K]` conditioned on at least one: while none has come, P(click k | some click from k on) is drawn."""
  some_later = 1 - np.cumprod((1 - probability)[:, ::-1], axis=1)[:, ::-1]
  draws = rng.random(probability.shape)
  clicks = np.zeros(probability.shape, np.int64)
  clicked = np.zeros(len(probability), bool)
  for k in range(probability.shape[1]):
    clicks[:, k] = draws[:, k] < np.where(clicked, probability[:, k], probability[:, k] / some_later[:, k])
    clicked |= clicks[:, k] > 0
  return clicks


def _catalogue(shelf: Shelf) -> Catalogue:
  """Items with titles of brand, trait, scent, category word and pack, e.g. 'Velora Gentle Rose Shampoo, Mini'."""
  broad_names = list(SHELVES)
  per_broad = int(np.max(np.bincount(shelf["broad"][np.unique(shelf["leaf"], return_index=True)[1]])))
  items = []
  for row, variant in enumerate(shelf["variant"]):
    rest, pack = divmod(int(variant), len(PACKS))
    trait, scent = divmod(rest, len(SCENTS))
    broad, brand = broad_names[shelf["broad"][row]], BRANDS[shelf["brand"][row]]
    leaf = SHELVES[broad][shelf["leaf"][row] % per_broad]
    items.append(
      Item(
        id=f"item{row:04d}",
        title=f"{brand} {TRAITS[trait]} {SCENTS[scent]} {leaf}, {PACKS[pack]}",
        brand=brand,
        categories=(broad, leaf),
        price=round(float(np.exp(shelf["log_price"][row])), 2),
      )
    )
  return Catalogue(tuple(items))
