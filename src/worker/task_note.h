// Small files in a task's folder that another worker reads: what it is, how it ended. A header of magic,
// version and checksum stands before the message, so that half a file, or an empty one after a power cut, is
// not taken for a message without fields. docs/formats/task-folder.md.
//
// Thread-safety: all functions. Errors: NOT_FOUND without the file, DATA_LOSS when it is damaged.
#pragma once

#include <google/protobuf/message_lite.h>

#include <string>

#include "base/status.h"

namespace lydian::worker {

// In place of an older one, at once; with `durable` also after a power cut.
Status WriteNote(const std::string& path, const google::protobuf::MessageLite& message, bool durable);
Status ReadNote(const std::string& path, google::protobuf::MessageLite* message);

}  // namespace lydian::worker
