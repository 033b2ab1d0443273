// The router, the server and the channel against each other, over a loopback port and a unix socket.
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <future>
#include <thread>

#include "rpc/channel.h"
#include "rpc/http.h"
#include "rpc/router.h"
#include "rpc/router_impl.h"
#include "rpc/server.h"
#include "rpc/test_util.h"
#include "rpc/wire.h"

namespace lydian::rpc {
namespace {

using namespace std::chrono_literals;

class Tokens : public Authenticator {
 public:
  Result<Caller> Authenticate(const Headers& headers, std::string_view,
                              const MethodOptions& options) override {
    Caller caller;
    caller.token_id = std::string(headers("x-token"));
    if (caller.token_id.empty()) {
      if (options.anonymous) return caller;
      return Unauthenticated("no token");
    }
    caller.kind = headers("x-task").empty() ? Caller::Kind::kUser : Caller::Kind::kTask;
    return caller;
  }
};

const Metadata kToken = {{"x-token", "tk-1"}};

// One streaming call, collected.
struct Collected {
  std::mutex mutex;
  std::vector<std::string> messages;
  std::promise<std::pair<Status, Metadata>> done;
  std::future<std::pair<Status, Metadata>> future = done.get_future();

  ClientCallbacks Callbacks() {
    return {.on_message =
                [this](std::string message) {
                  std::lock_guard lock(mutex);
                  messages.push_back(std::move(message));
                },
            .on_done =
                [this](Status status, Metadata trailers) {
                  done.set_value({std::move(status), std::move(trailers)});
                }};
  }
  std::pair<Status, Metadata> Wait() {
    EXPECT_EQ(future.wait_for(10s), std::future_status::ready);
    return future.get();
  }
};

class RpcTest : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    router_ = std::make_shared<Router>();
    router_->AddUnary("t.S", "Echo",
                      [](std::string_view request, Ctx, RawReply reply) { reply(std::string(request)); });
    router_->AddUnary(
        "t.S", "Open",
        [](std::string_view, Ctx ctx, RawReply reply) { reply("open " + ctx->caller().token_id); },
        {.anonymous = true});
    router_->AddUnary("t.S", "Task",
                      [](std::string_view, Ctx, RawReply reply) { reply(std::string("task")); },
                      {.task_only = true});
    router_->AddUnary("t.S", "Small",
                      [](std::string_view, Ctx, RawReply reply) { reply(std::string("fits")); },
                      {.max_request_bytes = 10});
    router_->AddUnary("t.S", "Fail", [](std::string_view request, Ctx, RawReply reply) {
      reply(NotFound(std::string(request)));
    });
    router_->AddUnary("t.S", "Drop", [](std::string_view, Ctx, RawReply) {});
    router_->AddUnary("t.S", "Throw",
                      [](std::string_view, Ctx, RawReply) { throw std::runtime_error("thrown"); });
    router_->AddBidi("t.S", "ThrowStream", [](Ctx, std::shared_ptr<RawStream>) -> RawReader {
      throw std::runtime_error("thrown");
    });
    router_->AddUnary("t.S", "Trail", [](std::string_view, Ctx ctx, RawReply reply) {
      ctx->AddTrailer("x-extra", "one");
      reply(NotFound("with a trailer"));
    });
    router_->AddUnary("t.S", "Twice", [](std::string_view, Ctx, RawReply reply) {
      reply(std::string("first"));
      reply(std::string("second"));
    });
    router_->AddUnary("t.S", "Hold", [this](std::string_view, Ctx ctx, RawReply reply) {
      std::lock_guard lock(mutex_);
      held_ctx_ = ctx;
      held_.push_back(reply);
      ctx->OnCancel([this] { cancelled_.set_value(); });
      holding_.set_value();
    });
    router_->AddUnary("t.S", "Once",
                      [this](std::string_view, Ctx, RawReply reply) {
                        std::lock_guard lock(mutex_);
                        ++once_;
                        if (hold_once_) {
                          held_.push_back(reply);
                          holding_.set_value();
                        } else if (once_fails_) {
                          reply(Unavailable("later").WithDetails("\x08\x0e\xff"));
                        } else {
                          reply("run " + std::to_string(once_));
                        }
                      },
                      {.idempotent = true});
    router_->AddServerStream("t.S", "Count",
                             [](std::string_view request, Ctx, std::shared_ptr<RawStream> out) {
                               for (int i = 0; i < std::stoi(std::string(request)); ++i)
                                 out->Write(std::to_string(i));
                               out->Finish({});
                             });
    router_->AddServerStream("t.S", "Endless",
                             [this](std::string_view, Ctx ctx, std::shared_ptr<RawStream> out) {
                               out->Write("begun");
                               std::lock_guard lock(mutex_);
                               stream_ = out;
                               ctx->OnCancel([this] { cancelled_.set_value(); });
                             });
    router_->AddBidi("t.S", "Chat", [](Ctx, std::shared_ptr<RawStream> out) {
      return RawReader{.on_message = [out](std::string_view message) -> Status {
                         if (message == "bad") return InvalidArgument("bad message");
                         out->Write("you said " + std::string(message));
                         return {};
                       },
                       .on_end =
                           [out] {
                             out->Write("bye");
                             out->Finish({});
                           }};
    });
    address_ = GetParam() == "unix" ? "unix:" + dir_.path() + "/s" : "127.0.0.1:0";
    auto listener = Listen(address_);
    ASSERT_TRUE(listener.ok()) << listener.status();
    if (GetParam() != "unix") address_ = "127.0.0.1:" + std::to_string(PortOf(listener->get()));
    StartServer({}, listener->get());
    channel_ = Channel::Create(address_);
  }

