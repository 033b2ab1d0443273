// Base recipes: how an image that would come from a registry is made here, out of Debian packages and of the
// sources of one. Data (docs/formats/base-recipe.md), read from *.json of one folder. Thread-safety: values.
// Errors: INVALID_ARGUMENT naming file and field.
#pragma once

#include <string>
#include <vector>

#include "base/status.h"

namespace lydian::build {

struct Recipe {
  std::string name;               // "python:3.11-slim-bookworm"
  std::vector<std::string> also;  // other names; <n> stands for a number
  std::string note;
  // The root file system.
  std::string suite;
  std::vector<std::string> packages, apt_options, dpkg_options;
  std::vector<std::pair<std::string, std::string>> files;  // path and text, written at the end
  // Compiled from the original sources of a Debian package; optional.
  struct Source {
    std::string suite, package;
    std::vector<std::string> build_packages, commands, keep;
    std::string version_of;  // what it is, for people: "CPython"
    bool python = false;     // its version is the image's Python
  };
  bool has_source = false;
  Source source;
  std::vector<std::string> finish;  // commands in the finished root
  std::vector<std::string> env, cmd;
  unsigned minutes = 1;  // about, uncached, for progress texts

  bool Serves(const std::string& name) const;
  std::string RootDigest() const;    // of what the root depends on: shared between recipes
  std::string SourceDigest() const;  // of what the compiled part depends on, the root included
  std::string Digest() const;        // of everything
};

Result<Recipe> ParseRecipe(const std::string& text, const std::string& file);
Result<std::vector<Recipe>> LoadRecipes(const std::string& dir);

// "docker.io/library/python" -> "python:latest".
std::string NormalizeImageName(const std::string& name);

}  // namespace lydian::build
