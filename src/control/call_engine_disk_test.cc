// The engine on a disk that is full, has lost its power, or has a damaged row.
#include "control/engine_test_util.h"
#include "control/journal_schema.h"
#include "store/faulty_disk.h"

namespace lydian::control {
namespace {

using namespace std::chrono_literals;

class EngineDiskTest : public EngineTest {
 protected:
  static OutputsQuery MapQuery(const std::string& call) {
    OutputsQuery query = QueryOf(call);
    query.start_idx.reset();
    query.end_idx.reset();
    return query;
  }
  // By hand, while nobody has it open.
  void Change(std::string_view sql) {
    auto db =
        store::Database::Open(dir_ + "/calls.db", JournalMigrations(), store::Database::Sharing::kAlone);
    ASSERT_TRUE(db.ok()) << db.status();
    ASSERT_TRUE((*db)->Execute(sql).ok());
  }

  store::FaultyDisk disk_;
};

TEST_F(EngineDiskTest, AFullDiskPausesAndGoesOnByItself) {
  Begin();
  FakeWorker* worker = Connect();
  std::string call = Map("a");
  auto task = worker->WaitStart();
  ASSERT_TRUE(task);
  worker->Ready(task->task_id());
  auto lease = worker->WaitLease();
  ASSERT_TRUE(lease);
  const std::string big(50'000, 'x');
  disk_.Fill();
  worker->Succeed(*lease, big);
  std::promise<void> stored;
  LogRecord line;
  line.data = big;
  logs_->Append("ap-1", {line}, [&] { stored.set_value(); });
  EXPECT_EQ(Create(CallOf(big)).status().code(), Code::kResourceExhausted);
  ASSERT_TRUE(disk_.WaitForRefused(3, 10s));
  auto stored_at = stored.get_future();
  EXPECT_EQ(stored_at.wait_for(0s), std::future_status::timeout);
  EXPECT_FALSE(worker->WaitAck(lease->input_id(), 0ms)) << "what isn't stored was acknowledged";

  disk_.MakeRoom();
  EXPECT_TRUE(worker->WaitAck(lease->input_id(), 10s));
  EXPECT_EQ(stored_at.wait_for(10s), std::future_status::ready);
  auto page = Poll(call);
  ASSERT_TRUE(page.ok()) << page.status();
  ASSERT_EQ(page->outputs.size(), 1u);
  EXPECT_EQ(*page->outputs[0].result, big);
  EXPECT_TRUE(Create(CallOf(big)).ok());
}

TEST_F(EngineDiskTest, AMapThatOutlivesAPowerCutGetsWhatRunsAgain) {
  EngineOptions options = Options();
  options.incarnation = "one";
  Begin(Function(), options);
  FakeWorker* worker = Connect();
  NewCall map = CallOf("");
  map.call_type = kCallMap;
  map.invocation_type = kAsync;  // on the disk before it is answered
  map.inputs = {{0, "a", ""}, {1, "b", ""}};
  const std::string call = Create(map)->call_id;
  worker->Serve([](const Lease& in) { return "r" + in.input(); });
  OutputsQuery query = MapQuery(call);
  for (size_t seen = 0; seen < 2;) {
    auto page = Outputs(query);
    ASSERT_TRUE(page.ok()) << page.status();
    ASSERT_FALSE(page->outputs.empty());
    seen += page->outputs.size();
    query.last_entry_id = page->last_entry_id;
  }
  const std::string after = dir_ + "/after";
  ASSERT_TRUE(MakeDirs(after).ok());
  ASSERT_TRUE(disk_.PowerCut(dir_, after).ok());
  Kill();
  options_.journal_path = after + "/calls.db";
  options_.incarnation = "two";
  OpenEngine(options_);
  worker = Connect(Hello(2));
  worker->Serve([](const Lease& in) { return "r" + in.input(); });
  std::set<uint32_t> again;
  while (again.size() < 2) {
    auto page = Outputs(query);
    ASSERT_TRUE(page.ok()) << page.status();
    ASSERT_FALSE(page->outputs.empty()) << "nothing more comes for its cursor";
    for (const OutputView& output : page->outputs) EXPECT_TRUE(again.insert(output.idx).second);
    query.last_entry_id = page->last_entry_id;
  }
  worker->StopServing();
}

TEST_F(EngineDiskTest, ADamagedRowKeepsNothingElseDown) {
  Begin();
  engine_->PutFunction(Function("fu-2"), false);
  const std::string of_damaged = Map("a"), nameless = Map("b");
  NewCall other = CallOf("c");
  other.function_id = "fu-2";
  const std::string whole = Create(other)->call_id;
  Kill();
  Change("UPDATE function SET info = x'ff' WHERE function_id = 'fu-1'");
  Change("UPDATE call SET call_id = '', function_id = 'fu-2' WHERE number = 2");
  Change("UPDATE app SET state = 'a%tive' WHERE app_id = 'ap-1'");
  OpenEngine(options_);
  engine_->ActivateApp("ap-1");
  FakeWorker* worker = Connect();
  worker->Serve([](const Lease& in) { return "r" + in.input(); });
  auto page = Poll(whole);
  ASSERT_TRUE(page.ok()) << page.status();
  ASSERT_EQ(page->outputs.size(), 1u);
  EXPECT_EQ(*page->outputs[0].result, "rc");
  EXPECT_EQ(Poll(nameless).status().code(), Code::kNotFound);

  engine_->PutFunction(Function(), false);  // the rest of control tells it again
  Restart();
  worker = Connect(Hello(2));
  worker->Serve([](const Lease& in) { return "r" + in.input(); });
  page = Poll(of_damaged);
  ASSERT_TRUE(page.ok()) << page.status();
  ASSERT_EQ(page->outputs.size(), 1u);
  EXPECT_EQ(*page->outputs[0].result, "ra");
}

TEST_F(EngineDiskTest, AJumpOfTheClockDropsNoResults) {
  struct Ahead : Clock {
    SteadyTime Now() const override { return SystemClock().Now(); }
    int64_t UnixNanos() const override { return SystemClock().UnixNanos() + int64_t{8} * 86'400'000'000'000; }
  } ahead;
  Begin();
  Connect()->Serve([](const Lease& in) { return "r" + in.input(); });
  std::vector<std::string> calls;
  for (int i = 0; i < 2; ++i) {
    NewCall spawned = CallOf(std::to_string(i));
    spawned.invocation_type = kAsync;
    calls.push_back(Create(spawned)->call_id);
    ASSERT_TRUE(Poll(calls.back()).ok());
  }
  Kill();
  // Both rest: the first for longer than is kept, the second since just now.
  const std::string now = std::to_string(SystemClock().UnixNanos() / 1'000'000'000);
  Change("UPDATE call SET resting_at = " + now + " - (2 - number) * 2592000");
  auto engine = CallEngine::Open(options_, ahead);
  ASSERT_TRUE(engine.ok()) << engine.status();
  engine_ = std::move(engine).value();
  engine_->SetTaskSpecSource(&specs_);
  auto db = store::Database::Open(dir_ + "/calls.db", JournalMigrations(), store::Database::Sharing::kAlone);
  ASSERT_TRUE(db.ok()) << db.status();
  const auto oldest = [&] { return (*(*db)->Query("SELECT MIN(number) FROM call"))[0].Int(0); };
  for (int i = 0; i < 200 && oldest() == 1; ++i) {
    using Op = store::FaultyDisk::Op;
    (void)disk_.WaitFor(Op::kWrite, "calls.db-wal", disk_.Count(Op::kWrite, "calls.db-wal") + 1, 50ms);
  }
  ASSERT_NE(oldest(), 1) << "nothing was dropped";
  auto page = Poll(calls[1]);
  ASSERT_TRUE(page.ok()) << page.status();
  EXPECT_EQ(page->outputs.size(), 1u);
  db->reset();
}

}  // namespace
}  // namespace lydian::control
