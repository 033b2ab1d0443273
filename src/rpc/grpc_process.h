// gRPC's threads, kept for the life of the process. Private to the module.
#pragma once

namespace lydian::rpc {

// gRPC 1.51 starts the threads of its callback interface with the first server or channel and ends them with
// the last one. The ending has a race (a thread gives back a queue that is gone: "assertion failed: prior >
// 0"). So one idle server is held for ever. Called before any other use of gRPC; cheap after the first time.
// Thread-safe.
void HoldGrpc();

}  // namespace lydian::rpc
