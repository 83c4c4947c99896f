"""Hostile files: seeded generators of damaged and malicious input, and a harness that runs readers
on them in forked workers.

A case is a function of its kind, a seed and a number, so that every finding can be made again:
`python benchmarks/fuzz.py --kind codes --seed 0 --first 4711 --count 1`. `tests/attacks/test_*.py`
run a few seconds of each kind, and what was found once, built by code.
"""
