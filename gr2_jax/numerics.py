"""Numbers that several layers must agree on, and how rows are taken in batches of one shape."""

from collections.abc import Iterator

import numpy as np

# The logit of what is out of reach. Finite, so that a row with nothing in reach stays free of NaN and p log p stays 0.
OUT_OF_REACH = -1e30


def filled_batches(count: int, size: int) -> Iterator[np.ndarray]:
  """Places `[size]` of `count` rows, batch after batch; behind the last row come the first again, so that one shape is compiled."""
  for start in range(0, count, size):
    yield np.arange(start, start + size) % count
