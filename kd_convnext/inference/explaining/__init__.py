"""Heat maps over photographs, and training cases like them."""
