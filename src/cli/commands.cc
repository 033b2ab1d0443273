#include "cli/commands.h"

#include <google/protobuf/util/json_util.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <cstring>
#include <memory>

#include "cli/verbs.h"

namespace lydian::cli {
namespace {

// What every command's callback needs.
struct Session {
  const Wiring& wiring;
  std::string state = kDefaultState;
  std::vector<std::string> trailing;  // behind "--"
  int code = kExitOk;
};

void AddUp(CLI::App& app, Session& session) {
  auto options = std::make_shared<UpOptions>();
  CLI::App* command = app.add_subcommand("up", "Start Lydian on this machine, and keep it running");
  command->add_option("--listen", options->listen, "HOST:PORT of API, blobs and pages")
      ->capture_default_str();
  command->add_flag("--insecure", options->insecure,
                    "Allow an address that other machines reach, without TLS");
  command->add_flag("--background,--detach", options->detach,
                    "Return when everything serves, and stay up past logout");
  command->add_option(
      "--address-range", options->address_range,
      "IPv4 range of the containers' network, as in 10.77.0.0/16; one that is free by default");
  command
      ->add_option("--memory-reserve", options->memory_reserve_bytes,
                   "Memory that containers together never touch, as in 2GiB")
      ->transform(CLI::AsSizeValue(false));
  command->add_option("--disk", options->disk_bytes, "Writable disk of a container, as in 20GiB")
      ->transform(CLI::AsSizeValue(false));
  command->add_option("--pids", options->pids, "Processes in a container")->capture_default_str();
  command->add_flag("--lend-host-settings", options->lend_host_settings,
                    "Let build steps use this machine's pip, uv and proxy settings, with the credentials in "
                    "them (lydian doctor lists them)");
  command->add_option("--step-timeout", options->step_timeout_s, "Seconds that a RUN step may take")
      ->check(CLI::Range(1, 7 * 86400))
      ->capture_default_str();
  command->add_option("--build-timeout", options->build_timeout_s, "Seconds that an image's build may take")
      ->check(CLI::Range(1, 7 * 86400))
      ->capture_default_str();
  command->add_option(
      "--deny-network", options->denied_networks,
      "IPv4 network that no container may reach, as in 10.1.0.0/16; may be given several times");
  command->add_flag("--deny-private", options->deny_private,
                    "Let containers reach public addresses only: not 10/8, 172.16/12, 192.168/16, 100.64/10");
  command
      ->add_option("--queued-inputs", options->queued_inputs,
                   "Inputs that may wait or run, in all; a quarter of them a function")
      ->check(CLI::Range(4u, 1'000'000'000u))
      ->capture_default_str();
  command
      ->add_option("--queued-bytes", options->queued_bytes,
                   "Bytes of their arguments, on disk, as in 32GiB; a quarter of them a function")
      ->transform(CLI::AsSizeValue(false));
  command
      ->add_option("--list-stopped", options->list_stopped_s,
                   "Seconds for which `modal app list` shows an app that has stopped")
      ->check(CLI::Range(0, 365 * 86400))
      ->capture_default_str();
  command
      ->add_option("--app-log-quota", options->app_log_bytes,
                   "Log that is kept of an app, as in 256MiB; the oldest lines make room")
      ->transform(CLI::AsSizeValue(false));
  command
      ->add_option("--log-quota", options->log_bytes, "Log that is kept of all apps and builds, as in 4GiB")
      ->transform(CLI::AsSizeValue(false));
  constexpr uint32_t kLongest = 10 * 365 * 86'400u;
  command->add_option("--log-age", options->log_age_s, "Seconds that a log's line is kept")
      ->check(CLI::Range(0u, kLongest))
      ->capture_default_str();
  command
      ->add_option("--keep-files", options->keep_files_s,
                   "Seconds that blobs, files and mounts are kept after their last use")
      ->check(CLI::Range(0u, kLongest))
      ->capture_default_str();
  command
      ->add_option("--keep-images", options->keep_images_s,
                   "Seconds that images and layers are kept after their last use")
      ->check(CLI::Range(0u, kLongest))
      ->capture_default_str();
  command->add_option("--keep-apps", options->keep_apps_s, "Seconds that stopped apps are remembered")
      ->check(CLI::Range(0u, kLongest))
      ->capture_default_str();
  command->callback([options, &session] {
    options->state = session.state;
    session.code = session.wiring.up(*options);
  });
  CLI::App* down = app.add_subcommand("down", "Stop Lydian and every container that it runs");
  down->callback([&session] { session.code = session.wiring.down(session.state); });
}

void AddStatus(CLI::App& app, Session& session) {
  auto json = std::make_shared<bool>(false);
  CLI::App* status = app.add_subcommand("status", "What runs: processes, apps, tasks, images, queues");
  status->add_flag("--json", *json, "As JSON");
  status->callback([json, &session] { session.code = ShowStatus(session.state, *json); });

  auto range = std::make_shared<std::string>();
  CLI::App* doctor =
      app.add_subcommand("doctor", "What this machine has and lacks, and what is used instead");
  doctor->add_option("--address-range", *range, "IPv4 range of the containers' network to be looked at");
  doctor->callback([range, &session] { session.code = Doctor(session.state, *range); });

  CLI::App* login = app.add_subcommand("login", "Write the profile `lydian` for the modal client");
  login->callback([&session] { session.code = Login(session.state); });
}

void AddStore(CLI::App& app, Session& session) {
  struct Options {
    bool json = false, dry_run = false;
  };
  auto options = std::make_shared<Options>();
  CLI::App* store = app.add_subcommand("store", "What Lydian keeps on disk")->require_subcommand(1);
  auto json = [options](CLI::App* command) { command->add_flag("--json", options->json, "As JSON"); };
  CLI::App* usage = store->add_subcommand("du", "What takes space, by kind, workspace and app");
  json(usage);
  usage->callback([options, &session] { session.code = StoreDu(session.state, options->json); });
  CLI::App* collect = store->add_subcommand("gc", "Remove now what nobody refers to any more");
  collect->add_flag("--dry-run", options->dry_run, "Only say what would go");
  json(collect);
  collect->callback(
      [options, &session] { session.code = StoreGc(session.state, options->dry_run, options->json); });
  CLI::App* verify = store->add_subcommand("verify", "Compare what is noted with what is on disk");
  json(verify);
  verify->callback([options, &session] { session.code = StoreVerify(session.state, options->json); });
}

void AddToken(CLI::App& app, Session& session) {
  struct Options {
    std::string workspace = "main", name, id;
    bool json = false;
  };
  auto options = std::make_shared<Options>();
  CLI::App* token = app.add_subcommand("token", "Tokens of clients")->require_subcommand(1);
  CLI::App* create = token->add_subcommand("create", "Make a token; its secret is shown once");
  create->add_option("--workspace", options->workspace, "Its workspace, which is made if it is new")
      ->capture_default_str();
  create->add_option("--name", options->name, "What it is for");
  create->add_flag("--json", options->json, "As JSON");
  create->callback([options, &session] {
    session.code = TokenCreate(session.state, options->workspace, options->name, options->json);
  });
  CLI::App* list = token->add_subcommand("list", "All tokens, without their secrets");
  list->add_flag("--json", options->json, "As JSON");
  list->callback([options, &session] { session.code = TokenList(session.state, options->json); });
  CLI::App* revoke = token->add_subcommand("revoke", "Refuse a token from now on");
  revoke->add_option("token", options->id, "ak-...")->required();
  revoke->add_flag("--json", options->json, "As JSON");
  revoke->callback(
      [options, &session] { session.code = TokenRevoke(session.state, options->id, options->json); });
}

void AddRunOptions(CLI::App* command, RunOptions& options) {
  command->add_option("--image", options.image, "Image id, or a base such as python:3.11-slim-bookworm");
  command->add_option("--rootfs", options.rootfs, "A folder as root file system")->excludes("--image");
  command->add_option("--memory", options.memory_bytes, "Limit, as in 256MiB")
      ->transform(CLI::AsSizeValue(false));
  command->add_option("--cpus", options.cpus, "Limit, as in 0.5");
  command->add_option("--disk", options.disk_bytes, "Writable disk, as in 1GiB")
      ->transform(CLI::AsSizeValue(false));
  command->add_option("--pids", options.pids, "Limit of processes");
  command->add_option("--network", options.network, "nat or none")
      ->check(CLI::IsMember({"nat", "none"}))
      ->capture_default_str();
  command->add_option("--env", options.env, "NAME=VALUE; may be given several times")
      ->expected(1)
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
  command->add_option("--workdir", options.workdir, "Working directory");
  command->add_flag("--client-runtime", options.client_runtime, "With the client's runtime in /pkg");
}

void AddDebug(CLI::App& app, Session& session) {
  auto options = std::make_shared<RunOptions>();
  CLI::App* debug = app.add_subcommand("debug", "Look inside")->require_subcommand(1);
  CLI::App* run = debug->add_subcommand(
      "run", "Run one container: lydian debug run --image REF -- COMMAND; leaves with its exit code");
  AddRunOptions(run, *options);
  run->add_flag("--timing", options->timing, "Say how long each step of the start took");
  run->add_flag("--empty-pools", options->drain_pools, "Start with nothing prepared, for measurements");
  run->callback([options, &session] {
    options->command = session.trailing;
    if (options->command.empty())
      throw CLI::ValidationError("debug run", "what is to be run comes behind --");
    if (options->image.empty() && options->rootfs.empty())
      throw CLI::ValidationError("debug run", "give --image or --rootfs");
    session.code = DebugRun(session.state, *options);
  });
  CLI::App* job = debug->add_subcommand("job", "Print the steps that a container's start would take");
  AddRunOptions(job, *options);
  job->callback([options, &session] {
    options->command = session.trailing;
    if (options->command.empty()) options->command = {"true"};
    if (options->rootfs.empty()) throw CLI::ValidationError("debug job", "give --rootfs");
    session.code = DebugJob(session.state, *options);
  });
}

void AddImage(CLI::App& app, Session& session) {
  struct Options {
    std::string name, archive;
  };
  auto options = std::make_shared<Options>();
  CLI::App* image = app.add_subcommand("image", "Base images")->require_subcommand(1);
  CLI::App* import = image->add_subcommand(
      "import", "Take a base image from an archive (docker save, OCI, or a tar of its root)");
  import->add_option("name", options->name, "The reference that it stands for")->required();
  import->add_option("archive", options->archive, "A file")->required()->check(CLI::ExistingFile);
  import->callback(
      [options, &session] { session.code = ImageImport(session.state, options->name, options->archive); });
  CLI::App* base =
      image->add_subcommand("base", "Make a base image from its recipe, once; takes some minutes");
  base->add_option("name", options->name, "As in python:3.11-slim-bookworm")->required();
  base->callback([options, &session] { session.code = ImageBase(session.state, options->name); });
  CLI::App* list = image->add_subcommand("bases", "Base images that can be had");
  list->callback([&session] { session.code = ImageBases(session.state); });
}

}  // namespace

int Fail(const Status& status) {
  std::fprintf(stderr, "lydian: %s\n", status.message().c_str());
  return kExitFailed;
}

int PrintJson(const google::protobuf::Message& message) {
  google::protobuf::util::JsonPrintOptions options;
  options.preserve_proto_field_names = true;
  options.always_print_primitive_fields = true;
  std::string text;
  if (!google::protobuf::util::MessageToJsonString(message, &text, options).ok())
    return Fail(Internal("the answer can't be written"));
  std::printf("%s\n", text.c_str());
  return kExitOk;
}

int RunCommandLine(int argc, char** argv, const Wiring& wiring) {
  // Not for people, and parsed by its own.
  if (argc > 2 && std::strcmp(argv[1], "internal") == 0) return wiring.internal(argc - 2, argv + 2);
  Session session{wiring};
  // What is behind "--" is somebody else's command, whatever it looks like.
  int own = 0;
  while (own < argc && std::strcmp(argv[own], "--") != 0) ++own;
  for (int i = own + 1; i < argc; ++i) session.trailing.emplace_back(argv[i]);

  CLI::App app("Lydian runs Modal programs on your own machines.", "lydian");
  app.require_subcommand(1);
  app.fallthrough();
  app.add_option("--state", session.state, "Lydian's folder on this machine")->capture_default_str();
  AddUp(app, session);
  AddStatus(app, session);
  AddToken(app, session);
  AddStore(app, session);
  AddImage(app, session);
  AddDebug(app, session);
  app.add_subcommand("version", "Print the version")->callback([] {
    std::printf("lydian %s\n", LYDIAN_VERSION);
  });
  // Options such as --state may stand behind the innermost command too.
  for (CLI::App* command : app.get_subcommands({})) {
    command->fallthrough();
    for (CLI::App* inner : command->get_subcommands({})) inner->fallthrough();
  }
  try {
    app.parse(own, argv);
  } catch (const CLI::RequiredError& error) {
    // The library calls a word that it doesn't know a missing command.
    CLI::App* inner = &app;
    while (!inner->get_subcommands().empty()) inner = inner->get_subcommands().front();
    std::vector<std::string> unknown = app.remaining(true);
    if (!unknown.empty() && error.get_name() == "RequiredError" && !inner->get_subcommands({}).empty()) {
      std::fprintf(stderr, "lydian: there is no command `%s`; `lydian --help` lists them\n",
                   unknown.front().c_str());
      return kExitUsage;
    }
    return app.exit(error) == 0 ? kExitOk : kExitUsage;
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? kExitOk : kExitUsage;
  }
  return session.code;
}

}  // namespace lydian::cli
