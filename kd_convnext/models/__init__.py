"""Networks, and what looks into them."""
