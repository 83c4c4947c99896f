"""`python -m vqtok` and the `vqtok` command."""

import atexit
import os
import sys
import threading
from typing import Any


def main() -> None:
    """Runs the command; its imports stand inside, so that ctrl-C while they load
    ends as quietly as later on.
    """
    code: Any = 130
    try:
        from vqtok.cli import main as run

        run()
    except KeyboardInterrupt:
        pass
    except SystemExit as done:
        code = done.code
    _leave(code)


def _leave(code: Any) -> None:
    """Ends the process.

    One that has imported torch leaves at once:
    taking all its objects apart takes 0.3 s and serves nobody.

    Not under a debugger, profiler or VQTOK_DEBUG=1, which may have more to do at the end;
    nor while other threads are at work.
    """
    watched = sys.gettrace() or sys.getprofile() or os.environ.get("VQTOK_DEBUG") == "1"
    plain = code is None or isinstance(code, int)
    working = any(
        not thread.daemon
        for thread in threading.enumerate()
        if thread is not threading.current_thread()
    )
    if watched or working or not plain or "torch" not in sys.modules:
        sys.exit(code)
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):  # closed, or None
            sys.exit(code)
    os._exit(code or 0)


if __name__ == "__main__":
    main()
