"""What retrieval from the whole catalogue was measured, for the console."""

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from gr2_jax.reports.tables import TABLE_STYLE


def render_retrieval_table(found: Mapping[str, Any]) -> Table:
  """`retrieval.json` as a console table: rows and paired differences with their intervals."""
  table = Table(title=f"full catalogue, history masked: {found['n']:,} {found['split']} users", **TABLE_STYLE)
  table.add_column("ranker", no_wrap=True)
  for label in ("R@5", "R@10", "N@10"):
    table.add_column(label, justify="right")
  for part, key in (("rows", "value"), ("paired", "delta")):
    for name, metrics in found[part].items():
      cells = (f"{of[key]:.4f} [{of['ci95'][0]:.4f}, {of['ci95'][1]:.4f}]" for of in metrics.values())
      table.add_row(name.replace("_vs_", ", "), *cells)
    table.add_section()
  return table
