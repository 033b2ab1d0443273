// What a call came with. Private: includes grpc.
#pragma once

#include <grpc/grpc.h>

#include <string>
#include <string_view>
#include <vector>

#include "rpc/byte_buffer.h"

namespace lydian::rpc {

// The call's headers, copied: handlers may outlive gRPC's call.
class Headers {
 public:
  explicit Headers(const grpc_metadata_array& metadata) {
    size_t bytes = 0;
    for (size_t i = 0; i < metadata.count; ++i) {
      bytes += View(metadata.metadata[i].key).size() + View(metadata.metadata[i].value).size();
    }
    text_.reserve(bytes);
    fields_.reserve(metadata.count);
    for (size_t i = 0; i < metadata.count; ++i) {
      const std::string_view name = View(metadata.metadata[i].key), value = View(metadata.metadata[i].value);
      fields_.push_back({static_cast<uint32_t>(name.size()), static_cast<uint32_t>(value.size())});
      text_.append(name).append(value);
    }
  }

  std::string_view Get(std::string_view name) const {
    std::string_view rest = text_;
    for (const Field& field : fields_) {
      if (rest.substr(0, field.name) == name) return rest.substr(field.name, field.value);
      rest.remove_prefix(field.name + field.value);
    }
    return {};
  }

 private:
  struct Field {
    uint32_t name, value;
  };
  std::string text_;
  std::vector<Field> fields_;
};

}  // namespace lydian::rpc
