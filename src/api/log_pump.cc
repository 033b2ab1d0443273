#include "api/log_pump.h"

#include <algorithm>
#include <charconv>
#include <chrono>
#include <utility>

namespace lydian::api {

namespace {

constexpr size_t kPage = 1000, kFirstLines = 4;
constexpr size_t kHigh = 1 << 20, kLow = 256 << 10;  // bytes that a slow client may leave unread
constexpr std::chrono::seconds kKeepAlive{15};
constexpr double kLongest = 600;

}  // namespace

LogPump::LogPump(Strand* strand, control::LogStore* logs, std::shared_ptr<Turns> turns,
                 std::shared_ptr<rpc::RawStream> out, Options options)
    : strand_(strand),
      logs_(logs),
      turns_(std::move(turns)),
      out_(std::move(out)),
      options_(std::move(options)) {
  double timeout = std::clamp(options_.timeout_secs, 0.0, kLongest);
  until_ = std::chrono::steady_clock::now() + std::chrono::milliseconds(static_cast<int64_t>(timeout * 1000));
}

std::shared_ptr<LogPump> LogPump::Start(Strand* strand, control::LogStore* logs, std::shared_ptr<Turns> turns,
                                        rpc::Ctx ctx, std::shared_ptr<rpc::RawStream> out, Options options) {
  std::shared_ptr<LogPump> pump(
      new LogPump(strand, logs, std::move(turns), std::move(out), std::move(options)));
  ctx->OnCancel([pump] { pump->strand_->Post([pump] { pump->Stop(false, false); }); });
  pump->Next();
  return pump;
}

// What there is comes in pages, in turn; when nothing is left, it waits for the first lines of what comes.
void LogPump::Next() {
  if (over_) return;
  auto self = shared_from_this();
  if (out_->buffered() > kHigh) {
    out_->OnDrained(kLow, [self] { self->strand_->Post([self] { self->Next(); }); });
    return;
  }
  const auto left = until_ - std::chrono::steady_clock::now();
  if (caught_up_ && left > left.zero() && !end_soon_) {
    return Read(
        kFirstLines,
        std::chrono::duration_cast<Millis>(std::min<SteadyTime::duration>(left, kKeepAlive)).count() + 1);
  }
  turns_->Take(options_.workspace, [self, asked = ++asked_](std::shared_ptr<void> turn) {
    if (self->over_ || asked != self->asked_) return;
    if (self->out_->buffered() > kHigh) return self->Next();  // since it asked for its turn
    self->Read(kPage, 0);
    self->turn_ = std::move(turn);
  });
}

void LogPump::Read(size_t most, int64_t wait_ms) {
  question_ =
      logs_->Read(options_.stream, options_.after, options_.filter, most, wait_ms,
                  [self = shared_from_this(), asked = ++asked_](Result<control::LogStore::Page> page) {
                    self->strand_->Post([self, asked, page = std::move(page)] { self->OnPage(asked, page); });
                  });
}

void LogPump::OnPage(uint64_t asked, Result<control::LogStore::Page> page) {
  if (over_ || asked != asked_) return;
  const bool waited = std::exchange(caught_up_, page.ok() && page->records.empty());
  const auto turn = std::exchange(turn_, nullptr);  // until this page is written
  if (!page.ok()) return Stop(true, page.status());
  if (!page->records.empty()) {
    options_.after = page->records.back().seq;
    options_.write(page->records);
  }
  if (page->done) return Stop(true, true);
  if (page->records.empty()) {
    if (end_soon_) return Stop(true, true);
    if (std::chrono::steady_clock::now() >= until_) return Stop(true, false);
    if (waited && options_.keep_alive) options_.keep_alive();
  }
  Next();
}

void LogPump::EndSoon() {
  if (over_) return;
  end_soon_ = true;
  Next();  // asks anew, without waiting
}

void LogPump::Stop(bool tell, Result<bool> how) {
  if (over_) return;
  over_ = true;
  question_.reset();
  turn_.reset();
  if (tell) options_.end(std::move(how));
  options_.write = nullptr, options_.keep_alive = nullptr, options_.end = nullptr;  // what they hold goes now
}

void LogStreams::Add(const std::string& app_id, const std::shared_ptr<LogPump>& pump) {
  auto& list = pumps_[app_id];
  std::erase_if(list, [](const auto& weak) { return weak.expired(); });
  list.push_back(pump);
  std::erase_if(pumps_, [](auto& entry) {
    return std::all_of(entry.second.begin(), entry.second.end(),
                       [](const auto& weak) { return weak.expired(); });
  });
}

void LogStreams::End(const std::string& app_id) {
  auto found = pumps_.extract(app_id);
  if (found.empty()) return;
  for (const auto& weak : found.mapped()) {
    if (auto pump = weak.lock()) pump->EndSoon();
  }
}

bool LogStreams::Followed(const std::string& app_id) const {
  auto found = pumps_.find(app_id);
  return found != pumps_.end() &&
         std::any_of(found->second.begin(), found->second.end(), [](const auto& weak) {
           auto pump = weak.lock();
           return pump != nullptr && !pump->over();
         });
}

Result<uint64_t> ParseCursor(const std::string& entry_id) {
  if (entry_id.empty()) return uint64_t{0};
  uint64_t seq = 0;
  auto [end, error] = std::from_chars(entry_id.data(), entry_id.data() + entry_id.size(), seq);
  if (error != std::errc() || std::string_view(end, entry_id.data() + entry_id.size() - end) != "-0") {
    return InvalidArgument("'" + entry_id.substr(0, 40) + "' is not an entry id of ours");
  }
  return seq;
}

std::string Cursor(uint64_t seq) { return std::to_string(seq) + "-0"; }

}  // namespace lydian::api
