#include "worker/link_limits.h"

namespace lydian::worker {

std::vector<Holdings> PagesOf(const std::vector<RunningTask>& tasks, const std::vector<std::string>& builds,
                              size_t page_bytes) {
  std::vector<Holdings> pages(1);
  size_t bytes = 0;
  auto room = [&](size_t more) {
    const bool fits = bytes == 0 || bytes + more <= page_bytes;
    if (!fits) {
      pages.emplace_back();
      bytes = 0;
    }
    bytes += more;
    return fits;
  };
  for (const RunningTask& task : tasks) {
    RunningTask head = task;
    head.clear_held();
    const size_t own = head.ByteSizeLong();
    room(own);
    RunningTask* out = pages.back().add_tasks();
    *out = head;
    for (const LeaseRef& ref : task.held()) {
      const size_t more = ref.ByteSizeLong();
      if (!room(more)) {
        bytes += own;
        out = pages.back().add_tasks();
        *out = head;
      }
      *out->add_held() = ref;
    }
  }
  for (const std::string& id : builds) {
    room(id.size());
    pages.back().add_builds(id);
  }
  pages.back().set_last(true);
  return pages;
}

void SendInParts(const std::vector<const Output*>& outputs, const std::function<void(FromWorker)>& send) {
  FromWorker message;
  size_t bytes = 0;
  for (const Output* output : outputs) {
    const size_t more = output->ByteSizeLong();
    if (message.has_outputs() && bytes + more > kOutputsBytes) {
      send(std::exchange(message, {}));
      bytes = 0;
    }
    *message.mutable_outputs()->add_outputs() = *output;
    bytes += more;
  }
  if (message.has_outputs()) send(std::move(message));
}

}  // namespace lydian::worker
