"""Makes pages of runs, models and codes files; each is one file that fetches nothing."""
