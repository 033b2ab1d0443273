// Log records as the client's messages. Private to api/.
#pragma once

#include <vector>

#include "control/log_store.h"

namespace modal::client {
class TaskLogs;
class TaskLogsBatch;
}  // namespace modal::client

namespace lydian::api {

modal::client::TaskLogs LogItem(const control::LogRecord& record);
// Neighbours of one task, function and input share a batch; a batch's entry id is that of its last record.
std::vector<modal::client::TaskLogsBatch> Batches(const std::vector<control::LogRecord>& records);

}  // namespace lydian::api
