// Strings to and from gRPC's buffers with as few copies as can be. Private: includes grpc.
#pragma once

#include <grpcpp/support/byte_buffer.h>

#include <string>
#include <string_view>

namespace lydian::rpc {

// A small message is copied into one slice; a large one is kept where it is until the transport has sent it.
inline grpc::ByteBuffer ToByteBuffer(std::string message) {
  constexpr size_t kCopied = 4096;
  if (message.size() <= kCopied) {
    grpc::Slice slice(message.data(), message.size());
    return grpc::ByteBuffer(&slice, 1);
  }
  auto* kept = new std::string(std::move(message));
  grpc::Slice slice(
      kept->data(), kept->size(), [](void* text) { delete static_cast<std::string*>(text); }, kept);
  return grpc::ByteBuffer(&slice, 1);
}

// `slice` keeps the bytes alive. False when memory is short.
inline bool ToContiguous(const grpc::ByteBuffer& buffer, grpc::Slice* slice) {
  return buffer.TrySingleSlice(slice).ok() || buffer.DumpToSingleSlice(slice).ok();
}

inline std::string_view View(const grpc::Slice& slice) {
  return {reinterpret_cast<const char*>(slice.begin()), slice.size()};
}

}  // namespace lydian::rpc
