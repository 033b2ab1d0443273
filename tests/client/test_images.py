"""Images: every step kind, cache, one build for two clients, what a failing step says, other Pythons."""

import re
import threading
import time
import uuid

import pytest
from conftest import APPS

pytestmark = pytest.mark.rpc("ImageGetOrCreate", "ImageJoinStreaming")

STEPS = """
import modal
app = modal.App("steps")
image = modal.Image.debian_slim().run_commands({commands}{more})

@app.function(image=image)
def f():
    return open("/opt/word").read()

@app.local_entrypoint()
def main():
    print("GOT", f.remote())
"""
OTHER_PYTHON = """
import modal, sys
app = modal.App("other")

@app.function(image=modal.Image.debian_slim(python_version="3.13").pip_install("humanize==4.9.0"))
def f(x):
    import humanize
    return sys.version_info[:2], humanize.intcomma(x), sys.executable

@app.local_entrypoint()
def main():
    assert f.remote(1234) == ((3, 13), "1,234", "/usr/local/bin/python"), f.remote(1234)
    assert list(f.map(range(3)))[2][1] == "2"
    print("finished")
"""


@pytest.mark.feature("images: default, apt_install, pip_install, uv_pip_install, run_commands, env, workdir, dockerfile_commands, entrypoint, "
                     "shell, build secrets, pip_install_from_requirements")
def test_every_kind_of_step(client, lydian):
    done = client.modal("run", f"{APPS}/images.py", timeout=900).ok()
    assert "finished" in done.out
    again = client.modal("run", f"{APPS}/images.py", timeout=60).ok()
    assert "Building image" not in again.out and "RUN" not in again.out, "all of it is cached"


@pytest.mark.feature("run_function")
def test_run_function(client, lydian):
    assert "finished" in client.modal("run", f"{APPS}/images_function.py", timeout=120).ok().out
    assert client.modal("run", f"{APPS}/images_function.py", timeout=60).ok().seconds < 10


@pytest.mark.feature("image cache", "build log")
def test_log_streams_and_a_hit_is_instant(client, program, lydian):
    word = uuid.uuid4().hex
    path = program(STEPS.format(commands=f"'echo building {word[:8]} aloud', 'sleep 2', 'echo {word} > /opt/word', 'echo step is over'", more=""))
    run = client.start_modal("run", path)
    heard = run.wait_for(f"building {word[:8]} aloud\n", 60)
    over = run.wait_for("step is over\n", 60)
    assert over - heard > 1.5, "the log streams while the step runs"
    done = run.finish()
    assert f"GOT {word}" in done.ok().out
    again = client.modal("run", path).ok()
    assert f"GOT {word}" in again.out and "step is over" not in again.out.replace("echo step is over", "")
    assert again.seconds < 6


@pytest.mark.feature("force_build")
def test_force_build(client, program, lydian):
    marker = uuid.uuid4().hex[:8]
    command = f"'echo once {marker}; date +%s%N > /opt/word'"
    first = client.modal("run", program(STEPS.format(commands=command, more=""))).ok()
    same = client.modal("run", program(STEPS.format(commands=command, more=""))).ok()
    forced = client.modal("run", program(STEPS.format(commands=command, more=", force_build=True"))).ok()
    got = [re.search(r"GOT (\d+)", d.out)[1] for d in (first, same, forced)]
    assert got[0] == got[1] != got[2]


@pytest.mark.feature("a failing build step")
def test_failing_step_says_all(client, program, lydian):
    path = program(STEPS.format(commands="'echo words before it fails; cat /no/such/file; exit 17'", more=""))
    for _ in range(2):  # a failure is not cached as a success, nor for ever
        done = client.modal("run", path)
        assert done.code != 0
        for words in ("words before it fails", "No such file", "17", "cat /no/such/file"):
            assert words in done.text, done
        assert "GOT" not in done.out


@pytest.mark.feature("two clients build once")
def test_two_clients_build_once(client, program, lydian):
    word = uuid.uuid4().hex
    path = program(STEPS.format(commands=f"'date +%s%N > /opt/word; sleep 3; echo {word}'", more=""))
    runs = []

    def go(delay):
        time.sleep(delay)
        runs.append(client.modal("run", path, timeout=120))

    threads = [threading.Thread(target=go, args=(d,)) for d in (0, 0.5)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    got = {re.search(r"GOT (\d+)", r.ok().out)[1] for r in runs}
    assert len(runs) == 2 and len(got) == 1, got


@pytest.mark.feature("a killed build leaves nothing")
def test_a_build_whose_client_is_killed(client, program, lydian):
    word = uuid.uuid4().hex
    path = program(STEPS.format(commands=f"'echo {word} > /opt/word', 'echo halfway; sleep 2; echo {word} >> /opt/word'", more=""))
    run = client.start_modal("run", path)
    run.wait_for("halfway\n")
    run.kill()
    run.finish()
    done = client.modal("run", path, timeout=120).ok()
    assert done.out.count(f"GOT {word}\n{word}") == 1, done


@pytest.mark.feature("Python 3.13")
def test_python_3_13(client, program, lydian):
    assert "finished" in client.modal("run", program(OTHER_PYTHON), timeout=900).ok().out


@pytest.mark.feature("a Python that cannot be had")
def test_python_that_cannot_be_had(client, program, lydian):
    done = client.modal("run", program(OTHER_PYTHON.replace("3.13", "3.12")))
    assert done.code != 0 and "3.12" in done.text, done
    assert "lydian image import" in done.text and "mirror" in done.text, "it names the ways out"
