#include "cli/commands.h"

#include <CLI/CLI.hpp>
#include <cstdio>
#include <cstring>
#include <memory>

namespace lydian::cli {
namespace {

void AddUp(CLI::App& app, const Wiring& wiring, const std::string& state, int* code) {
  auto options = std::make_shared<UpOptions>();
  CLI::App* command = app.add_subcommand("up", "Start Lydian on this machine, and keep it running");
  command->add_option("--listen", options->listen, "HOST:PORT of API, blobs and pages")->capture_default_str();
  command->add_flag("--insecure", options->insecure, "Allow an address that other machines reach, without TLS");
  command->add_flag("--background,--detach", options->detach, "Return when everything serves, and stay up past logout");
  command->add_option("--address-range", options->address_range, "IPv4 range of the containers' network")->capture_default_str();
  command->add_option("--memory-reserve", options->memory_reserve_bytes, "Memory that containers together never touch (e.g. 2GiB)")
      ->transform(CLI::AsSizeValue(false));
  command->add_option("--disk", options->disk_bytes, "Writable disk of a container (default 20GiB)")->transform(CLI::AsSizeValue(false));
  command->add_option("--pids", options->pids, "Processes in a container")->capture_default_str();
  command->callback([options, &wiring, &state, code] {
    options->state = state;
    *code = wiring.up(*options);
  });
  CLI::App* down = app.add_subcommand("down", "Stop Lydian and every container that it runs");
  down->callback([&wiring, &state, code] { *code = wiring.down(state); });
}

}  // namespace

int RunCommandLine(int argc, char** argv, const Wiring& wiring) {
  // Not for people, and parsed by its own.
  if (argc > 2 && std::strcmp(argv[1], "internal") == 0) return wiring.internal(argc - 2, argv + 2);
  CLI::App app("Lydian runs Modal programs on your own machines.", "lydian");
  std::string state = kDefaultState;
  int code = kExitOk;
  app.require_subcommand(1);
  app.fallthrough();
  app.add_option("--state", state, "Lydian's folder on this machine")->capture_default_str();
  AddUp(app, wiring, state, &code);
  app.add_subcommand("version", "Print the version")->callback([] { std::printf("lydian %s\n", LYDIAN_VERSION); });
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? kExitOk : kExitUsage;
  }
  return code;
}

}  // namespace lydian::cli
