// lydian.ControlAdmin: status, tokens and stores, for uid 0 over the admin socket.
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

// PERMISSION_DENIED for everybody else.
Status RequireRoot(const rpc::Context& ctx);
// Of the stores; part of RegisterAdmin.
void RegisterStoreAdmin(rpc::Router& router, const ServicesPtr& services);
void RegisterAdmin(rpc::Router& router, AdminOptions options);

}  // namespace lydian::api
