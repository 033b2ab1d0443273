#include "build/oci_layout.h"

#include <gtest/gtest.h>

#include <map>

namespace lydian::build {
namespace {

using Files = std::map<std::string, std::string>;

// Counts what is read: in an archive, each file costs reading through all of it.
struct Archive {
  Files files;
  size_t reads = 0;
  Result<OciLayout> Layout() {
    return ReadOciLayout([this](const std::string& name) -> Result<std::string> {
      ++reads;
      auto found = files.find(name);
      if (found == files.end()) return NotFound(name);
      return found->second;
    });
  }
};

const char kManifest[] = R"({"config": {"digest": "sha256:cc"},
                             "layers": [{"digest": "sha256:01"}, {"digest": "sha256:02"}]})";

TEST(OciLayout, FollowsNestedIndexesToTheManifestOfThisMachine) {
  Archive archive{{{"index.json", R"({"manifests": [{"digest": "sha256:in"}]})"},
                   {"/blobs/sha256/in", R"({"manifests": [
                     {"digest": "sha256:arm", "platform": {"architecture": "arm64", "os": "linux"}},
                     {"digest": "sha256:amd", "platform": {"architecture": "amd64", "os": "linux"}}]})"},
                   {"/blobs/sha256/arm", R"({"layers": []})"},
                   {"/blobs/sha256/amd", kManifest}}};
  auto layout = archive.Layout();
  ASSERT_TRUE(layout.ok()) << layout.status().ToString();
  EXPECT_EQ(layout->config, "/blobs/sha256/cc");
  EXPECT_EQ(layout->layers, (std::vector<std::string>{"/blobs/sha256/01", "/blobs/sha256/02"}));
}

TEST(OciLayout, MembersOfAnotherTypeAreErrorsNotExceptions) {
  Archive os{{{"index.json", R"({"manifests": [{"digest": "sha256:aa", "platform":
                                {"architecture": "amd64", "os": 1}}]})"},
              {"/blobs/sha256/aa", kManifest}}};
  EXPECT_TRUE(os.Layout().ok());
  Archive config{{{"manifest.json", R"([{"Config": 7, "Layers": ["a.tar"]}])"}}};
  auto layout = config.Layout();
  ASSERT_TRUE(layout.ok());
  EXPECT_EQ(layout->layers, std::vector<std::string>{"/a.tar"});
}

// Copying a JSON value recurses: this one would overflow the stack.
TEST(OciLayout, DeepNestingIsCut) {
  const std::string deep = std::string(1 << 20, '[') + std::string(1 << 20, ']');
  Archive archive{{{"index.json", R"({"manifests": [{"digest": "sha256:aa"}]})"},
                   {"/blobs/sha256/aa", R"({"manifests": [], "deep": )" + deep + "}"}}};
  EXPECT_FALSE(archive.Layout().ok());
}

// Twelve to the fifth reads of the whole archive otherwise.
TEST(OciLayout, AnIndexThatNamesItselfEnds) {
  std::string entries;
  for (int i = 0; i < 12; ++i) entries += std::string(i == 0 ? "" : ",") + R"({"digest": "sha256:me"})";
  const std::string index = R"({"manifests": [)" + entries + "]}";
  Archive archive{{{"index.json", index}, {"/blobs/sha256/me", index}}};
  EXPECT_FALSE(archive.Layout().ok());
  EXPECT_LT(archive.reads, 100U);
}

TEST(OciConfig, TakesWhatIsOfTheRightType) {
  ImageConfig config =
      ReadOciConfig(R"({"config": {"Env": ["A=b", 1], "Cmd": "x", "WorkingDir": 5, "User": "u"}})");
  EXPECT_EQ(config.env_size(), 1);
  EXPECT_EQ(config.cmd_size(), 0);
  EXPECT_EQ(config.workdir(), "");
  EXPECT_EQ(config.user(), "u");
  EXPECT_EQ(ReadOciConfig("[").SerializeAsString(), "");
}

}  // namespace
}  // namespace lydian::build
