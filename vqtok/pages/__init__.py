"""Pages of a run, a model and a codes file: each is one file, and nothing in it is fetched."""
