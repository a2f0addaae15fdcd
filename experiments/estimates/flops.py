"""The floating-point operations of matrix products in a function, counted from its trace.

XLA's own `cost_analysis` counts the body of a loop once; here a scan counts as often as it runs. Products alone are counted, a
multiplication and an addition each: what else a transformer computes is small beside them.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.extend import core


def count_flops(function: Callable[..., Any], *arguments: Any, trips: Sequence[float] = ()) -> float:
  """Of one call with arguments of these shapes. `trips`: see `stage_steps.StageStep`; a `while` deeper than they say counts once."""
  return _count(jax.make_jaxpr(function)(*arguments).jaxpr, tuple(trips))


def _count(jaxpr: core.Jaxpr, trips: tuple[float, ...]) -> float:
  return sum(_count_equation(equation, trips) for equation in jaxpr.eqns)


def _count_equation(equation: core.JaxprEqn, trips: tuple[float, ...]) -> float:
  name, parameters = equation.primitive.name, equation.params
  if name == "dot_general":
    (contracted, _), _ = parameters["dimension_numbers"]
    arrays: list[Any] = [equation.invars[0].aval, equation.outvars[0].aval]
    left, out = (array.shape for array in arrays)
    return 2.0 * math.prod(out) * math.prod(left[axis] for axis in contracted)
  if name == "while":
    return (trips[0] if trips else 1) * _count(parameters["body_jaxpr"].jaxpr, trips[1:])
  if name == "cond":
    return max(_count(branch.jaxpr, trips) for branch in parameters["branches"])
  inner = [jaxpr for value in parameters.values() if (jaxpr := _jaxpr_of(value)) is not None]
  return (parameters["length"] if name == "scan" else 1) * sum(_count(jaxpr, trips) for jaxpr in inner)


def _jaxpr_of(value: Any) -> core.Jaxpr | None:
  if isinstance(value, core.ClosedJaxpr):
    return value.jaxpr
  return value if isinstance(value, core.Jaxpr) else None
