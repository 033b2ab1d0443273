#include "build/bases.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <thread>

#include "base/ids.h"
#include "base/log.h"
#include "build/apt_sources.h"
#include "build/archive.h"
#include "build/host_process.h"
#include "build/host_settings.h"
#include "build/runtime_layers.h"

namespace lydian::build {
namespace {

namespace fs = std::filesystem;

void Say(const LogSink& log, const std::string& text) {
  if (log) log(3, text + "\n");
}

std::string Join(const std::vector<std::string>& list, const std::string& between) {
  std::string out;
  for (const auto& item : list) out += (out.empty() ? "" : between) + item;
  return out;
}

// "3.12" of "python:3.12-slim-bookworm"; "" of other images.
std::string SeriesOf(const std::string& image) {
  constexpr std::string_view kPython = "python:";
  if (!image.starts_with(kPython)) return "";
  return PythonSeries(image.substr(kPython.size(), image.find('-') - kPython.size()));
}

// A folder that goes when its owner does.
class Scratch {
 public:
  static Result<Scratch> Make(const std::string& parent) {
    Scratch scratch(parent + "/" + RandomHex(8));
    RETURN_IF_ERROR(MakeDirs(scratch.path_, 0755));
    return scratch;
  }
  Scratch(Scratch&& other) noexcept : path_(std::exchange(other.path_, "")) {}
  ~Scratch() {
    if (!path_.empty()) (void)RemoveTree(path_);
  }
  const std::string& path() const { return path_; }

