#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/ids.h"
#include "blob/blob_urls.h"
#include "gateway/blob_handler.h"
#include "gateway/pages.h"
#include "gateway/root_handler.h"

namespace lydian::gateway {
namespace {

using testing::HasSubstr;
using testing::Not;

class FakeExchange : public http::Exchange {
 public:
  FakeExchange(std::string method, const std::string& target, std::string body = "")
      : body_(std::move(body)) {
    request_.method = std::move(method);
    request_.target = target;
    const size_t mark = target.find('?');
    request_.path = target.substr(0, mark);
    for (std::string rest = mark == target.npos ? "" : target.substr(mark + 1); !rest.empty();) {
      const std::string pair = rest.substr(0, rest.find('&'));
      rest.erase(0, pair.size() + 1);
      request_.query.emplace_back(pair.substr(0, pair.find('=')), pair.substr(pair.find('=') + 1));
    }
    request_.has_length = true;
    request_.content_length = body_.size();
    request_.peer = "127.0.0.1";
  }
  FakeExchange& Header(std::string name, std::string value) {
    request_.headers.emplace_back(std::move(name), std::move(value));
    return *this;
  }
  const http::Request& request() const override { return request_; }
  Result<std::string> ReadBody(size_t) override {
    if (cut && body_.size() <= 2) return DataLoss("the client sent less than it announced");
    std::string part = body_.substr(0, 2);
    body_.erase(0, part.size());
    return part;
  }

