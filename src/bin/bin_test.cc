#include <gmock/gmock.h>
#include <google/protobuf/descriptor.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "api/unbuilt.h"
#include "base/fd.h"
#include "bin/build_destinations.h"
#include "bin/listeners.h"
#include "bin/methods.h"
#include "bin/preflight.h"
#include "bin/supervisor.h"
#include "worker/guest_api.h"

namespace lydian::bin {
namespace {

using testing::HasSubstr;

// Users know features, not RPCs: whoever asks for what nobody serves hears of the feature and of a way out.
TEST(MethodTableTest, WhatNobodyServesIsRefusedByItsFeature) {
  ASSERT_EQ(worker::GuestMethodKind("/modal.client.ModalClient/AppCreate"), worker::RelayKind::kUnary);
  const auto* service =
      google::protobuf::DescriptorPool::generated_pool()->FindServiceByName("modal.client.ModalClient");
  ASSERT_NE(service, nullptr);
  const std::string table = "\n" + MethodTable();
  int unbuilt = 0;
  for (int i = 0; i < service->method_count(); ++i) {
    const std::string name(service->method(i)->name());
    if (table.find("\nmodal.client.ModalClient " + name + " ") != table.npos) continue;
    ++unbuilt;
    EXPECT_TRUE(api::FeatureOf(name)) << name << " belongs to no feature of api/unbuilt.cc";
    const std::string text = api::UnbuiltText("/modal.client.ModalClient/" + name);
    EXPECT_THAT(text, testing::EndsWith("."));
    EXPECT_EQ(text.find(name), text.npos) << text;
  }
  EXPECT_GT(unbuilt, 0);
  EXPECT_THAT(api::UnbuiltText("/modal.client.ModalClient/DictGet"), HasSubstr("modal.Dict"));
  EXPECT_THAT(api::UnbuiltText("/modal.client.ModalClient/TaskClusterHello"), HasSubstr("clustered"));
  EXPECT_THAT(api::UnbuiltText("/modal.task_command_router.TaskCommandRouter/TaskExecStart"),
              HasSubstr("container exec"));
  EXPECT_EQ(api::UnbuiltText("/other.Service/DictGet"), "this server has no method /other.Service/DictGet");
}

TEST(ListenersTest, HostAndPort) {
  auto address = ParseHostPort("127.0.0.1:7070");
  ASSERT_TRUE(address.ok());
  EXPECT_EQ(address->host, "127.0.0.1");
  EXPECT_EQ(address->port, 7070);
  EXPECT_EQ(ParseHostPort("[::1]:80")->host, "::1");
  for (const char* bad : {"7070", ":7070", "host:", "host:x", "host:70000", "host:-1", "host:80x", ""}) {
    EXPECT_FALSE(ParseHostPort(bad).ok()) << bad;
  }
  for (const char* host : {"127.0.0.1", "127.9.9.9", "::1", "localhost"})
    EXPECT_TRUE(IsLoopback(host)) << host;
  for (const char* host : {"0.0.0.0", "10.0.0.1", "::", "example.org", "128.0.0.1"})
    EXPECT_FALSE(IsLoopback(host)) << host;
}

TEST(ListenersTest, ABusyPortNamesItsHolder) {
  auto first = ListenTcp({"127.0.0.1", 0});
  ASSERT_TRUE(first.ok());
  auto address = ParseHostPort(*LocalAddress(first->get()));
  auto second = ListenTcp({"127.0.0.1", address->port});
  EXPECT_EQ(second.status().error(), EADDRINUSE);
  EXPECT_THAT(second.status().message(), HasSubstr("process " + std::to_string(::getpid())));
}

TEST(ListenersTest, AUnixSocketReplacesAStaleOne) {
  char folder[] = "/tmp/lydian-bin-test-XXXXXX";
  ASSERT_NE(::mkdtemp(folder), nullptr);
  std::string path = std::string(folder) + "/s.sock";
  ASSERT_TRUE(ListenUnix(path).ok());
  auto again = ListenUnix(path);
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(*LocalAddress(again->get()), path);
  EXPECT_THAT(ListenUnix(std::string(200, 'x')).status().message(), HasSubstr("too long"));
  ASSERT_TRUE(RemoveTree(folder).ok());
}

TEST(ListenersTest, TakesOnlyWhatListens) {
  auto listener = ListenTcp({"127.0.0.1", 0});
  ASSERT_TRUE(listener.ok());
  int told[2];
  ASSERT_EQ(::pipe(told), 0);
  auto copy = TakeFromProcess(::getpid(), listener->get());
  if (copy.status().code() == Code::kPermissionDenied) GTEST_SKIP() << "this process may trace nobody";
  ASSERT_TRUE(copy.ok()) << copy.status();
  EXPECT_EQ(*LocalAddress(copy->get()), *LocalAddress(listener->get()));
  EXPECT_FALSE(TakeFromProcess(::getpid(), told[0]).ok());
  EXPECT_FALSE(TakeFromProcess(::getpid(), 9999).ok());
  ::close(told[0]);
  ::close(told[1]);
}

TEST(PreflightTest, AnOpenAddressNeedsAWord) {
  if (::geteuid() != 0) GTEST_SKIP() << "the check for root comes first";
  UpOptions options;
  options.listen = "0.0.0.0:7070";
  EXPECT_THAT(CheckMachine(options).message(), HasSubstr("--insecure"));
  options.insecure = true;
  EXPECT_TRUE(CheckMachine(options).ok());
  options.listen = "nonsense";
  EXPECT_FALSE(CheckMachine(options).ok());
}

TEST(SupervisorTest, ExitsInWords) {
  EXPECT_EQ(DescribeExit(W_EXITCODE(3, 0)), "exit code 3");
  EXPECT_EQ(DescribeExit(9), "killed by signal 9 (Killed)");
}

TEST(BuildDestinationsTest, FindsHostsInSettings) {
  using Hosts = std::vector<std::pair<std::string, std::string>>;
  EXPECT_EQ(
      FindHosts(
          "[global]\nindex-url = https://user:p:w@pypi.corp/simple\nproxy=http://10.0.0.1:3128,socks5://x:1\n"
          "extra = http://[::1]:80/ https://a:99999/ http://:80 ftp://b http://c?q=http://d"),
      (Hosts{{"pypi.corp", "443"}, {"10.0.0.1", "3128"}, {"c", "80"}, {"d", "80"}}));
  EXPECT_TRUE(FindHosts("").empty());
  EXPECT_TRUE(FindHosts("://").empty());
}

}  // namespace
}  // namespace lydian::bin
