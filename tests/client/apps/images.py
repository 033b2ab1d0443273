"""Images of every step kind; each function looks at what its image has made of the container."""

import importlib.metadata
import os
import shutil
import subprocess
import sys
from pathlib import Path

import modal

app = modal.App("images")
slim = modal.Image.debian_slim()


packages = slim.apt_install("cowsay").pip_install("humanize==4.9.0").uv_pip_install("colorama==0.4.6")
settings = (slim.env({"COLOUR": "blue and green", "QUOTED": "it's"}).workdir("/srv/work")
            .run_commands("pwd > /opt/pwd", "echo $COLOUR > /opt/colour", "mkdir -p /srv/work/made"))
docker = (slim.dockerfile_commands(
    "ARG SIZE=7",
    "ENV DOCKER_SIZE=$SIZE OTHER=\"two words\"",
    "WORKDIR /docker",
    "COPY context.txt /docker/",
    "SHELL [\"/bin/bash\", \"-o\", \"pipefail\", \"-c\"]",
    "RUN [[ $SIZE == 7 ]] && echo bash \\",
    "    && echo $0 > /docker/shell",
    "RUN echo \"$OTHER\" > other && cat context.txt >> other",
    "CMD [\"sleep\", \"1\"]",
    context_dir=str(Path(__file__).parent / "tree"),
) if modal.is_local() else slim)
entry = (slim.run_commands("printf '#!/bin/sh\\nexport THROUGH_ENTRYPOINT=yes\\nexec \"$@\"\\n' > /entry.sh && chmod +x /entry.sh")
         .entrypoint(["/entry.sh"]))
shelled = slim.shell(["/bin/bash", "-c"]).run_commands("echo {1..3} > /opt/braces")
with_secret = slim.run_commands("test -n \"$TOKEN\" && printf '%s' \"$TOKEN\" | sha256sum > /opt/digest",
                                secrets=[modal.Secret.from_dict({"TOKEN": "sesame-42"})], env={"STEP_ONLY": "1"})
requirements = (slim.pip_install_from_requirements(str(Path(__file__).parent / "tree/requirements.txt")) if modal.is_local() else slim)


@app.function(image=slim)
def default():
    return {"python": sys.version_info[:2], "path": sys.executable, "gcc": shutil.which("gcc"), "pip": shutil.which("pip"),
            "purelib": __import__("sysconfig").get_paths()["purelib"], "apt": os.path.exists("/var/lib/dpkg/status"),
            "uv": shutil.which("uv"), "imported": sorted(m for m in ("modal", "grpclib", "google.protobuf") if __import__(m))}


@app.function(image=packages)
def has_packages():
    import colorama
    import humanize
    return humanize.intcomma(1234567), colorama.__version__, importlib.metadata.version("humanize"), os.path.exists("/usr/games/cowsay")


@app.function(image=settings)
def has_settings():
    return os.environ["COLOUR"], os.environ["QUOTED"], os.getcwd(), Path("/opt/pwd").read_text(), Path("/opt/colour").read_text(), os.listdir(".")


@app.function(image=docker)
def has_docker():
    return os.environ["DOCKER_SIZE"], os.environ["OTHER"], os.getcwd(), Path("/docker/other").read_text(), Path("/docker/shell").read_text().strip()


@app.function(image=entry)
def has_entrypoint():
    return os.environ.get("THROUGH_ENTRYPOINT")


@app.function(image=shelled)
def has_shell():
    return Path("/opt/braces").read_text()


@app.function(image=with_secret)
def had_secret():
    return Path("/opt/digest").read_text().split()[0], os.environ.get("TOKEN"), os.environ.get("STEP_ONLY")


@app.function(image=requirements)
def has_requirements():
    return importlib.metadata.version("iniconfig")


@app.local_entrypoint()
def main():
    import hashlib
    d = default.remote()
    assert d["python"] == sys.version_info[:2] and d["path"] == "/usr/local/bin/python", d
    assert d["purelib"] == "/usr/local/lib/python3.11/site-packages", d
    assert d["gcc"] == "/usr/bin/gcc" and d["pip"] == "/usr/local/bin/pip" and d["apt"] and d["uv"] and len(d["imported"]) == 3, d
    assert has_packages.remote() == ("1,234,567", "0.4.6", "4.9.0", True)
    assert has_settings.remote() == ("blue and green", "it's", "/srv/work", "/srv/work\n", "blue and green\n", ["made"])
    assert has_docker.remote() == ("7", "two words", "/docker", "two words\nfrom the context\n", "/bin/bash")
    assert has_entrypoint.remote() == "yes"
    assert has_shell.remote() == "1 2 3\n"
    assert had_secret.remote() == (hashlib.sha256(b"sesame-42").hexdigest(), None, None)
    assert has_requirements.remote() == "2.0.0"
    print("finished")