  // As handlers do when their module stops.
  void TearDown() override {
    std::lock_guard lock(mutex_);
    held_.clear();
    stream_.reset();
  }

  void StartServer(ServerOptions options, int listener) {
    options.router = router_;
    options.authenticator = std::make_shared<Tokens>();
    auto server = Server::Start(std::move(options), listener);
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = std::move(server).value();
  }

  Result<std::string> Call(const std::string& method, const std::string& request, Metadata extra = {},
                           Millis timeout = 10s) {
    extra.insert(extra.end(), kToken.begin(), kToken.end());
    return channel_->CallBlocking("/t.S/" + method, request, extra, timeout);
  }

  TempDir dir_;
  std::string address_;
  std::mutex mutex_;
  std::vector<RawReply> held_;
  Ctx held_ctx_;
  std::shared_ptr<RawStream> stream_;
  std::promise<void> cancelled_, holding_;
  int once_ = 0;
  bool hold_once_ = false, once_fails_ = false;
  std::shared_ptr<Router> router_;
  std::unique_ptr<Server> server_;
  std::unique_ptr<Channel> channel_;
};

INSTANTIATE_TEST_SUITE_P(Sockets, RpcTest, testing::Values("tcp", "unix"),
                         [](const auto& info) { return info.param; });

TEST_P(RpcTest, UnaryAnswers) {
  EXPECT_EQ(Call("Echo", "hello").value(), "hello");
  EXPECT_EQ(Call("Echo", "").value(), "");
  const std::string large(20 << 20, 'x');
  EXPECT_EQ(Call("Echo", large).value(), large);
  EXPECT_EQ(Call("Twice", "").value(), "first");
}

