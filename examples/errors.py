"""What goes wrong remotely arrives here as itself, and the next call works.

    modal run examples/errors.py
"""

import os
import signal

import modal

app = modal.App("errors")


class OutOfStock(Exception):
    def __init__(self, item: str, left: int):
        super().__init__(item, left)
        self.item, self.left = item, left


@app.function()
def order(item: str, amount: int) -> str:
    if amount > 3:
        raise OutOfStock(item, 3)
    return f"{amount} x {item}"


@app.function(retries=2)
def fragile(fail: bool) -> str:
    if fail:
        os.kill(os.getpid(), signal.SIGKILL)
    return "alive"


@app.local_entrypoint()
def main():
    try:
        order.remote("lamp", 7)
    except OutOfStock as e:
        print(f"caught: {e.left} of '{e.item}' left")
    print(order.remote("lamp", 2))
    try:
        fragile.remote(True)
    except Exception as e:
        print(f"a killed container: {type(e).__name__}: {e}")
    print(fragile.remote(False))
