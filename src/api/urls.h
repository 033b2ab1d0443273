// URLs that callers are given. Private to api/.
#pragma once

#include <string>

#include "api/services.h"

namespace lydian::api {

// "http://host:port" under which this caller reaches control: containers by their own loopback, users by the
// host that they have named (x-modal-host; the port is the listener's).
std::string BaseUrl(const Services& services, const rpc::Context& ctx);
// The app's page, signed.
std::string PageUrl(const Services& services, const rpc::Context& ctx, const std::string& app_id);

}  // namespace lydian::api
