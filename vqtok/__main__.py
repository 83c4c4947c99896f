"""`python -m vqtok` and the `vqtok` command."""

import sys


def main() -> None:
    """Runs the command; its imports stand inside, so that ctrl-C while they load ends as quietly as later on."""
    try:
        from vqtok.cli import main as run

        run()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
