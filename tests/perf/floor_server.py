"""The floors that `make bench` measures against: the least server that the official client and its container runtime accept.

    floor_server.py --port N --level a     answers every call at once: what the client costs by itself
    floor_server.py --port N --level b     runs the client's container runtime as a plain process for each container, with no
                                           isolation, and moves inputs and outputs: what a simple server in Python makes of it

Only what hello, warm calls and maps need. Each output is answered as it comes (no gathering). Keeps nothing, checks no token.
`--feed N` (level b) hands each container N copies of its first input once it has answered that, and prints the container's CPU an
input: the runtime alone.
"""

import argparse
import asyncio
import base64
import collections
import json
import os
import secrets
import shutil
import signal
import string
import sys
import time
from pathlib import Path

from google.protobuf.empty_pb2 import Empty
from grpclib.config import Configuration
from grpclib.const import Cardinality, Handler, Status
from grpclib.exceptions import GRPCError
from grpclib.server import Server
from modal_proto import api_pb2 as pb

ANSWER = b"\x80\x04K\x01."  # 1, pickled: level a answers every call with it
POLL = 50.0


def mint(prefix, alphabet=string.ascii_letters + string.digits, length=22):
    return f"{prefix}-" + "".join(secrets.choice(alphabet) for _ in range(length))


def token(idx):
    part = base64.urlsafe_b64encode(json.dumps({"idx": idx}).encode()).rstrip(b"=").decode()
    return f"e30.{part}.x"


class Bell:
    """Wakes everybody who waits, once."""

    def __init__(self):
        self.waiting = set()

    def ring(self):
        for w in self.waiting:
            if not w.done():
                w.set_result(True)
        self.waiting.clear()

    async def wait(self, seconds):
        if seconds <= 0:
            return False
        w = asyncio.get_running_loop().create_future()
        self.waiting.add(w)
        try:
            return await asyncio.wait_for(w, seconds)
        except asyncio.TimeoutError:
            return False
        finally:
            self.waiting.discard(w)


class Call:
    def __init__(self, function, kind, invocation):
        self.id, self.function, self.kind, self.invocation = mint("fc"), function, kind, invocation
        self.size, self.outputs, self.bell = 0, [], Bell()

    def finish(self, output):
        self.outputs.append(output)
        self.bell.ring()


class App:
    def __init__(self):
        self.id, self.functions, self.containers = mint("ap"), {}, set()
        self.log, self.bell, self.done = [], Bell(), False

    def say(self, batch):
        self.log.append(batch)
        self.bell.ring()


class Function:
    def __init__(self, app, tag):
        self.id, self.app, self.tag, self.definition_id = mint("fu"), app, tag, mint("de")
        self.definition, self.handle = None, None
        self.queue, self.bell, self.containers = collections.deque(), Bell(), set()

    def describe(self, source):
        self.handle = pb.FunctionHandleMetadata(
            function_name=self.tag, function_type=source.function_type, definition_id=self.definition_id, function_schema=source.function_schema,
            supported_input_formats=source.supported_input_formats, supported_output_formats=source.supported_output_formats, app_id=self.app.id)
        return self.handle


