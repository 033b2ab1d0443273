"""The first program: one function, in this process, in a container, and in as many as the work needs.

    modal run examples/hello.py
    modal run examples/hello.py --upto 100
"""

import sys

import modal

app = modal.App("hello")


@app.function()
def collatz(n: int) -> int:
    """Steps that n takes to reach 1, halving what is even and taking 3n + 1 of what is odd."""
    start, steps = n, 0
    while n != 1:
        n = n // 2 if n % 2 == 0 else 3 * n + 1
        steps += 1
    if start == 27:
        print(f"{start} takes {steps} steps: from a container")
    elif start == 9:
        print(f"{start} takes {steps} steps: from stderr of a container", file=sys.stderr)
    return steps


@app.local_entrypoint()
def main(upto: int = 30):
    print("here, in this process: ", collatz.local(27))
    print("remote, in a container:", collatz.remote(27))
    steps = list(collatz.map(range(1, upto + 1)))
    longest = max(steps)
    print(f"the longest way up to {upto} starts at {steps.index(longest) + 1} and takes {longest} steps")
