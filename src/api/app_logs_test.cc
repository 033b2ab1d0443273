#include <modal_proto/api.pb.h>

#include "api/testing.h"

namespace lydian::api {
namespace {

namespace pb = modal::client;

class AppLogsTest : public ApiTest {
 protected:
  void SetUp() override {
    ApiTest::SetUp();
    pb::AppCreateRequest request;
    request.set_description("logs");
    request.set_app_state(pb::APP_STATE_EPHEMERAL);
    auto app = Ask<pb::AppCreateResponse>("AppCreate", request);
    ASSERT_TRUE(app.ok()) << app.status();
    app_id_ = app->app_id();
    std::vector<control::LogRecord> records;
    for (int i = 0; i < 10; ++i) {
      control::LogRecord record;
      record.data = "line " + std::to_string(i) + "\n";
      record.file_descriptor = i == 9 ? 0 : 1 + i % 2;  // the last is a task's state
      if (i == 9) record.data.clear();
      records.push_back(std::move(record));
    }
    logs_.Append(app_id_, std::move(records), nullptr);
  }
  std::vector<std::string> Fetch(pb::AppFetchLogsRequest request) {
    request.set_app_id(app_id_);
    auto response = Ask<pb::AppFetchLogsResponse>("AppFetchLogs", request);
    EXPECT_TRUE(response.ok()) << response.status();
    std::vector<std::string> lines;
    if (!response.ok()) return lines;
    for (const auto& batch : response->batches())
      for (const auto& item : batch.items()) lines.push_back(item.data());
    return lines;
  }
  std::string app_id_;
};

TEST_F(AppLogsTest, TheNewestLinesAreFetched) {
  pb::AppFetchLogsRequest request;
  request.set_limit(2);
  EXPECT_EQ(Fetch(request), (std::vector<std::string>{"line 7\n", "line 8\n"}));
  request.set_source(pb::FILE_DESCRIPTOR_STDERR);
  EXPECT_EQ(Fetch(request), (std::vector<std::string>{"line 5\n", "line 7\n"}));
  request.set_limit(0);
  EXPECT_EQ(Fetch(request).size(), 4u);
  request.set_search_text("line 3");
  EXPECT_EQ(Fetch(request), std::vector<std::string>{"line 3\n"});
}

TEST_F(AppLogsTest, AFetchGivesItsTurnBack) {
  pb::AppFetchLogsRequest request;
  for (int i = 0; i < 20; ++i) EXPECT_EQ(Fetch(request).size(), 9u);
}

}  // namespace
}  // namespace lydian::api
