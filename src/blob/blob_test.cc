#include <fcntl.h>
#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <thread>

#include "base/ids.h"
#include "blob/blob_store.h"
#include "blob/blob_urls.h"

namespace lydian::blob {
namespace {

const std::string kHelloSha = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";
const std::string kHelloMd5 = "5d41402abc4b2a76b9719d911017c592";

class BlobTest : public testing::Test {
 protected:
  void SetUp() override {
    char name[] = "/tmp/lydian-blob-XXXXXX";
    dir_ = mkdtemp(name);
    Open();
  }
  void TearDown() override { EXPECT_TRUE(RemoveTree(dir_).ok()); }
  void Open() { store_ = OpenDirectory({.path = dir_}).value(); }
  // Regular files below, whatever they are.
  size_t Files() const {
    size_t count = 0;
    for (const auto& entry : std::filesystem::recursive_directory_iterator(dir_))
      count += entry.is_regular_file();
    return count;
  }
  Status Part(const std::string& id, uint64_t number, std::string_view bytes, uint64_t length = 4) {
    auto writer = store_->BeginPart(id, number, length);
    if (!writer.ok()) return writer.status();
    RETURN_IF_ERROR((*writer)->Append(bytes));
    return (*writer)->Commit().status();
  }

  std::string dir_;
  std::unique_ptr<BlobStore> store_;
};

TEST_F(BlobTest, WritesReadsAndDeletes) {
  Stored stored = store_->PutBlob("bl-one", "hello").value();
  EXPECT_EQ(stored.md5_hex, kHelloMd5);
  EXPECT_EQ(stored.size, 5u);
  EXPECT_EQ(store_->GetBlob("bl-one").value(), "hello");
  EXPECT_EQ(store_->BlobSize("bl-one").value(), 5u);
  EXPECT_EQ(store_->PutObject("hello").value(), kHelloSha);
  EXPECT_EQ(store_->PutObject("hello").value(), kHelloSha);
  Open();
  EXPECT_EQ(store_->GetObject(kHelloSha).value(), "hello");
  Reader reader = store_->OpenBlob("bl-one").value();
  EXPECT_TRUE(store_->PutBlob("bl-one", "other").ok());  // a reader keeps what it opened
  char bytes[5];
  EXPECT_EQ(pread(reader.fd.get(), bytes, 5, 0), 5);
  EXPECT_EQ(std::string(bytes, 5), "hello");
  EXPECT_TRUE(store_->DeleteBlob("bl-one").ok());
  EXPECT_TRUE(store_->DeleteBlob("bl-one").ok());
  EXPECT_TRUE(store_->DeleteObject(kHelloSha).ok());
  EXPECT_EQ(store_->GetBlob("bl-one").status().code(), Code::kNotFound);
  EXPECT_EQ(Files(), 0u);
  EXPECT_EQ(store_->PutBlob("bl-empty", "").value().size, 0u);
  EXPECT_EQ(store_->GetBlob("bl-empty").value(), "");
  EXPECT_EQ(store_->PutBlob("bl-long", std::string(100, 'x')).value().size, 100u);
  EXPECT_EQ(store_->GetBlob("bl-long", 99).status().code(), Code::kResourceExhausted);
}

TEST_F(BlobTest, NothingStaysOfWhatIsNotAsExpected) {
  for (const Expected& expected : {Expected{.size = 6}, Expected{.md5_hex = std::string(32, '0')},
                                   Expected{.sha256_hex = std::string(64, '0')}}) {
    auto writer = store_->BeginBlob("bl-one", 5, Digest::kBoth).value();
    ASSERT_TRUE(writer->Append("hello").ok());
    EXPECT_EQ(writer->Commit(expected).status().code(), Code::kDataLoss);
    EXPECT_EQ(writer->Commit().status().code(), Code::kFailedPrecondition);
  }
  auto object = store_->BeginObject(std::string(64, '0')).value();
  ASSERT_TRUE(object->Append("hello").ok());
  EXPECT_EQ(object->Commit().status().code(), Code::kDataLoss);
  EXPECT_TRUE(store_->BeginBlob("bl-two").value()->Append("dropped").ok());
  EXPECT_EQ(Files(), 0u);
}

TEST_F(BlobTest, LeftoversGoAtOpen) {
  ASSERT_TRUE(WriteFileAtomic(dir_ + "/blobs/.tmp/left", "half").ok());
  ASSERT_TRUE(Part("bl-young", 1, "abcd").ok());
  ASSERT_TRUE(Part("bl-old", 1, "abcd").ok());
  const timespec times[2] = {{1, 0}, {1, 0}};
  ASSERT_TRUE(store_->PutBlob("bl-gone", "bytes").ok());
  ASSERT_TRUE(store_->RetireBlob("bl-gone").ok());
  const std::string old = dir_ + "/blobs/.parts/bl-old";
  ASSERT_EQ(utimensat(AT_FDCWD, old.c_str(), times, 0), 0);
  ASSERT_TRUE(store_->RemoveOldParts(86'400).ok());
  EXPECT_TRUE(Exists(old));  // its bytes are being written
  ASSERT_EQ(utimensat(AT_FDCWD, (old + "/data").c_str(), times, 0), 0);
  Open();
  EXPECT_EQ(Files(), 2u);
  EXPECT_EQ(store_->CompleteParts("bl-young", 4, 4).value(), std::vector<std::string>{Md5Hex("abcd")});
  EXPECT_FALSE(store_->CompleteParts("bl-old", 4, 4).ok());
}

TEST_F(BlobTest, ListsRetiresAndChecks) {
  ASSERT_TRUE(store_->PutBlob("bl-n1", "12345").ok());
  ASSERT_TRUE(Part("bl-open", 1, "abcd").ok());
  const std::string sha256 = store_->PutObject("hello").value();
  std::vector<std::string> names;
  auto note = [&](const BlobStore::Entry& entry) -> Status {
    names.push_back(entry.name + " " + std::to_string(entry.size));
    return {};
  };
  ASSERT_TRUE(store_->ListBlobs(note).ok());
  ASSERT_TRUE(store_->ListObjects(note).ok());
  EXPECT_EQ(names, (std::vector<std::string>{"bl-n1 5", sha256 + " 5"}));
  EXPECT_TRUE(store_->CheckObject(sha256).ok());
  ASSERT_TRUE(WriteFileAtomic(dir_ + "/objects/" + sha256.substr(0, 2) + "/" + sha256, "other").ok());
  EXPECT_EQ(store_->CheckObject(sha256).code(), Code::kDataLoss);
  for (const char* id : {"bl-n1", "bl-open", "bl-none"}) ASSERT_TRUE(store_->RetireBlob(id).ok());
  ASSERT_TRUE(store_->RetireObject(sha256).ok());
  EXPECT_EQ(store_->BlobSize("bl-n1").status().code(), Code::kNotFound);
  EXPECT_FALSE(store_->CompleteParts("bl-open", 4, 4).ok());
  EXPECT_GT(Files(), 0u);
  ASSERT_TRUE(store_->RemoveRetired().ok());
  EXPECT_EQ(Files(), 0u);
}

TEST_F(BlobTest, PartsInAnyOrder) {
  EXPECT_EQ(store_->CompleteParts("bl-pp", 10, 4).status().code(), Code::kFailedPrecondition);
  ASSERT_TRUE(Part("bl-pp", 3, "ij").ok());
  ASSERT_TRUE(Part("bl-pp", 1, "XXXX").ok());
  ASSERT_TRUE(Part("bl-pp", 1, "abcd").ok());
  const Status missing = store_->CompleteParts("bl-pp", 10, 4).status();
  EXPECT_EQ(missing.ToString(), "FAILED_PRECONDITION: part 2 of 3 is missing");
  ASSERT_TRUE(Part("bl-pp", 2, "ef").ok());
  EXPECT_EQ(store_->CompleteParts("bl-pp", 10, 4).status().code(), Code::kDataLoss);
  ASSERT_TRUE(Part("bl-pp", 2, "efgh").ok());
  EXPECT_EQ(Part("bl-pp", 3, "ijklm").code(), Code::kInvalidArgument);
  ASSERT_TRUE(Part("bl-pp", 3, "ij").ok());
  EXPECT_EQ(store_->GetBlob("bl-pp").status().code(), Code::kNotFound);  // not before it is whole
  EXPECT_EQ(store_->CompleteParts("bl-pp", 10, 4).value(),
            (std::vector<std::string>{Md5Hex("abcd"), Md5Hex("efgh"), Md5Hex("ij")}));
  EXPECT_EQ(store_->GetBlob("bl-pp").value(), "abcdefghij");
  EXPECT_EQ(store_->CompleteParts("bl-pp", 10, 4).status().ToString(),
            "FAILED_PRECONDITION: the blob is complete already");
  EXPECT_EQ(Files(), 1u);
  ASSERT_TRUE(Part("bl-zero", 1, "").ok());
  EXPECT_EQ(store_->CompleteParts("bl-zero", 0, 4).value().size(), 1u);
}

TEST_F(BlobTest, LatePartWritersAreStopped) {
  auto late = store_->BeginPart("bl-pp", 1, 4).value();
  ASSERT_TRUE(late->Append("zz").ok());
  ASSERT_TRUE(Part("bl-pp", 1, "abcd").ok());
  EXPECT_EQ(late->Append("zz").code(), Code::kAborted);
  auto other = store_->BeginPart("bl-pp", 2, 4).value();
  ASSERT_TRUE(store_->CompleteParts("bl-pp", 4, 4).ok());
  EXPECT_EQ(other->Append("zz").code(), Code::kAborted);
  EXPECT_EQ(late->Commit().status().code(), Code::kAborted);
  EXPECT_EQ(store_->GetBlob("bl-pp").value(), "abcd");
}

TEST_F(BlobTest, ObjectsFromBlobs) {
  ASSERT_TRUE(store_->PutBlob("bl-one", "hello").ok());
  EXPECT_EQ(store_->ObjectFromBlob("bl-one", std::string(64, 'a')).code(), Code::kDataLoss);
  EXPECT_EQ(store_->ObjectFromBlob("bl-none", kHelloSha).code(), Code::kNotFound);
  ASSERT_TRUE(store_->ObjectFromBlob("bl-one", kHelloSha).ok());
  ASSERT_TRUE(store_->ObjectFromBlob("bl-one", kHelloSha).ok());
  ASSERT_TRUE(store_->DeleteBlob("bl-one").ok());
  EXPECT_EQ(store_->GetObject(kHelloSha).value(), "hello");
}

TEST_F(BlobTest, NamesThatAreNotIdsAreRefused) {
  for (const char* id : {"", "bl-", "../../etc/passwd", "bl-../x", "bl-a/b", "bl-a.b", "ob-abc"}) {
    EXPECT_EQ(store_->OpenBlob(id).status().code(), Code::kInvalidArgument) << id;
    EXPECT_EQ(store_->BeginBlob(id).status().code(), Code::kInvalidArgument);
    EXPECT_EQ(store_->DeleteBlob(id).code(), Code::kInvalidArgument);
  }
  EXPECT_EQ(store_->OpenObject(std::string(63, 'a')).status().code(), Code::kInvalidArgument);
  EXPECT_EQ(store_->OpenObject(std::string(64, 'A')).status().code(), Code::kInvalidArgument);
  EXPECT_EQ(store_->BeginPart("bl-ab", 0, 4).status().code(), Code::kInvalidArgument);
  EXPECT_EQ(store_->BeginPart("bl-ab", UINT64_MAX, 4).status().code(), Code::kInvalidArgument);
}

// A full disk, as a file-size limit plays it: EFBIG has no place in the errno table, so ENOSPC comes from a
// tiny tmpfs where mounting is allowed.
TEST_F(BlobTest, FullDiskSaysSo) {
  const std::string small = dir_ + "/small";
  ASSERT_TRUE(MakeDirs(small).ok());
  if (mount("none", small.c_str(), "tmpfs", 0, "size=256k") != 0) GTEST_SKIP() << "needs the right to mount";
  {
    auto full = OpenDirectory({.path = small}).value();
    ASSERT_TRUE(full->PutBlob("bl-kept", "kept").ok());
    auto writer = full->BeginBlob("bl-one").value();
    Status status;
    for (int i = 0; i < 100 && status.ok(); ++i) status = writer->Append(std::string(16384, 'x'));
    EXPECT_EQ(status.code(), Code::kResourceExhausted);
    EXPECT_TRUE(status.message().starts_with("no space left on " + small)) << status;
    writer.reset();
    EXPECT_EQ(full->BeginBlob("bl-two", 4 << 20).status().code(), Code::kResourceExhausted);
    EXPECT_EQ(full->GetBlob("bl-kept").value(), "kept");
    EXPECT_TRUE(full->PutBlob("bl-again", std::string(100'000, 'y')).ok());  // there is room again
  }
  EXPECT_EQ(umount(small.c_str()), 0);
}

TEST_F(BlobTest, WhatIsAnnouncedTakesNoDisk) {
  auto writer = store_->BeginBlob("bl-announced", uint64_t{256} << 20);
  ASSERT_TRUE(writer.ok()) << writer.status();
  ASSERT_TRUE((*writer)->Append("x").ok());
  uint64_t blocks = 0;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(dir_)) {
    struct stat info {};
    ASSERT_EQ(stat(entry.path().c_str(), &info), 0);
    if (S_ISREG(info.st_mode)) blocks += static_cast<uint64_t>(info.st_blocks);
  }
  EXPECT_LT(blocks * 512, 1u << 20);
}

TEST_F(BlobTest, ManyAtOnce) {
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 50; ++i) {
        EXPECT_TRUE(store_->PutObject("content " + std::to_string(i)).ok());
        EXPECT_TRUE(Part("bl-shared", t + 1, "abcd").ok());
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_TRUE(store_->CompleteParts("bl-shared", 16, 4).ok());
  EXPECT_EQ(store_->GetBlob("bl-shared").value(), "abcdabcdabcdabcd");
}

TEST(UrlSigner, ChecksEveryField) {
  const UrlSigner signer(std::string(32, 'k')), other(std::string(32, 'o'));
  const std::string path = signer.SignedPath("PUT", "bl-one", 5, 1000);
  const std::string signature = path.substr(path.find("signature=") + 10);
  EXPECT_TRUE(path.starts_with("/blob/bl-one?size=5&expires=1000&signature="));
  EXPECT_TRUE(signer.Verify("PUT", "bl-one", 5, 1000, signature, 999).ok());
  EXPECT_FALSE(signer.Verify("PUT", "bl-one", 5, 1000, signature, 1000).ok());
  EXPECT_FALSE(signer.Verify("GET", "bl-one", 5, 1000, signature, 999).ok());
  EXPECT_FALSE(signer.Verify("PUT", "bl-two", 5, 1000, signature, 999).ok());
  EXPECT_FALSE(signer.Verify("PUT", "bl-one", 6, 1000, signature, 999).ok());
  EXPECT_FALSE(signer.Verify("PUT", "bl-one", 5, 1001, signature, 999).ok());
  EXPECT_FALSE(signer.Verify("PUT", "bl-one", 5, 1000, "", 999).ok());
  EXPECT_FALSE(other.Verify("PUT", "bl-one", 5, 1000, signature, 999).ok());
  const std::string get = signer.SignedPath("GET", "bl-one", 5, 1000);
  EXPECT_TRUE(signer.Verify("HEAD", "bl-one", 5, 1000, get.substr(get.find("signature=") + 10), 1).ok());
  EXPECT_TRUE(signer.PageKeyIs("ap-1", signer.PageKey("ap-1")));
  EXPECT_FALSE(signer.PageKeyIs("ap-2", signer.PageKey("ap-1")));
}

TEST(BlobUrls, ChoosesAsTheClientNeeds) {
  const UrlSigner signer(std::string(32, 'k'));
  FakeClock clock;
  const auto plan = [&](const std::string& base, uint64_t size, std::string_view md5 = "x") {
    return PlanUpload(signer, clock, base, "bl-one", size, md5);
  };
  EXPECT_TRUE(
      plan("http://127.0.0.1:7070/", 100).url.starts_with("http://127.0.0.1:7070/blob/bl-one?size=100&"));
  EXPECT_FALSE(plan("http://169.254.77.1", 64 << 20).url.empty());
  EXPECT_TRUE(plan("http://169.254.77.1", 100, "uq26rbqtuq26rbqtuq26rQ==").url.empty());
  EXPECT_TRUE(
      plan("http://127.0.0.1:7070", 5, "XUFAKrxLKna5cZ2REBfFkg==")
          .url.starts_with("http://127.0.0.1:7070/blob/bl-one/md5/5d41402abc4b2a76b9719d911017c592?size=5&"));
  EXPECT_TRUE(plan("https://lydian.example.org", 100).url.empty());
  EXPECT_EQ(plan("https://lydian.example.org", 0).part_urls.size(), 1u);
  // Bytes in memory: the client copies all of them for every part.
  EXPECT_FALSE(plan("http://127.0.0.1:7070", uint64_t{5} << 30).url.empty());
  EXPECT_EQ(plan("https://lydian.example.org", uint64_t{5} << 30).part_urls.size(), 1u);
  // A file without an MD5 is read part by part.
  constexpr std::string_view kFile = "uq26rbqtuq26rbqtuq26rQ==";
  const UploadPlan large = plan("http://localhost:1", (uint64_t{1} << 30) + 1, kFile);
  EXPECT_EQ(large.part_urls.size(), 17u);
  EXPECT_EQ(large.part_length, uint64_t{64} << 20);
  EXPECT_TRUE(large.part_urls[16].starts_with("http://localhost:1/blob/bl-one/part/17/67108864?size=1&"))
      << large.part_urls[16];
  EXPECT_TRUE(
      large.completion_url.starts_with("http://localhost:1/blob/bl-one/complete/67108864?size=1073741825&"));
  EXPECT_LE(plan("http://localhost:1", uint64_t{1} << 45, kFile).part_urls.size(), 1000u);
  for (const char* url : {"http://[::1]:7070", "http://8.8.8.8", "http://172.32.0.1",
                          "http://localhost.example.org", "http://10.0.0.1.example.org", "", "x"}) {
    EXPECT_FALSE(TakesSinglePut(url)) << url;
  }
  for (const char* url : {"http://localhost", "http://10.1.2.3:80/", "http://172.16.0.1",
                          "http://192.168.0.1/x", "http://127.0.0.1?q"}) {
    EXPECT_TRUE(TakesSinglePut(url)) << url;
  }
}

}  // namespace
}  // namespace lydian::blob
