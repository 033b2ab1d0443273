#include "base/log.h"

#include <spdlog/sinks/basic_file_sink.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include <nlohmann/json.hpp>

namespace lydian {
namespace {

struct State {
  std::shared_ptr<spdlog::logger> logger;
  std::string role;
  bool json = false;
};

State& Current() {
  static State* state = [] {
    auto* fresh = new State;
    fresh->logger =
        std::make_shared<spdlog::logger>("lydian", std::make_shared<spdlog::sinks::stderr_sink_mt>());
    fresh->logger->set_pattern("%Y-%m-%dT%H:%M:%S.%e%z %v");
    return fresh;
  }();
  return *state;
}

spdlog::level::level_enum ToSpdlog(LogLevel level) {
  switch (level) {
    case LogLevel::kDebug:
      return spdlog::level::debug;
    case LogLevel::kInfo:
      return spdlog::level::info;
    case LogLevel::kWarn:
      return spdlog::level::warn;
    case LogLevel::kError:
      return spdlog::level::err;
  }
  return spdlog::level::info;
}

std::string_view Name(LogLevel level) {
  switch (level) {
    case LogLevel::kDebug:
      return "debug";
    case LogLevel::kInfo:
      return "info";
    case LogLevel::kWarn:
      return "warn";
    case LogLevel::kError:
      return "error";
  }
  return "info";
}

bool NeedsQuotes(const std::string& value) {
  if (value.empty()) return true;
  for (unsigned char c : value) {
    if (c <= ' ' || c == '"' || c == '=' || c == '\\' || c == 0x7f) return true;
  }
  return false;
}

}  // namespace

Status InitLogging(const LogOptions& options) {
  State& state = Current();
  try {
    if (!options.path.empty()) {
      state.logger = std::make_shared<spdlog::logger>(
          "lydian", std::make_shared<spdlog::sinks::basic_file_sink_mt>(options.path));
    }
    state.logger->set_pattern(options.json ? "%v" : "%Y-%m-%dT%H:%M:%S.%e%z %v");
    state.logger->set_level(ToSpdlog(options.level));
    state.logger->flush_on(spdlog::level::debug);
  } catch (const spdlog::spdlog_ex& error) {
    return Internal("opening log " + options.path + ": " + error.what());
  }
  state.role = options.role;
  state.json = options.json;
  return OkStatus();
}

bool LogEnabled(LogLevel level) { return Current().logger->should_log(ToSpdlog(level)); }

void Log(LogLevel level, std::string_view message, std::initializer_list<LogField> fields) {
  State& state = Current();
  if (!state.logger->should_log(ToSpdlog(level))) return;
  std::string line;
  if (state.json) {
    nlohmann::ordered_json object{{"level", Name(level)}, {"role", state.role}, {"message", message}};
    for (const LogField& field : fields) object[std::string(field.key)] = field.value;
    line = object.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  } else {
    line.append(Name(level)).append(" ").append(message);
    if (!state.role.empty()) line.append(" role=").append(state.role);
    for (const LogField& field : fields) {
      line.append(" ").append(field.key).append("=");
      if (NeedsQuotes(field.value)) {
        line += nlohmann::json(field.value).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
      } else {
        line += field.value;
      }
    }
  }
  state.logger->log(ToSpdlog(level), "{}", line);
}

}  // namespace lydian
