#include "build/host_settings.h"

#include <cstdlib>
#include <sstream>

#include "base/fd.h"

namespace lydian::build {
namespace {

// Where tools of the usual languages look for the authorities that they trust.
constexpr const char* kCaVariables[] = {"SSL_CERT_FILE",       "REQUESTS_CA_BUNDLE", "PIP_CERT",
                                        "NODE_EXTRA_CA_CERTS", "CURL_CA_BUNDLE",     "GIT_SSL_CAINFO",
                                        "AWS_CA_BUNDLE",       "CARGO_HTTP_CAINFO"};
constexpr const char* kCaFiles[] = {"/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt",
                                    "/etc/ssl/ca-bundle.pem", "/etc/ssl/cert.pem"};
// Settings that name no path of the host.
constexpr const char* kPassed[] = {"PIP_INDEX_URL",
                                   "PIP_EXTRA_INDEX_URL",
                                   "PIP_TRUSTED_HOST",
                                   "PIP_NO_INDEX",
                                   "PIP_PROXY",
                                   "PIP_DEFAULT_TIMEOUT",
                                   "PIP_RETRIES",
                                   "PIP_DISABLE_PIP_VERSION_CHECK",
                                   "UV_INDEX_URL",
                                   "UV_DEFAULT_INDEX",
                                   "UV_EXTRA_INDEX_URL",
                                   "UV_INDEX",
                                   "UV_HTTP_TIMEOUT",
                                   "UV_INSECURE_HOST",
                                   "NPM_CONFIG_REGISTRY",
                                   "http_proxy",
                                   "https_proxy",
                                   "no_proxy",
                                   "all_proxy",
                                   "HTTP_PROXY",
                                   "HTTPS_PROXY",
                                   "NO_PROXY",
                                   "ALL_PROXY"};

Mount Borrow(const std::string& source, const std::string& target) {
  Mount mount;
  mount.set_kind(Mount::BIND);
  mount.set_source(source);
  mount.set_target(target);
  mount.set_read_only(true);
  mount.set_idmap(true);  // root's own files stay readable
  return mount;
}

}  // namespace

HostSettings FindHostSettings(Lending lending, const std::function<std::string(const std::string&)>& get,
                              const std::function<bool(const std::string&)>& exists) {
  HostSettings found;
  std::string dir = kBorrowedDir, bundle = get("SSL_CERT_FILE");
  if (bundle.empty() || !exists(bundle)) {
    bundle.clear();
    for (const char* path : kCaFiles)
      if (bundle.empty() && exists(path)) bundle = path;
  }
  if (!bundle.empty()) {
    found.mounts.push_back(Borrow(bundle, dir + "/ca.crt"));
    for (const char* key : kCaVariables) found.env[key] = dir + "/ca.crt";
  }
  if (lending == Lending::kAuthorities) return found;
  std::string pip = get("PIP_CONFIG_FILE");
  if (pip.empty() || !exists(pip)) pip = "/etc/pip.conf";
  if (exists(pip)) {
    found.mounts.push_back(Borrow(pip, dir + "/pip.conf"));
    found.env["PIP_CONFIG_FILE"] = dir + "/pip.conf";
  }
  for (const char* key : kPassed)
    if (std::string value = get(key); !value.empty()) found.env[key] = value;
  // A folder of wheels is lent under another name; an address goes as it is.
  std::istringstream links(get("PIP_FIND_LINKS"));
  std::string joined, word;
  for (int n = 0; links >> word;) {
    if (word.starts_with("/")) {
      if (!exists(word)) continue;
      std::string target = dir + "/find-links-" + std::to_string(n++);
      found.mounts.push_back(Borrow(word, target));
      word = target;
    }
    joined += (joined.empty() ? "" : " ") + word;
  }
  if (!joined.empty()) {
    found.env["PIP_FIND_LINKS"] = joined;
    std::string commas = joined;
    for (char& c : commas)
      if (c == ' ') c = ',';
    found.env["UV_FIND_LINKS"] = commas;
  }
  if (!found.env.contains("UV_DEFAULT_INDEX") && !found.env.contains("UV_INDEX_URL") &&
      found.env.contains("PIP_INDEX_URL"))
    found.env["UV_DEFAULT_INDEX"] = found.env["PIP_INDEX_URL"];
  return found;
}

std::vector<std::string> HostSettingNames() {
  std::vector<std::string> names;
  const HostSettings fewer = FindHostSettings(Lending::kAuthorities);
  for (const auto& [key, value] : FindHostSettings(Lending::kAll).env)
    if (!fewer.env.contains(key)) names.push_back(key);
  return names;
}

HostSettings FindHostSettings(Lending lending) {
  return FindHostSettings(
      lending,
      [](const std::string& key) {
        const char* value = std::getenv(key.c_str());
        return std::string(value != nullptr ? value : "");
      },
      [](const std::string& path) { return Exists(path); });
}

}  // namespace lydian::build
