"""Stored token grids of any tokenizer, packed without loss by an exact integer prior."""
