// Questions about calls: how their inputs ended, what called what. What has ended is read from the journal.
#include <algorithm>

#include "control/call_engine_core.h"

namespace lydian::control {
namespace {

constexpr size_t kMostCalls = 1000;
constexpr size_t kMostGraphInputs = 2000;

void SetCounts(const OutputCounts& counts, CallInfo* info) {
  info->succeeded = counts.succeeded;
  info->failed = counts.failed;
  info->timed_out = counts.timed_out;
  info->cancelled = counts.cancelled;
}

}  // namespace

CallInfo EngineCore::InfoOf(const Call& call) {
  CallInfo info{call.id, call.function->info.function_id, call.function->info.app_id,
                call.function->info.name, call.created_at};
  info.total = call.total;
  info.pending = call.unfinished;
  SetCounts(call.outputs.counts(), &info);
  return info;
}

void EngineCore::CallsOf(const FunctionState& function,
                         std::function<void(Result<std::vector<CallInfo>>)> reply) {
  questions_pool_.Post([this, id = function.info.function_id, name = function.info.name,
                        reply = std::move(reply)] {
    std::vector<CallInfo> infos;
    const Status read = journal_->CallsOf(
        id, kMostCalls, [&](const CallRow& row, const OutputCounts& ended, uint32_t pending) {
          CallInfo& info =
              infos.emplace_back(CallInfo{row.call_id, row.function_id, row.app_id, name, row.created_at});
          SetCounts(ended, &info);
          info.pending = pending;
          info.total = info.succeeded + info.failed + info.timed_out + info.cancelled + pending;
        });
    strand_.Post([this, read, reply, infos = std::move(infos)]() mutable {
      if (!read.ok()) return reply(read);
      for (CallInfo& info : infos) {
        if (auto it = calls_.find(info.call_id); it != calls_.end()) info = InfoOf(*it->second);
      }
      std::stable_sort(infos.begin(), infos.end(),
                       [](const CallInfo& a, const CallInfo& b) { return a.created_at > b.created_at; });
      reply(std::move(infos));
    });
  });
}

void EngineCore::GraphOf(Call* root, std::function<void(Result<CallGraph>)> reply) {
  questions_pool_.Post(
      [this, number = root->number, workspace = root->function->workspace, reply = std::move(reply)] {
        auto rows = std::make_shared<Result<GraphRows>>(journal_->Graph(number, kMostGraphInputs));
        strand_.Post([this, rows, number, workspace, reply] {
          if (!rows->ok()) return reply(rows->status());
          CallGraph graph;
          graph.truncated = (*rows)->truncated;
          std::unordered_set<std::string_view> known;  // inputs whose calls belong to it
          for (const GraphRows::OneCall& call : (*rows)->calls) {
            const FunctionState* called = function(call.row.function_id);
            // The caller names what called it: a call of another workspace hangs in nobody's graph.
            if (called == nullptr || called->workspace != workspace ||
                (call.row.number != number && !known.contains(call.row.parent_input_id))) {
              continue;
            }
            graph.calls.push_back({call.row.call_id, call.row.parent_input_id, called->info.name});
            for (const GraphRows::Node& node : call.inputs) {
              known.insert(node.input_id);
              CallGraph::InputNode& shown = graph.inputs.emplace_back(
                  CallGraph::InputNode{node.input_id, call.row.call_id, node.task_id, node.status});
              auto running = node.status == 0 ? inputs_.find(node.input_id) : inputs_.end();
              if (running != inputs_.end() && running->second->task != nullptr)
                shown.task_id = running->second->task->id;
            }
          }
          reply(std::move(graph));
        });
      });
}

}  // namespace lydian::control
