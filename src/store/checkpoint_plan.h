// When the log of a database is copied back into its file. Pure; of one writer, under its mutex.
#pragma once

namespace lydian::store {

class CheckpointPlan {
 public:
  enum class Step {
    kNone,
    kCopy,     // beside the writer, which then starts the log anew if it was quiet for a moment
    kRestart,  // waits for readers and holds the writer a moment: steady writes leave no quiet one
  };
  static constexpr int kFirst = 8192;  // pages (4 KiB each) in the log
  static constexpr int kAgain =
      4096;  // and so many more: each time costs two syncs, whatever there is to copy
  static constexpr int kRestart = 16'384;

  // `pages`: what the log holds after a commit.
  Step AfterCommit(int pages) {
    if (pages < kFirst) next_ = kFirst;  // it was started anew
    if (pages < next_) return Step::kNone;
    next_ = pages + kAgain;
    return pages >= kRestart ? Step::kRestart : Step::kCopy;
  }

 private:
  int next_ = kFirst;
};

}  // namespace lydian::store
