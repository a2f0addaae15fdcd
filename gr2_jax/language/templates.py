"""Every fixed sentence of prompts, answers, mid-training tasks and scripted reasoning, so that the vocabulary is trained on all of them."""

# Prompts, in the order of the five principles (GR2 v1: role, collaborative context, knowledge priming, constraints, steps and format).
SHORT_TASK = "rank by next purchase"
ROLE = "You are an e-commerce recommendation expert. Put the candidate that the user will most likely buy next first."
CONTEXT = "Read the whole purchase history and compare all candidates with each other before you decide."
PRIMING = "Domain patterns, as what is often bought first and next:"
QUOTE_SLOT = "Quote the candidate's name whenever you mention a candidate. Use every candidate exactly once and no other item."
QUOTE_SID = "Quote the semantic ID of every item that you mention. Use every candidate exactly once and no other item."
STEPS = "Reason in three steps: the broad pattern of the history, the category or complement that fits it, the best candidate."
FORMAT_COMPACT = ("Write the reasoning between", "and", "then all candidates, best first, between", "and")
FORMAT_JSON = 'Answer with one JSON object: "explanation" holds the three steps, "recommendations" lists all candidates, best first.'

# What a production re-ranker knows about a candidate. Counts of 1, 2 and 3 or more; the short form is one word each.
AFTER_SHORT = ("once", "twice", "often")
AFTER_FULL = ("bought once after the last item", "bought twice after the last item", "often bought after the last item")
UPSTREAM_FULL = "upstream rank {rank}"

# Mid-training.
DESCRIBE = "describe the item"
FIND = "find the item"
TASTE, AND, BY = "this user likes", "and", "by {brands}"

# Scripted reasoning.
UNKNOWN_CATEGORY = "other"
THEN, SO, BEST, NEW = "then", "so", "best", "new"
LONG_PATTERN = "The user bought {trail} and the last purchase was {last}"
LONG_NEXT = "After {last} people often go on to {next}."
LONG_SAME = "The user stays with {next}."
LONG_BRAND = "The user has bought {brand} before."
LONG_AFTER = "It has been bought right after the last item."
LONG_FRESH = "No brand of the history decides here."
LONG_MATCH = ("The best match is", "a {next} item, ahead of", ".")

# JSON answers.
JSON_OPEN, JSON_MIDDLE, JSON_BETWEEN, JSON_CLOSE = '{"explanation": "', '", "recommendations": ["', '", "', '"]}'


def template_texts() -> list[str]:
  """All fixed sentences without their placeholders, and the numbers that ranks are written with."""
  sentences: list[str] = []
  for name, value in globals().items():
    if name.isupper():
      sentences += [value] if isinstance(value, str) else list(value)
  for placeholder in ("trail", "last", "next", "brand", "brands", "rank"):
    sentences = [s.replace("{" + placeholder + "}", " ") for s in sentences]
  return sentences + [str(rank) for rank in range(1, 33)]
