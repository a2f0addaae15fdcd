"""Everything about shorter prompts: rules, a trained rewriter, soft tokens, their judges, and the cache of compressed histories."""
