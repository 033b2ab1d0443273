// lydian.ControlAdmin: status and tokens, for uid 0 over the admin socket.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "api/services.h"
#include "lydian/admin.pb.h"

namespace lydian::api {

struct AdminOptions {
  ServicesPtr services;
  std::vector<std::string> listeners;                                         // as people read them
  std::function<void(std::function<void(std::vector<WorkerInfo>)>)> workers;  // may be null
  SteadyTime started;
};

void RegisterAdmin(rpc::Router& router, AdminOptions options);

}  // namespace lydian::api
