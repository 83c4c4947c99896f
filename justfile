# The chores of vqtok; CONTRIBUTING.md says when to run which.

# Lists them
_default:
    @just --list

# All tests, on all cores
test *ARGS:
    python -m pytest -n auto --dist loadfile {{ARGS}}

# The quick tests, on all cores
fast *ARGS:
    python -m pytest -n auto --dist loadfile -m "not slow" {{ARGS}}

# The quick tests at the lowest versions that pyproject.toml allows
lowest *ARGS:
    .ci/lowest {{ARGS}}

# The quick tests at the newest versions, also of Python
newest *ARGS:
    .ci/newest {{ARGS}}

# Rules, format and types
lint:
    ruff check .
    ruff format --check .
    pyright

# Writes docs/commands.md anew, and runs every command on the pages
docs:
    python tests/make_commands_doc.py
    python -m pytest -n auto --dist loadfile tests/test_docs.py tests/test_readme.py tests/test_examples.py tests/test_architecture.py

# The README's speed figures
bench:
    python benchmarks/quantizers.py --shapes 8,1024 --kinds ema vq simvq --rounds 3
    python benchmarks/sampling.py --grids 32x32 --batches 1
    python benchmarks/training.py tokenizer
    python benchmarks/classic.py --sizes 768x512
    python benchmarks/commands.py --only encode
