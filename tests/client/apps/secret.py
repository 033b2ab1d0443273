"""Secrets of three kinds. The entrypoints say which is there."""

import os

import modal

app = modal.App("secret")


@app.function(secrets=[modal.Secret.from_dict({"LIBRARY": "borges", "EMPTY": "", "LINES": "a\nb \u00fc"})])
def from_dict():
    return os.environ["LIBRARY"], os.environ["EMPTY"], os.environ["LINES"]


@app.function(secrets=[modal.Secret.from_dict({"A": "1", "B": "1"}), modal.Secret.from_dict({"B": "2"})])
def two():
    return os.environ["A"], os.environ["B"]


@app.local_entrypoint()
def dicts():
    assert from_dict.remote() == ("borges", "", "a\nb \u00fc")
    assert two.remote() == ("1", "2")
