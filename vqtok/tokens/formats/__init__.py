"""One file for each format that training code reads; `config.registry` lists them.

Each is written by hand from its published layout, a batch at a time.
"""
