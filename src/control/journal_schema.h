// The tables of the journal and how rows are read. Private to the journal.
#pragma once

#include <string_view>
#include <vector>

#include "control/journal.h"
#include "store/database.h"

namespace lydian::control {

std::vector<store::Migration> JournalMigrations();
// Of rows that are older than the column for it.
Status ReadOldBlobIds(store::Database& database);
TaskRow ReadTask(store::Row& row);
extern const std::string_view kSelectTaskById;
Result<FunctionInfo> DecodeFunction(const std::string& id, const std::string& app_id,
                                    const std::string& bytes);

// In `resting_at`: its rows are being deleted, nobody finds it any more.
constexpr double kDropping = -1;

// The row id of input, output or chunk `low` of call `call`: those of one call lie together, so that they are
// appended in order and dropped as one range.
constexpr int64_t RowId(uint32_t call, uint32_t low) {
  return static_cast<int64_t>((static_cast<uint64_t>(call) << 32) | low);
}

}  // namespace lydian::control
