"""Runs the official client as a user does: as a process, with a configuration file of its own and a time limit."""

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

BIN = Path(sys.executable).parent  # of .venv: modal and python are here


def _hears_ctrl_c():
    """Tests that a shell runs in the background inherit an ignored SIGINT, which a client would inherit in turn."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@dataclass
class Finished:
    code: int
    out: str
    err: str
    seconds: float
    command: list = field(default_factory=list)

    @property
    def text(self):
        return self.out + self.err

    def ok(self):
        assert self.code == 0, f"exit code {self.code}\n{self}"
        return self

    def __str__(self):
        return f"$ {' '.join(map(str, self.command))}\n[{self.code}, {self.seconds:.1f} s]\n-- stdout\n{self.out}\n-- stderr\n{self.err}"


class Running:
    """A client that is still going: its lines with the time of their arrival, and waiting for one of them by event."""

    def __init__(self, command, env, cwd):
        self.command, self.began = command, time.monotonic()
        self.proc = subprocess.Popen(command, env=env, cwd=cwd, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                     start_new_session=True, preexec_fn=_hears_ctrl_c)
        self.changed, self.pieces, self.open = threading.Condition(), [], 2
        self.threads = [threading.Thread(target=self._read, args=x, daemon=True) for x in
                        (("out", self.proc.stdout), ("err", self.proc.stderr))]
        for t in self.threads:
            t.start()

    def _read(self, name, pipe):
        while data := os.read(pipe.fileno(), 65536):
            with self.changed:
                self.pieces.append((time.monotonic() - self.began, name, data))
                self.changed.notify_all()
        with self.changed:
            self.open -= 1
            self.changed.notify_all()

    def text(self, *streams):
        return b"".join(d for _, n, d in self.pieces if not streams or n in streams).decode(errors="replace")

    def seen(self, text):
        return text in self.text()

    def wait_for(self, text, timeout=60, times=1):
        """Returns the seconds since the start at which the text had arrived, as many times."""
        def there():
            return self.text().count(text) >= times

        with self.changed:
            if not self.changed.wait_for(lambda: there() or self.open == 0, timeout) or not there():
                self.kill()
                raise AssertionError(f"'{text}' did not arrive {times} times within {timeout} s\n{self.text()}")
            return time.monotonic() - self.began

    def signal(self, number):
        self.proc.send_signal(number)

    def kill(self):
        try:
            os.killpg(self.proc.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass

    def finish(self, timeout=60):
        """Waits for the end; a client that hangs is killed and fails the test with all that it said."""
        try:
            self.proc.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            self.proc.wait()
            raise AssertionError(f"still running after {timeout} s: {' '.join(map(str, self.command))}\n{self.text()}") from None
        seconds = time.monotonic() - self.began
        for t in self.threads:
            t.join(5)
        return Finished(self.proc.returncode, self.text("out"), self.text("err"), seconds, self.command)


class Client:
    def __init__(self, config, home, extra=None):
        keep = {k: v for k, v in os.environ.items() if not k.startswith(("MODAL_", "LYDIAN_", "PYTEST_")) and k != "PYTHONPATH"}
        self.env = keep | {"MODAL_CONFIG_PATH": str(config), "HOME": str(home), "COLUMNS": "200", "LC_ALL": "C.UTF-8"} | (extra or {})
        self.home = Path(home)

    def start(self, *command, cwd=None, env=None):
        return Running([str(c) for c in command], self.env | (env or {}), cwd or self.home)

    def run(self, *command, timeout=60, cwd=None, env=None):
        return self.start(*command, cwd=cwd, env=env).finish(timeout)

    def modal(self, *args, timeout=60, cwd=None, env=None):
        return self.run(BIN / "modal", *args, timeout=timeout, cwd=cwd, env=env)

    def start_modal(self, *args, cwd=None, env=None):
        return self.start(BIN / "modal", *args, cwd=cwd, env=env)

    def python(self, *args, timeout=60, cwd=None, env=None):
        return self.run(BIN / "python", *args, timeout=timeout, cwd=cwd, env=env)
