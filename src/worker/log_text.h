// Bytes of a container's output to text for clients: UTF-8 that is never split, and U+FFFD for what isn't
// UTF-8 (one for each maximal part, as Unicode recommends). Pure functions; thread-safe.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace lydian::worker {

// How many bytes at the end of `data` are the beginning of a character whose rest may still come: 0 to 3.
size_t IncompleteTail(std::string_view data);

// `data` as valid UTF-8.
std::string ToValidUtf8(std::string_view data);

// How much of `data` ends with a whole line: up to and with the last '\n' or '\r'. 0 if there is none.
size_t WholeLines(std::string_view data);

// Where to cut `data` into a part of at most `most` bytes: behind a line if there is one, else not inside a
// character. Never 0 unless data is empty; all of it if it is short enough.
size_t CutForEntry(std::string_view data, size_t most);

}  // namespace lydian::worker
