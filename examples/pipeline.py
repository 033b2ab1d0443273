"""Functions that call each other from inside containers, a secret, and a package that only the image has.

    modal run examples/pipeline.py
"""

import os

import modal

app = modal.App("pipeline")
image = modal.Image.debian_slim().pip_install("humanize")


@app.function()
def primes_in(start: int, end: int) -> list[int]:
    return [n for n in range(max(start, 2), end) if all(n % d for d in range(2, int(n**0.5) + 1))]


@app.function(image=image, secrets=[modal.Secret.from_dict({"READER": "Ada"})])
def report(end: int, step: int = 1000) -> str:
    import humanize  # in the image; not needed on your machine

    pieces = primes_in.starmap((start, min(start + step, end)) for start in range(0, end, step))
    found = [p for piece in pieces for p in piece]
    return f"For {os.environ['READER']}: {humanize.intcomma(len(found))} primes below {humanize.intcomma(end)}, the last is {found[-1]}."


@app.local_entrypoint()
def main(end: int = 20_000):
    print(report.remote(end))
