import gzip
import json
import pathlib

import numpy as np
import pytest

from gr2_jax.data.schema import Catalogue, DataError, Item
from gr2_jax.semantic_ids.embed import check_vectors, item_text, tfidf_svd, vectors_from_npy

BEAUTY = pathlib.Path(__file__).resolve().parents[3] / "shared" / "data" / "amazon_beauty"


def catalogue(*titles):
  return Catalogue(tuple(Item(id=str(row), title=title) for row, title in enumerate(titles)))


def test_text_has_the_parts_in_order_and_cuts_the_description():
  item = Item(id="1", title="Soap", brand="Acme", categories=("Bath", "Bars"), description="word " * 300)
  assert item_text(item) == "Soap | Acme | Bath > Bars | " + " ".join(["word"] * 128)


def test_text_leaves_missing_parts_out():
  assert item_text(Item(id="1", title="", categories=("Bath",))) == "Bath"


def test_rows_are_unit_norm_float32_and_like_texts_are_near():
  texts = [f"rose soap bar number {i}" for i in range(30)] + [f"steel nail clipper model {i}" for i in range(30)]
  vectors = tfidf_svd(dim=8)(catalogue(*texts))
  assert vectors.shape == (60, 8) and vectors.dtype == np.float32
  np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
  assert (vectors[:30] @ vectors[:30].T).min() > (vectors[:30] @ vectors[30:].T).max()


def test_the_same_seed_gives_the_same_bits():
  items = catalogue(*[f"item {i} of kind {i % 7}" for i in range(50)])
  np.testing.assert_array_equal(tfidf_svd(8, seed=3)(items), tfidf_svd(8, seed=3)(items))


@pytest.mark.parametrize("titles", [("soap",), ("soap", "soap"), ("red soap", "blue soap", "green cream")])
def test_a_catalogue_smaller_than_the_width_works(titles):
  vectors = tfidf_svd(dim=256)(catalogue(*titles))
  assert vectors.shape[0] == len(titles) and vectors.shape[1] <= 256
  np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_fewer_items_than_the_width_but_more_terms():
  vectors = tfidf_svd(dim=4)(catalogue("a b c d e f", "g h i j k l"))
  assert vectors.shape == (2, 2)


def test_any_script_counts_as_words_and_an_empty_text_is_a_zero_row():
  vectors = tfidf_svd()(catalogue("石鹸 バラ", "мыло", "صابون", "", "!!!"))
  np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), [1, 1, 1, 0, 0], atol=1e-6)


def test_no_word_at_all_is_an_error_that_says_what_to_do():
  with pytest.raises(DataError, match=r"--config\.tokenize\.vectors="):
    tfidf_svd()(catalogue("", "..."))


def test_npy_vectors_are_read_and_scaled_to_unit_norm(tmp_path):
  np.save(tmp_path / "v.npy", np.array([[3, 4], [0, 2]], np.float16))
  vectors = vectors_from_npy(tmp_path / "v.npy")(catalogue("a", "b"))
  assert vectors.dtype == np.float32
  np.testing.assert_allclose(vectors, [[0.6, 0.8], [0, 1]], atol=1e-3)


@pytest.mark.parametrize("value", [np.inf, 1e300, 1e20, 1e-30, 1e-300])
def test_npy_vectors_that_32_bits_cannot_scale_are_refused(tmp_path, value):
  np.save(tmp_path / "v.npy", np.array([[0.0, 0.0], [value, 0.0], [1e18, 1e-18]]))
  with pytest.raises(DataError, match=r"v\.npy: 1 rows .*row 1"):
    vectors_from_npy(tmp_path / "v.npy")(catalogue("a", "b", "c"))


def test_npy_errors_name_the_file_and_the_fault(tmp_path):
  items = catalogue("a", "b")
  np.save(tmp_path / "long.npy", np.ones((3, 2)))
  np.save(tmp_path / "nan.npy", np.array([[1.0, 2.0], [np.nan, 1.0]]))
  (tmp_path / "text.npy").write_text("not an array")
  np.savez(tmp_path / "several.npz", a=np.ones(2))
  for name, message in [
    ("long.npy", "3 rows for 2 items"),
    ("nan.npy", "the first is row 1"),
    ("text.npy", "cannot be read"),
    ("absent.npy", "cannot be read"),
    ("several.npz", "several arrays"),
  ]:
    with pytest.raises(DataError, match=message) as error:
      vectors_from_npy(tmp_path / name)(items)
    assert str(tmp_path / name) in str(error.value)


@pytest.mark.parametrize("vectors", [np.ones(3, np.float32), np.ones((2, 2), np.int32), np.ones((0, 4), np.float32)])
def test_vectors_of_another_form_are_refused(vectors):
  with pytest.raises(DataError, match="item vectors"):
    check_vectors(vectors)


@pytest.mark.skipif(not BEAUTY.exists(), reason="the Amazon Beauty files are not here")
def test_beauty_titles_give_vectors_near_their_category():
  with gzip.open(BEAUTY / "items.jsonl.gz", "rt", encoding="utf-8") as file:
    rows = [json.loads(line) for _, line in zip(range(400), file, strict=False)]
  items = tuple(Item(id=str(r["item"]), title=r["title"] or "", brand=r["brand"], categories=tuple(r["categories"])) for r in rows)
  vectors = tfidf_svd(dim=32)(Catalogue(items))
  nearest = np.argsort(vectors @ vectors.T - 2 * np.eye(400), axis=1)[:, -1]
  leaves = np.unique([" > ".join(item.categories) for item in items], return_inverse=True)[1]
  # 400 items over more than a hundred leaf categories: a random neighbour shares the leaf a few times in a hundred.
  assert (leaves == leaves[nearest]).mean() > 0.5
