// How much of what adds up goes into one message on the worker's link: both ends hold a message whole, and
// refuse one beyond 128 MiB with the stream. A single larger item goes alone. docs/formats/worker-link.md.
#pragma once

#include <cstddef>
#include <functional>
#include <string>
#include <vector>

#include "lydian/worker.pb.h"

namespace lydian::worker {

inline constexpr size_t kOutputsBytes = size_t{4} << 20;   // of one Outputs
inline constexpr size_t kHoldingsBytes = size_t{1} << 20;  // of one page
// What a container may say at once: as part of a message on the link it is a little larger.
inline constexpr size_t kMostGuestOutputs = size_t{120} << 20;

// The pages of what a worker holds, the last one marked; one at least.
std::vector<Holdings> PagesOf(const std::vector<RunningTask>& tasks, const std::vector<std::string>& builds,
                              size_t page_bytes = kHoldingsBytes);

// Gives `send` messages of them, in their order.
void SendInParts(const std::vector<const Output*>& outputs, const std::function<void(FromWorker)>& send);

}  // namespace lydian::worker
