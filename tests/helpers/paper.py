"""Values of the paper that only tests need."""

CONFUSION = (
    (3, 0, 0, 0, 2),
    (0, 122, 0, 0, 0),
    (0, 3, 11, 1, 1),
    (0, 0, 2, 10, 0),
    (0, 9, 6, 6, 33),
)
"""One of the 14 confusion matrices (rows true, 209 photographs) that fit everything the paper prints of Fig. 8."""
