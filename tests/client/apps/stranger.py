"""An exception of a type that the caller cannot import."""

import modal

app = modal.App("stranger")


@app.function()
def f():
    import sys
    import types
    module = types.ModuleType("only_here")
    exec("class Odd(Exception):\n    pass\n", module.__dict__)
    sys.modules["only_here"] = module
    raise module.Odd("strange thing")


@app.local_entrypoint()
def main():
    try:
        f.remote()
    except Exception as e:
        assert type(e).__name__ != "Odd" and "only_here" in str(e) and "Odd" in str(e), repr(e)
        print("as it should be:", type(e).__name__)
    else:
        raise AssertionError("no error")
