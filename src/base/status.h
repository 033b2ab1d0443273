// Errors as values. A Status is OK or {code, message, errno}; the 16 codes are gRPC's, so that the mapping at
// the rpc edge is the identity. Result<T> is a T or a Status that is not OK. Both are [[nodiscard]]: an error
// is handled or passed on.
//
// Thread-safety: values; const access from any thread. Ownership: Status owns its text.
#pragma once

#include <cerrno>
#include <memory>
#include <optional>
#include <ostream>
#include <string>
#include <string_view>
#include <utility>
#include <variant>

namespace lydian {

// The numbers are those of gRPC (https://grpc.github.io/grpc/core/md_doc_statuscodes.html).
enum class Code : int {
  kOk = 0,
  kCancelled = 1,
  kUnknown = 2,
  kInvalidArgument = 3,
  kDeadlineExceeded = 4,
  kNotFound = 5,
  kAlreadyExists = 6,
  kPermissionDenied = 7,
  kResourceExhausted = 8,
  kFailedPrecondition = 9,
  kAborted = 10,
  kOutOfRange = 11,
  kUnimplemented = 12,
  kInternal = 13,
  kUnavailable = 14,
  kDataLoss = 15,
  kUnauthenticated = 16,
};

std::string_view CodeName(Code code);

class [[nodiscard]] Status {
 public:
  Status() = default;  // OK
  Status(Code code, std::string message, int error = 0);

  bool ok() const { return state_ == nullptr; }
  Code code() const { return ok() ? Code::kOk : state_->code; }
  const std::string& message() const;
  // The errno behind it, 0 if none.
  int error() const { return ok() ? 0 : state_->error; }
  // What goes with it to who called: a serialized google.rpc.Status, as gRPC's header grpc-status-details-bin
  // has it. Empty = nothing.
  const std::string& details() const;
  Status WithDetails(std::string details) const;  // does nothing to OK

  // Puts "context: " before the message; does nothing to OK.
  Status With(std::string_view context) &&;
  Status With(std::string_view context) const&;

  // "NOT_FOUND: no app ap-1" or "OK".
  std::string ToString() const;

 private:
  struct State {
    Code code;
    int error;
    std::string message, details;
  };
  std::shared_ptr<const State> state_;  // null = OK; shared, so that copies are cheap
};

inline Status OkStatus() { return {}; }
Status InvalidArgument(std::string message);
Status NotFound(std::string message);
Status AlreadyExists(std::string message);
Status PermissionDenied(std::string message);
Status ResourceExhausted(std::string message);
Status FailedPrecondition(std::string message);
Status Aborted(std::string message);
Status Unimplemented(std::string message);
Status Internal(std::string message);
Status Unavailable(std::string message);
Status DataLoss(std::string message);
Status Unauthenticated(std::string message);
Status Cancelled(std::string message);
Status DeadlineExceeded(std::string message);

// "<what>: No space left on device"; the code follows the errno (ENOENT NOT_FOUND, EEXIST ALREADY_EXISTS,
// EACCES/EPERM PERMISSION_DENIED, ENOSPC/EDQUOT/EMFILE/ENFILE/ENOMEM RESOURCE_EXHAUSTED, EINVAL
// INVALID_ARGUMENT, else INTERNAL).
Status ErrnoStatus(std::string_view what, int error = errno);

std::ostream& operator<<(std::ostream& out, const Status& status);

template <typename T>
class [[nodiscard]] Result {
 public:
  // Implicit, so that a function returns either as it is.
  // NOLINTNEXTLINE(google-explicit-constructor)
  Result(T value) : value_(std::in_place_index<0>, std::move(value)) {}
  // NOLINTNEXTLINE(google-explicit-constructor)
  Result(Status status) : value_(std::in_place_index<1>, std::move(status)) {
    if (std::get<1>(value_).ok()) std::get<1>(value_) = Internal("a Result was made from an OK status");
  }

  bool ok() const { return value_.index() == 0; }
  Status status() const { return ok() ? Status() : std::get<1>(value_); }

  // Only when ok().
  T& value() & { return std::get<0>(value_); }
  const T& value() const& { return std::get<0>(value_); }
  T&& value() && { return std::get<0>(std::move(value_)); }
  T& operator*() & { return value(); }
  const T& operator*() const& { return value(); }
  T&& operator*() && { return std::move(*this).value(); }
  T* operator->() { return &value(); }
  const T* operator->() const { return &value(); }
  T value_or(T other) && { return ok() ? std::move(*this).value() : std::move(other); }

  Result With(std::string_view context) && {
    if (ok()) return std::move(*this);
    return std::get<1>(std::move(value_)).With(context);
  }

 private:
  std::variant<T, Status> value_;
};

}  // namespace lydian

#define LYDIAN_CONCAT_(a, b) a##b
#define LYDIAN_CONCAT(a, b) LYDIAN_CONCAT_(a, b)

// Returns the status from the calling function unless it is OK.
#define RETURN_IF_ERROR(expression)                                             \
  do {                                                                          \
    if (::lydian::Status status_ = (expression); !status_.ok()) return status_; \
  } while (false)

// ASSIGN_OR_RETURN(auto x, F()): x from F()'s Result, or returns its status.
// NOLINTBEGIN(bugprone-macro-parentheses): lhs may be a declaration
#define ASSIGN_OR_RETURN(lhs, expression) ASSIGN_OR_RETURN_(LYDIAN_CONCAT(result_, __LINE__), lhs, expression)
#define ASSIGN_OR_RETURN_(result, lhs, expression) \
  auto result = (expression);                      \
  if (!result.ok()) return result.status();        \
  lhs = std::move(result).value()
// NOLINTEND(bugprone-macro-parentheses)

// Ends the process when an invariant of ours is broken; never for input from users, network or kernel.
#define CHECK(condition)                                     \
  do {                                                       \
    if (!(condition)) [[unlikely]]                           \
      ::lydian::CheckFailed(__FILE__, __LINE__, #condition); \
  } while (false)

namespace lydian {
[[noreturn]] void CheckFailed(const char* file, int line, const char* condition);
}
