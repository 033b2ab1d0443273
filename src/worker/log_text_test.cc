#include "worker/log_text.h"

#include <gtest/gtest.h>

namespace lydian::worker {
namespace {

TEST(LogText, TailOfACharacterIsKnown) {
  EXPECT_EQ(IncompleteTail(""), 0u);
  EXPECT_EQ(IncompleteTail("abc"), 0u);
  EXPECT_EQ(IncompleteTail("a\xC3"), 1u);
  EXPECT_EQ(IncompleteTail("a\xC3\xA9"), 0u);
  EXPECT_EQ(IncompleteTail("a\xE2\x82"), 2u);
  EXPECT_EQ(IncompleteTail("a\xF0\x9F\x98"), 3u);
  EXPECT_EQ(IncompleteTail("a\xF0\x9F\x98\x80"), 0u);
  // Wrong already: nothing to wait for.
  EXPECT_EQ(IncompleteTail("a\xE0\x80"), 0u);
  EXPECT_EQ(IncompleteTail("a\xFF"), 0u);
  EXPECT_EQ(IncompleteTail("\x80\x80"), 0u);
}

TEST(LogText, WhatIsNotUtf8BecomesAReplacement) {
  EXPECT_EQ(ToValidUtf8("plain\n"), "plain\n");
  EXPECT_EQ(ToValidUtf8("h\xC3\xA9llo \xF0\x9F\x98\x80"), "h\xC3\xA9llo \xF0\x9F\x98\x80");
  EXPECT_EQ(ToValidUtf8("a\xFF"
                        "b"),
            "a\xEF\xBF\xBD"
            "b");
  EXPECT_EQ(ToValidUtf8("\xFF"), "\xEF\xBF\xBD");
  EXPECT_EQ(ToValidUtf8("\xE2\x82"
                        "x"),
            "\xEF\xBF\xBD"
            "x");                                                                  // one for the maximal part
  EXPECT_EQ(ToValidUtf8("\xED\xA0\x80"), "\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD");  // a surrogate
  EXPECT_EQ(ToValidUtf8(std::string("a\0b", 3)), std::string("a\0b", 3));
}

TEST(LogText, CutsBehindLinesAndNeverInsideACharacter) {
  EXPECT_EQ(WholeLines("one\ntwo"), 4u);
  EXPECT_EQ(WholeLines("50%\r60"), 4u);
  EXPECT_EQ(WholeLines("none"), 0u);
  EXPECT_EQ(CutForEntry("short", 10), 5u);
  EXPECT_EQ(CutForEntry("ab\ncdefgh", 6), 3u);
  EXPECT_EQ(CutForEntry("abcd\xE2\x82\xAC", 6), 4u);
  EXPECT_EQ(CutForEntry("\xE2\x82\xAC", 2), 2u);  // it has to go on
}

}  // namespace
}  // namespace lydian::worker
