#include "worker/log_text.h"

#include <algorithm>
#include <cstdint>

namespace lydian::worker {
namespace {

struct Step {
  size_t bytes;  // consumed
  bool valid;
  bool cut_short;  // the data ended inside a character that was right so far
};

bool InRange(unsigned char c, unsigned char low, unsigned char high) { return c >= low && c <= high; }

// The character, or the maximal wrong part, at the start of `data` (not empty). Table 3-7 of the Unicode
// standard.
Step Next(std::string_view data) {
  auto at = [&](size_t i) { return static_cast<unsigned char>(data[i]); };
  const unsigned char first = at(0);
  if (first < 0x80) return {1, true, false};
  size_t length = 0;
  unsigned char low = 0x80, high = 0xBF;  // of the second byte
  if (InRange(first, 0xC2, 0xDF)) {
    length = 2;
  } else if (InRange(first, 0xE0, 0xEF)) {
    length = 3;
    if (first == 0xE0) low = 0xA0;
    if (first == 0xED) high = 0x9F;
  } else if (InRange(first, 0xF0, 0xF4)) {
    length = 4;
    if (first == 0xF0) low = 0x90;
    if (first == 0xF4) high = 0x8F;
  } else {
    return {1, false, false};
  }
  for (size_t i = 1; i < length; ++i) {
    if (i >= data.size()) return {i, false, true};
    if (!InRange(at(i), i == 1 ? low : 0x80, i == 1 ? high : 0xBF)) return {i, false, false};
  }
  return {length, true, false};
}

}  // namespace

size_t IncompleteTail(std::string_view data) {
  for (size_t back = 1; back <= 3 && back <= data.size(); ++back) {
    const auto c = static_cast<unsigned char>(data[data.size() - back]);
    if (c < 0x80) return 0;
    if (c >= 0xC0) {
      const Step step = Next(data.substr(data.size() - back));
      return step.cut_short ? back : 0;
    }
  }
  return 0;
}

std::string ToValidUtf8(std::string_view data) {
  std::string text;
  size_t good = 0;  // start of the run that is copied as it stands
  size_t i = 0;
  while (i < data.size()) {
    if (static_cast<unsigned char>(data[i]) < 0x80) {
      ++i;
      continue;
    }
    const Step step = Next(data.substr(i));
    if (!step.valid) {
      text.append(data.substr(good, i - good)).append("\xEF\xBF\xBD");
      good = i + step.bytes;
    }
    i += step.bytes;
  }
  if (good == 0) return std::string(data);
  text.append(data.substr(good));
  return text;
}

size_t WholeLines(std::string_view data) {
  const size_t end = data.find_last_of("\n\r");
  return end == std::string_view::npos ? 0 : end + 1;
}

size_t CutForEntry(std::string_view data, size_t most) {
  if (data.size() <= most) return data.size();
  std::string_view part = data.substr(0, most);
  if (const size_t lines = WholeLines(part); lines > 0) return lines;
  const size_t tail = IncompleteTail(part);
  return part.size() > tail ? part.size() - tail : part.size();
}

}  // namespace lydian::worker
