// What an image's archive says of itself: index, manifests, config. The input is the files, as lines of
// "name" and "JSON" in turn.
#include "build/oci_layout.h"
#include "fuzz.h"

FUZZ_TARGET(oci) {
  std::map<std::string, std::string> files;
  std::string_view rest = input;
  while (!rest.empty()) {
    const std::string name(lydian::fuzz::TakeUntil(rest, '\n'));
    files[name] = std::string(lydian::fuzz::TakeUntil(rest, '\n'));
  }
  size_t reads = 0;
  const auto layout =
      lydian::build::ReadOciLayout([&](const std::string& name) -> lydian::Result<std::string> {
        CHECK(++reads < 1000);  // each reads through the whole archive
        const auto found = files.find(name);
        if (found == files.end()) return lydian::NotFound(name);
        return found->second;
      });
  if (layout.ok()) {
    CHECK(layout->config.empty() || layout->config[0] == '/');
    for (const std::string& layer : layout->layers) CHECK(layer.size() > 1 && layer[0] == '/');
  }
  (void)lydian::build::ReadOciConfig(input);
}
