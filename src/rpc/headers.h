// Fields of HTTP/2 messages: those that came, and those to send.
// Thread-safety: none of their own. Ownership: they own their text.
#pragma once

#include <nghttp2/nghttp2.h>

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/status.h"

namespace lydian::rpc {

// What came with a message, copied: handlers may outlive its connection.
class Headers {
 public:
  void Add(std::string_view name, std::string_view value) {
    fields_.push_back({static_cast<uint32_t>(name.size()), static_cast<uint32_t>(value.size())});
    text_.append(name).append(value);
  }
  // "" if absent.
  std::string_view Get(std::string_view name) const {
    std::string_view found;
    ForEach([&](std::string_view key, std::string_view value) {
      if (found.data() == nullptr && key == name) found = value;
    });
    return found;
  }
  template <typename Fn>
  void ForEach(Fn fn) const {
    std::string_view rest = text_;
    for (const Field& field : fields_) {
      fn(rest.substr(0, field.name), rest.substr(field.name, field.value));
      rest.remove_prefix(field.name + field.value);
    }
  }
  // As SETTINGS_MAX_HEADER_LIST_SIZE counts (RFC 9113, 6.5.2).
  size_t size() const { return text_.size() + 32 * fields_.size(); }

 private:
  struct Field {
    uint32_t name, value;
  };
  std::string text_;
  std::vector<Field> fields_;
};

// Fields to send.
class Fields {
 public:
  // One of ours.
  void Set(std::string_view name, std::string_view value) { fields_.emplace_back(name, value); }
  // One of anybody's, who may have come by it through a relay: left out unless HTTP/2 and gRPC have such
  // ones.
  void Add(std::string_view name, std::string_view value);
  void Append(Fields others);
  // Points into this.
  std::vector<nghttp2_nv> ForSession() const;

 private:
  std::vector<std::pair<std::string, std::string>> fields_;
};

// How a call ends: "grpc-status", the text of an error, and its details under this name (base64).
constexpr std::string_view kDetailsField = "grpc-status-details-bin";
Fields StatusFields(const Status& status);

}  // namespace lydian::rpc
