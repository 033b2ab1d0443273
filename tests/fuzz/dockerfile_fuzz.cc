// A Dockerfile as a client sends it, through its stages to the config and the steps.
#include "fuzz.h"
#include "image/dockerfile.h"
#include "image/stage.h"

using namespace lydian::image;  // NOLINT: a test

FUZZ_TARGET(dockerfile) {
  const auto file = ParseDockerfile({std::string(input)});
  if (!file.ok()) return;
  const std::map<std::string, std::string> args = {{"GIVEN", "one two"}, {"EMPTY", ""}};
  const auto plan = MakePlan(*file, args);
  if (!plan.ok()) return;
  CHECK(!plan->stages.empty());
  for (size_t i : plan->Needed()) {
    CHECK(i < plan->stages.size());
    StageState state({}, *plan, args);
    for (const Instruction& one : plan->stages[i].instructions) {
      const auto step = state.Apply(one);
      if (!step.ok()) break;
      if (step->kind == Step::kCopy) CHECK(step->destination.starts_with("/"));
      if (step->kind == Step::kRun) CHECK(!step->argv.empty() && step->workdir.starts_with("/"));
      CHECK(step->kind == Step::kConfig || !step->canonical.empty());
    }
    (void)state.config().SerializeAsString();
  }
}
