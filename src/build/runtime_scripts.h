// Python that runs in a container of ours to make layers out of wheels. Arguments come in sys.argv, never
// pasted in.
#pragma once

namespace lydian::build {

// Shared by all below. New wheels are left in /made/wheels for the cache.
inline constexpr const char* kScriptCommon = R"py(
import compileall, glob, os, shutil, subprocess, sys, zipfile

LENT, NEW = "/run/lydian-build/wheels", "/made/wheels"
# The Python that the wheels are for, where it is not this one: "3.12". Then there is no bytecode either.
TARGET = sys.argv.pop(1)

PIP = [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", "--no-deps", "--no-cache-dir",
       "--only-binary=:all:", "--retries", "2", "--dest", "/made/got"]
if TARGET:
    PIP += ["--python-version", TARGET, "--implementation", "cp"]
    PIP += [word for abi in ("cp" + TARGET.replace(".", ""), "abi3", "none") for word in ("--abi", abi)]
    PIP += [word for n in (17, 24, 28, 34) for word in ("--platform", f"manylinux_2_{n}_x86_64")] + ["--platform", "manylinux2014_x86_64"]
LINKS = ["--find-links", LENT] if os.path.isdir(LENT) else []

def pip(arguments):
    done = subprocess.run(PIP + LINKS + arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return None if done.returncode == 0 else done.stdout

def here(requirements):
    return LINKS and pip(["--no-index"] + requirements) is None

# The requirements that hold for that Python, without their markers: pip would look at its own.
def wanted_here(requirements):
    from pip._vendor.packaging.requirements import Requirement
    kept, env = [], {"python_version": TARGET, "python_full_version": TARGET + ".0"} if TARGET else None
    for requirement in map(Requirement, requirements):
        if requirement.marker and not requirement.marker.evaluate(env):
            continue
        requirement.marker = None
        kept.append(str(requirement))
    return kept

# A pinned release may have been withdrawn from the index: then its next post-release, then a newer one, and it is said.
def alternatives(requirement):
    from pip._vendor.packaging.requirements import Requirement
    wanted = Requirement(requirement)
    pins = [s.version for s in wanted.specifier if s.operator == "=="]
    return [wanted.name + str(wanted.specifier)] + [wanted.name + op for v in pins for op in ("==" + v + ".*", ">=" + v)]

def download_near(requirements):
    wanted = list(map(alternatives, requirements))
    missing = [choice for choice in wanted if not any(here([one]) for one in choice[:2])]
    if not missing or pip([choice[0] for choice in missing]) is None:
        return
    for exact, *others in missing:
        error = pip([exact])
        taken = next((other for other in others if pip([other]) is None), None) if error else exact
        if taken is None:
            sys.exit(f"pip could not download {exact}:\n" + error[-1200:])
        if taken != exact:
            print(f"{exact} is not in the index: took {taken} instead")

# Paths of the wheels: what is here already, else from the index.
def fetch(requirements, near=False):
    os.makedirs(NEW, exist_ok=True)
    os.makedirs("/made/got", exist_ok=True)
    before = set(os.listdir("/made/got"))
    requirements = wanted_here(requirements)
    if not here(requirements):
        if near:
            download_near(requirements)
        elif error := pip(requirements):
            sys.exit("pip could not download " + " ".join(requirements) + ":\n" + error[-1200:])
    got = [os.path.join("/made/got", name) for name in sorted(os.listdir("/made/got")) if name not in before]
    for wheel in got:
        if not os.path.exists(os.path.join(LENT, os.path.basename(wheel))):
            shutil.copy(wheel, NEW)
    return got

def unpack(wheel, target, wanted=lambda name: True):
    with zipfile.ZipFile(wheel) as archive:
        for info in archive.infolist():
            name = info.filename
            for part in (".data/purelib/", ".data/platlib/"):
                if part in name:
                    name = name.split(part, 1)[1]
            if info.is_dir() or ".data/" in name or name.startswith("/") or ".." in name.split("/") or not wanted(name):
                continue
            path = os.path.join(target, name)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with archive.open(info) as source, open(path, "wb") as out:
                shutil.copyfileobj(source, out)
            os.chmod(path, 0o755 if (info.external_attr >> 16) & 0o111 else 0o644)

def compile_all(folder):
    if TARGET:
        return
    # Not checked against the source: nothing in these folders is ever edited, and a start saves a stat a module.
    compileall.compile_dir(folder, quiet=2, workers=0, invalidation_mode=compileall.py_compile.PycInvalidationMode.UNCHECKED_HASH)
)py";

// argv: version
inline constexpr const char* kClientScript = R"py(
from email.parser import HeaderParser

version = sys.argv[1]
(client,) = fetch(["modal==" + version])
with zipfile.ZipFile(client) as archive:
    (metadata,) = [n for n in archive.namelist() if n.endswith(".dist-info/METADATA")]
    headers = HeaderParser().parsestr(archive.read(metadata).decode())
needed = [r.split(";")[0].strip() for r in headers.get_all("Requires-Dist", []) if r.startswith("synchronicity")]
unpack(client, "/pkg", lambda n: n.split("/")[0] in ("modal", "modal_proto", "modal_version") and "/test" not in n)
for wheel in fetch(needed) if needed else []:
    unpack(wheel, "/pkg", lambda n: n.split("/")[0] == "synchronicity")
compile_all("/pkg")
)py";

// argv: version
inline constexpr const char* kEnsureScript = R"py(
fetch(["modal==" + sys.argv[1]])
)py";

// argv: requirements, one a line, with markers
inline constexpr const char* kDependencyScript = R"py(
lines = [line.split("#")[0].strip() for line in sys.argv[1].splitlines()]
for wheel in fetch([line for line in lines if line], near=True):
    unpack(wheel, "/__modal/deps", lambda n: not n.split("/")[0].endswith(".dist-info") or n.endswith(("METADATA", "entry_points.txt")))
compile_all("/__modal/deps")
os.makedirs("/pkg", exist_ok=True)
with open("/pkg/sitecustomize.py", "w") as out:
    out.write('''# Added by Lydian: what the client needs at run time comes last on the path, so that versions of the image win.
import sys

sys.path.append("/__modal/deps")
''')
compile_all("/pkg")
)py";

// argv: requirement
inline constexpr const char* kUvScript = R"py(
(wheel,) = fetch([sys.argv[1]])
with zipfile.ZipFile(wheel) as archive:
    for name in archive.namelist():
        if name.split("/")[-1] in ("uv", "uvx") and "/scripts/" in name:
            target = "/" + name.split("/")[-1]
            with archive.open(name) as source, open(target, "wb") as out:
                shutil.copyfileobj(source, out)
            os.chmod(target, 0o755)
if not os.path.exists("/uv"):
    sys.exit("no uv in " + wheel)
)py";

}  // namespace lydian::build
