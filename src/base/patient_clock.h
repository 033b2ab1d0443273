// The clock by which it is judged how old kept things are. It is the wall clock, but doesn't believe it when
// it has jumped ahead of the time that has passed: it goes on beside it until the wall clock has stood by the
// jump for a day. So a clock that was set wrong for some hours doesn't drop what is kept for days. A jump
// back is taken over at once: things only look younger for it.
//
// What it believes is in a small file beside the database whose rows it judges, so that a restart, of the
// machine too, is no way around it. While the process is down no time passes that it knows of: what was off
// for longer than an hour is such a jump.
//
// Thread-safety: none. Blocks for the file. Without the file it begins with the wall clock; one that can't be
// written is said in the log.
#pragma once

#include <string>

#include "base/clock.h"

namespace lydian {

class PatientClock {
 public:
  PatientClock(Clock& clock, std::string path);

  // Now, in seconds since 1970. Looks at both clocks and writes the file: for work that comes every few
  // minutes.
  double Look();

 private:
  void Save() const;

  Clock& clock_;
  const std::string path_;
  SteadyTime looked_at_;
  double believed_ = 0;  // what it was then
  double doubted_ = 0;   // for how many seconds the wall clock has stood by a jump
};

}  // namespace lydian
