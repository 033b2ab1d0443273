// The client's RPCs of calls: FunctionMap, FunctionPutInputs, FunctionGetOutputs and what belongs to them.
// Parse, ask the call engine, answer. Thread-safety: registration before serving. Ownership: the engine
// outlives the router.
#pragma once

#include <string>

#include "control/call_engine.h"
#include "rpc/router.h"

namespace lydian::api {

struct CallsDeps {
  control::CallEngine* engine = nullptr;
};

void RegisterCalls(rpc::Router& router, CallsDeps deps);

// What people read of a modal.client.GenericResult: its exception, else its traceback. For the engine's
// options.
std::string ResultText(const std::string& result);

}  // namespace lydian::api