  http::Request request_;
  std::string body_;
  bool cut = false;
};

std::string HeaderOf(const http::Response& response, std::string_view name) {
  for (const auto& [key, value] : response.headers) {
    if (key == name) return value;
  }
  return "";
}

std::string BodyOf(http::Response& response) {
  if (response.file_fd < 0) return response.body;
  UniqueFd fd(response.file_fd);
  std::string bytes(response.file_length, '\0');
  EXPECT_EQ(pread(fd.get(), bytes.data(), bytes.size(), static_cast<off_t>(response.file_offset)),
            static_cast<ssize_t>(bytes.size()));
  return bytes;
}

class BlobHandlerTest : public testing::Test {
 protected:
  void SetUp() override {
    char name[] = "/tmp/lydian-gateway-XXXXXX";
    dir_ = mkdtemp(name);
    store_ = blob::OpenDirectory({.path = dir_}).value();
    handler_ = std::make_unique<BlobHandler>(store_.get(), &signer_, &clock_);
  }
  void TearDown() override { EXPECT_TRUE(RemoveTree(dir_).ok()); }
  std::string Url(std::string_view verb, std::string_view object, uint64_t size) {
    return signer_.SignedPath(verb, object, size, clock_.UnixNanos() / 1'000'000'000 + 60);
  }
  http::Response Do(FakeExchange exchange) { return handler_->Handle(exchange); }

  std::string dir_;
  FakeClock clock_;
  const blob::UrlSigner signer_{std::string(32, 'k')};
  std::unique_ptr<blob::BlobStore> store_;
  std::unique_ptr<BlobHandler> handler_;
};

TEST_F(BlobHandlerTest, PutsAndGets) {
  http::Response put = Do(FakeExchange("PUT", Url("PUT", "bl-one", 5), "hello")
                              .Header("content-md5", "XUFAKrxLKna5cZ2REBfFkg=="));
  EXPECT_EQ(put.status, 200) << put.body;
  EXPECT_EQ(HeaderOf(put, "ETag"), "\"5d41402abc4b2a76b9719d911017c592\"");
  http::Response got = Do({"GET", Url("GET", "bl-one", 5)});
  EXPECT_EQ(got.status, 200);
  EXPECT_EQ(BodyOf(got), "hello");
  got = Do({"HEAD", Url("GET", "bl-one", 5)});
  EXPECT_EQ(got.status, 200);
  EXPECT_EQ(got.file_length, 5u);
  BodyOf(got);
  http::Response none = Do({"GET", Url("GET", "bl-none", 5)});
  EXPECT_EQ(none.status, 404);
}

TEST_F(BlobHandlerTest, TakesNoOtherBodyThanTheAnnouncedOne) {
  const std::string url = Url("PUT", "bl-one/md5/5d41402abc4b2a76b9719d911017c592", 5);
  EXPECT_EQ(Do(FakeExchange("PUT", url, "jello")).status, 400);
  EXPECT_EQ(Do({"GET", Url("GET", "bl-one", 5)}).status, 404);
  EXPECT_EQ(Do(FakeExchange("PUT", url, "hello")).status, 200);
  EXPECT_EQ(Do(FakeExchange("PUT", Url("PUT", "bl-one/md5/nonsense", 5), "hello")).status, 404);
}

TEST_F(BlobHandlerTest, Ranges) {
  ASSERT_TRUE(store_->PutBlob("bl-one", "0123456789").ok());
  const auto range = [&](const std::string& value) {
    return Do(FakeExchange("GET", Url("GET", "bl-one", 10)).Header("range", value));
  };
  const std::vector<std::tuple<std::string, int, std::string, std::string>> cases = {
      {"bytes=2-4", 206, "234", "bytes 2-4/10"},
      {"bytes=7-", 206, "789", "bytes 7-9/10"},
      {"bytes=-3", 206, "789", "bytes 7-9/10"},
      {"bytes=0-99", 206, "0123456789", "bytes 0-9/10"},
      {"bytes=-99", 206, "0123456789", "bytes 0-9/10"},
      {"bytes=4-2", 200, "0123456789", ""},
      {"bytes=0-1,3-4", 200, "0123456789", ""},
      {"lines=1-2", 200, "0123456789", ""},
      {"bytes=a-b", 200, "0123456789", ""},
      {"bytes=-", 200, "0123456789", ""},
      {"bytes=10-", 416, "the blob has 10 bytes\n", "bytes */10"}};
  for (const auto& [value, status, body, content_range] : cases) {
    http::Response response = range(value);
    EXPECT_EQ(response.status, status) << value;
    EXPECT_EQ(BodyOf(response), body) << value;
    EXPECT_EQ(HeaderOf(response, "Content-Range"), content_range) << value;
  }
}

TEST_F(BlobHandlerTest, BodiesThatWereNotAnnouncedAreRefused) {
  EXPECT_EQ(Do({"PUT", Url("PUT", "bl-one", 5), "hell"}).status, 400);
  EXPECT_EQ(Do({"PUT", Url("PUT", "bl-one", 5), "hello!"}).status, 400);
  FakeExchange chunked("PUT", Url("PUT", "bl-one", 5), "hello!");
  chunked.request_.has_length = false;
  EXPECT_EQ(Do(chunked).status, 400);
  chunked.body_ = "hell";
  EXPECT_EQ(Do(chunked).status, 400);
  FakeExchange cut("PUT", Url("PUT", "bl-one", 5), "hello");
  cut.cut = true;
  EXPECT_EQ(Do(cut).status, 400);
  http::Response wrong = Do(FakeExchange("PUT", Url("PUT", "bl-one", 5), "hallo")
                                .Header("content-md5", "XUFAKrxLKna5cZ2REBfFkg=="));
  EXPECT_EQ(wrong.status, 400);
  EXPECT_THAT(wrong.body, HasSubstr("The Content-MD5 you specified did not match what we received."));
  EXPECT_EQ(
      Do(FakeExchange("PUT", Url("PUT", "bl-one", 5), "hello").Header("content-md5", "nonsense")).status,
      400);
  EXPECT_EQ(store_->OpenBlob("bl-one").status().code(), Code::kNotFound);
}

TEST_F(BlobHandlerTest, UrlsAreChecked) {
  ASSERT_TRUE(store_->PutBlob("bl-one", "hello").ok());
  const std::string url = Url("GET", "bl-one", 5);
  EXPECT_EQ(Do({"PUT", url, "hello"}).status, 403);
  EXPECT_EQ(Do({"DELETE", url}).status, 403);
  EXPECT_EQ(Do({"GET", "/blob/bl-one"}).status, 403);
  EXPECT_EQ(Do({"GET", "/blob/bl-one?size=5&expires=99999999999999999999&signature=x"}).status, 403);
  EXPECT_EQ(Do({"GET", "/blob/bl-one?size=-5&expires=9999999999&signature=x"}).status, 403);
  std::string forged = url;
  forged.back() = forged.back() == '0' ? '1' : '0';
  EXPECT_EQ(Do({"GET", forged}).status, 403);
  EXPECT_EQ(Do({"GET", "/blob/../../etc/passwd" + url.substr(url.find('?'))}).status, 403);
  EXPECT_EQ(Do({"GET", Url("GET", "../../etc/passwd", 5)}).status, 404);  // even if we had signed it
  EXPECT_EQ(Do({"PUT", Url("PUT", "bl-one/part/0/4", 4), "abcd"}).status, 400);
  EXPECT_EQ(Do({"PUT", Url("PUT", "bl-one/part/x", 4), "abcd"}).status, 400);
  EXPECT_EQ(Do({"GET", Url("GET", "bl-one/complete/4", 4)}).status, 405);
  clock_.Advance(std::chrono::seconds(61));
  http::Response late = Do({"GET", url});
  EXPECT_EQ(late.status, 403);
  EXPECT_EQ(late.body, "this URL has expired: ask for a new one\n");
}

TEST_F(BlobHandlerTest, Parts) {
  const std::string one = Md5Hex("abcd"), two = Md5Hex("ef");
  EXPECT_EQ(HeaderOf(Do({"PUT", Url("PUT", "bl-one/part/2/4", 2), "ef"}), "ETag"), "\"" + two + "\"");
  const std::string completion = Url("POST", "bl-one/complete/4", 6);
  http::Response missing = Do({"POST", completion, ""});
  EXPECT_EQ(missing.status, 409);
  EXPECT_EQ(missing.body, "part 1 of 2 is missing\n");
  EXPECT_EQ(Do({"PUT", Url("PUT", "bl-one/part/1/4", 4), "abcd"}).status, 200);
  const std::string xml = "<CompleteMultipartUpload>\n<Part>\n<PartNumber>1</PartNumber>\n<ETag>\"" + one +
                          "\"</ETag>\n</Part>\n<Part>\n<PartNumber>2</PartNumber>\n<ETag>\"" + two +
                          "\"</ETag>\n</Part>\n</CompleteMultipartUpload>";
  for (int repeat = 0; repeat < 2; ++repeat) {
    http::Response done = Do({"POST", completion, xml});
    EXPECT_EQ(done.status, 200) << done.body;
    std::string raw;
    for (const std::string& hex : {one, two}) {
      for (size_t i = 0; i < hex.size(); i += 2)
        raw.push_back(static_cast<char>(std::stoi(hex.substr(i, 2), nullptr, 16)));
    }
    EXPECT_THAT(done.body, HasSubstr("\"" + Md5Hex(raw) + "-2\""));
  }
  EXPECT_EQ(store_->GetBlob("bl-one").value(), "abcdef");
  EXPECT_EQ(Do({"POST", completion, "<ETag>zz</ETag>"}).status, 400);
  EXPECT_EQ(Do({"PUT", Url("PUT", "bl-two/part/1/4", 4), "abcd"}).status, 200);
  EXPECT_EQ(Do({"POST", Url("POST", "bl-two/complete/4", 4), "<ETag>" + two + "</ETag>"}).status, 400);
  EXPECT_EQ(store_->OpenBlob("bl-two").status().code(), Code::kNotFound);
}

class FakeSource : public PageSource {
 public:
  Result<AppPage> App(std::string_view app_id) override {
    if (!failure.ok()) return failure;
    if (app_id != page.id) return NotFound("no app");
    return page;
  }
  AppPage page;
  Status failure;
};

class PagesTest : public testing::Test {
 protected:
  http::Response Do(const std::string& method, const std::string& target,
                    const std::string& peer = "127.0.0.1") {
    FakeExchange exchange(method, target);
    exchange.request_.peer = peer;
    return pages_.Handle(exchange);
  }
  FakeSource source_;
  const blob::UrlSigner signer_{std::string(32, 'k')};
  Pages pages_{&source_, &signer_, [] { return std::string("metric 1\n"); }};
};

TEST_F(PagesTest, AppPageNeedsItsKeyAndEscapes) {
  source_.page = {.id = "ap-1",
                  .name = "<script>alert(1)</script>",
                  .environment = "main",
                  .state = "running",
                  .created_at = 1.7e9};
  source_.page.living = true;
  source_.page.functions.push_back({.name = "f<b>", .waiting = 3});
  source_.page.tasks.push_back({.id = "ta-1", .function = "f", .state = "exit code 3", .started_at = 1.7e9});
  source_.page.logs.push_back(
      {.at = 1.7e9, .task_id = "ta-1", .text = "line & <more>\x1b[31m\n", .is_error = true});
  const std::string url = blob::AppPageUrl(signer_, "http://127.0.0.1:7070/", "ap-1");
  ASSERT_TRUE(url.starts_with("http://127.0.0.1:7070/app/ap-1?key="));
  http::Response page = Do("GET", url.substr(21));
  EXPECT_EQ(page.status, 200);
  EXPECT_THAT(page.body, HasSubstr("&lt;script&gt;alert(1)&lt;/script&gt;"));
  EXPECT_THAT(page.body, Not(HasSubstr("<script")));
  EXPECT_THAT(page.body, HasSubstr("line &amp; &lt;more&gt;[31m</span>"));
  EXPECT_THAT(page.body, HasSubstr("exit code 3"));
  EXPECT_THAT(page.body, HasSubstr("2023-11-14 22:13:20"));
  EXPECT_THAT(HeaderOf(page, "Content-Security-Policy"), HasSubstr("default-src 'none'"));
  EXPECT_EQ(Do("GET", "/app/ap-1").status, 404);
  EXPECT_EQ(Do("GET", "/app/ap-1?key=0123").status, 404);
  EXPECT_EQ(Do("GET", "/app/ap-2?key=" + signer_.PageKey("ap-2")).status, 404);
  EXPECT_EQ(Do("GET", "/app/").status, 404);
  source_.failure = Unavailable("<busy>");
  http::Response failed = Do("GET", url.substr(21));
  EXPECT_EQ(failed.status, 503);
  EXPECT_THAT(failed.body, HasSubstr("&lt;busy&gt;"));
}

TEST_F(PagesTest, OtherPages) {
  EXPECT_EQ(Do("GET", "/healthz").body, "ok\n");
  EXPECT_EQ(Do("HEAD", "/healthz").status, 200);
  EXPECT_EQ(Do("GET", "/metrics").body, "metric 1\n");
  EXPECT_EQ(Do("GET", "/metrics", "10.0.0.1").status, 403);
  EXPECT_EQ(Do("GET", "/").status, 200);
  EXPECT_EQ(Do("GET", "/nothing").status, 404);
  EXPECT_EQ(Do("POST", "/").status, 405);
}

TEST(RootHandler, SendsBlobsToBlobs) {
  class Named : public http::Handler {
   public:
    explicit Named(std::string name) : name_(std::move(name)) {}
    http::Response Handle(http::Exchange&) override { return {.body = name_}; }
    std::string name_;
  };
  RootHandler root(std::make_shared<Named>("blobs"), std::make_shared<Named>("pages"));
  FakeExchange blob("GET", "/blob/bl-1"), page("GET", "/blobs");
  EXPECT_EQ(root.Handle(blob).body, "blobs");
  EXPECT_EQ(root.Handle(page).body, "pages");
}

}  // namespace
}  // namespace lydian::gateway
