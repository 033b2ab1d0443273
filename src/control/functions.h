// Functions and classes: what control keeps of them. Definitions are the client's own messages, kept as
// bytes; api reads them.
//
// A function keeps its id over deploys; each FunctionCreate adds a definition, which becomes the active one
// when the app is published (at once for builder functions, which are never published). A bound function is a
// base with parameters and options; its definition follows its base's.
//
// Thread-safety: the objects strand only.
#pragma once

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/status.h"
#include "control/references.h"
#include "control/scope.h"
#include "store/database.h"

namespace lydian::control {

struct Function {
  std::string id, app_id, tag, workspace_id, environment_id;
  bool builder = false;
  std::string handle;  // modal.client.FunctionHandleMetadata as precreated
  std::string active_definition, newest_definition;
  // Of a bound function; `id` is the bound id then and the rest its base's.
  std::string base_id, params, options;
};

struct Definition {
  std::string id, function_id;
  std::string function;               // modal.client.Function
  std::string data;                   // modal.client.FunctionData, as answered
  std::string handle;                 // modal.client.FunctionHandleMetadata
  std::vector<Reference> references;  // of a new one: its image, mounts and secrets
};

struct Class {
  std::string id, app_id;
};

struct Member {
  std::string tag, id;  // fu-... or cs-...
};

class Functions {
 public:
  Functions(store::Database* db, Clock* clock) : db_(db), clock_(clock) {}

  // The existing function of that id in the app, else a new one. Tags may repeat: a builder function has its
  // Python name.
  Result<Function> Precreate(const std::string& app_id, const std::string& tag,
                             const std::string& existing_id, const std::string& handle);
  // Adds a definition; `activate` makes it the one that runs. `id` is filled in.
  Result<Definition> Define(const std::string& function_id, Definition definition, bool builder,
                            bool activate);

  // Base or bound. NOT_FOUND outside of the scope.
  Result<Function> Get(const Scope& scope, const std::string& function_id);
  Result<Function> ById(const std::string& function_id);
  // The active definition, else the newest; NOT_FOUND before the first.
  Result<Definition> DefinitionOf(const Function& function);
  // The same without `function`, which may hold 16 MiB of pickled code.
  Result<Definition> OutlineOf(const Function& function);

  // The same base, parameters and options give the same id.
  // `references`: what the options name.
  Result<Function> Bind(const Function& base, const std::string& params, const std::string& options,
                        const std::vector<Reference>& references = {});
  Result<std::vector<Function>> BoundTo(const std::string& base_id);

  // Class `existing_id` of the app, else a new one.
  Result<Class> CreateClass(const std::string& app_id, const std::string& existing_id);
  Result<Class> GetClass(const Scope& scope, const std::string& class_id);

  // Published: tags in order. Of an app that isn't published yet: its functions by tag.
  Result<std::vector<Member>> Members(const std::string& app_id, bool published);
  // Writes the references of definitions and bound functions that were made before there were any, once.
  // `read_definition` and `read_options` say what is named in modal.client.Function and FunctionOptions.
  using ReadReferences = std::function<std::vector<Reference>(const std::string& bytes)>;
  Status NoteOldReferences(const ReadReferences& read_definition, const ReadReferences& read_options);
  // All functions of an app (without bound ones), builders too.
  Result<std::vector<Function>> OfApp(const std::string& app_id);
  Result<std::string> MemberId(const std::string& app_id, const std::string& tag);

  // In the transaction that changed the function's row: which definitions it holds.
  static Status ReferToDefinitions(store::Session& session, const std::string& function_id);

 private:
  Result<Definition> ReadDefinition(const Function& function, const char* sql);
  Result<std::vector<Function>> Select(std::string_view where, const store::Params& params);

  store::Database* db_;
  Clock* clock_;
};

}  // namespace lydian::control
