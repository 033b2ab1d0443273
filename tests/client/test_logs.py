"""What containers print arrives live, whole, in order, on the right stream, and the run ends at once."""

import re

import pytest
from conftest import APPS
from modal_proto.api_pb2 import FILE_DESCRIPTOR_STDERR as STDERR
from modal_proto.api_pb2 import FILE_DESCRIPTOR_STDOUT as STDOUT

pytestmark = pytest.mark.rpc("AppGetLogs")


@pytest.mark.feature("logs")
def test_streams_order_and_bytes(client, raw):
    done = client.modal("run", f"{APPS}/logs.py::all_kinds").ok()
    app_id = re.search(r"ap-\w{22}", done.out)[0]
    items = raw.logs(app_id)
    out, err = ("".join(text for fd, text in items if fd == want) for want in (STDOUT, STDERR))
    assert "to stdout \u00fc\u4e16" in out and "to stderr \u00e9" in err
    assert "to stderr" not in out and "to stdout" not in err, "each stream where it belongs"
    for text, word in ((out, "out "), (err, "err "), (done.out, "out "), (done.out, "err ")):
        numbers = [int(x[4:]) for x in text.splitlines() if x.startswith(word)]
        assert numbers == list(range(500)), (word, numbers)
    assert "from a child\n" in out and "from a child on stderr" in err
    assert "cut [\ufffd] short" in err or "cut [\ufffd\ufffd] short" in err
    for text in (out, done.out):
        assert "partial line" in text
        assert "split \u2603 whole" in text, "a character in three writes stays one"
        assert "bad [\ufffd\ufffd] bytes" in text
        assert "the last line has no newline" in text


@pytest.mark.feature("live logs")
def test_live(client):
    run = client.start_modal("run", f"{APPS}/logs.py::live")
    first = run.wait_for("first", 60)
    assert not run.seen("second")
    second = run.wait_for("second", 10)
    assert 2 < second - first < 4.5
    done = run.finish(20)
    assert done.code == 0
    assert done.seconds - second < 2.5, f"the run ends at once, not {done.seconds - second:.1f} s after the last line"
    assert "Timed out waiting for final app logs" not in done.text


@pytest.mark.feature("many log lines")
def test_flood(client):
    done = client.modal("run", f"{APPS}/logs.py::flood", "--lines", "20000", timeout=120).ok()
    assert [int(x[:7]) for x in done.out.splitlines() if re.match(r"\d{7} x", x)] == list(range(20000))
