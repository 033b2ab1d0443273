#include "rpc/wire.h"

#include <gtest/gtest.h>

#include "rpc/headers.h"

namespace lydian::rpc {
namespace {

using namespace std::chrono_literals;

std::string Framed(std::string_view message) { return MessagePrefix(message.size()) + std::string(message); }

TEST(MessageParser, PutsMessagesTogetherHoweverTheyCome) {
  const std::string large(100'000, 'x');
  const std::string bytes = Framed("one") + Framed("") + Framed(large) + Framed("last");
  for (size_t step : {1u, 2u, 7u, 4096u, 1'000'000u}) {
    MessageParser parser(200'000);
    std::vector<std::string> messages;
    for (size_t at = 0; at < bytes.size(); at += step) {
      ASSERT_TRUE(parser.Feed(std::string_view(bytes).substr(at, step), &messages).ok());
    }
    EXPECT_EQ(messages, (std::vector<std::string>{"one", "", large, "last"})) << step;
    EXPECT_FALSE(parser.in_message());
  }
}

TEST(MessageParser, KnowsWhatIsUnfinished) {
  MessageParser parser(10);
  std::vector<std::string> messages;
  EXPECT_FALSE(parser.in_message());
  ASSERT_TRUE(parser.Feed(Framed("message").substr(0, 3), &messages).ok());
  EXPECT_TRUE(parser.in_message());
  ASSERT_TRUE(parser.Feed(Framed("message").substr(3, 6), &messages).ok());
  EXPECT_EQ(parser.held_bytes(), 4u);
  EXPECT_TRUE(messages.empty());
}

TEST(MessageParser, RefusesWhatIsNoMessageOrTooLarge) {
  std::vector<std::string> messages;
  EXPECT_EQ(MessageParser(10).Feed(Framed("eleven bytes"), &messages).code(), Code::kResourceExhausted);
  EXPECT_EQ(MessageParser(10).Feed(std::string("\1\0\0\0\1x", 6), &messages).code(), Code::kUnimplemented);
  EXPECT_EQ(MessageParser(10).Feed("GET / HTTP/1.1", &messages).code(), Code::kInternal);
  EXPECT_TRUE(messages.empty());
}

TEST(StatusText, GoesThroughHeaders) {
  const std::string text = "50 % of \xC3\xA9\n\x01 \x7F";
  EXPECT_EQ(EncodeStatusText(text), "50 %25 of %C3%A9%0A%01 %7F");
  EXPECT_EQ(DecodeStatusText(EncodeStatusText(text)), text);
  for (const char* odd : {"%", "%4", "%zz", "100%"}) EXPECT_EQ(DecodeStatusText(odd), odd);
}

TEST(Timeout, HasUnitsAndLimits) {
  EXPECT_EQ(ParseTimeout("1H"), 1h);
  EXPECT_EQ(ParseTimeout("2M"), 2min);
  EXPECT_EQ(ParseTimeout("30S"), 30s);
  EXPECT_EQ(ParseTimeout("100m"), 100ms);
  EXPECT_EQ(ParseTimeout("7u"), 7us);
  EXPECT_EQ(ParseTimeout("0n"), 0ns);
  EXPECT_GT(ParseTimeout("99999999H").value(), 24h * 365);  // without overflow
  for (const char* wrong : {"", "m", "1", "1x", "-1m", "+1m", "1.5S", "123456789m", " 1m"}) {
    EXPECT_FALSE(ParseTimeout(wrong).has_value()) << wrong;
  }
  for (auto left : {1ms, 999ms, 3'600'000ms, 86'400'000ms})
    EXPECT_EQ(ParseTimeout(FormatTimeout(left)), left);
  EXPECT_EQ(FormatTimeout(-5s), "1m");
  EXPECT_EQ(ParseTimeout(FormatTimeout(20'000h)), 20'000h);
}

TEST(Fields, LeavesOutWhatHttp2DoesNotHave) {
  Fields fields;
  fields.Add("x-good", "value");
  fields.Add("", "1");
  fields.Add(":path", "/other");
  fields.Add("X-Upper", "1");
  fields.Add("x-text", "line\nline");
  fields.Add("x-empty", "");
  const auto sent = fields.ForSession();
  ASSERT_EQ(sent.size(), 2u);
  EXPECT_EQ(std::string(reinterpret_cast<const char*>(sent[0].name), sent[0].namelen), "x-good");
  EXPECT_EQ(std::string(reinterpret_cast<const char*>(sent[1].name), sent[1].namelen), "x-empty");
}

TEST(Headers, FindTheFirst) {
  Headers headers;
  headers.Add("a", "1");
  headers.Add("b", "");
  headers.Add("a", "2");
  EXPECT_EQ(headers.Get("a"), "1");
  EXPECT_EQ(headers.Get("b"), "");
  EXPECT_EQ(headers.Get("c"), "");
  EXPECT_EQ(headers.size(), 5 + 3 * 32u);
}

}  // namespace
}  // namespace lydian::rpc
