// Which blobs the journal's calls name.
#include "control/blob_ids.h"
#include "control/journal_schema.h"

namespace lydian::control {

using store::Row;
using store::Session;

Status ReadOldBlobIds(store::Database& database) {
  struct Table {
    std::string select, update;
    int field;
  };
  constexpr int kRows = 200;
  for (const Table& table : {Table{"SELECT id, payload FROM input WHERE blob IS NULL LIMIT ?",
                                   "UPDATE input SET blob = ? WHERE id = ?", kInputBlobField},
                             Table{"SELECT id, result FROM output WHERE blob IS NULL LIMIT ?",
                                   "UPDATE output SET blob = ? WHERE id = ?", kResultBlobField},
                             Table{"SELECT id, data FROM chunk WHERE blob IS NULL LIMIT ?",
                                   "UPDATE chunk SET blob = ? WHERE id = ?", kChunkBlobField}}) {
    for (bool more = true; more;) {
      ASSIGN_OR_RETURN(auto rows, database.Query(table.select, {kRows}));
      more = !rows.empty();
      RETURN_IF_ERROR(database.Transaction([&](Session& session) -> Status {
        for (const Row& row : rows) {
          RETURN_IF_ERROR(session.Execute(
              table.update, {row.IsNull(1) ? "" : BlobIdIn(row.Text(1), table.field), row.Int(0)}));
        }
        return {};
      }));
    }
  }
  return {};
}

Result<std::set<std::string>> Journal::BlobsInUse(const std::vector<std::string>& blob_ids) {
  std::set<std::string> used;
  for (const std::string& id : blob_ids) {
    RETURN_IF_ERROR(database_->ForEach(
        "SELECT 1 FROM input WHERE blob = ? AND blob != '' UNION ALL SELECT 1 FROM output WHERE blob = ? AND "
        "blob != '' UNION ALL SELECT 1 FROM chunk WHERE blob = ? AND blob != ''",
        {id, id, id}, [&](Row&) -> Status {
          used.insert(id);
          return {};
        }));
  }
  return used;
}

}  // namespace lydian::control
