"""A build step that is a function: it runs in the image so far, and what it leaves becomes a layer."""

import os
from pathlib import Path

import modal

app = modal.App("images-function")


def prepared(word):
    print("preparing", word)
    Path("/opt/prepared").write_text(word + " " + os.environ.get("BUILD_WORD", "-"))


def breaks():
    raise ValueError("cannot prepare")


built = modal.Image.debian_slim().run_function(prepared, args=("word",), secrets=[modal.Secret.from_dict({"BUILD_WORD": "from a secret"})])


@app.function(image=built.run_commands("cat /opt/prepared > /opt/seen"))
def was_prepared():
    return Path("/opt/prepared").read_text(), os.environ.get("BUILD_WORD"), Path("/opt/seen").read_text()


@app.local_entrypoint()
def main():
    assert was_prepared.remote() == ("word from a secret", None, "word from a secret")
    print("finished")