class Container:
    def __init__(self, floor, function):
        self.floor, self.function = floor, function
        self.id = mint("ta", "0123456789ABCDEFGHJKMNPQRSTWXYZ", 26)
        self.dir = floor.dir / self.id
        self.running, self.stopping, self.fed, self.first = {}, False, 0, None
        self.over = asyncio.Event()

    async def start(self):
        root = self.dir / "root"
        root.mkdir(parents=True)
        definition, app = self.function.definition, self.function.app
        for mount in definition.mount_ids:
            for f in self.floor.mounts.get(mount, ()):
                to = root / f.filename.removeprefix("/root/")
                to.parent.mkdir(parents=True, exist_ok=True)
                to.write_bytes(self.floor.files[f.sha256_hex])
        layout = pb.AppLayout(function_ids={f.tag: f.id for f in app.functions.values()},
                              objects=[pb.Object(object_id=f.id, function_handle_metadata=f.handle) for f in app.functions.values()])
        known = {o.object_id for o in layout.objects}
        layout.objects.extend(pb.Object(object_id=o.object_id) for o in definition.object_dependencies if o.object_id not in known)
        (self.dir / "args").write_bytes(pb.ContainerArguments(
            task_id=self.id, function_id=self.function.id, app_id=app.id, function_def=definition, app_layout=layout,
            environment_name="main").SerializeToString())
        self.server = Server([Service(self.floor, self)], config=self.floor.config)
        await self.server.start(path=str(self.dir / "s"))
        env = {"PATH": os.environ["PATH"], "HOME": str(self.dir), "LANG": "C.UTF-8", "PYTHONPATH": str(root), "MODAL_IS_REMOTE": "1",
               "MODAL_TASK_ID": self.id, "MODAL_ENVIRONMENT": "main", "MODAL_SERVER_URL": f"unix://{self.dir}/s",
               "MODAL_CONTAINER_ARGUMENTS_PATH": f"{self.dir}/args"}
        self.born = time.monotonic()
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, "-u", "-m", "modal._container_entrypoint", cwd=root, env=env, stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE)
        asyncio.create_task(self.reap(asyncio.gather(self.pump(self.process.stdout, pb.FILE_DESCRIPTOR_STDOUT),
                                                     self.pump(self.process.stderr, pb.FILE_DESCRIPTOR_STDERR))))

    async def pump(self, pipe, number):
        while data := await pipe.read(65536):
            item = pb.TaskLogs(data=data.decode(errors="replace"), file_descriptor=number, timestamp=time.time())
            self.function.app.say(pb.TaskLogsBatch(task_id=self.id, function_id=self.function.id, items=[item]))

    async def reap(self, pumps):
        await pumps
        code = await self.process.wait()
        self.server.close()
        for call, item in self.running.values():
            result = pb.GenericResult(status=pb.GenericResult.GENERIC_STATUS_FAILURE, exception=f"the container ended with {code}")
            call.finish(pb.FunctionGetOutputsItem(idx=item.idx, result=result))
        self.function.containers.discard(self)
        self.function.app.containers.discard(self)
        shutil.rmtree(self.dir, ignore_errors=True)
        self.over.set()

    def cpu(self):
        f = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(f[11]) + int(f[12])) / os.sysconf("SC_CLK_TCK")

    def feed(self):
        """More of the first input; the outputs lead nowhere."""
        if self.first is None or self.floor.feed == 0:
            return
        if self.fed == 0:
            self.began = time.monotonic(), self.cpu()
        if self.fed == self.floor.feed and not self.running:
            wall, cpu = time.monotonic() - self.began[0], self.cpu() - self.began[1]
            print(json.dumps({"fed": self.fed, "wall": wall, "cpu": cpu}), flush=True)
        if self.fed < self.floor.feed:
            self.function.queue.append((None, self.first[1]))
        self.fed += 1

    async def stop(self):
        self.stopping = True
        self.function.bell.ring()
        for number, grace in ((signal.SIGINT, 4), (signal.SIGKILL, 4)):
            try:
                return await asyncio.wait_for(self.over.wait(), 0.2 if self.running and number == signal.SIGINT else grace)
            except asyncio.TimeoutError:
                self.process.send_signal(number)
        await self.over.wait()


class Floor:
    def __init__(self, level, folder, feed):
        self.level, self.dir, self.feed = level, Path(folder).resolve(), feed
        self.config = Configuration(http2_connection_window_size=64 << 20, http2_stream_window_size=64 << 20)
        self.apps, self.functions, self.calls, self.files, self.mounts = {}, {}, {}, {}, {}

    def put(self, call, items):
        call.size += len(items)
        for item in items:
            if self.level == "a":
                call.finish(pb.FunctionGetOutputsItem(idx=item.idx, data_format=item.input.data_format or pb.DATA_FORMAT_PICKLE,
                                                      result=pb.GenericResult(status=pb.GenericResult.GENERIC_STATUS_SUCCESS, data=ANSWER)))
            else:
                call.function.queue.append((call, item))
        if self.level == "b":
            call.function.bell.ring()
            self.scale(call.function)
        return [pb.FunctionPutInputsResponseItem(idx=i.idx, input_id=mint("in"), input_jwt=token(i.idx)) for i in items]

    def scale(self, function):
        most = function.definition.autoscaler_settings.max_containers or 4
        free = sum(1 for c in function.containers if not c.running and not c.stopping)
        while len(function.queue) > free and len(function.containers) < most:
            c = Container(self, function)
            function.containers.add(c)
            function.app.containers.add(c)
            asyncio.create_task(c.start())
            free += 1


