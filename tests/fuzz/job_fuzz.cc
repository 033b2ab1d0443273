// Messages between our own processes: a job to its plan, and what worker and control tell each other.
#include "fuzz.h"
#include "lydian/job.pb.h"
#include "lydian/worker.pb.h"
#include "runtime/plan.h"

using namespace lydian::runtime;  // NOLINT: a test

FUZZ_TARGET(job) {
  lydian::FromWorker from;
  (void)from.ParseFromArray(input.data(), static_cast<int>(input.size()));
  lydian::ToWorker to;
  (void)to.ParseFromArray(input.data(), static_cast<int>(input.size()));
  lydian::Job job;
  if (!job.ParseFromArray(input.data(), static_cast<int>(input.size()))) return;
  const RuntimeOptions options{.state_dir = "/s", .instance = "ly000000", .init_path = "/init"};
  const auto plan = MakeStartPlan(job, options);
  if (!plan.ok()) return;
  for (const MountStep& mount : plan->mounts) {
    CHECK(mount.kind == MountStep::kOwn || mount.target.starts_with("/"));
    CHECK(mount.target.find('\0') == std::string::npos);
    CHECK((mount.target + "/").find("/../") == std::string::npos);
  }
  CHECK(CheckProcess(job.process()).ok());
  CHECK(!ExecCandidates(job.process()).empty());
  CHECK(DescribePlan(*plan, job, options).steps_size() > 0);
}