 private:
  explicit Scratch(std::string path) : path_(std::move(path)) {}
  std::string path_;
};

// One process at a time makes an entry of the cache; the others find it.
Result<UniqueFd> LockCache(const std::string& file) {
  UniqueFd fd(::open((file + ".lock").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  if (!fd.valid()) return ErrnoStatus("creating " + file + ".lock");
  ::fchmod(fd.get(), 0600);  // others could hold it and stall us; older versions made it readable for all
  while (::flock(fd.get(), LOCK_EX) != 0)
    if (errno != EINTR) return ErrnoStatus("locking " + file);
  return fd;
}

std::string Replace(std::string text, const std::string& from, const std::string& to) {
  for (size_t at = 0; (at = text.find(from, at)) != std::string::npos; at += to.size())
    text.replace(at, from.size(), to);
  return text;
}

}  // namespace

std::string TarballVersion(const std::string& file_name) {
  size_t underscore = file_name.find('_'), end = file_name.find(".orig.tar");
  if (underscore == std::string::npos || end == std::string::npos || end < underscore) return "";
  std::string version = file_name.substr(underscore + 1, end - underscore - 1);
  return version.substr(0, version.find_first_of("+~"));
}

BaseImages::BaseImages(BaseOptions options, image::LayerStore* layers, StepRunner* steps, StageTool* stage,
                       std::vector<Recipe> recipes)
    : options_(std::move(options)),
      layers_(layers),
      steps_(steps),
      stage_(stage),
      recipes_(std::move(recipes)) {}

Status BaseImages::Unpack(const StageTrees& trees, const std::string& archive, bool whiteouts,
                          CancelToken* cancel) {
  UniqueFd file(::open(archive.c_str(), O_RDONLY | O_CLOEXEC));
  if (!file.valid()) return ErrnoStatus("opening " + archive);
  auto work = [&](StageWork& stage) {
    StageUnpack unpack;
    unpack.set_path("/");
    unpack.set_whiteouts(whiteouts);
    unpack.set_name(fs::path(archive).filename().string());
    return stage.Unpack(std::move(unpack), std::move(file));
  };
  return stage_->Run(trees, {}, cancel, work).status();
}

std::string BaseImages::CacheDir(const std::string& part) const {
  return options_.cache_dir.empty() ? "" : options_.cache_dir + "/" + part;
}

// The client asks for the Python that it runs in, unless it is told another.
std::string BaseImages::PythonAdvice(const std::string& name) const {
  std::string series = SeriesOf(name);
  if (series.empty() || OffersPython(series)) return "";
  std::vector<std::string> offered;
  for (const char* other : kClientPythons)
    if (OffersPython(other)) offered.push_back(other);
  if (offered.empty()) return "";
  return "Python " + series + " is not offered here; these are: " + Join(offered, ", ") +
         ". The easy ways out: name one of them in the image, as in "
         "modal.Image.debian_slim(python_version=\"" +
         offered.back() + "\"), or run the client with one of them. ";
}

Status BaseImages::NoSuchBase(const std::string& name) const {
  std::vector<std::string> offered;
  for (const auto& recipe : recipes_) offered.push_back(recipe.name);
  return NotFound(
      PythonAdvice(name) + "There is no base image " + name +
      " here. Offered by recipes: " + (offered.empty() ? "none" : Join(offered, ", ")) +
      ". To get another: save it where a registry can be reached (docker save, skopeo copy) and run "
      "`lydian image import " +
      name +
      " ARCHIVE` here; or add a base recipe. Pulling from a registry or a mirror of "
      "one is not built yet.");
}

Result<ImageSpec> BaseImages::Made(const Recipe& recipe) {
  ASSIGN_OR_RETURN(std::string record, layers_->GetRecord("base/recipe/" + recipe.Digest()));
  ImageSpec spec;
  if (!spec.ParseFromString(record)) return DataLoss("the record of " + recipe.name + " is damaged");
  for (const auto& id : spec.layer_ids()) RETURN_IF_ERROR(layers_->Find(id).status());
  return spec;
}

Result<ImageSpec> BaseImages::Get(const std::string& wanted, const LogSink& log, CancelToken* cancel) {
  std::string name = NormalizeImageName(wanted);
  if (auto record = layers_->GetRecord("base/import/" + name); record.ok()) {
    ImageSpec spec;
    if (!spec.ParseFromString(*record))
      return DataLoss("the record of the imported image " + name + " is damaged");
    return spec;
  }
  for (const auto& recipe : recipes_) {
    if (!recipe.Serves(name)) continue;
    auto spec = Made(recipe);
    if (!spec.ok()) {
      spec = flights_.Do(recipe.Digest(), cancel, [&]() -> Result<ImageSpec> {
        if (auto made = Made(recipe); made.ok()) return made;
        return Make(recipe, log, cancel);
      });
    }
    if (spec.ok() && recipe.source.python && name != recipe.name)
      Say(log, name + ": served by the base recipe " + recipe.name + ", Python " + spec->python_version());
    return std::move(spec).With("base image " + name);
  }
  return NoSuchBase(name);
}

bool BaseImages::OffersPython(const std::string& series) const {
  return std::any_of(recipes_.begin(), recipes_.end(), [&](const Recipe& recipe) {
    return recipe.has_source && recipe.source.python &&
           recipe.name.find(":" + series + "-") != std::string::npos;
  });
}

Result<ImageSpec> BaseImages::ForPython(const std::string& series, const LogSink& log, CancelToken* cancel) {
  for (const auto& recipe : recipes_)
    if (recipe.has_source && recipe.source.python &&
        recipe.name.find(":" + series + "-") != std::string::npos)
      return Get(recipe.name, log, cancel);
  return NotFound("no base recipe offers Python " + series);
}

Result<ImageSpec> BaseImages::AnyPython(const LogSink& log, CancelToken* cancel) {
  const Recipe* first = nullptr;
  for (const auto& recipe : recipes_) {
    if (!recipe.has_source || !recipe.source.python) continue;
    if (auto made = Made(recipe); made.ok()) return made;
    if (first == nullptr) first = &recipe;
  }
  if (first == nullptr) return NotFound("no base recipe has a Python");
  return Get(first->name, log, cancel);
}

Result<ImageSpec> BaseImages::Make(const Recipe& recipe, const LogSink& log, CancelToken* cancel) {
  Say(log, "Making " + recipe.name + " on this machine (about " + std::to_string(recipe.minutes) +
               " min when nothing of it is cached; done once)");
  ASSIGN_OR_RETURN(std::string root, RootLayer(recipe, log, cancel));
  ImageSpec spec;
  spec.add_layer_ids(root);
  Product product;
  if (recipe.has_source) {
    auto found = SourceProduct(recipe, root, log, cancel);
    if (!found.ok()) return found.status();
    product = *found;
    if (recipe.source.python) spec.set_python_version(product.version);
  }
  if (recipe.has_source || !recipe.finish.empty()) {
    ASSIGN_OR_RETURN(std::string layer, FinishLayer(recipe, root, product, log, cancel));
    spec.add_layer_ids(layer);
  }
  for (const auto& entry : recipe.env)
    spec.mutable_config()->add_env(Replace(entry, "${version}", product.version));
  for (const auto& word : recipe.cmd) spec.mutable_config()->add_cmd(word);
  RETURN_IF_ERROR(layers_->PutRecord("base/recipe/" + recipe.Digest(), spec.SerializeAsString()));
  Say(log,
      recipe.name + " is ready" +
          (product.version.empty() ? "" : " (" + recipe.source.version_of + " " + product.version + ")"));
  return spec;
}

Result<std::string> BaseImages::RootLayer(const Recipe& recipe, const LogSink& log, CancelToken* cancel) {
  std::string id = DigestId("ly", "base root " + recipe.RootDigest());
  return root_flights_.Do(id, cancel, [&]() -> Result<std::string> {
    if (layers_->Find(id).ok()) return id;
    ASSIGN_OR_RETURN(auto transaction, layers_->Begin());
    std::string upper = transaction->dir() + "/upper";
    std::string archive = CacheDir("roots") + "/" + recipe.suite + "-" + recipe.RootDigest() + ".tar.zst";
    if (options_.cache_dir.empty()) {
      RETURN_IF_ERROR(MakeRoot(recipe, upper, log, cancel));
    } else {
      RETURN_IF_ERROR(MakeDirs(CacheDir("roots")));
      ASSIGN_OR_RETURN(UniqueFd lock, LockCache(archive));
      if (Exists(archive)) {
        Say(log, "Unpacking the Debian " + recipe.suite + " root file system from " + archive);
        RETURN_IF_ERROR(Unpack({{}, transaction->dir(), {}}, archive, false, cancel));
      } else {
        RETURN_IF_ERROR(MakeRoot(recipe, upper, log, cancel));
        RETURN_IF_ERROR(PackArchive(upper, archive, cancel));
      }
    }
    RETURN_IF_ERROR(transaction->Commit(id, "Debian " + recipe.suite + " packages").status());
    return id;
  });
}

Status BaseImages::MakeRoot(const Recipe& recipe, const std::string& folder, const LogSink& log,
                            CancelToken* cancel) {
  if (!Exists(kDebianKeyring))
    return NotFound(std::string(kDebianKeyring) + " is missing: install debian-archive-keyring");
  DebianMirror mirror{options_.debian_mirror, ""};
  if (mirror.main.empty()) {
    ASSIGN_OR_RETURN(mirror, FindMirror(ReadAptEntries()));
  }
  Say(log, "Installing Debian " + recipe.suite + " packages from " + mirror.main);
  HostCommand command{.argv = {"mmdebstrap", "--mode=root", "--variant=minbase", "--format=directory",
                               "--include=" + Join(recipe.packages, ",")}};
  for (const auto& option : recipe.apt_options) command.argv.push_back("--aptopt=" + option);
  for (const auto& option : recipe.dpkg_options) command.argv.push_back("--dpkgopt=" + option);
  command.argv.push_back(recipe.suite);
  command.argv.push_back(folder);
  for (const auto& line : SourceLines(mirror, recipe.suite, "deb")) command.argv.push_back(line);
  command.env = {"LC_ALL=C.UTF-8", "DEBIAN_FRONTEND=noninteractive"};
  RETURN_IF_ERROR(RunHostCommand(command, log, cancel));
  // The host's own, and what is mounted over in every container.
  for (const char* path :
       {"/etc/resolv.conf", "/etc/hostname", "/dev", "/var/log/apt", "/var/log/dpkg.log",
        "/var/log/bootstrap.log", "/var/log/alternatives.log", "/var/cache/ldconfig/aux-cache"})
    RETURN_IF_ERROR(RemoveTree(folder + path));
  for (const auto& [path, text] : recipe.files) {
    RETURN_IF_ERROR(MakeDirs(folder + path.substr(0, path.rfind('/'))));
    RETURN_IF_ERROR(WriteFileAtomic(folder + path, text));
  }
  return MakeDirs(folder + "/dev");
}

Result<BaseImages::Product> BaseImages::FindProduct(const Recipe& recipe) const {
  std::string prefix = recipe.source.package + "-" + recipe.SourceDigest() + "_";
  std::error_code error;
  for (auto it = fs::directory_iterator(CacheDir("products"), error);
       !error && it != fs::directory_iterator(); it.increment(error)) {
    std::string name = it->path().filename().string();
    if (name.starts_with(prefix) && name.ends_with(".tar.zst"))
      return Product{it->path().string(), name.substr(prefix.size(), name.size() - prefix.size() - 8)};
  }
  return NotFound("not compiled yet");
}

Result<BaseImages::Product> BaseImages::SourceProduct(const Recipe& recipe, const std::string& root_layer,
                                                      const LogSink& log, CancelToken* cancel) {
  std::string dir = options_.cache_dir.empty() ? options_.scratch_dir : CacheDir("products");
  RETURN_IF_ERROR(MakeDirs(dir));
  ASSIGN_OR_RETURN(UniqueFd lock, LockCache(dir + "/" + recipe.source.package + "-" + recipe.SourceDigest()));
  if (!options_.cache_dir.empty())
    if (auto found = FindProduct(recipe); found.ok()) return found;
  ASSIGN_OR_RETURN(Scratch scratch, Scratch::Make(options_.scratch_dir));
  ASSIGN_OR_RETURN(std::string source, FetchSource(recipe, scratch.path(), log, cancel));
  std::string version = TarballVersion(fs::path(source).filename().string());
  if (version.empty()) return Internal("no version in the name " + source);
  Say(log, "Compiling " + recipe.source.version_of + " " + version + " (compiler output only if it fails)");
  ASSIGN_OR_RETURN(auto transaction, layers_->Begin());
  std::string archive =
      dir + "/" + recipe.source.package + "-" + recipe.SourceDigest() + "_" + version + ".tar.zst";
  ASSIGN_OR_RETURN(std::string kept, Compile(recipe, root_layer, source, transaction->dir(), log, cancel));
  RETURN_IF_ERROR(PackArchive(kept, archive, cancel));
  return Product{archive, version};
}

// Only the original tarball of the source package; apt checks it against the archive's signatures.
Result<std::string> BaseImages::FetchSource(const Recipe& recipe, const std::string& folder,
                                            const LogSink& log, CancelToken* cancel) {
  DebianMirror mirror{options_.debian_mirror, ""};
  if (mirror.main.empty()) {
    ASSIGN_OR_RETURN(mirror, FindMirror(ReadAptEntries()));
  }
  Say(log, "Fetching the original sources of " + recipe.source.package + " (" + recipe.source.suite + ")");
  for (const char* part : {"/lists/partial", "/cache/archives/partial", "/download"})
    RETURN_IF_ERROR(MakeDirs(folder + part));
  auto lines = SourceLines({mirror.main, ""}, recipe.source.suite, "deb-src");
  RETURN_IF_ERROR(WriteFileAtomic(folder + "/sources.list", lines[0] + "\n"));
  std::vector<std::string> apt = {"apt-get", "-q",
                                  "-o",      "Dir::Etc::SourceList=" + folder + "/sources.list",
                                  "-o",      "Dir::Etc::SourceParts=/dev/null",
                                  "-o",      "Dir::State::Lists=" + folder + "/lists",
                                  "-o",      "Dir::Cache=" + folder + "/cache",
                                  "-o",      "Acquire::Check-Valid-Until=false",
                                  "-o",      "Acquire::Languages=none",
                                  "-o",      "APT::Sandbox::User=root"};
  HostCommand update{.argv = apt, .env = {"LC_ALL=C.UTF-8"}, .cwd = folder + "/download"};
  update.argv.push_back("update");
  HostCommand source = update;
  source.argv.back() = "source";
  for (const char* word : {"--download-only", "--tar-only"}) source.argv.push_back(word);
  source.argv.push_back(recipe.source.package);
  RETURN_IF_ERROR(RunHostCommand(update, log, cancel));
  RETURN_IF_ERROR(RunHostCommand(source, log, cancel));
  std::error_code error;
  for (auto it = fs::directory_iterator(folder + "/download", error);
       !error && it != fs::directory_iterator(); it.increment(error)) {
    std::string name = it->path().filename().string();
    if (name.find(".orig.tar.") != std::string::npos && !name.ends_with(".asc")) return it->path().string();
  }
  return NotFound("the source package " + recipe.source.package + " has no original tarball");
}

// In a container on the root, with compilers in a layer that is thrown away. The answer is a folder with what
// is kept.
Result<std::string> BaseImages::Compile(const Recipe& recipe, const std::string& root_layer,
                                        const std::string& source, const std::string& scratch,
                                        const LogSink& log, CancelToken* cancel) {
  std::string inside = std::string(kBorrowedDir) + "/" + fs::path(source).filename().string();
  std::string script =
      "set -e\nexport DEBIAN_FRONTEND=noninteractive WORK=/build-work\nmkdir -p \"$WORK\"\n"
      "apt-get -q update > /dev/null\n"
      "apt-get -q install -y --no-install-recommends " +
      Join(recipe.source.build_packages, " ") +
      " > /apt.out 2>&1 || "
      "{ tail -n 30 /apt.out; exit 1; }\n" +
      Join(recipe.source.commands, "\n") + "\n";
  StepCommand command{.layer_ids = {root_layer}, .own_dir = scratch, .argv = {"/bin/bash", "-c", script}};
  command.env = {"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8",
                 "SOURCE=" + inside,
                 "JOBS=" + std::to_string(std::max(1u, std::thread::hardware_concurrency()))};
  Mount mount;
  mount.set_kind(Mount::BIND);
  mount.set_source(source);
  mount.set_target(inside);
  mount.set_read_only(true);
  mount.set_idmap(true);
  command.mounts = {mount};
  ASSIGN_OR_RETURN(RunResult result, steps_->Run(command, log, cancel));
  if (!result.ok())
    return Internal("compiling " + recipe.source.version_of + " failed: " + result.How() + "\n" +
                    result.tail);
  std::string kept = scratch + "/kept";
  for (const auto& path : recipe.source.keep) {
    std::string from = scratch + "/upper" + path, to = kept + path;
    RETURN_IF_ERROR(MakeDirs(to.substr(0, to.rfind('/'))));
    if (::rename(from.c_str(), to.c_str()) != 0) return ErrnoStatus("keeping " + path);
  }
  return kept;
}

Result<std::string> BaseImages::FinishLayer(const Recipe& recipe, const std::string& root_layer,
                                            const Product& product, const LogSink& log, CancelToken* cancel) {
  std::string id = DigestId("ly", "base " + recipe.Digest() + " " + product.version);
  if (layers_->Find(id).ok()) return id;
  ASSIGN_OR_RETURN(auto transaction, layers_->Begin());
  if (!product.archive.empty())
    RETURN_IF_ERROR(Unpack({{root_layer}, transaction->dir(), {}}, product.archive, false, cancel));
  if (!recipe.finish.empty()) {
    StepCommand command{.layer_ids = {root_layer},
                        .own_dir = transaction->dir(),
                        .argv = {"/bin/sh", "-ec", Join(recipe.finish, "\n")}};
    for (const auto& entry : recipe.env) command.env.push_back(Replace(entry, "${version}", product.version));
    ASSIGN_OR_RETURN(RunResult result, steps_->Run(command, log, cancel));
    if (!result.ok())
      return Internal("finishing " + recipe.name + " failed: " + result.How() + "\n" + result.tail);
  }
  RETURN_IF_ERROR(transaction->Commit(id, recipe.name).status());
  return id;
}

std::vector<std::string> BaseImages::Layers() {
  std::vector<std::string> layers;
  auto add = [&](const Result<std::string>& record) {
    ImageSpec spec;
    if (record.ok() && spec.ParseFromString(*record))
      layers.insert(layers.end(), spec.layer_ids().begin(), spec.layer_ids().end());
  };
  for (const auto& recipe : recipes_) add(layers_->GetRecord("base/recipe/" + recipe.Digest()));
  if (auto names = layers_->GetRecord("base/imports"); names.ok()) {
    for (size_t start = 0; start < names->size();) {
      size_t end = std::min(names->find('\n', start), names->size());
      add(layers_->GetRecord("base/import/" + names->substr(start, end - start)));
      start = end + 1;
    }
  }
  return layers;
}

std::vector<Builder::Base> BaseImages::List() {
  std::vector<Builder::Base> list;
  for (const auto& recipe : recipes_) {
    Builder::Base base{.name = recipe.name, .note = recipe.note};
    if (auto spec = Made(recipe); spec.ok()) {
      base.made = true;
      base.version = spec->python_version();
      for (const auto& id : spec->layer_ids())
        if (auto info = layers_->Find(id); info.ok()) base.bytes += info->bytes;
    } else if (recipe.has_source) {
      if (auto product = FindProduct(recipe); product.ok()) base.version = product->version;
    }
    list.push_back(std::move(base));
  }
  // What clients ask for by default and nobody here can make.
  for (const char* series : kClientPythons) {
    std::string name = std::string("python:") + series + "-slim-bookworm";
    if (OffersPython(series) || layers_->GetRecord("base/import/" + name).ok()) continue;
    list.push_back(
        {.name = name, .note = "no recipe: `lydian image import " + name + " ARCHIVE`, or add a recipe"});
  }
  if (auto names = layers_->GetRecord("base/imports"); names.ok()) {
    for (size_t start = 0; start < names->size();) {
      size_t end = std::min(names->find('\n', start), names->size());
      Builder::Base base{.name = names->substr(start, end - start), .note = "imported", .made = true};
      ImageSpec spec;
      auto record = layers_->GetRecord("base/import/" + base.name);
      if (record.ok() && spec.ParseFromString(*record)) {
        for (const auto& id : spec.layer_ids())
          if (auto info = layers_->Find(id); info.ok()) base.bytes += info->bytes;
        list.push_back(std::move(base));
      }
      start = end + 1;
    }
  }
  return list;
}

}  // namespace lydian::build
