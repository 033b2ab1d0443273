// An archive into a folder: nothing outside the folder is touched, whatever the archive says. Only `Extract`
// knows by which function.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>

#include "base/fd.h"
#include "fuzz.h"
#include "guest/stage/unpack.h"

namespace {

void Extract(int archive, const std::string& folder, bool whiteouts) {
  lydian::stage::View view(lydian::UniqueFd(open(folder.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC)));
  lydian::stage::Budget budget;
  budget.Set(uint64_t{64} << 20, 100'000);
  (void)lydian::stage::IsArchive(archive);
  (void)lydian::stage::Unpack(view, archive, {"/", whiteouts, 100}, budget);
}

// <base>/root is extracted into, <base>/secret must stay as it is, and nothing comes beside them.
struct Scratch {
  Scratch() {
    std::string made =
        std::filesystem::is_directory("/dev/shm") ? "/dev/shm/lydian-fuzz-XXXXXX" : "/tmp/lydian-fuzz-XXXXXX";
    CHECK(mkdtemp(made.data()) != nullptr);
    base = made;
    const lydian::UniqueFd secret(open((base + "/secret").c_str(), O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
    CHECK(lydian::WriteAll(secret.get(), "secret").ok());
    // A bomb ends here; what it means to the disk is its file system's business.
    const rlimit limit{size_t{64} << 20, size_t{64} << 20};
    CHECK(setrlimit(RLIMIT_FSIZE, &limit) == 0);
    CHECK(signal(SIGXFSZ, SIG_IGN) != SIG_ERR);
  }
  ~Scratch() { (void)lydian::RemoveTree(base); }

  void Check() const {
    struct stat info {};
    CHECK(lstat((base + "/secret").c_str(), &info) == 0);
    CHECK(S_ISREG(info.st_mode) && info.st_size == 6 && (info.st_mode & 07777) == 0600 && info.st_nlink == 1);
    size_t entries = 0;
    for (const auto& entry : std::filesystem::directory_iterator(base)) {
      (void)entry;
      ++entries;
    }
    CHECK(entries == 2);
  }
  std::string base;
};

}  // namespace

FUZZ_TARGET(archive) {
  if (input.empty()) return;
  static const Scratch scratch;
  const bool whiteouts = input[0] % 2 == 1;
  input.remove_prefix(1);
  const lydian::UniqueFd file(memfd_create("archive", MFD_CLOEXEC));
  CHECK(lydian::WriteAll(file.get(), input).ok());
  const std::string root = scratch.base + "/root";
  CHECK(mkdir(root.c_str(), 0755) == 0);
  Extract(file.get(), root, whiteouts);
  scratch.Check();
  CHECK(lydian::RemoveTree(root).ok());
}
