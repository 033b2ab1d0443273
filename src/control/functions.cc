#include "control/functions.h"

#include "base/ids.h"

namespace lydian::control {

namespace {

constexpr char kColumns[] =
    "SELECT function.id, function.app_id, function.tag, app.workspace_id, app.environment_id, "
    "function.builder, function.handle, "
    "function.active_definition, function.newest_definition FROM function JOIN app ON app.id = "
    "function.app_id ";

Function FromRow(store::Row& row) {
  Function function;
  function.id = row.Text(0), function.app_id = row.Text(1), function.tag = row.Text(2);
  function.workspace_id = row.Text(3), function.environment_id = row.Text(4),
  function.builder = row.Int(5) != 0;
  function.handle = row.TakeText(6), function.active_definition = row.Text(7),
  function.newest_definition = row.Text(8);
  return function;
}

}  // namespace

Result<std::vector<Function>> Functions::Select(std::string_view where, const store::Params& params) {
  std::vector<Function> found;
  RETURN_IF_ERROR(db_->ForEach(kColumns + std::string(where), params, [&](store::Row& row) {
    found.push_back(FromRow(row));
    return OkStatus();
  }));
  return found;
}

Result<Function> Functions::Precreate(const std::string& app_id, const std::string& tag,
                                      const std::string& existing_id, const std::string& handle) {
  if (!existing_id.empty()) {
    ASSIGN_OR_RETURN(auto found,
                     Select("WHERE function.id = ? AND function.app_id = ?", {existing_id, app_id}));
    if (found.empty()) return NoSuch("function of this app", "fu", existing_id);
    return found[0];
  }
  std::string id = NewId("fu");
  RETURN_IF_ERROR(db_->Execute("INSERT INTO function (id, app_id, tag, handle) VALUES (?, ?, ?, ?)",
                               {id, app_id, tag, store::Blob{handle}}));
  return ById(id);
}

Result<Definition> Functions::Define(const std::string& function_id, Definition definition, bool builder,
                                     bool activate) {
  definition.function_id = function_id;
  RETURN_IF_ERROR(db_->Transaction([&](store::Session& session) -> Status {
    RETURN_IF_ERROR(session.Execute(
        "INSERT INTO definition (id, function_id, function, data, handle, created_at) VALUES (?, ?, ?, ?, ?, "
        "?)",
        {definition.id, function_id, store::Blob{definition.function}, store::Blob{definition.data},
         store::Blob{definition.handle}, clock_->UnixSeconds()}));
    RETURN_IF_ERROR(
        session.Execute("UPDATE function SET newest_definition = ?, builder = ?, handle = ? WHERE id = ?",
                        {definition.id, builder, store::Blob{definition.handle}, function_id}));
    if (activate) {
      RETURN_IF_ERROR(session.Execute("UPDATE function SET active_definition = ? WHERE id = ?",
                                      {definition.id, function_id}));
    }
    RETURN_IF_ERROR(Refer(session, definition.id, definition.references));
    return ReferToDefinitions(session, function_id);
  }));
  return definition;
}

Status Functions::ReferToDefinitions(store::Session& session, const std::string& function_id) {
  RETURN_IF_ERROR(Release(session, function_id, RefKind::kDefinition));
  return session.Execute(
      "INSERT INTO reference (holder, kind, target) SELECT id, 'definition', active_definition FROM function "
      "WHERE id = ? AND active_definition != '' UNION SELECT id, 'definition', newest_definition FROM "
      "function WHERE id = ? AND newest_definition != ''",
      {function_id, function_id});
}

Status Functions::NoteOldReferences(const ReadReferences& read_definition,
                                    const ReadReferences& read_options) {
  ASSIGN_OR_RETURN(auto done, db_->Query("SELECT 1 FROM upkeep WHERE what = 'references of functions'"));
  if (!done.empty()) return OkStatus();
  auto note = [&](const std::string& select, const ReadReferences& read) -> Status {
    for (std::string last;;) {  // one at a time: a definition may have 32 MiB
      ASSIGN_OR_RETURN(auto rows, db_->Query(select, {last}));
      if (rows.empty()) return OkStatus();
      last = rows[0].Text(0);
      RETURN_IF_ERROR(db_->Transaction(
          [&](store::Session& session) { return Refer(session, last, read(rows[0].Text(1))); }));
    }
  };
  RETURN_IF_ERROR(
      note("SELECT id, function FROM definition WHERE id > ? ORDER BY id LIMIT 1", read_definition));
  RETURN_IF_ERROR(note(
      "SELECT bound_function.id, options FROM bound_function JOIN function ON function.id = base_id JOIN "
      "app ON app.id = app_id WHERE bound_function.id > ? AND app.state != 5 ORDER BY bound_function.id "
      "LIMIT 1",
      read_options));
  return db_->Execute("INSERT INTO upkeep (what, at) VALUES ('references of functions', ?)",
                      {clock_->UnixSeconds()});
}

Result<Function> Functions::ById(const std::string& function_id) {
  ASSIGN_OR_RETURN(auto found, Select("WHERE function.id = ?", {function_id}));
  if (!found.empty()) return found[0];
  ASSIGN_OR_RETURN(auto bound, db_->Query("SELECT base_id, params, options FROM bound_function WHERE id = ?",
                                          {function_id}));
  if (bound.empty()) return NoSuch("function", "fu", function_id);
  ASSIGN_OR_RETURN(found, Select("WHERE function.id = ?", {bound[0].Text(0)}));
  if (found.empty()) return NoSuch("function", "fu", function_id);
  Function function = found[0];
  function.base_id = function.id, function.id = function_id;
  function.params = bound[0].TakeText(1), function.options = bound[0].TakeText(2);
  return function;
}

Result<Function> Functions::Get(const Scope& scope, const std::string& function_id) {
  ASSIGN_OR_RETURN(Function function, ById(function_id));
  if (!scope.Sees(function.workspace_id, function.environment_id))
    return NoSuch("function", "fu", function_id);
  return function;
}

Result<Definition> Functions::DefinitionOf(const Function& function) {
  return ReadDefinition(function,
                        "SELECT id, function_id, function, data, handle FROM definition WHERE id = ?");
}

Result<Definition> Functions::OutlineOf(const Function& function) {
  return ReadDefinition(function, "SELECT id, function_id, '', data, handle FROM definition WHERE id = ?");
}

Result<Definition> Functions::ReadDefinition(const Function& function, const char* sql) {
  const std::string& id =
      function.active_definition.empty() ? function.newest_definition : function.active_definition;
  ASSIGN_OR_RETURN(auto rows, db_->Query(sql, {id}));
  if (rows.empty())
    return NotFound("the function " + function.id +
                    " has no definition: it was never finished, or its app has ended");
  Definition definition;
  definition.id = rows[0].Text(0), definition.function_id = rows[0].Text(1),
  definition.function = rows[0].TakeText(2);
  definition.data = rows[0].TakeText(3), definition.handle = rows[0].TakeText(4);
  return definition;
}

Result<Function> Functions::Bind(const Function& base, const std::string& params, const std::string& options,
                                 const std::vector<Reference>& references) {
  const std::string& base_id = base.base_id.empty() ? base.id : base.base_id;
  std::string id = DigestId("fu", base_id + '\0' + Sha256Hex(params) + Sha256Hex(options));
  RETURN_IF_ERROR(db_->Transaction([&](store::Session& session) -> Status {
    RETURN_IF_ERROR(session.Execute(
        "INSERT INTO bound_function (id, base_id, params, options, created_at) VALUES (?, ?, ?, ?, ?) "
        "ON CONFLICT (id) DO NOTHING",
        {id, base_id, store::Blob{params}, store::Blob{options}, clock_->UnixSeconds()}));
    return Refer(session, id, references);
  }));
  return ById(id);
}

Result<std::vector<Function>> Functions::BoundTo(const std::string& base_id) {
  ASSIGN_OR_RETURN(auto rows, db_->Query("SELECT id FROM bound_function WHERE base_id = ?", {base_id}));
  std::vector<Function> all;
  for (auto& row : rows) {
    ASSIGN_OR_RETURN(Function function, ById(row.Text(0)));
    all.push_back(std::move(function));
  }
  return all;
}

Result<Class> Functions::CreateClass(const std::string& app_id, const std::string& existing_id) {
  if (!existing_id.empty()) {
    ASSIGN_OR_RETURN(auto rows,
                     db_->Query("SELECT id FROM class WHERE id = ? AND app_id = ?", {existing_id, app_id}));
    if (rows.empty()) return NoSuch("class of this app", "cs", existing_id);
    return Class{existing_id, app_id};
  }
  Class made{NewId("cs"), app_id};
  RETURN_IF_ERROR(db_->Execute("INSERT INTO class (id, app_id) VALUES (?, ?)", {made.id, app_id}));
  return made;
}

Result<Class> Functions::GetClass(const Scope& scope, const std::string& class_id) {
  ASSIGN_OR_RETURN(
      auto rows, db_->Query("SELECT class.id, class.app_id, app.workspace_id, app.environment_id FROM class "
                            "JOIN app ON app.id = class.app_id WHERE class.id = ?",
                            {class_id}));
  if (rows.empty() || !scope.Sees(rows[0].Text(2), rows[0].Text(3))) return NoSuch("class", "cs", class_id);
  return Class{rows[0].Text(0), rows[0].Text(1)};
}

Result<std::vector<Member>> Functions::Members(const std::string& app_id, bool published) {
  std::vector<Member> members;
  auto each = [&](store::Row& row) {
    members.push_back({row.Text(0), row.Text(1)});
    return OkStatus();
  };
  if (published) {
    RETURN_IF_ERROR(
        db_->ForEach("SELECT tag, object_id FROM app_member WHERE app_id = ? ORDER BY tag", {app_id}, each));
  } else {
    RETURN_IF_ERROR(
        db_->ForEach("SELECT tag, id FROM function WHERE app_id = ? AND builder = 0 AND newest_definition != "
                     "'' ORDER BY tag",
                     {app_id}, each));
  }
  return members;
}

Result<std::vector<Function>> Functions::OfApp(const std::string& app_id) {
  return Select("WHERE function.app_id = ?", {app_id});
}

Result<std::string> Functions::MemberId(const std::string& app_id, const std::string& tag) {
  ASSIGN_OR_RETURN(
      auto rows, db_->Query("SELECT object_id FROM app_member WHERE app_id = ? AND tag = ?", {app_id, tag}));
  if (rows.empty()) return NotFound("nothing is published as '" + tag + "'");
  return rows[0].Text(0);
}

}  // namespace lydian::control
