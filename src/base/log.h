// Logging: one line, "time level message key=value ...", to the process's log file (spdlog behind it).
//   LOG_INFO("task started", {{"task_id", id}, {"pid", pid}});
// Levels: error = a person must act; warn = degraded; info = a state changed; debug = the rest.
// A value never holds a secret, an argument or a payload. Thread-safety: everything, from any thread.
#pragma once

#include <concepts>
#include <initializer_list>
#include <string>
#include <string_view>

#include "base/status.h"

namespace lydian {

enum class LogLevel { kDebug, kInfo, kWarn, kError };

struct LogField {
  LogField(std::string_view k, std::string v) : key(k), value(std::move(v)) {}
  LogField(std::string_view k, std::string_view v) : key(k), value(v) {}
  LogField(std::string_view k, const char* v) : key(k), value(v) {}
  LogField(std::string_view k, const Status& v) : key(k), value(v.ToString()) {}
  LogField(std::string_view k, bool v) : key(k), value(v ? "true" : "false") {}
  template <typename T>
    requires(std::integral<T> || std::floating_point<T>)
  LogField(std::string_view k, T v) : key(k), value(std::to_string(v)) {}

  std::string_view key;
  std::string value;
};

struct LogOptions {
  std::string role;  // "control", "worker": part of every line
  std::string path;  // appended to; empty = stderr
  LogLevel level = LogLevel::kInfo;
  bool json = false;  // one JSON object a line instead
};

// Once, at the start of main. Before it, lines go to stderr.
Status InitLogging(const LogOptions& options);
void Log(LogLevel level, std::string_view message, std::initializer_list<LogField> fields = {});
bool LogEnabled(LogLevel level);

}  // namespace lydian

#define LOG_DEBUG(...)                                        \
  do {                                                        \
    if (::lydian::LogEnabled(::lydian::LogLevel::kDebug))     \
      ::lydian::Log(::lydian::LogLevel::kDebug, __VA_ARGS__); \
  } while (false)
#define LOG_INFO(...) ::lydian::Log(::lydian::LogLevel::kInfo, __VA_ARGS__)
#define LOG_WARN(...) ::lydian::Log(::lydian::LogLevel::kWarn, __VA_ARGS__)
#define LOG_ERROR(...) ::lydian::Log(::lydian::LogLevel::kError, __VA_ARGS__)
