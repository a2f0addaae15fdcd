"""What a reader sees of a run or a sweep: card, tables, plots, comparisons, answers."""
