// Which blob a message of the client names, read from its bytes: calls are kept as such, and a blob lives as
// long as a call that names it. Numbers of fields are modal.client's; api/calls.cc checks them.
// Thread-safe. Bytes that are no message name none.
#pragma once

#include <string>
#include <string_view>

namespace lydian::control {

constexpr int kInputBlobField = 7;    // FunctionInput.args_blob_id
constexpr int kResultBlobField = 10;  // GenericResult.data_blob_id
constexpr int kChunkBlobField = 3;    // DataChunk.data_blob_id

// The last value of a string field, or "".
std::string BlobIdIn(std::string_view message, int field);

}  // namespace lydian::control
