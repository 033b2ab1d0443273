// Output of processes as text for logs.
#pragma once

#include <functional>
#include <string>
#include <string_view>

namespace lydian::build {

// 1 stdout, 2 stderr, 3 our own words. `text` is valid UTF-8 and may end in the middle of a line. Called from
// one thread at a time.
using LogSink = std::function<void(int fd, const std::string& text)>;

// Turns bytes as they come into valid UTF-8: a character that is split across reads waits for its rest; a
// byte that is none becomes U+FFFD. Not thread-safe.
class Utf8Stream {
 public:
  std::string Feed(std::string_view bytes);
  std::string Flush();  // at the end: what still waits

 private:
  std::string Take(bool all);
  std::string pending_;
};

std::string ToUtf8(std::string_view bytes);

// The last part of an output, whole lines, for error messages.
class Tail {
 public:
  explicit Tail(size_t limit) : limit_(limit) {}
  void Add(std::string_view text);
  std::string text() const;

 private:
  size_t limit_;
  std::string kept_;
};

}  // namespace lydian::build
