// Two hundred containers leave the machine as they found it; how long a start takes.
#include <sys/wait.h>

#include <algorithm>
#include <chrono>
#include <iostream>
#include <map>

#include "runtime_fixture.h"

namespace lydian::runtime {
namespace {

TEST_F(RuntimeTest, TwoHundredContainersLeaveNothing) {
  Run(Shell("true"));  // makes what is made once: the bridge, the template of the quota image
  runtime_->DrainPools();
  const std::string instance = Options().instance;
  Census before = Settle(instance, nullptr, runtime_.get());
  for (int i = 0; i < 200; ++i) {
    Job job = Shell("echo x > /root/x; test -S /run/modal.sock");
    job.set_api_socket(true);
    job.set_http_listener(true);
    Outcome outcome = Run(job);
    ASSERT_TRUE(WIFEXITED(outcome.status) && WEXITSTATUS(outcome.status) == 0) << i << outcome.err;
  }
  EXPECT_EQ(Settle(instance, &before), before);
}

TEST_F(RuntimeTest, ReportsHowLongEachStepTakes) {
  for (bool pooled : {true, false}) {
    std::map<std::string, std::vector<double>> times;
    std::vector<std::string> order;
    std::vector<double> removals;
    for (int i = 0; i < 40; ++i) {
      if (pooled) {
        while (runtime_->Refill()) {
        }
      } else {
        runtime_->DrainPools();
      }
      Job job = Shell("true");
      job.set_api_socket(true);
      job.set_http_listener(true);
      auto container = Start(job);
      ASSERT_NE(container, nullptr);
      double total = 0;
      for (const auto& phase : container->phases) {
        if (times[phase.name()].empty()) order.push_back(phase.name());
        times[phase.name()].push_back(static_cast<double>(phase.nanos()) / 1e6);
        total += static_cast<double>(phase.nanos()) / 1e6;
      }
      times["total"].push_back(total);
      Finish(&container->main);
      auto begin = std::chrono::steady_clock::now();
      ASSERT_TRUE(runtime_->Remove(std::move(container)).ok());
      removals.push_back(
          std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin).count());
    }
    order.push_back("total");
    std::cout << (pooled ? "pools full" : "pools empty") << ", median (maximum) ms:";
    for (const auto& name : order) {
      auto& list = times[name];
      std::sort(list.begin(), list.end());
      std::cout << "  " << name << " " << list[list.size() / 2] << " (" << list.back() << ")";
    }
    std::sort(removals.begin(), removals.end());
    std::cout << "  remove " << removals[removals.size() / 2] << " (" << removals.back() << ")\n";
    EXPECT_LT(times["total"][times["total"].size() / 2], 500) << "far from a budget of 10 ms";
  }
}

}  // namespace
}  // namespace lydian::runtime
