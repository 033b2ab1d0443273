"""Without the `modal` command: an app that runs for the length of a `with` block.

    python examples/plain_python.py
"""

import modal

app = modal.App("plain-python")


@app.function()
def shout(text: str) -> str:
    return text.upper() + "!"


if __name__ == "__main__":
    with modal.enable_output(), app.run():
        for line in shout.map(["from", "plain", "python"]):
            print(line)
