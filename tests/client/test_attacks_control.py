"""What one workspace may take of control, and that its neighbours don't feel it."""

import re
import secrets
import signal
import string
import time
from pathlib import Path

import pytest
from grpclib.exceptions import GRPCError
from harness.lydian import read, until
from harness.stranger import Stranger
from modal_proto import api_pb2 as pb

APP = """
import modal
app = modal.App("{name}")

@app.function(max_containers=1)
def f(x=0):
    return x
"""
ENDLESS_BUILD = """
import modal
app = modal.App("endless")

@app.function(image=modal.Image.debian_slim().run_commands("echo begins {word}; sleep {seconds}", force_build=True))
def f():
    pass

@app.local_entrypoint()
def main():
    f.remote()
"""
NEVER_READY = """
import modal
app = modal.App("never")

@app.function(image=modal.Image.debian_slim().entrypoint(["/bin/sh", "-c", "exec sleep infinity"]))
def f(x):
    pass

@app.local_entrypoint()
def main():
    list(f.map(range(8)))
"""
MINE = """
import modal
app = modal.App("mine")

@app.function()
def f(x):
    return x + 1

@app.local_entrypoint()
def main():
    print("GOT", f.remote(41))
"""


@pytest.fixture
def stranger(lydian, tmp_path_factory):
    it = Stranger(lydian, tmp_path_factory.mktemp("stranger"))
    yield it
    lydian.cli("token", "revoke", it.token)


@pytest.fixture
def function(client, raw, program):
    """The id of a deployed function."""
    name = "attacked-" + secrets.token_hex(4)
    client.modal("deploy", program(APP.format(name=name), "attacked.py"), timeout=120).ok()
    yield raw.call("FunctionGet", pb.FunctionGetRequest(app_name=name, object_tag="f", environment_name="main")).function_id
    client.modal("app", "stop", name, "--yes").ok()


def map_of(function, **more):
    return pb.FunctionMapRequest(function_id=function, function_call_type=pb.FUNCTION_CALL_TYPE_MAP,
                                 function_call_invocation_type=pb.FUNCTION_CALL_INVOCATION_TYPE_SYNC, **more)


def resident(pid):
    return int(re.search(r"VmRSS:\s+(\d+) kB", read(f"/proc/{pid}/status"))[1]) << 10


@pytest.mark.feature("limits: inputs of a request")
def test_a_huge_request_is_refused_at_once(raw, function):
    call = raw.call("FunctionMap", map_of(function)).function_call_id
    request = pb.FunctionPutInputsRequest(function_id=function, function_call_id=call,
                                          inputs=[pb.FunctionPutInputsItem(idx=i) for i in range(400_000)])
    began = time.monotonic()
    with pytest.raises(GRPCError) as error:
        raw.call("FunctionPutInputs", request)
    assert error.value.status.name == "INVALID_ARGUMENT" and "400000 inputs" in error.value.message
    assert time.monotonic() - began < 10
    raw.call("FunctionCallCancel", pb.FunctionCallCancelRequest(function_call_id=call))


@pytest.mark.feature("limits: index of an input")
def test_a_far_index_takes_no_memory(raw, function, lydian):
    before = resident(lydian.pid("control"))
    item = pb.FunctionPutInputsItem(idx=50_000_000)
    calls = [raw.call("FunctionMap", map_of(function, pipelined_inputs=[item])).function_call_id for _ in range(100)]
    assert resident(lydian.pid("control")) - before < 100 << 20
    for call in calls:
        raw.call("FunctionCallCancel", pb.FunctionCallCancelRequest(function_call_id=call))


def random_id(prefix):
    if prefix == "ta":
        return "ta-" + "".join(secrets.choice("0123456789ABCDEFGHJKMNPQRSTWXYZ") for _ in range(26))
    return f"{prefix}-" + "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(22))


