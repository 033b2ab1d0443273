"""Secrets: from a dict, by name, from a .env file, and the commands."""

import json

import pytest

pytestmark = pytest.mark.rpc("SecretGetOrCreate", "SecretList", "SecretDelete")

BY_NAME = """
import modal, os
app = modal.App("by-name")

@app.function(secrets=[modal.Secret.from_name("{name}"{more})])
def f():
    return os.environ["COLOUR"], os.environ["SHAPE"]

@app.local_entrypoint()
def main():
    print("GOT", *f.remote())
"""
DOTENV = """
import modal, os
app = modal.App("dotenv")

@app.function(secrets=[modal.Secret.from_dotenv(__file__)])
def f():
    return os.environ["FROM_FILE"]

@app.local_entrypoint()
def main():
    assert f.remote() == "yes it is"
"""


@pytest.mark.feature("Secret.from_dict")
def test_from_dict(entry):
    entry("secret", "dicts")


@pytest.mark.feature("Secret.from_dotenv")
def test_from_dotenv(client, program, lydian):
    """The loader comes from a package that the client does not bring along."""
    pytest.importorskip("dotenv")
    program('FROM_FILE="yes it is"\n', ".env")
    client.modal("run", program(DOTENV)).ok()


@pytest.mark.feature("Secret.from_name", "modal secret")
def test_by_name_and_commands(client, program, lydian):
    def listed():
        return {s.get("Name") or s.get("name") for s in json.loads(client.modal("secret", "list", "--json").ok().out)}

    client.modal("secret", "create", "paint", "COLOUR=blue", "SHAPE=round").ok()
    assert "paint" in listed()
    path = program(BY_NAME.format(name="paint", more=""))
    assert "GOT blue round" in client.modal("run", path).ok().out
    again = client.modal("secret", "create", "paint", "COLOUR=red", "SHAPE=round")
    assert again.code != 0 and "paint" in again.text and "exist" in again.text.lower(), again
    assert "GOT blue round" in client.modal("run", path).ok().out
    client.modal("secret", "create", "--force", "paint", "COLOUR=red", "SHAPE=flat").ok()
    assert "GOT red flat" in client.modal("run", path).ok().out
    wanting = client.modal("run", program(BY_NAME.format(name="paint", more=', required_keys=["COLOUR", "WEIGHT"]'), "wanting.py"))
    assert wanting.code != 0 and "WEIGHT" in wanting.text, wanting
    client.modal("secret", "delete", "paint", "--yes").ok()
    assert "paint" not in listed()
    gone = client.modal("run", path)
    assert gone.code != 0 and "paint" in gone.text and "main" in gone.text, gone


@pytest.mark.feature("secrets stay secret")
def test_values_lie_nowhere_in_clear(client, lydian):
    value = "moonstone-7f3a91"
    client.modal("secret", "create", "hidden", f"VALUE={value}").ok()
    found = [f for f in lydian.state.rglob("*") if f.is_file() and f.stat().st_size < 100 << 20 and value.encode() in f.read_bytes()
             and "layers" not in f.parts]
    client.modal("secret", "delete", "hidden", "--yes").ok()
    assert not found, found
