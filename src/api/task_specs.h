// What a task is made of: definition, layout of its app, image, mounts, secrets. Implements the call engine's
// TaskSpecSource. Thread-safety: every method from any thread; MakeTaskSpec waits for the objects strand.
#pragma once

#include <string>

#include "control/engine.h"
#include "control/objects.h"

namespace modal::client {
class AppLayout;
class Function;
}  // namespace modal::client

namespace lydian::api {

class TaskSpecs : public control::TaskSpecSource {
 public:
  explicit TaskSpecs(control::Objects* objects) : objects_(objects) {}
  Result<TaskSpec> MakeTaskSpec(const std::string& function_id) override;

 private:
  Result<TaskSpec> Make(const std::string& function_id);
  control::Objects* objects_;
};

// On the strand. Every function and class of the app, and every object that `definition` (may be null)
// depends on.
Result<modal::client::AppLayout> LayoutOf(control::Objects& objects, const control::App& app,
                                          const modal::client::Function* definition);

}  // namespace lydian::api
