#include "rpc/headers.h"

#include <algorithm>
#include <iterator>

#include "base/ids.h"
#include "rpc/wire.h"

namespace lydian::rpc {

void Fields::Add(std::string_view name, std::string_view value) {
  if (name.empty() || name.front() == ':') return;
  if (nghttp2_check_header_name(reinterpret_cast<const uint8_t*>(name.data()), name.size()) == 0) return;
  if (!std::all_of(value.begin(), value.end(), [](char c) { return c >= ' ' && c <= '~'; })) return;
  Set(name, value);
}

void Fields::Append(Fields others) {
  std::move(others.fields_.begin(), others.fields_.end(), std::back_inserter(fields_));
}

std::vector<nghttp2_nv> Fields::ForSession() const {
  std::vector<nghttp2_nv> all;
  all.reserve(fields_.size());
  const auto bytes = [](const std::string& text) {
    return const_cast<uint8_t*>(reinterpret_cast<const uint8_t*>(text.data()));
  };
  for (const auto& [name, value] : fields_) {
    all.push_back({bytes(name), bytes(value), name.size(), value.size(), NGHTTP2_NV_FLAG_NONE});
  }
  return all;
}

Fields StatusFields(const Status& status) {
  Fields fields;
  fields.Set("grpc-status", std::to_string(static_cast<int>(status.code())));
  if (!status.ok()) fields.Set("grpc-message", EncodeStatusText(SafeStatusText(status.message())));
  if (!status.details().empty()) fields.Set(kDetailsField, Base64Encode(status.details()));
  return fields;
}

}  // namespace lydian::rpc
