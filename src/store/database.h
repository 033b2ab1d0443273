// State in SQL behind one small interface. SQLite today; nothing here names it, so that another database can
// stand behind it.
//
//   auto db = store::Database::Open(path, {{1, "CREATE TABLE app (id TEXT PRIMARY KEY, name TEXT NOT
//   NULL)"}}); RETURN_IF_ERROR(db->Execute("INSERT INTO app (id, name) VALUES (?, ?)", {id, name}));
//   ASSIGN_OR_RETURN(auto rows, db->Query("SELECT name FROM app WHERE id = ?", {id}));
//
// SQL: `?` in the order of the parameters; types INTEGER, REAL, TEXT, BLOB; upserts by ON CONFLICT; no
// functions of one product. Statements are prepared once and kept, so their text is a constant and values are
// always parameters.
//
// Thread-safety: Database: every method from any thread. A Session given to a transaction: only inside it, on
// its thread. All methods block on the disk: call them from a pool or a thread of your own, not from a strand
// or a handler. Errors: RESOURCE_EXHAUSTED "no space left on <path>" on a full disk (nothing of the
// transaction is kept); ALREADY_EXISTS for a broken UNIQUE or PRIMARY KEY; INVALID_ARGUMENT for other
// constraints; DATA_LOSS for a damaged file; UNAVAILABLE when another connection holds it for long; else
// INTERNAL. Once it is open, I/O errors, refused syncs and damage met while writing end the process
// (store/disk_failure.h).
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <type_traits>
#include <variant>
#include <vector>

#include "base/status.h"

namespace lydian::store {

// Bytes that are bound as BLOB; a plain string is bound as TEXT. Does not own.
struct Blob {
  std::string_view bytes;
};

// One bound value. Does not own text: it must live until the call returns.
class Param {
 public:
  Param(std::nullptr_t) {}  // NOLINT(google-explicit-constructor)
  template <typename T>
    requires(std::is_integral_v<T> || std::is_enum_v<T>)
  Param(T value) : value_(static_cast<int64_t>(value)) {}             // NOLINT(google-explicit-constructor)
  Param(double value) : value_(value) {}                              // NOLINT(google-explicit-constructor)
  Param(std::string_view text) : value_(text) {}                      // NOLINT(google-explicit-constructor)
  Param(const std::string& text) : value_(std::string_view(text)) {}  // NOLINT(google-explicit-constructor)
  Param(const char* text) : value_(std::string_view(text)) {}         // NOLINT(google-explicit-constructor)
  Param(Blob blob) : value_(blob) {}                                  // NOLINT(google-explicit-constructor)

  using Value = std::variant<std::monostate, int64_t, double, std::string_view, Blob>;
  const Value& value() const { return value_; }

 private:
  Value value_;
};
using Params = std::vector<Param>;

// One row of an answer. Owns its values. A column of another type reads as 0 or "".
class Row {
 public:
  using Value = std::variant<std::monostate, int64_t, double, std::string>;
  explicit Row(std::vector<Value> values) : values_(std::move(values)) {}

  bool IsNull(size_t column) const { return std::holds_alternative<std::monostate>(values_.at(column)); }
  int64_t Int(size_t column) const;
  double Real(size_t column) const;
  const std::string& Text(size_t column) const;  // TEXT and BLOB
  std::string TakeText(size_t column);           // moved out

 private:
  std::vector<Value> values_;
};

// What a statement can be given to.
class Session {
 public:
  virtual ~Session() = default;
  // The number of rows that were changed.
  virtual Result<int64_t> Change(std::string_view sql, const Params& params = {}) = 0;
  Status Execute(std::string_view sql, const Params& params = {}) { return Change(sql, params).status(); }
  // Row by row, for answers that may be large; an error of `each` ends it and is returned.
  virtual Status ForEach(std::string_view sql, const Params& params,
                         const std::function<Status(Row& row)>& each) = 0;
  Result<std::vector<Row>> Query(std::string_view sql, const Params& params = {});
};

struct Migration {
  int version;      // 1, 2, 3 ...: applied once each, in order, in one transaction with the note that it was
  std::string sql;  // statements with ';' between; never changed once released
};

class Database : public Session {
 public:
  // kAlone keeps other processes out for as long as it is open, which saves a commit its dozen file locks.
  enum class Sharing { kShared, kAlone };
  // Opens or creates the file (0600) and brings it to the newest version. FAILED_PRECONDITION when it is
  // newer than the program.
  static Result<std::unique_ptr<Database>> Open(const std::string& path,
                                                const std::vector<Migration>& migrations,
                                                Sharing sharing = Sharing::kShared);

  // Runs `body` in a transaction that writes: commits when it returns OK, else rolls back and returns its
  // error. Everything in it goes through the session it is given. A commit is in the kernel when this returns
  // (it survives a kill of the process, not of the machine); Sync() puts it on the disk.
  virtual Status Transaction(const std::function<Status(Session& session)>& body) = 0;
  // Everything committed so far survives a power cut.
  virtual Status Sync() = 0;
  virtual const std::string& path() const = 0;
};

}  // namespace lydian::store
