// Results of calls: the newest are in memory, all are in the journal.
#include "control/call_engine_core.h"

namespace lydian::control {

// Behind the last of its outputs. When there is too much in all, those of the calls that have had none for
// the longest time leave the memory.
void EngineCore::KeepResult(Call* call) {
  const OutputView& output = call->outputs.back();
  if (output.result == nullptr || !output.journalled) return;
  call->result_bytes += output.result->size();
  result_bytes_ += output.result->size();
  if (call->result_at) with_results_.erase(*call->result_at);
  call->result_at = with_results_.insert(with_results_.end(), call);
  while (result_bytes_ > options_.max_result_bytes && !with_results_.empty()) {
    Call* oldest = with_results_.front();
    for (OutputView& old : oldest->outputs) {
      if (old.result == nullptr || !old.journalled) continue;
      old.shelved_bytes = old.result->size();
      old.result = nullptr;
    }
    ForgetResults(oldest);
  }
}

void EngineCore::ForgetResults(Call* call) {
  if (!call->result_at) return;
  with_results_.erase(*call->result_at);
  call->result_at.reset();
  result_bytes_ -= std::exchange(call->result_bytes, 0);
}

// With what is in the journal alone. The call stays meanwhile.
void EngineCore::ReplyWithResults(Call* call, OutputsPage page,
                                  std::function<void(Result<OutputsPage>)> reply) {
  std::vector<uint32_t> seqs;
  for (const OutputView& output : page.outputs) {
    if (output.shelved_bytes > 0) seqs.push_back(output.seq);
  }
  if (seqs.empty()) return reply(std::move(page));
  ++call->readers;
  results_pool_.Post([this, number = call->number, call_id = call->id, seqs = std::move(seqs),
                      page = std::move(page), reply = std::move(reply)]() mutable {
    auto results = journal_->Results(number, seqs);
    if (results.ok()) {
      auto next = results->begin();
      for (OutputView& output : page.outputs) {
        if (output.shelved_bytes > 0) output.result = std::move(*next++);
      }
    }
    strand_.Post([this, call_id, status = results.status(), page = std::move(page),
                  reply = std::move(reply)]() mutable {
      if (auto it = calls_.find(call_id); it != calls_.end()) --it->second->readers;
      if (!status.ok()) return reply(status);
      reply(std::move(page));
    });
  });
}

}  // namespace lydian::control
