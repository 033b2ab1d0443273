#include "api/urls.h"

namespace lydian::api {

namespace {

bool IsHost(std::string_view host) {
  if (host.empty() || host.size() > 253) return false;
  for (char c : host) {
    if (!isalnum(static_cast<unsigned char>(c)) && c != '.' && c != '-') return false;
  }
  return true;
}

}  // namespace

std::string BaseUrl(const Services& services, const rpc::Context& ctx) {
  if (ctx.caller().kind == rpc::Caller::Kind::kTask) return services.task_url;
  std::string_view host = ctx.header("x-modal-host");
  if (!IsHost(host)) return services.public_url;
  size_t scheme = services.public_url.find("://");
  size_t port = services.public_url.rfind(':');
  if (scheme == std::string::npos) return services.public_url;
  std::string url = services.public_url.substr(0, scheme + 3) + std::string(host);
  if (port > scheme && port != std::string::npos) url += services.public_url.substr(port);
  return url;
}

std::string PageUrl(const Services& services, const rpc::Context& ctx, const std::string& app_id) {
  // A page is for people: a container's own address would lead nowhere.
  const std::string base =
      ctx.caller().kind == rpc::Caller::Kind::kTask ? services.public_url : BaseUrl(services, ctx);
  return base + "/app/" + app_id + "?key=" + services.signer->PageKey(app_id);
}

}  // namespace lydian::api