@pytest.mark.feature("ids tell nothing")
def test_a_foreign_id_is_as_an_unknown_one(raw, stranger, function, lydian):
    app = raw.call("FunctionGetById", pb.FunctionGetByIdRequest(function_id=function)).handle_metadata.app_id
    item = pb.FunctionPutInputsItem(idx=0)
    call = raw.call("FunctionMap", map_of(function, pipelined_inputs=[item])).function_call_id
    task = until("a container of the function", 60, lambda: [t for t in lydian.tasks() if t["app_id"] == app])[0]
    questions = [
        ("FunctionMap", function, lambda i: map_of(i)),
        ("FunctionGetById", function, lambda i: pb.FunctionGetByIdRequest(function_id=i)),
        ("FunctionCallList", function, lambda i: pb.FunctionCallListRequest(function_id=i)),
        ("FunctionGetCurrentStats", function, lambda i: pb.FunctionGetCurrentStatsRequest(function_id=i)),
        ("FunctionPutInputs", call, lambda i: pb.FunctionPutInputsRequest(function_call_id=i, inputs=[item])),
        ("FunctionFinishInputs", call, lambda i: pb.FunctionFinishInputsRequest(function_call_id=i)),
        ("FunctionGetOutputs", call, lambda i: pb.FunctionGetOutputsRequest(function_call_id=i)),
        ("FunctionCallCancel", call, lambda i: pb.FunctionCallCancelRequest(function_call_id=i)),
        ("FunctionCallFromId", call, lambda i: pb.FunctionCallFromIdRequest(function_call_id=i)),
        ("FunctionCallGetInfo", call, lambda i: pb.FunctionCallGetInfoRequest(function_call_id=i)),
        ("FunctionGetCallGraph", call, lambda i: pb.FunctionGetCallGraphRequest(function_call_id=i)),
        ("FunctionCallPutDataOut", call, lambda i: pb.FunctionCallPutDataRequest(function_call_id=i)),
        ("ContainerStop", task["task_id"], lambda i: pb.ContainerStopRequest(task_id=i)),
        ("TaskGetInfo", task["task_id"], lambda i: pb.TaskGetInfoRequest(task_id=i)),
        ("AppStop", app, lambda i: pb.AppStopRequest(app_id=i)),
        ("AppGetLayout", app, lambda i: pb.AppGetLayoutRequest(app_id=i)),
        ("AppFetchLogs", app, lambda i: pb.AppFetchLogsRequest(app_id=i)),
    ]
    for name, foreign, make in questions:
        answers = []
        for asked in (foreign, random_id(foreign[:2])):
            with pytest.raises(GRPCError) as error:
                stranger.raw.call(name, make(asked))
            answers.append((error.value.status, error.value.message.replace(asked, "<id>")))
        assert answers[0] == answers[1], name
        assert answers[0][0].name == "NOT_FOUND", (name, answers)


@pytest.mark.feature("builds end with their client")
def test_a_build_ends_when_its_client_has_gone(client, program, lydian):
    word, seconds = "endless" + secrets.token_hex(6), str(10**6 + secrets.randbelow(10**6))
    run = client.start_modal("run", program(ENDLESS_BUILD.format(word=word, seconds=seconds)))
    run.wait_for(f"begins {word}\n", 120)

    def runs():
        return [p for p in Path("/proc").glob("[0-9]*") if read(p / "cmdline") == f"sleep\0{seconds}\0"]
    assert until("the step runs", 10, runs)
    run.signal(signal.SIGINT)
    run.finish(30)
    until("the step has ended", 15, lambda: not runs())


@pytest.mark.feature("starts by workspace")
def test_a_container_that_never_gets_ready_holds_up_nobody_else(client, stranger, program, lydian, tmp_path):
    client.modal("run", program(MINE, "mine.py"), timeout=120).ok()  # its image is there
    theirs = stranger.client.start_modal("run", program(NEVER_READY, "never.py"))
    try:
        def starting():
            return [t for t in lydian.tasks() if t["function_name"] == "f" and t["state"] == "starting"]
        until("containers that start and start", 120, lambda: len(starting()) >= 2)
        done = client.modal("run", tmp_path / "mine.py", timeout=60).ok()
        assert "GOT 42" in done.out
        assert len(starting()) >= 2, "they still start"
    finally:
        theirs.signal(signal.SIGINT)
        theirs.finish(60)
