// Settings of gRPC's channels and servers. Private: includes grpc.
#pragma once

#include <grpc/grpc.h>

namespace lydian::rpc {

inline grpc_arg IntegerArgument(const char* name, int value) {
  grpc_arg argument{};
  argument.type = GRPC_ARG_INTEGER;
  argument.key = const_cast<char*>(name);  // gRPC copies it and doesn't write to it
  argument.value.integer = value;
  return argument;
}

inline grpc_arg StringArgument(const char* name, const char* value) {
  grpc_arg argument{};
  argument.type = GRPC_ARG_STRING;
  argument.key = const_cast<char*>(name);
  argument.value.string = const_cast<char*>(value);
  return argument;
}

// `object` must live until gRPC has copied it (with `vtable`).
inline grpc_arg PointerArgument(const char* name, void* object, const grpc_arg_pointer_vtable* vtable) {
  grpc_arg argument{};
  argument.type = GRPC_ARG_POINTER;
  argument.key = const_cast<char*>(name);
  argument.value.pointer = {object, vtable};
  return argument;
}

}  // namespace lydian::rpc