TEST_P(RpcTest, ErrorsKeepCodeTextAndTrailers) {
  EXPECT_EQ(Call("Fail", "no thing \xC3\xA9").status().ToString(), "NOT_FOUND: no thing \xC3\xA9");
  EXPECT_EQ(Call("Fail", "bad \xFF byte").status().message(), "bad \xEF\xBF\xBD byte");
  EXPECT_EQ(Call("Fail", std::string(10'000, 'e')).status().message().size(), 4096u);
  Collected collected;
  auto call = channel_->Start("/t.S/Trail", kToken, collected.Callbacks());
  call->Write("");
  call->WritesDone();
  auto [status, trailers] = collected.Wait();
  EXPECT_EQ(status.code(), Code::kNotFound);
  EXPECT_EQ(trailers, (Metadata{{"x-extra", "one"}}));
}

TEST_P(RpcTest, HeadersThatHttp2DoesNotHaveAreLeftOut) {
  Metadata odd = kToken;
  odd.emplace_back("x-text", "\x01\xC3\xA4\n");
  odd.emplace_back("X-Upper", "1");
  odd.emplace_back("", "1");
  EXPECT_EQ(channel_->CallBlocking("/t.S/Echo", "x", odd).value(), "x");
}

TEST_P(RpcTest, UnknownMethodIsUnimplementedWithItsName) {
  const Status status = Call("Nothing", "").status();
  EXPECT_EQ(status.code(), Code::kUnimplemented);
  EXPECT_EQ(status.message(), "Lydian does not implement Nothing yet (t.S/Nothing)");
  for (const char* odd : {"/", "//", "/t.S", "/t.S/", "/t.S/Echo/"}) {
    EXPECT_EQ(channel_->CallBlocking(odd, "", kToken).status().code(), Code::kUnimplemented) << odd;
  }
}

TEST_P(RpcTest, CallersAreChecked) {
  EXPECT_EQ(channel_->CallBlocking("/t.S/Echo", "x").status().code(), Code::kUnauthenticated);
  EXPECT_EQ(channel_->CallBlocking("/t.S/Open", "x").value(), "open ");
  EXPECT_EQ(Call("Task", "").status().code(), Code::kPermissionDenied);
  EXPECT_EQ(Call("Task", "", {{"x-task", "1"}}).value(), "task");
}

TEST_P(RpcTest, WrongShapesAndSizes) {
  EXPECT_EQ(Call("Small", std::string(11, 'x')).status().code(), Code::kResourceExhausted);
  EXPECT_EQ(Call("Small", std::string(10, 'x')).value(), "fits");
  EXPECT_EQ(Call("Echo", std::string((128 << 20) + 1, 'x')).status().code(), Code::kResourceExhausted);
  Collected none;
  auto call = channel_->Start("/t.S/Echo", kToken, none.Callbacks());
  call->WritesDone();
  EXPECT_EQ(none.Wait().first.code(), Code::kInvalidArgument);
}

TEST_P(RpcTest, UnfinishedMessagesHaveALimitTogether) {
  server_->Stop(0);
  auto listener = Listen("unix:" + dir_.path() + "/small");
  StartServer({.memory = std::make_shared<MemoryBudget>(size_t{1} << 20)}, listener->get());
  channel_ = Channel::Create("unix:" + dir_.path() + "/small");
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(Call("Echo", std::string(8 << 20, 'x')).status().code(), Code::kResourceExhausted);
    EXPECT_EQ(Call("Echo", "small").value(), "small");  // what was refused is not counted any more
  }
}

TEST_P(RpcTest, DroppedReplyIsInternal) { EXPECT_EQ(Call("Drop", "").status().code(), Code::kInternal); }

TEST_P(RpcTest, ThrowingHandlerIsInternalAndServerStops) {
  EXPECT_EQ(Call("Throw", "").status().code(), Code::kInternal);
  Collected collected;
  auto call = channel_->Start("/t.S/ThrowStream", kToken, collected.Callbacks());
  EXPECT_EQ(collected.Wait().first.code(), Code::kInternal);
  const auto begun = std::chrono::steady_clock::now();
  server_->Stop(1000);
  EXPECT_LT(std::chrono::steady_clock::now() - begun, 1s);
}

TEST_P(RpcTest, ServerStreamKeepsOrder) {
  Collected collected;
  auto call = channel_->Start("/t.S/Count", kToken, collected.Callbacks());
  call->Write("1000");
  call->WritesDone();
  EXPECT_TRUE(collected.Wait().first.ok());
  ASSERT_EQ(collected.messages.size(), 1000u);
  for (int i = 0; i < 1000; ++i) EXPECT_EQ(collected.messages[i], std::to_string(i));
}

TEST_P(RpcTest, BidiTalksAndEnds) {
  Collected collected;
  auto call = channel_->Start("/t.S/Chat", kToken, collected.Callbacks());
  call->Write("a");
  call->Write("b");
  call->WritesDone();
  EXPECT_TRUE(collected.Wait().first.ok());
  EXPECT_EQ(collected.messages, (std::vector<std::string>{"you said a", "you said b", "bye"}));
  Collected bad;
  call = channel_->Start("/t.S/Chat", kToken, bad.Callbacks());
  call->Write("bad");
  EXPECT_EQ(bad.Wait().first.ToString(), "INVALID_ARGUMENT: bad message");
}

TEST_P(RpcTest, CancelReachesTheHandlerOnce) {
  Collected collected;
  auto call = channel_->Start("/t.S/Hold", kToken, collected.Callbacks());
  call->Write("");
  call->WritesDone();
  holding_.get_future().wait();
  call->Cancel();
  EXPECT_EQ(collected.Wait().first.code(), Code::kCancelled);
  ASSERT_EQ(cancelled_.get_future().wait_for(5s),
            std::future_status::ready);  // a second set_value would throw
  EXPECT_TRUE(held_ctx_->cancelled());
  held_[0](std::string("too late"));
  EXPECT_EQ(held_ctx_->header("x-token"), "tk-1");  // still there after the call
  bool at_once = false;
  held_ctx_->OnCancel([&] { at_once = true; });
  EXPECT_TRUE(at_once);
}

TEST_P(RpcTest, DeadlineReachesTheHandler) {
  const Status status = Call("Hold", "", {}, 100ms).status();
  EXPECT_EQ(status.code(), Code::kDeadlineExceeded);
  EXPECT_EQ(cancelled_.get_future().wait_for(5s), std::future_status::ready);
  EXPECT_LT(held_ctx_->deadline(), std::chrono::steady_clock::now() + 1s);
}

TEST_P(RpcTest, NoCancelAfterTheAnswer) {
  auto call = std::async(std::launch::async, [&] { return Call("Hold", ""); });
  holding_.get_future().wait();
  held_[0](std::string("done"));
  EXPECT_EQ(call.get().value(), "done");
  server_->Stop(0);
  EXPECT_EQ(cancelled_.get_future().wait_for(0s), std::future_status::timeout);
}

TEST_P(RpcTest, StreamEndsWhenItsClientGoes) {
  Collected collected;
  auto call = channel_->Start("/t.S/Endless", kToken, collected.Callbacks());
  call->Write("");
  while (true) {
    std::lock_guard lock(collected.mutex);
    if (!collected.messages.empty()) break;
  }
  call->Cancel();
  EXPECT_EQ(cancelled_.get_future().wait_for(5s), std::future_status::ready);
  EXPECT_FALSE(stream_->Write("more"));
  stream_->Finish({});
  EXPECT_EQ(collected.Wait().first.code(), Code::kCancelled);
}

TEST_P(RpcTest, StopCancelsWhatRuns) {
  Collected unary, stream;
  auto held = channel_->Start("/t.S/Hold", kToken, unary.Callbacks());
  held->Write("");
  holding_.get_future().wait();
  std::thread drop([&] {
    cancelled_.get_future().wait();
    std::lock_guard lock(mutex_);
    held_.clear();
  });
  const auto begun = std::chrono::steady_clock::now();
  server_->Stop(5000);
  drop.join();
  EXPECT_LT(std::chrono::steady_clock::now() - begun, 3s);
  EXPECT_FALSE(unary.Wait().first.ok());
  server_->Stop(5000);  // again: nothing
}

TEST_P(RpcTest, RepeatsAreReplayed) {
  const Metadata key = {{"x-idempotency-key", "k1"}};
  EXPECT_EQ(Call("Once", "", key).value(), "run 1");
  EXPECT_EQ(Call("Once", "", key).value(), "run 1");
  EXPECT_EQ(Call("Once", "", {{"x-idempotency-key", "k2"}}).value(), "run 2");
  EXPECT_EQ(Call("Once", "").value(), "run 3");
  EXPECT_EQ(
      channel_->CallBlocking("/t.S/Once", "", {{"x-token", "tk-other"}, {"x-idempotency-key", "k1"}}).value(),
      "run 4");
}

TEST_P(RpcTest, ErrorsAreNotReplayed) {
  once_fails_ = true;
  const Metadata key = {{"x-idempotency-key", "k1"}};
  const Status failed = Call("Once", "", key).status();
  EXPECT_EQ(failed.code(), Code::kUnavailable);
  EXPECT_EQ(failed.details(), std::string("\x08\x0e\xff", 3)) << "what goes with an error arrives";
  once_fails_ = false;
  EXPECT_EQ(Call("Once", "", key).value(), "run 2");
}

TEST_P(RpcTest, RepeatJoinsTheCallAtWorkAndOutlivesTheFirst) {
  hold_once_ = true;
  Metadata metadata = kToken;
  metadata.emplace_back("x-idempotency-key", "k1");
  Collected first, second;
  auto one = channel_->Start("/t.S/Once", metadata, first.Callbacks());
  one->Write("");
  one->WritesDone();
  holding_.get_future().wait();
  auto two = channel_->Start("/t.S/Once", metadata, second.Callbacks());
  two->Write("");
  two->WritesDone();
  one->Cancel();
  EXPECT_EQ(first.Wait().first.code(), Code::kCancelled);
  EXPECT_TRUE(Call("Echo", "").ok());  // by now the second is most likely there; later it would be replayed
  held_[0](std::string("answer"));
  EXPECT_TRUE(second.Wait().first.ok());
  EXPECT_EQ(second.messages, std::vector<std::string>{"answer"});
  EXPECT_EQ(once_, 1);
  hold_once_ = false;
  EXPECT_EQ(Call("Once", "", {{"x-idempotency-key", "k1"}}).value(), "answer");
}

TEST_P(RpcTest, FallbackRelaysBytes) {
  server_->Stop(0);
  auto relay = std::make_shared<Router>();
  relay->SetFallback([](std::string_view full_method, Ctx, std::shared_ptr<RawStream> out) {
    return RawReader{
        .on_message = [out, name = std::string(full_method)](std::string_view message) -> Status {
          out->Write(name + " " + std::string(message));
          return {};
        },
        .on_end = [out] { out->Finish({}); }};
  });
  router_ = relay;
  auto listener = Listen("unix:" + dir_.path() + "/relay");
  StartServer({}, listener->get());
  channel_ = Channel::Create("unix:" + dir_.path() + "/relay");
  EXPECT_EQ(Call("Any", "thing").value(), "/t.S/Any thing");
}

TEST_P(RpcTest, ServesHundredsAtOnce) {
  std::vector<std::unique_ptr<Collected>> all;
  for (int i = 0; i < 500; ++i) {
    all.push_back(std::make_unique<Collected>());
    auto call = channel_->Start("/t.S/Echo", kToken, all.back()->Callbacks());
    call->Write(std::to_string(i));
    call->WritesDone();
  }
  for (int i = 0; i < 500; ++i) {
    EXPECT_TRUE(all[i]->Wait().first.ok());
    EXPECT_EQ(all[i]->messages, std::vector<std::string>{std::to_string(i)});
  }
  const std::string metrics = router_->MetricsText();
  EXPECT_NE(metrics.find("lydian_rpc_calls_total{method=\"t.S/Echo\",code=\"OK\"} 500\n"), std::string::npos)
      << metrics;
}

TEST_P(RpcTest, SlowReadersHoldBackTheWriter) {
  Collected collected;
  auto call = channel_->Start("/t.S/Endless", kToken, collected.Callbacks());
  call->HoldReading(true);
  call->Write("");
  std::shared_ptr<RawStream> stream;
  while (!stream) {
    std::lock_guard lock(mutex_);
    stream = stream_;
  }
  const std::string part(1 << 20, 'x');
  while (stream->buffered() < (32 << 20)) ASSERT_TRUE(stream->Write(part));
  std::promise<void> drained;
  stream->OnDrained(1 << 20, [&] { drained.set_value(); });
  auto future = drained.get_future();
  EXPECT_EQ(future.wait_for(100ms), std::future_status::timeout);
  call->HoldReading(false);
  EXPECT_EQ(future.wait_for(10s), std::future_status::ready);
  stream->Finish({});
  EXPECT_TRUE(collected.Wait().first.ok());
}

TEST_P(RpcTest, AnAnswerThatIsHeldBackOutlivesItsConnection) {
  Collected collected;
  auto call = channel_->Start("/t.S/Count", kToken, collected.Callbacks());
  call->HoldReading(true);
  call->Write("3");
  call->WritesDone();
  const auto answered = [&] {
    return router_->MetricsText().find("lydian_rpc_calls_total{method=\"t.S/Count\",code=\"OK\"} 1\n") !=
           std::string::npos;
  };
  while (!answered()) std::this_thread::yield();
  EXPECT_EQ(Call("Echo", "x").value(), "x");  // came behind it
  server_->Stop(0);
  EXPECT_EQ(channel_->CallBlocking("/t.S/Echo", "x", kToken).status().code(), Code::kUnavailable);
  call->HoldReading(false);
  EXPECT_TRUE(collected.Wait().first.ok());
  EXPECT_EQ(collected.messages, (std::vector<std::string>{"0", "1", "2"}));
}

TEST_P(RpcTest, ReadersAreLetGoAtTheEnd) {
  auto witness = std::make_shared<int>(0);
  router_ = std::make_shared<Router>();
  router_->AddBidi("t.S", "Elsewhere", [witness](Ctx, std::shared_ptr<RawStream> out) {
    std::thread([out] { out->Finish({}); }).detach();
    return RawReader{.on_message = [out, witness = std::make_shared<std::shared_ptr<int>>(witness)](
                                       std::string_view) -> Status { return {}; },
                     .on_end = nullptr};
  });
  server_->Stop(0);
  auto listener = Listen("unix:" + dir_.path() + "/readers");
  StartServer({}, listener->get());
  channel_ = Channel::Create("unix:" + dir_.path() + "/readers");
  for (int i = 0; i < 200; ++i) {
    Collected collected;
    auto call = channel_->Start("/t.S/Elsewhere", kToken, collected.Callbacks());
    call->WritesDone();
    EXPECT_TRUE(collected.Wait().first.ok());
  }
  server_->Stop(1000);
  const auto until = std::chrono::steady_clock::now() + 5s;
  while (witness.use_count() > 2 && std::chrono::steady_clock::now() < until)
    std::this_thread::sleep_for(1ms);
  EXPECT_EQ(witness.use_count(), 2);  // this one and the handler's
}

TEST_P(RpcTest, UnreadStreamIsBounded) {
  Collected collected;
  auto call = channel_->Start("/t.S/Endless", kToken, collected.Callbacks());
  call->HoldReading(true);
  call->Write("");
  std::shared_ptr<RawStream> stream;
  while (!stream) {
    std::lock_guard lock(mutex_);
    stream = stream_;
  }
  const std::string part(8 << 20, 'x');
  int written = 0;
  while (stream->Write(part)) ASSERT_LT(++written, 100);
  call->HoldReading(false);
  EXPECT_EQ(collected.Wait().first.code(), Code::kResourceExhausted);
  EXPECT_EQ(cancelled_.get_future().wait_for(10s), std::future_status::ready);  // its handler heard of it
  stream->Finish({});
}

// What the server itself finds wrong with a stream ends it for its handler too.
TEST_P(RpcTest, AHandlerHearsOfTheEndOfAStreamThatTheServerEnds) {
  std::atomic<int> over{0};
  std::promise<void> told;
  router_ = std::make_shared<Router>();
  router_->AddBidi("t.S", "Chat",
                   [&](Ctx ctx, std::shared_ptr<RawStream> out) {
                     ctx->OnCancel([&] {
                       if (++over == 3) told.set_value();
                     });
                     return RawReader{.on_message = [out](std::string_view message) -> Status {
                                        if (message == "bad") return InvalidArgument("bad message");
                                        if (message == "throw") throw std::runtime_error("thrown");
                                        return {};
                                      },
                                      .on_end = nullptr};
                   },
                   {.max_request_bytes = 10});
  server_->Stop(0);
  const std::string address = "unix:" + dir_.path() + "/ended";
  auto listener = Listen(address);
  StartServer({}, listener->get());
  channel_ = Channel::Create(address);
  for (const char* message : {"bad", "throw", "longer than ten"}) {
    Collected collected;
    auto call = channel_->Start("/t.S/Chat", kToken, collected.Callbacks());
    call->Write(message);
    EXPECT_FALSE(collected.Wait().first.ok());
  }
  EXPECT_EQ(told.get_future().wait_for(10s), std::future_status::ready);
  server_->Stop(1000);
}

TEST(StatusText, IsCutBetweenCharacters) {
  std::string text(4095, 'a');
  EXPECT_EQ(SafeStatusText(text + "\xC3\xA9"), text);
  EXPECT_EQ(SafeStatusText(text + "b"), text + "b");
  EXPECT_EQ(SafeStatusText("\xED\xA0\x80 \xC0\x80 \xF0\x9F\x98\x80"),
            "\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD \xEF\xBF\xBD\xEF\xBF\xBD \xF0\x9F\x98\x80");
}

std::string Frame(char type, char flags, const std::string& payload) {  // of the first stream, or of none
  const char stream = type == 4 ? 0 : 1;
  return std::string({0, 0, static_cast<char>(payload.size()), type, flags, 0, 0, 0, stream}) + payload;
}

// Whether a client's bytes go as far as a call's headers.
bool HasHeaders(std::string_view bytes) {
  constexpr size_t kPreface = 24, kHeader = 9;
  bytes.remove_prefix(std::min(kPreface, bytes.size()));
  while (bytes.size() >= kHeader) {
    if (bytes[3] == 1) return true;
    const size_t length = static_cast<unsigned char>(bytes[1]) << 8 | static_cast<unsigned char>(bytes[2]);
    bytes.remove_prefix(std::min(kHeader + length, bytes.size()));
  }
  return false;
}

// The server says status 0 all the same: that is no success.
TEST(Channel, AnAnswerThatIsNoMessageIsAnError) {
  const std::string name_and_zero = std::string({0, 11}) + "grpc-status" + std::string({1}) + "0";
  const std::string status_200 = "\x88";
  for (const std::string& data : {std::string("\1\0\0\0\1x", 6), std::string("\0\0\0\0\5xy", 7)}) {
    auto listener = Listen("127.0.0.1:0");
    std::thread server([&, fd = listener->get()] {
      UniqueFd peer(accept4(fd, nullptr, nullptr, SOCK_CLOEXEC));
      while (!peer.valid()) peer.reset(accept4(fd, nullptr, nullptr, SOCK_CLOEXEC));
      char bytes[4096];
      std::string request;
      while (!HasHeaders(request)) {
        const ssize_t count = recv(peer.get(), bytes, sizeof bytes, 0);
        ASSERT_GT(count, 0);
        request.append(bytes, static_cast<size_t>(count));
      }
      const std::string answer =
          Frame(4, 0, "") + Frame(1, 4, status_200) + Frame(0, 0, data) + Frame(1, 5, name_and_zero);
      ASSERT_EQ(send(peer.get(), answer.data(), answer.size(), MSG_NOSIGNAL),
                static_cast<ssize_t>(answer.size()));
      while (recv(peer.get(), bytes, sizeof bytes, 0) > 0) {
      }
    });
    auto channel = Channel::Create("127.0.0.1:" + std::to_string(PortOf(listener->get())));
    const Status status = channel->CallBlocking("/t.S/Echo", "x").status();
    EXPECT_EQ(status.code(), data[0] == 1 ? Code::kUnimplemented : Code::kInternal) << status;
    EXPECT_EQ(status.message().find("without a message"), std::string::npos) << status;
    channel.reset();
    server.join();
  }
}

TEST(Channel, ReconnectsWhenTheServerIsBack) {
  TempDir dir;
  const std::string address = "unix:" + dir.path() + "/s";
  auto router = std::make_shared<Router>();
  router->AddUnary("t.S", "Echo",
                   [](std::string_view request, Ctx, RawReply reply) { reply(std::string(request)); });
  auto channel = Channel::Create(address);
  EXPECT_EQ(channel->CallBlocking("/t.S/Echo", "x").status().code(), Code::kUnavailable);
  auto listener = Listen(address);
  auto server = Server::Start({.router = router}, listener->get()).value();
  const auto until = std::chrono::steady_clock::now() + 2s;
  bool ok = false;
  while (!ok && std::chrono::steady_clock::now() < until) {
    ok = channel->CallBlocking("/t.S/Echo", "x").ok();
    if (!ok) std::this_thread::sleep_for(20ms);
  }
  EXPECT_TRUE(ok);
}

}  // namespace
}  // namespace lydian::rpc
