#include "build/recipe.h"

#include <algorithm>
#include <cctype>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/fd.h"
#include "base/ids.h"

namespace lydian::build {
namespace {

using nlohmann::json;

// Bumped when the way of making changes what comes out.
constexpr int kEngine = 1;

bool Matches(const std::string& pattern, const std::string& name) {
  size_t hole = pattern.find("<n>");
  if (hole == std::string::npos) return pattern == name;
  if (name.compare(0, hole, pattern, 0, hole) != 0) return false;
  size_t end = hole;
  while (end < name.size() && std::isdigit(static_cast<unsigned char>(name[end]))) ++end;
  return end > hole && name.substr(end) == pattern.substr(hole + 3);
}

// Reads fields and remembers the first that is wrong.
class Fields {
 public:
  Fields(const json& object, std::string where) : object_(object), where_(std::move(where)) {}

  void Text(const char* key, std::string& out, bool required = false) {
    seen_.push_back(key);
    if (!object_.contains(key)) {
      if (required) Fail(std::string(key) + " is missing");
    } else if (!object_[key].is_string() || object_[key].get<std::string>().empty()) {
      Fail(std::string(key) + " must be a text");
    } else {
      out = object_[key].get<std::string>();
    }
  }

  void List(const char* key, std::vector<std::string>& out, bool required = false) {
    seen_.push_back(key);
    if (!object_.contains(key)) {
      if (required) Fail(std::string(key) + " is missing");
      return;
    }
    bool good = object_[key].is_array();
    if (good)
      for (const auto& item : object_[key]) good = good && item.is_string();
    if (good)
      out = object_[key].get<std::vector<std::string>>();
    else
      Fail(std::string(key) + " must be a list of texts");
  }

  void Flag(const char* key, bool& out) {
    seen_.push_back(key);
    if (!object_.contains(key)) return;
    if (object_[key].is_boolean())
      out = object_[key].get<bool>();
    else
      Fail(std::string(key) + " must be true or false");
  }

  void Known(const char* key) { seen_.push_back(key); }
  void Fail(const std::string& message) {
    if (status_.ok()) status_ = InvalidArgument(where_ + ": " + message);
  }
  Status Done() {
    for (const auto& [key, value] : object_.items())
      if (std::find(seen_.begin(), seen_.end(), key) == seen_.end()) Fail("unknown field " + key);
    return status_;
  }

 private:
  const json& object_;
  std::string where_;
  std::vector<std::string> seen_;
  Status status_;
};

Status ParseSource(const json& object, const std::string& file, Recipe::Source& source) {
  if (!object.is_object()) return InvalidArgument(file + ": source must be an object");
  Fields fields(object, file + ": source");
  fields.Text("suite", source.suite, true);
  fields.Text("package", source.package, true);
  fields.Text("what", source.version_of, true);
  fields.List("build_packages", source.build_packages, true);
  fields.List("commands", source.commands, true);
  fields.List("keep", source.keep, true);
  fields.Flag("python", source.python);
  for (const auto& path : source.keep)
    if (!path.starts_with("/") || path.find("..") != std::string::npos)
      fields.Fail("keep must hold absolute paths");
  return fields.Done();
}

}  // namespace

Result<Recipe> ParseRecipe(const std::string& text, const std::string& file) {
  json object = json::parse(text, nullptr, false, true);
  if (!object.is_object()) return InvalidArgument(file + ": not a JSON object");
  if (object.value("format", json()) != json(1)) return InvalidArgument(file + ": format must be 1");
  Recipe recipe;
  Fields fields(object, file);
  for (const char* key : {"format", "root", "source", "minutes"}) fields.Known(key);
  fields.Text("name", recipe.name, true);
  fields.Text("note", recipe.note);
  fields.List("also", recipe.also);
  fields.List("finish", recipe.finish);
  fields.List("env", recipe.env);
  fields.List("cmd", recipe.cmd);
  if (object.contains("minutes") && object["minutes"].is_number_unsigned())
    recipe.minutes = object["minutes"].get<unsigned>();
  RETURN_IF_ERROR(fields.Done());
  if (!object.contains("root") || !object["root"].is_object())
    return InvalidArgument(file + ": root is missing");
  Fields root(object["root"], file + ": root");
  root.Text("suite", recipe.suite, true);
  root.List("packages", recipe.packages, true);
  root.List("apt_options", recipe.apt_options);
  root.List("dpkg_options", recipe.dpkg_options);
  root.Known("files");
  if (object["root"].contains("files")) {
    if (!object["root"]["files"].is_object()) root.Fail("files must be an object of path: text");
    for (const auto& [path, text] : object["root"]["files"].items()) {
      if (!path.starts_with("/") || path.find("..") != std::string::npos || !text.is_string())
        root.Fail("files must hold absolute paths and texts");
      else
        recipe.files.emplace_back(path, text.get<std::string>());
    }
  }
  RETURN_IF_ERROR(root.Done());
  if (object.contains("source")) {
    recipe.has_source = true;
    RETURN_IF_ERROR(ParseSource(object["source"], file, recipe.source));
  }
  return recipe;
}

Result<std::vector<Recipe>> LoadRecipes(const std::string& dir) {
  std::vector<std::string> files;
  std::error_code error;
  for (auto it = std::filesystem::directory_iterator(dir, error);
       !error && it != std::filesystem::directory_iterator(); it.increment(error))
    if (it->path().extension() == ".json") files.push_back(it->path().string());
  if (error) return NotFound("no base recipes in " + dir + ": " + error.message());
  std::sort(files.begin(), files.end());
  std::vector<Recipe> recipes;
  for (const auto& file : files) {
    ASSIGN_OR_RETURN(std::string text, ReadFile(file, size_t{1} << 20));
    ASSIGN_OR_RETURN(Recipe recipe, ParseRecipe(text, file));
    recipes.push_back(std::move(recipe));
  }
  return recipes;
}

bool Recipe::Serves(const std::string& wanted) const {
  if (wanted == name) return true;
  return std::any_of(also.begin(), also.end(),
                     [&](const std::string& pattern) { return Matches(pattern, wanted); });
}

std::string Recipe::RootDigest() const {
  return Sha256Hex(json{kEngine, suite, packages, apt_options, dpkg_options, files}.dump()).substr(0, 24);
}

std::string Recipe::SourceDigest() const {
  return Sha256Hex(json{RootDigest(), source.suite, source.package, source.build_packages, source.commands,
                        source.keep}
                       .dump())
      .substr(0, 24);
}

std::string Recipe::Digest() const {
  return Sha256Hex(json{SourceDigest(), finish, env, cmd}.dump()).substr(0, 24);
}

std::string NormalizeImageName(const std::string& name) {
  std::string out = name;
  for (const char* prefix : {"docker.io/", "index.docker.io/", "registry-1.docker.io/"})
    if (out.starts_with(prefix)) out = out.substr(std::string(prefix).size());
  if (out.starts_with("library/")) out = out.substr(8);
  size_t slash = out.rfind('/');
  size_t base = slash == std::string::npos ? 0 : slash;
  if (out.find(':', base) == std::string::npos && out.find('@', base) == std::string::npos) out += ":latest";
  return out;
}

}  // namespace lydian::build
