"""A module that fails to import in the container only."""

import modal

app = modal.App("broken")

if not modal.is_local():
    import there_is_no_such_module  # noqa: F401


@app.function()
def f():
    return 1


@app.local_entrypoint()
def main():
    try:
        f.remote()
    except ModuleNotFoundError as e:
        assert e.name == "there_is_no_such_module"
        print("as it should be")
    else:
        raise AssertionError("no error")
    try:
        list(f.starmap([() for _ in range(5)]))
    except ModuleNotFoundError:
        print("for a map too")
