"""The re-ranker that one calls: a trained run, and a full permutation of the candidates for every request.

>>> from gr2_jax.serving import Request, RequestError, parse_request
>>> parse_request({"history": ["B1"], "candidates": ["B2", {"item": "new", "title": "Rose Toner"}]}).candidates[0]
'B2'
>>> try:
...   parse_request({"history": "B1", "candidates": []})
... except RequestError as error:
...   print(error.kind)
bad_request
"""

from gr2_jax.serving.request import Ranking, Request, RequestError, parse_request
from gr2_jax.serving.reranker import Options, Reranker

__all__ = ["Options", "Ranking", "Request", "RequestError", "Reranker", "parse_request"]
