// What an app's page shows, from control: state, functions, containers and the end of its log.
// Thread-safety: every method from any thread; App blocks until the strands of control have answered.
#pragma once

#include "control/engine.h"
#include "control/log_store.h"
#include "control/objects.h"
#include "gateway/pages.h"

namespace lydian::gateway {

class AppSource : public PageSource {
 public:
  // All outlive this.
  AppSource(control::Objects* objects, control::Engine* engine, control::LogStore* logs)
      : objects_(objects), engine_(engine), logs_(logs) {}
  Result<AppPage> App(std::string_view app_id) override;

 private:
  control::Objects* const objects_;
  control::Engine* const engine_;
  control::LogStore* const logs_;
};

}  // namespace lydian::gateway
