"""`python -m vqtok` and the `vqtok` command."""

from vqtok.cli import main

if __name__ == "__main__":
    main()
