"""From a manifest of photographs to batches."""
