// Starts the spawner that all suites of the builder share, and takes away what it leaves.
#include "build_fixture.h"

namespace lydian::build {

std::string g_dir, g_instance;
std::unique_ptr<testing::ForkedSpawner> g_spawner;
World* BuildTest::world_ = nullptr;

}  // namespace lydian::build

int main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  if (::geteuid() == 0) {
    lydian::build::g_dir = "/var/tmp/lydian-build-test-" + lydian::RandomHex(4);
    if (!lydian::MakeDirs(lydian::build::g_dir).ok()) return 1;
    const std::string& instance = lydian::build::g_instance = "lytb" + lydian::RandomHex(2);
    lydian::build::g_spawner = std::make_unique<lydian::testing::ForkedSpawner>(
        lydian::build::g_dir, instance, LYDIAN_INIT, "10.113.0.0/16");
  }
  int result = RUN_ALL_TESTS();
  lydian::build::g_spawner = nullptr;
  // A bridge outlives its spawner, for the next one of the instance; this instance has none.
  if (!lydian::build::g_instance.empty())
    (void)!std::system(("ip link del " + lydian::build::g_instance + " 2> /dev/null; nft delete table inet " +
                        lydian::build::g_instance +
                        " 2> /dev/null; find /sys/fs/cgroup -maxdepth 3 -depth -type d -name 'lydian-" +
                        lydian::build::g_instance + "' -exec rmdir {} + 2> /dev/null")
                           .c_str());
  if (!lydian::build::g_dir.empty()) (void)lydian::RemoveTree(lydian::build::g_dir);
  return result;
}
