// Strings to and from gRPC's buffers with as few copies as can be. Private: includes grpc.
#pragma once

#include <grpc/byte_buffer.h>
#include <grpc/byte_buffer_reader.h>
#include <grpc/grpc.h>
#include <grpc/slice.h>

#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace lydian::rpc {

// Owns one reference to a slice.
class Slice {
 public:
  Slice() : slice_(grpc_empty_slice()) {}
  explicit Slice(grpc_slice slice) : slice_(slice) {}
  explicit Slice(std::string_view text) : slice_(grpc_slice_from_copied_buffer(text.data(), text.size())) {}
  Slice(Slice&& other) noexcept : slice_(std::exchange(other.slice_, grpc_empty_slice())) {}
  Slice& operator=(Slice&& other) noexcept {
    std::swap(slice_, other.slice_);
    return *this;
  }
  ~Slice() { grpc_slice_unref(slice_); }
  const grpc_slice& get() const { return slice_; }
  grpc_slice* out() { return &slice_; }  // for gRPC to fill in

 private:
  grpc_slice slice_;
};

inline std::string_view View(const grpc_slice& slice) {
  return {reinterpret_cast<const char*>(GRPC_SLICE_START_PTR(slice)), GRPC_SLICE_LENGTH(slice)};
}

// Headers and trailers to send. gRPC refuses a whole call over one that isn't as HTTP/2 has it, and such ones
// can come from anybody through a relay: they are left out. Owns its slices.
class Fields {
 public:
  void Add(std::string_view name, std::string_view value) {
    Slice key(name), text(value);
    if (grpc_header_key_is_legal(key.get()) == 0) return;
    if (grpc_is_binary_header(key.get()) == 0 && grpc_header_nonbin_value_is_legal(text.get()) == 0) return;
    grpc_metadata& field = fields_.emplace_back();
    field.key = slices_.emplace_back(std::move(key)).get();
    field.value = slices_.emplace_back(std::move(text)).get();
  }
  grpc_metadata* data() { return fields_.data(); }
  size_t size() const { return fields_.size(); }

 private:
  std::vector<Slice> slices_;
  std::vector<grpc_metadata> fields_;
};

// Owns a buffer, or nothing.
class ByteBuffer {
 public:
  ByteBuffer() = default;
  // A small message is copied into one slice; a large one is kept where it is until the transport has sent
  // it.
  explicit ByteBuffer(std::string message) {
    constexpr size_t kCopied = 4096;
    if (message.size() <= kCopied) {
      Slice slice{std::string_view(message)};
      buffer_ = grpc_raw_byte_buffer_create(const_cast<grpc_slice*>(&slice.get()), 1);
      return;
    }
    auto* kept = new std::string(std::move(message));
    Slice slice(grpc_slice_new_with_user_data(
        kept->data(), kept->size(), [](void* text) { delete static_cast<std::string*>(text); }, kept));
    buffer_ = grpc_raw_byte_buffer_create(const_cast<grpc_slice*>(&slice.get()), 1);
  }
  ByteBuffer(const ByteBuffer&) = delete;
  ByteBuffer& operator=(ByteBuffer&& other) noexcept {
    std::swap(buffer_, other.buffer_);
    return *this;
  }
  ~ByteBuffer() { Clear(); }

  grpc_byte_buffer* get() const { return buffer_; }
  grpc_byte_buffer** out() {  // for gRPC to fill in
    Clear();
    return &buffer_;
  }
  void Clear() {
    if (buffer_ != nullptr) grpc_byte_buffer_destroy(std::exchange(buffer_, nullptr));
  }

  // All bytes in one slice; of a buffer that holds a message.
  Slice Contiguous() const {
    const grpc_slice_buffer& slices = buffer_->data.raw.slice_buffer;
    if (slices.count == 1) return Slice(grpc_slice_ref(slices.slices[0]));
    grpc_byte_buffer_reader reader;
    grpc_byte_buffer_reader_init(&reader, buffer_);
    Slice all(grpc_byte_buffer_reader_readall(&reader));
    grpc_byte_buffer_reader_destroy(&reader);
    return all;
  }

 private:
  grpc_byte_buffer* buffer_ = nullptr;
};

}  // namespace lydian::rpc
