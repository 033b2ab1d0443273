// The pages that people look at: an app's (its address, with a key in it, is printed by the client), /,
// /healthz, /metrics. Plain HTML, no script. What it shows comes from a PageSource, which knows the apps.
//
// Thread-safety: Handle from any thread; it blocks. Ownership: source and signer outlive it.
// Errors: 404 for an app that isn't there or a key that isn't its own (which of them is not told), 405, 503
// when the source fails.
#pragma once

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "base/status.h"
#include "blob/url_signer.h"
#include "rpc/http.h"

namespace lydian::gateway {

struct AppPage {
  struct Function {
    std::string name;
    uint64_t waiting = 0, running = 0;  // inputs
    uint64_t containers = 0;
  };
  struct Task {
    std::string id, function, state;  // "starting", "running", "exit code 3", ...
    double started_at = 0;            // seconds since 1970; 0: not yet
    double ended_at = 0;
  };
  struct LogLine {
    double at = 0;
    std::string task_id, text;  // text may hold any bytes
    bool is_error = false;      // from stderr
  };
  std::string id, name, environment, state;  // "running", "stopped: its client went away", ...
  double created_at = 0, stopped_at = 0;
  bool living = false;  // then the page renews itself
  std::vector<Function> functions;
  std::vector<Task> tasks;
  std::vector<LogLine> logs;  // the last ones, oldest first
  bool logs_cut = false;      // there were earlier ones
};

class PageSource {
 public:
  virtual ~PageSource() = default;
  // NOT_FOUND for an unknown app. Blocks; the caller has proven that it may see the app.
  virtual Result<AppPage> App(std::string_view app_id) = 0;
};

class Pages : public http::Handler {
 public:
  // `source` may be null: then there are no app pages. `metrics`: Prometheus text, as of Router::MetricsText.
  Pages(PageSource* source, const blob::UrlSigner* signer, std::function<std::string()> metrics)
      : source_(source), signer_(signer), metrics_(std::move(metrics)) {}
  http::Response Handle(http::Exchange& exchange) override;

 private:
  http::Response App(const http::Request& request);

  PageSource* const source_;
  const blob::UrlSigner* const signer_;
  const std::function<std::string()> metrics_;
};

// An app's page as HTML; for Pages and its tests.
std::string RenderApp(const AppPage& app);

}  // namespace lydian::gateway
