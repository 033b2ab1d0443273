#include "rpc/budget.h"

#include <unistd.h>

#include <algorithm>

namespace lydian::rpc {
namespace {

constexpr size_t kMostOfProcess = size_t{4} << 30;

size_t MostOfProcess() {
  const long pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);
  if (pages <= 0 || page <= 0) return kMostOfProcess;
  return std::min(kMostOfProcess, static_cast<size_t>(pages) * static_cast<size_t>(page) / 4);
}

}  // namespace

const std::shared_ptr<MemoryBudget>& MemoryBudget::OfProcess() {
  static const auto* const budget =
      new std::shared_ptr<MemoryBudget>(std::make_shared<MemoryBudget>(MostOfProcess()));
  return *budget;
}

}  // namespace lydian::rpc
