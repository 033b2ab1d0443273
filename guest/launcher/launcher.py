"""Starts the client's runtime in a container: the imports first, then who it is, then the runtime's main.

Run as `python -u -R launcher.py` with the image's environment, PYTHONPATH and MODAL_IS_REMOTE=1. File descriptor 3 is one end of a
socket pair; when the imports are done, one frame is read from it (docs/formats/launcher.md). Until then nothing of a task is known
here, so that a process at this point can be kept and cloned for any task of the image. From there on everything is as in
`python -u -R -m modal._container_entrypoint`: names, arguments, tracebacks, exit status.
"""

import sys

CONTROL_FD = 3
ENTRYPOINT = "modal._container_entrypoint"

# The folder of this file; with -m it would be the working directory, which comes with the identity.
_safe_path = getattr(sys.flags, "safe_path", False)
if not _safe_path:
    del sys.path[0]


def warm():
    """Imports what the runtime needs. A failure is left to the real start, which tells it as users know it.

    Nothing of it ever becomes garbage, so the collector looks at it neither now (an eighth of the time) nor later.
    """
    import gc
    import runpy  # noqa: F401

    gc.disable()
    try:
        __import__(ENTRYPOINT)
    except Exception:
        return
    finally:
        gc.freeze()
        gc.enable()
    # It has to run as __main__; what it imported stays.
    package, _, name = ENTRYPOINT.rpartition(".")
    sys.modules.pop(ENTRYPOINT, None)
    sys.modules[package].__dict__.pop(name, None)


def read_identity():
    import json
    import os

    def exactly(count):
        parts = []
        while count:
            part = os.read(CONTROL_FD, min(count, 1 << 20))
            if not part:
                sys.stderr.write("the container was given up before it had its task\n")
                os._exit(1)
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    frame = json.loads(exactly(int.from_bytes(exactly(4), "little")))
    os.close(CONTROL_FD)
    if frame["version"] != 1:
        raise RuntimeError(f"identity of version {frame['version']}, 1 is understood")
    return frame


def apply(identity):
    import os
    import time

    os.environ.update(identity["env"])
    if "TZ" in identity["env"]:
        time.tzset()
    os.chdir(identity["cwd"])
    sys.argv[1:] = identity["argv"]
    if not _safe_path:
        sys.path.insert(0, os.getcwd())


def run():
    """The runtime's main. Returns the exit status as the interpreter would give it, None for death by Ctrl-C."""
    import runpy

    try:
        runpy.run_module(ENTRYPOINT, run_name="__main__", alter_sys=True)
    except SystemExit as error:
        if error.code is None:
            return 0
        if isinstance(error.code, int):
            return error.code & 0xFF
        sys.stderr.write(f"{error.code}\n")
        return 1
    except BaseException as error:
        # Without the frames of this file and of runpy: the first that is shown is the entrypoint's.
        trace = error.__traceback__
        while trace is not None and (trace.tb_frame.f_code.co_filename in (__file__, "<frozen runpy>")
                                     or trace.tb_frame.f_code.co_filename == runpy.__file__):
            trace = trace.tb_next
        error.__traceback__ = trace or error.__traceback__
        sys.excepthook(type(error), error, error.__traceback__)
        return None if isinstance(error, KeyboardInterrupt) else 1
    return 0


def leave(status):
    """Ends the process as the interpreter does, in its order (threads, exit handlers, streams), without taking modules apart."""
    import atexit
    import os
    import signal
    import threading

    try:
        join_threads = getattr(threading, "_shutdown", None)
        if join_threads is not None:
            join_threads()
    except BaseException:
        sys.excepthook(*sys.exc_info())
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None and not stream.closed:
                stream.flush()
        except BaseException:
            status = status or 120
    if status is None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
        status = 130
    os._exit(status)


if __name__ == "__main__":
    warm()
    apply(read_identity())
    leave(run())
