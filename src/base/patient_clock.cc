#include "base/patient_clock.h"

#include <cmath>
#include <cstdlib>

#include "base/fd.h"
#include "base/log.h"

namespace lydian {
namespace {

constexpr double kSlackSecs = 3600;  // that the wall clock may be ahead without a doubt
constexpr double kPatienceSecs = 86'400;

}  // namespace

PatientClock::PatientClock(Clock& clock, std::string path)
    : clock_(clock), path_(std::move(path)), looked_at_(clock.Now()), believed_(clock.UnixSeconds()) {
  auto kept = ReadFile(path_, 4096);
  if (!kept.ok()) {
    if (kept.status().code() != Code::kNotFound)
      LOG_WARN("ages are judged by the wall clock alone", {{"path", path_}, {"error", kept.status()}});
    return;
  }
  char* rest = nullptr;
  const double believed = std::strtod(kept->c_str(), &rest);
  const double doubted = std::strtod(rest, nullptr);
  if (!std::isfinite(believed) || believed <= 0 || !std::isfinite(doubted) || doubted < 0) {
    LOG_WARN("ages are judged by the wall clock alone", {{"path", path_}, {"error", "no times are in it"}});
    return;
  }
  believed_ = believed;
  doubted_ = doubted;
}

double PatientClock::Look() {
  const SteadyTime now = clock_.Now();
  const double passed = std::chrono::duration<double>(now - looked_at_).count();
  const double wall = clock_.UnixSeconds();
  looked_at_ = now;
  const double ahead = wall - (believed_ + passed);
  if (ahead <= kSlackSecs) {
    doubted_ = 0;
    believed_ = wall;
  } else if (doubted_ + passed >= kPatienceSecs) {
    LOG_INFO("the wall clock is believed, a day after it jumped", {{"secs", ahead}});
    doubted_ = 0;
    believed_ = wall;
  } else {
    if (doubted_ == 0)
      LOG_WARN("the wall clock has jumped ahead; ages are judged by the time that passes, for a day",
               {{"secs", ahead}});
    doubted_ += passed;
    believed_ += passed;
  }
  Save();
  return believed_;
}

void PatientClock::Save() const {
  Status status =
      WriteFileAtomic(path_, std::to_string(believed_) + " " + std::to_string(doubted_) + "\n", 0600);
  if (!status.ok())
    LOG_WARN("what the patient clock believes could not be written", {{"path", path_}, {"error", status}});
}

}  // namespace lydian
