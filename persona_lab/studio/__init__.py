"""Batches of replies: a library of prompts, styles to apply, rows written and kept one by one, and ratings of them."""