class Service:
    """Methods named like the client's RPCs; one object for the client's port, and one for each container's socket."""

    def __init__(self, floor, container=None):
        self.floor, self.container = floor, container

    def __mapping__(self):
        service = pb.DESCRIPTOR.services_by_name["ModalClient"]
        out = {}
        for m in service.methods:
            kind = Cardinality.UNARY_STREAM if m.server_streaming else Cardinality.UNARY_UNARY
            request = getattr(pb, m.input_type.name, Empty)
            response = getattr(pb, m.output_type.name, Empty)
            out[f"/{service.full_name}/{m.name}"] = Handler(self.bind(m.name, m.server_streaming), kind, request, response)
        return out

    def bind(self, name, streams):
        handler = getattr(self, name, None)

        async def serve(stream):
            request = await stream.recv_message()
            if handler is None:
                raise GRPCError(Status.UNIMPLEMENTED, f"{name} is not part of the floor")
            if streams:
                async for message in handler(request):
                    await stream.send_message(message)
            else:
                await stream.send_message(await handler(request))
        return serve

    # -- what the client asks -------------------------------------------------------------------------
    async def EnvironmentGetOrCreate(self, r):
        return pb.EnvironmentGetOrCreateResponse(environment_id="en-" + "0" * 22, metadata=pb.EnvironmentMetadata(
            name="main", settings=pb.EnvironmentSettings(image_builder_version="2025.06")))

    async def AppCreate(self, r):
        app = App()
        self.floor.apps[app.id] = app
        return pb.AppCreateResponse(app_id=app.id, app_page_url="http://127.0.0.1/")

    async def AppHeartbeat(self, r):
        return Empty()

    async def AppPublish(self, r):
        return pb.AppPublishResponse(url="http://127.0.0.1/")

    async def AppGetLogs(self, r):
        app, at, end = self.floor.apps[r.app_id], int(r.last_entry_id or 0), time.monotonic() + r.timeout
        while True:
            while at < len(app.log):
                at += 1
                batch = pb.TaskLogsBatch(entry_id=str(at))
                batch.MergeFrom(app.log[at - 1])
                yield batch
            if app.done:
                yield pb.TaskLogsBatch(app_done=True)
                return
            if not await app.bell.wait(end - time.monotonic()):
                return

    async def AppClientDisconnect(self, r):
        app = self.floor.apps[r.app_id]

        async def end():
            await asyncio.gather(*(c.stop() for c in list(app.containers)))
            app.done = True
            app.bell.ring()
        asyncio.create_task(end())
        return Empty()

    async def FunctionPrecreate(self, r):
        f = Function(self.floor.apps[r.app_id], r.function_name)
        self.floor.functions[f.id] = f.app.functions[f.tag] = f
        return pb.FunctionPrecreateResponse(function_id=f.id, handle_metadata=f.describe(r))

    async def FunctionCreate(self, r):
        f = self.floor.functions[r.existing_function_id]
        f.definition = r.function
        data = pb.FunctionData(function_name=f.tag, ranked_functions=[pb.FunctionData.RankedFunction(rank=0, function=r.function)])
        return pb.FunctionCreateResponse(function_id=f.id, function=r.function, function_data=data, handle_metadata=f.describe(r.function))

    async def MountGetOrCreate(self, r):
        mount = mint("mo")
        self.floor.mounts[mount] = list(r.files)
        return pb.MountGetOrCreateResponse(mount_id=mount, handle_metadata=pb.MountHandleMetadata(content_checksum_sha256_hex=mount))

    async def MountBatchedCheckExistence(self, r):
        return pb.MountBatchedCheckExistenceResponse(missing_sha256_hex_hashes=[h for h in r.sha256_hex_hashes if h not in self.floor.files])

    async def MountPutFile(self, r):
        if r.WhichOneof("data_oneof"):
            self.floor.files[r.sha256_hex] = r.data
        return pb.MountPutFileResponse(exists=r.sha256_hex in self.floor.files)

    async def ImageGetOrCreate(self, r):
        return pb.ImageGetOrCreateResponse(image_id="im-" + "0" * 22, result=pb.GenericResult(status=pb.GenericResult.GENERIC_STATUS_SUCCESS),
                                           metadata=pb.ImageMetadata(image_builder_version="2025.06"))

    async def FunctionMap(self, r):
        call = Call(self.floor.functions[r.function_id], r.function_call_type, r.function_call_invocation_type)
        self.floor.calls[call.id] = call
        return pb.FunctionMapResponse(function_call_id=call.id, function_call_jwt=token(0), pipelined_inputs=self.floor.put(call, r.pipelined_inputs))

    async def FunctionPutInputs(self, r):
        return pb.FunctionPutInputsResponse(inputs=self.floor.put(self.floor.calls[r.function_call_id], r.inputs))

    async def FunctionGetOutputs(self, r):
        call, at, end = self.floor.calls[r.function_call_id], int(r.last_entry_id.split("-")[0] or 0), time.monotonic() + r.timeout
        if r.clear_on_success and not r.HasField("start_idx"):
            del self.floor.calls[call.id]
            return pb.FunctionGetOutputsResponse(last_entry_id=r.last_entry_id)
        while len(call.outputs) <= at and await call.bell.wait(end - time.monotonic()):
            pass
        found = call.outputs[at:at + 2000]
        if found and r.clear_on_success:
            self.floor.calls.pop(call.id, None)
        return pb.FunctionGetOutputsResponse(outputs=found, idxs=[o.idx for o in found], last_entry_id=f"{at + len(found)}-0",
                                             num_unfinished_inputs=call.size - len(call.outputs))

    # -- what a container asks ------------------------------------------------------------------------
    async def ContainerHello(self, r):
        return Empty()

    async def ContainerHeartbeat(self, r):
        await asyncio.sleep(10)
        return pb.ContainerHeartbeatResponse()

    async def TaskResult(self, r):
        print("a container failed to start:", r.result.exception, file=sys.stderr, flush=True)
        return Empty()

    async def FunctionGetInputs(self, r):
        c, f, end = self.container, self.container.function, time.monotonic() + POLL
        while True:
            if c.stopping:
                return pb.FunctionGetInputsResponse(inputs=[pb.FunctionGetInputsItem(kill_switch=True)])
            if not f.queue:
                c.feed()
            if f.queue:
                call, item = f.queue.popleft()
                name = mint("in")
                c.running[name] = call, item
                c.first = c.first or (call, item)
                owner = call or c.first[0]
                return pb.FunctionGetInputsResponse(inputs=[pb.FunctionGetInputsItem(
                    input_id=name, input=item.input, function_call_id=owner.id, function_call_invocation_type=owner.invocation)])
            if not await f.bell.wait(end - time.monotonic()):
                return pb.FunctionGetInputsResponse()

    async def FunctionPutOutputs(self, r):
        if self.container.born:
            print(json.dumps({"exec_to_first_output": time.monotonic() - self.container.born}), flush=True)
            self.container.born = None
        for o in r.outputs:
            call, item = self.container.running.pop(o.input_id)
            if call is not None:
                call.finish(pb.FunctionGetOutputsItem(idx=item.idx, input_id=o.input_id, result=o.result, data_format=o.data_format,
                                                      output_created_at=o.output_created_at))
        return Empty()


async def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--port", type=int, required=True)
    p.add_argument("--level", choices="ab", required=True)
    p.add_argument("--dir", required=True)
    p.add_argument("--feed", type=int, default=0)
    a = p.parse_args()
    floor = Floor(a.level, a.dir, a.feed)
    server = Server([Service(floor)], config=floor.config)
    await server.start("127.0.0.1", a.port)
    over = asyncio.Event()
    for s in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(s, over.set)
    print("ready", flush=True)
    await over.wait()
    server.close()
    await asyncio.gather(*(c.stop() for app in floor.apps.values() for c in list(app.containers)))


if __name__ == "__main__":
    asyncio.run(main())
