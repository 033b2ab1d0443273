#include "control/blob_ids.h"

#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/wire_format_lite.h>

namespace lydian::control {

std::string BlobIdIn(std::string_view message, int field) {
  using Wire = google::protobuf::internal::WireFormatLite;
  constexpr int kMostId = 128;
  google::protobuf::io::CodedInputStream in(reinterpret_cast<const uint8_t*>(message.data()),
                                            static_cast<int>(message.size()));
  std::string found;
  while (const uint32_t tag = in.ReadTag()) {
    const bool wanted =
        Wire::GetTagFieldNumber(tag) == field && Wire::GetTagWireType(tag) == Wire::WIRETYPE_LENGTH_DELIMITED;
    uint32_t size = 0;
    if (wanted ? !in.ReadVarint32(&size) || size > kMostId || !in.ReadString(&found, static_cast<int>(size))
               : !Wire::SkipField(&in, tag)) {
      return "";
    }
  }
  return found;
}

}  // namespace lydian::control
