"""Numbers that several layers must agree on."""

# The logit of what is out of reach. Finite, so that a row with nothing in reach stays free of NaN and p log p stays 0.
OUT_OF_REACH = -1e30
