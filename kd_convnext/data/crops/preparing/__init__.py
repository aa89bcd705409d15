"""Estimates, previews, distributes and prunes the work of preparing crops."""
