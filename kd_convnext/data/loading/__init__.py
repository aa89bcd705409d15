"""Turns stored crops into augmented batches."""
