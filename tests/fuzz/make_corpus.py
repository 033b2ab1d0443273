#!/usr/bin/env python3
"""Writes the seeds of tests/fuzz/corpus: small inputs that lead each target into its depths. What fuzzing found lies beside
them under names that begin with "found-" and is left alone.

    tests/fuzz/make_corpus.py
"""

import gzip
import io
import json
import struct
import subprocess
import tarfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
CORPUS = ROOT / "tests/fuzz/corpus"


def put(target, name, data):
    folder = CORPUS / target
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data.encode() if isinstance(data, str) else data)


def http2():
    def record(kind, flags, stream, payload=b""):
        return bytes([kind, flags, stream, len(payload)]) + payload

    def head(method, more=""):
        return (f":method: POST\n:scheme: http\n:path: /t.T/{method}\n:authority: a\nte: trailers\n"
                f"content-type: application/grpc{more}").encode()

    def message(data, flag=0):
        return struct.pack(">BI", flag, len(data)) + data

    def call(method, *datas, more="", stream=1):
        out = record(1, 4, stream, head(method, more))
        for i, data in enumerate(datas):
            out += record(0, int(i == len(datas) - 1), stream, data)
        return out

    put("http2", "unary", b"f" + call("Echo", message(b"hello"), more="\nx-forth: there\ngrpc-timeout: 5S"))
    put("http2", "once", b"f" + call("Once", message(b"hi"), more="\nx-idempotency-key: k")
        + call("Once", message(b"hi"), more="\nx-idempotency-key: k", stream=3))
    put("http2", "twice", b"f" + call("Twice", message(b"a")[:3], message(b"a")[3:]))
    put("http2", "chat", b"f" + call("Chat", message(b"a") + message(b"b"), message(b""), b""))
    put("http2", "unknown", b"f" + call("None", message(b"a")))
    put("http2", "compressed", b"f" + call("Echo", message(b"a", 1)))
    put("http2", "too-large", b"f" + call("Once", message(b"a" * 100)))
    put("http2", "reset", b"f" + call("Chat", message(b"a"), b"") + record(3, 0, 1, struct.pack(">I", 8)))
    put("http2", "window", b"f" + record(4, 0, 0, struct.pack(">HI", 4, 1)) + call("Twice", message(b"abcdef"))
        + record(8, 0, 1, struct.pack(">I", 5)) + record(8, 0, 0, struct.pack(">I", 1 << 30)))
    put("http2", "trailers", b"f" + record(1, 4, 1, head("Chat")) + record(1, 5, 1, b"x-last: 1"))
    put("http2", "ping-goaway", b"f" + record(6, 0, 0, b"12345678") + record(7, 0, 0, struct.pack(">II", 0, 0)))
    put("http2", "continuation", b"f" + record(1, 0, 1, head("Echo")) + record(9, 4, 1, b"\x00\x01a\x01b"))
    put("http2", "raw", b"rPRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0")
    put("http2", "behind-preface", b"p" + b"\0\0\x08\6\0\0\0\0\0" + b"12345678")


