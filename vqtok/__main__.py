"""`python -m vqtok` and the `vqtok` command."""

import atexit
import gc
import os
import sys
import threading
from typing import Any


def main() -> None:
    """Runs the command. It is imported here, so that ctrl-C meanwhile ends as quietly as later.

    Torch's threads and NumPy's sleep while they wait for each other. By default they spin, and
    beside other work that keeps the cores from the one that is waited for: 0.5 s for 4.0 to encode
    a photo of 768x512 on two busy cores, with equal results. The garbage collector rests until the
    command begins.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")  # of 2: cycles, 16; by default 2^26
    gc.disable()
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
    """Ends the process; at once where torch or onnxruntime was imported, whose objects take 0.3
    and 0.1 s to free.

    It ends in the ordinary way under a debugger, a profiler or VQTOK_DEBUG=1, which may have more
    to do at the end, and while other threads are at work.
    """
    watched = sys.gettrace() or sys.getprofile() or os.environ.get("VQTOK_DEBUG") == "1"
    plain = code is None or isinstance(code, int)
    working = any(
        not thread.daemon
        for thread in threading.enumerate()
        if thread is not threading.current_thread()
    )
    run_exit_functions = getattr(atexit, "_run_exitfuncs", None)  # CPython's own, not promised
    slow = "torch" in sys.modules or "onnxruntime" in sys.modules
    if watched or working or not plain or not slow or run_exit_functions is None:
        sys.exit(code)
    run_exit_functions()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):  # closed, or None
            sys.exit(code)
    os._exit(code or 0)


if __name__ == "__main__":
    main()
