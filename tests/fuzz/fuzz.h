// A fuzz target: a function that takes hostile bytes, and must neither crash, hang nor break what it CHECKs.
// One source is used twice: with LYDIAN_FUZZ it is a libFuzzer program of its own; without, all targets go
// into fuzz_corpus_test, which runs the kept inputs once.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>

#include "base/log.h"

namespace lydian::fuzz {

using Target = void (*)(std::string_view input);

// By name, which is also that of the folder below tests/fuzz/corpus.
std::map<std::string, Target>& Targets();

// What comes before the first `mark`, taken off `input` with the mark; all of it if there is none.
inline std::string_view TakeUntil(std::string_view& input, char mark) {
  const std::string_view part = input.substr(0, input.find(mark));
  input.remove_prefix(part.size() < input.size() ? part.size() + 1 : input.size());
  return part;
}

}  // namespace lydian::fuzz

#ifdef LYDIAN_FUZZ
#define FUZZ_TARGET(name)                                                           \
  static void Fuzz_##name(std::string_view input);                                  \
  extern "C" int LLVMFuzzerInitialize(int*, char***) {                              \
    return lydian::InitLogging({.role = "fuzz", .path = "/dev/null"}).ok() ? 0 : 1; \
  }                                                                                 \
  extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {         \
    Fuzz_##name(std::string_view(reinterpret_cast<const char*>(data), size));       \
    return 0;                                                                       \
  }                                                                                 \
  static void Fuzz_##name(std::string_view input)
#else
#define FUZZ_TARGET(name)                                                                           \
  static void Fuzz_##name(std::string_view input);                                                  \
  static const bool registered_##name = lydian::fuzz::Targets().emplace(#name, Fuzz_##name).second; \
  static void Fuzz_##name(std::string_view input)
#endif