def http1():
    put("http1", "get", "GET /a%20b/?q=1+2&x=%41 HTTP/1.1\r\nHost: a\r\n\r\n")
    put("http1", "put", "PUT /blob/x HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc")
    put("http1", "chunked", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nT: v\r\n\r\n")
    put("http1", "continue", "PUT / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\nab")
    put("http1", "two", "GET / HTTP/1.1\r\nHost: a\r\n\r\nHEAD /b HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    put("http1", "absolute", "GET http://a/b?q=%zz#f HTTP/1.0\r\n\r\n")
    put("http1", "short-body", "PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nabc")
    put("http1", "smuggled", "POST / HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")
    put("guest_http", "get", "GET /blob/bl-1?size=1&expires=2&signature=ab HTTP/1.1\r\nHost: 169.254.77.1\r\n\r\n")
    put("guest_http", "put", "PUT /blob/x HTTP/1.1\r\nhost: a\r\nContent-Length: 3\r\nExpect: 100-continue\r\nConnection: x\r\n\r\nabc")
    put("guest_http", "chunked", "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\nA:\t b \r\n\r\n")
    put("guest_http", "folded", "GET / HTTP/1.1\r\nA: b\r\n c: d\r\n\r\n")


def small_ones():
    put("grpc_frames", "one", b"\x04" + struct.pack(">BI", 0, 3) + b"abc" + struct.pack(">BI", 0, 0))
    put("grpc_frames", "long", b"\x00" + struct.pack(">BI", 0, 5000) + b"abc")
    put("grpc_frames", "compressed", b"\x00" + struct.pack(">BI", 1, 1) + b"a")
    put("grpc_frames", "text", "100%25 na%C3%AFve %zz %4")
    for n, text in enumerate(["100m", "99999999H", "5S", "1n", "-1S", "123456789u"]):
        put("grpc_frames", f"timeout-{n}", text)
    question = b"\x12\x34\x01\x00\0\1\0\0\0\0\0\0\x07example\x03com\0\0\1\0\1"
    put("dns", "a", question)
    put("dns", "edns", question[:11] + b"\1" + question[12:] + b"\0\0\x29\x10\0\0\0\0\0\0\0")
    put("dns", "endless", question[:4] + b"\xff\xff" + question[6:])
    put("dns", "pointer", question[:12] + b"\xc0\x0c\0\1\0\1")
    put("dns", "resolv.conf", "# a\nsearch b\nnameserver 127.0.0.53\nnameserver\t::1 # c\nnameserver 1.1.1.1\nnameserver 8.8.8.8\n")
    put("url", "put", "PUT\nbl-0123456789abcdef/part/1/100\n100\n1700000000\n" + "0" * 64)
    put("url", "get", "GET\nbl-0\n0\n-1\n")
    put("url", "md5", "XUFAKrxLKna5cZ2REBfFkg==")
    for n, text in enumerate(["http://127.0.0.1:7070/x", "https://localhost/", "http://172.20.1.1/", "http://[::1]/"]):
        put("url", f"host-{n}", text)
    put("log_text", "plain", "\x04one\ntwo\r\nthree")
    put("log_text", "wide", "\x00naïve € \U0001f600\n")
    put("log_text", "broken", b"\x02\xc3(\xe2\x82\xf0\x9f\x98\xed\xa0\x80\xc0\xaf\xff\xf4\x90\x80\x80")


def dockerfile():
    for file in sorted((ROOT / "tests/golden/dockerfile").glob("*.dockerfile")):
        put("dockerfile", file.stem, file.read_bytes()[:4096])
    put("dockerfile", "arg", "ARG A=1\nARG B=${A:-x}${C-y}\nFROM i:$B AS one\nARG A\nARG GIVEN\nENV K=$A L=\"v $K\" M='x'\nRUN echo $K\n")
    put("dockerfile", "stages", "FROM a AS b\nWORKDIR x\nRUN [\"a\", \"b\"]\nFROM b\nCOPY --from=0 --chown=a:b --chmod=755 /x /y/\nADD a b ./\n")
    put("dockerfile", "heredoc", "FROM a\nCOPY <<A <<-\"B\" /d/\n$PATH\nA\n\tx\n\tB\nRUN <<E\n#!/bin/sh\necho\nE\n")
    put("dockerfile", "escape", "# escape=`\nFROM a\nRUN a `\n # c\n b\nSHELL [\"/bin/sh\"]\nCMD a\nENTRYPOINT [\"x\"]\nUSER $A\nLABEL a b\n")
    put("dockerfile", "doubling", "FROM a\nENV A=xxxxxxxx\n" + "ENV A=$A$A\n" * 30)
    put("dockerfile", "needs", "FROM a\nENV A=${B:?no} C=${D:+${E:-${F}}}\nONBUILD RUN x\n")


def archives():
    def entry(name, kind=tarfile.REGTYPE, data=b"", link="", mode=0o644, pax=None):
        info = tarfile.TarInfo(name)
        info.type, info.size, info.linkname, info.mode = kind, len(data), link, mode
        info.pax_headers = pax or {}
        return info, data

    def tar(*entries, form=tarfile.PAX_FORMAT):
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w", format=form) as archive:
            for info, data in entries:
                archive.addfile(info, io.BytesIO(data))
        # One block of zeros ends it as well as twenty do.
        return b"\1" + out.getvalue().rstrip(b"\0").ljust(512, b"\0") + b"\0" * 1024

    folder = entry("d", tarfile.DIRTYPE, mode=0o755)
    put("archive", "plain", tar(folder, entry("d/f", data=b"abc"), entry("d/h", tarfile.LNKTYPE, link="d/f")))
    put("archive", "link-out", tar(entry("l", tarfile.SYMTYPE, link=".."), entry("l/secret", data=b"x")))
    put("archive", "hard-link-out", tar(entry("h", tarfile.LNKTYPE, link="../secret"), entry("h", data=b"x")))
    put("archive", "dots", tar(entry("../secret", data=b"x"), entry("/../../secret", data=b"y")))
    put("archive", "whiteouts", tar(folder, entry("d/a", data=b"1"), entry("d/.wh.a"), entry("d/.wh..wh..opq"), entry(".wh.d")))
    put("archive", "devices", tar(entry("n", tarfile.CHRTYPE), entry("p", tarfile.FIFOTYPE), entry("b", tarfile.BLKTYPE)))
    put("archive", "xattr", tar(entry("x", data=b"a", pax={"SCHILY.xattr.user.a": "b", "LIBARCHIVE.xattr.user.c": "ZA=="})))
    put("archive", "replaced", tar(entry("a", tarfile.SYMTYPE, link="/"), entry("a", tarfile.DIRTYPE), entry("a/b", data=b"c"), entry("a")))
    put("archive", "long-name", tar(entry("n" * 120, data=b"a"), entry("m/" * 80 + "x"), form=tarfile.GNU_FORMAT))
    put("archive", "gzip", b"\0" + gzip.compress(tar(entry("index.json", data=b"{}"))[1:], mtime=0))


def oci():
    def files(**texts):
        return "".join(f"{name}\n{text}\n" for name, text in texts.items())

    digest = {"digest": "sha256:aa"}
    manifest = json.dumps({"config": {"digest": "sha256:cc"}, "layers": [digest, {"digest": "sha256:bb"}]})
    index = json.dumps({"manifests": [dict(digest, platform={"architecture": "amd64", "os": "linux"})]})
    put("oci", "index", files(**{"index.json": index, "/blobs/sha256/aa": manifest}))
    put("oci", "nested", files(**{"index.json": index, "/blobs/sha256/aa": index}))
    put("oci", "itself", files(**{"index.json": json.dumps({"manifests": [digest] * 12}), "/blobs/sha256/aa": json.dumps({"manifests": [digest] * 12})}))
    put("oci", "other-machine", files(**{"index.json": '{"manifests":[{"digest":"sha256:aa","platform":{"architecture":"arm64"}}]}'}))
    put("oci", "os-is-no-text", files(**{"index.json": '{"manifests":[{"digest":"sha256:aa","platform":{"architecture":"amd64","os":1}}]}'}))
    put("oci", "docker", files(**{"manifest.json": '[{"Config":"c.json","Layers":["a/layer.tar"]}]'}))
    put("oci", "config-is-no-text", files(**{"manifest.json": '[{"Config":1,"Layers":["a"]}]'}))
    put("oci", "config", '{"config":{"Env":["A=b",1],"Entrypoint":null,"Cmd":["x"],"WorkingDir":"/w","User":"u","Shell":[]}}')


def messages():
    def encode(kind, file, text):
        return subprocess.run(["protoc", "-I", str(ROOT / "proto"), f"--encode={kind}", f"lydian/{file}.proto"],
                              input=text.encode(), stdout=subprocess.PIPE, check=True).stdout

    job = """version: 1 container_id: "ct-1" rootfs { lowers: "/l/a" lowers: "/l/b" %s } hostname: "h"
        process { argv: "python" argv: "-c" env: "PATH=/bin:/usr/bin" cwd: "/w" uid: 1 } limits { memory_bytes: 1000000000 } %s"""
    jobs = {
        "plain": job % ("", ""),
        "kept": job % ('writable_dir: "/k"', "api_socket: true http_listener: true network { mode: NONE }"),
        "root": 'version: 1 container_id: "ct-2" rootfs { existing_root: "/r" read_only: true } process { argv: "/x" }',
        "mounts": job % ("quota_bytes: 1000000", 'mounts { kind: BIND source: "/a" target: "/b/../c" idmap: true } '
                         'mounts { kind: TMPFS target: "/t" size_bytes: 5 } devices { path: "/dev/fuse" }'),
    }
    for name, text in jobs.items():
        put("job", name, encode("lydian.Job", "job", text))
    put("job", "hello", encode("lydian.FromWorker", "worker", 'hello { protocol: 1 worker_id: "wk-1" epoch: 2 builds: "b" }'))
    put("job", "leases", encode("lydian.ToWorker", "worker", 'welcome { blob_base_url: "http://169.254.77.1" forget_tasks: "ta-1" }'))

    def frame(data):
        return struct.pack("<I", len(data)) + data

    request = encode("lydian.SpawnerRequest", "spawner", 'id: 1 signal { container_id: "ct-1" signal: 15 }')
    create = encode("lydian.SpawnerRequest", "spawner", "id: 2 create { " + jobs["root"] + " }")
    reply = encode("lydian.SpawnerReply", "spawner", 'id: 2 container { container_id: "ct-1" fds: "pidfd" }')
    put("spawner_frames", "requests", frame(request) + frame(create))
    put("spawner_frames", "reply", frame(reply) + frame(b""))
    put("spawner_frames", "long", struct.pack("<I", 1 << 31) + b"abc")
    put("spawner_frames", "short", frame(request)[:-2])


if __name__ == "__main__":
    for make in (http2, http1, small_ones, dockerfile, archives, oci, messages):
        make()
